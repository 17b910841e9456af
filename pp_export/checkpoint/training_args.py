"""What a checkpoint says of the run that wrote it: the training args, wherever they are kept.

`common.pt` (megatron-core up to 0.18), the `common_state` item (from 0.19), items named `args` and
`iteration` (plain DCP), `run_config.yaml` (Megatron-Bridge), `context/model.yaml` (NeMo 2). Pickles and YAML
are read as data; nothing that they name is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pp_export.checkpoint import locate
from pp_export.checkpoint.catalog import Interleave
from pp_export.core.errors import CheckpointError
from pp_export.megatron import transformer_config
from pp_export.torch_file import archive, unpickler

COMMON_STATE = "common_state/"
_ROUTED = re.compile(r"\.mlp\.experts\..*linear_fc1\.(weight|bias)$")
_SHARED = re.compile(r"\.mlp\.shared_experts\.linear_fc1\.(weight|bias)$")
_LAYOUT = re.compile(r"(tensor|(virtual_)?pipeline|expert|expert_tensor|context)(_model)?_parallel_size")


@dataclass(frozen=True)
class Found:
    """The args in Megatron-LM's words (None where there are none), and what else was beside them."""

    args: Mapping[str, Any] | None = None
    iteration: int | None = None
    writer: tuple[str, ...] = ()
    is_bridge: bool = False

    @property
    def layout(self) -> dict[str, int]:
        """The parallel sizes of the run."""
        return layout_of(self.args or {})


def layout_of(args: Mapping[str, Any]) -> dict[str, int]:
    """The parallel sizes among training args."""
    return {n: v for n, v in sorted(args.items()) if _LAYOUT.fullmatch(n) and isinstance(v, int)}


def interleave_of(args: Mapping[str, Any] | None) -> Callable[[str], Interleave | None]:
    """How gate and up take turns in the tensor of a name, as the training args say."""
    known = args or {}
    tensor = known.get("tensor_model_parallel_size") or 1
    kinds = (
        (_ROUTED, "moe_mlp_glu_interleave_size", known.get("expert_tensor_parallel_size") or tensor),
        (_SHARED, "moe_shared_expert_glu_interleave_size", tensor),
    )

    def find(name: str) -> Interleave | None:
        fitting = ((known.get(key), parts) for kind, key, parts in kinds if kind.search(name))
        return next((Interleave(block, parts) for block, parts in fitting if block), None)

    return find


def read(folder: Path, items: Mapping[str, tuple[str, int, int]]) -> Found:
    """The args of the run that wrote `folder`; `items` are (file, offset, length) of what DCP stored as
    bytes.
    """
    if (folder / "run_config.yaml").is_file():
        return _from_config(folder / "run_config.yaml", "model", "Megatron-Bridge")
    if (folder / "common.pt").is_file():
        return _from_state(archive.value_in(locate.read(folder / "common.pt"), folder / "common.pt"))
    if (folder.parent / "context" / "model.yaml").is_file():
        return _from_config(folder.parent / "context" / "model.yaml", "config", "NeMo 2")
    common = next((key for key in sorted(items) if key.startswith(COMMON_STATE)), None)
    if common is not None:
        state = _read_item(folder, items[common])
        return _from_state(state[0] if isinstance(state, list) and len(state) == 1 else state)
    return _from_state({key: _read_item(folder, items[key]) for key in ("args", "iteration") if key in items})


def args_of(state: Any) -> dict[str, Any] | None:
    """The `args` namespace of a checkpoint's state as JSON values."""
    args = state.get("args") if isinstance(state, dict) else None
    values = args.__dict__.get("state") if isinstance(args, unpickler.InertObject) else args
    return {str(k): unpickler.plain(v) for k, v in values.items()} if isinstance(values, dict) else None


def _from_state(state: Any) -> Found:
    iteration = state.get("iteration") if isinstance(state, dict) else None
    return Found(args_of(state), iteration if isinstance(iteration, int) else None)


def _from_config(path: Path, section: str, writer: str) -> Found:
    """From a config file whose `section` is a TransformerConfig; its `_target_` entries are only text
    here.
    """
    try:
        value = yaml.safe_load(locate.read(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path.name} is no plain YAML: {error}", where={"file": path}) from error
    config = value.get(section) if isinstance(value, dict) else None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path.name} has no section `{section}`", where={"file": path})
    return Found(transformer_config.as_args(config), None, (writer,), is_bridge=True)


def _read_item(folder: Path, item: tuple[str, int, int]) -> Any:
    file, offset, length = item
    return archive.value_in(locate.read(folder / file, offset, length), folder / file)
