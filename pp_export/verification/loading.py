"""The last proof: transformers builds the model of config.json and takes every tensor of the folder.

Only a class of the transformers library itself is used, whatever config.json says about code, weight files or
kernels elsewhere. transformers' own loader is asked, not accelerate's: since version 5 it packs experts in
memory, so that names on disk and names in the model differ, and only it knows how.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

from pp_export.core.config_keys import LEADS_OUTSIDE, without
from pp_export.core.file_names import CONFIG
from pp_export.core.strict_json import parse_object
from pp_export.verification.definition import is_of_mtp
from pp_export.verification.findings import Fault, brief

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def load_faults(folder: Path) -> list[Fault]:
    """Build the model and load the folder into it, on CPU; takes as much memory as the model."""
    try:
        with quiet_and_offline():
            return load_model(folder, dtype="auto")[1]
    except Exception as error:  # noqa: BLE001 (whatever the library raises is a finding about the folder)
        return [Fault("load-failed", CONFIG, None, f"{type(error).__name__}: {brief(str(error))}")]


def load_model(folder: Path, **settings: Any) -> tuple[Any, list[Fault]]:
    """The model (None where there is no class for it), and in what the folder does not fit it.

    `settings` are those of `from_pretrained`. Whatever the library raises goes through.
    """
    transformers: Any = importlib.import_module("transformers")
    config = parse_object((folder / CONFIG).read_bytes(), allow_infinity=True)
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    model_class: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    is_model = inspect.isclass(model_class) and issubclass(model_class, transformers.PreTrainedModel)
    if not is_model:
        text = f"transformers {transformers.__version__} has no model class {brief(name)}"
        return None, [Fault("load-failed", CONFIG, None, text)]
    model, info = model_class.from_pretrained(
        str(folder),
        config=_model_config(model_class.config_class, config),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **settings,
    )
    return model, list(_faults(name, info, config))


def _model_config(config_class: Any, config: Mapping[str, Any]) -> Any:
    """What the library makes of config.json when it reads the file itself: infinity is decoded, which release
    5 writes as {"__float__": "Infinity"}; names on disk follow from the class's type, also where the file
    has another (Kimi K2).
    """
    values = without(config, LEADS_OUTSIDE)
    decode = getattr(config_class, "_decode_special_floats", None)
    made = config_class.from_dict(decode(values) if decode else values)
    made.model_type = config_class.model_type
    return made


def _faults(name: Any, info: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Fault]:
    for kind, key, text in (
        ("load-missing", "missing_keys", f"{name} has it; the folder lacks it"),
        ("load-unexpected", "unexpected_keys", f"the folder has it; {name} lacks it"),
    ):
        for tensor in sorted(info[key]):
            if kind == "load-unexpected" and is_of_mtp(tensor, config):
                continue
            yield Fault(kind, CONFIG, tensor, text)
    for tensor, found, expected in sorted(info["mismatched_keys"], key=lambda each: str(each[0])):
        text = f"the folder has shape {list(found)}, {name} has {list(expected)}"
        yield Fault("load-mismatch", CONFIG, tensor, text)
    for message in info.get("error_msgs", []):
        yield Fault("load-failed", CONFIG, None, brief(str(message)))


@contextmanager
def quiet_and_offline() -> Iterator[None]:
    """No network, no progress bars, no reports; everything is put back after."""
    before = {key: os.environ.get(key) for key in _OFFLINE}
    os.environ.update(_OFFLINE)
    try:
        logging: Any = importlib.import_module("transformers.utils.logging")
        verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        accelerate = getLogger("accelerate")
        level = accelerate.level
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        accelerate.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            accelerate.setLevel(level)
            if had_bars:
                logging.enable_progress_bar()
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
