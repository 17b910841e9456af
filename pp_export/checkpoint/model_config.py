"""The config of the model that a framework keeps beside a checkpoint, where Megatron-LM has training args.

`run_config.yaml` in the folder (Megatron-Bridge), `context/model.yaml` beside it (NeMo 2),
`transformer_config.json` beside it or in it (verl). Read as plain data: what an entry `_target_` names is
text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pp_export.checkpoint import locate
from pp_export.core import plain_yaml, strict_json
from pp_export.core.errors import CheckpointError
from pp_export.megatron import transformer_config

_NESTED, _OF_LANGUAGE = "transformer", "language_transformer_config"
_OF_BUILDERS = ("_target_", "_builder_")


@dataclass(frozen=True)
class ConfigFile:
    """A file whose `section` (all of it where that is "") is the config, and who writes such files."""

    path: Path
    section: str
    writer: str

    @property
    def goes_first(self) -> bool:
        """Whether it counts before training args; others only stand in for them."""
        return self.section == "model"

    @property
    def is_disentangled(self) -> bool:
        """Whether who writes it undoes the interleaving of gate and up rows when saving."""
        return self.section != ""


def find(folder: Path) -> ConfigFile | None:
    """The config that belongs to the weights in `folder`."""
    files = (
        ConfigFile(folder / "run_config.yaml", "model", "Megatron-Bridge"),
        ConfigFile(folder.parent / "context" / "model.yaml", "config", "NeMo 2"),
        ConfigFile(folder / "transformer_config.json", "", "verl"),
        ConfigFile(folder.parent / "transformer_config.json", "", "verl"),
    )
    return next((file for file in files if file.path.is_file()), None)


def read(file: ConfigFile) -> dict[str, Any]:
    """What the config says, as training args; CheckpointError where it can't be read."""
    path, max_bytes = file.path, plain_yaml.MAX_BYTES if file.section else strict_json.MAX_CONFIG_BYTES
    data = locate.read_small(path, max_bytes)
    try:
        value = (
            plain_yaml.parse(data) if file.section else strict_json.parse_object(data, allow_infinity=True)
        )
    except plain_yaml.YamlError as error:
        raise CheckpointError(f"{path.name} is no plain YAML: {error}", where={"file": path}) from error
    except strict_json.JsonError as error:
        raise CheckpointError(f"{path.name} can't be understood: {error}", where={"file": path}) from error
    config = value.get(file.section) if file.section and isinstance(value, dict) else value
    if not isinstance(config, dict):
        raise CheckpointError(f"{path.name} has no section `{file.section}`", where={"file": path})
    return transformer_config.as_args(_flat(config))


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose TransformerConfig may be nested in it, as newer Megatron-Bridge has it.

    What the model itself says goes before the nested field of the same name, unless it is None. Where a
    model of pictures and text has a config for its language model, that is all: what stands around it are
    the placeholders of a class that needs them.
    """
    if isinstance(config.get(_OF_LANGUAGE), dict):
        return _flat(config[_OF_LANGUAGE])
    nested = config.get(_NESTED)
    inner = dict(nested) if isinstance(nested, dict) else {}
    outer = {
        name: value
        for name, value in config.items()
        if not (inner and name == _NESTED) and not (value is None and name in inner)
    }
    return {name: value for name, value in (inner | outer).items() if name not in _OF_BUILDERS}
