"""What a user can ask for: frozen dataclasses, from which flags, job files and docs are made."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pp_export.core.errors import OptionError

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def parse_bytes(text: str | int) -> int:
    """`5GB`, `512MiB` or a number, in bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = _UNITS.get(match[2].upper(), 0) if match else 0
    size = int(float(match[1]) * unit) if match else 0
    if size < 1:
        raise OptionError(
            "not a size", expected="a positive number with KB, MB, GB, KiB, MiB or GiB", got=text
        )
    return size


def parse_leaders(text: str | int) -> int | None:
    """`all` (None) or a positive number."""
    if text == "all":
        return None
    if not str(text).isdecimal() or int(text) < 1:
        raise OptionError("not a number of leaders", expected="a positive number, or all", got=text)
    return int(text)


def _option(
    help_text: str,
    default: Any = dataclasses.MISSING,
    *,
    choices: tuple[str, ...] | None = None,
    positive: bool = False,
) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices, "positive": positive})


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What to make, and how: the options of every export. Sizes in bytes are texts such as `5GB`."""

    reference: Path = _option(
        "Hugging Face folder of the model: config.json, tokenizer; weights are not needed"
    )
    output: Path = _option("folder to make")
    leaders_per_stage: str = _option("ranks of a stage that gather and write shards: a number, or all", "1")
    max_shard_size: str = _option("layers above this size are split into several files", "5GB")
    dtype: str = _option(
        "element type of floating-point weights",
        "checkpoint",
        choices=("checkpoint", "float32", "bfloat16", "float16"),
    )
    mtp: str = _option(
        "multi-token-prediction layers: export them, or drop them", "export", choices=("export", "drop")
    )
    vocab_size: int | None = _option(
        "true vocabulary size; default: the reference config.json's", None, positive=True
    )
    architecture: str | None = _option(
        "architecture table (a .yaml file); default: the packaged one for the class", None
    )
    code: bool = _option(
        "copy the Python files that config.json's auto_map names, as data; else strip auto_map", True
    )
    overwrite: bool = _option("replace an existing output once the new one is complete and verified", False)
    verify: bool = _option("re-read and check every byte before publishing", True)
    backend: str = _option("process group that carries the tensors", "gloo", choices=("gloo", "nccl"))
    stall_seconds: float = _option("give up when no rank makes progress for so long", 600.0)
    contents: str = _option(
        "a folder of its own; or a whole model, or weights and index, beside what else the output holds",
        "folder",
        choices=("folder", "model", "weights"),
    )
    parents: bool = _option("make the folders above the output where they are missing", False)
    report: Path | None = _option("write a JSON report there, also when the export fails", None)

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices is not None and value not in choices:
                raise OptionError(
                    f"--{flag(option.name)} has no such value", expected=", ".join(choices), got=value
                )
            if option.metadata["positive"] and value is not None and value < 1:
                raise OptionError(f"--{flag(option.name)} must be at least 1", got=value)
        if not self.stall_seconds > 0:
            raise OptionError("--stall-seconds must be positive", got=self.stall_seconds)
        parse_bytes(self.max_shard_size)
        parse_leaders(self.leaders_per_stage)

    @property
    def weights_only(self) -> bool:
        return self.contents == "weights"

    @property
    def beside(self) -> bool:
        """Whether what else the output holds is left alone."""
        return self.contents != "folder"

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class ExportOptions(TargetOptions):
    """The options of `export` and `plan`. Field names are the keys of a job file; flags have dashes."""

    checkpoint: Path = _option("Megatron checkpoint: its root (with the tracker file) or an iteration folder")
    iteration: int | None = _option("iteration to export; default: the tracker file's", None)
    pipeline_parallel: int | None = _option(
        "the export's own number of stages; default: chosen from the world size", None, positive=True
    )
    tensor_parallel: int | None = _option(
        "ranks over which a stage's tensor parts are dealt; default: chosen", None, positive=True
    )
    expert_parallel: int | None = _option(
        "ranks over which a stage's experts are dealt; default: chosen", None, positive=True
    )
    check_source: bool = _option(
        "check the CRC-32 that torch stored with every record while reading it", True
    )


Options = TypeVar("Options", bound=TargetOptions)


def flag(name: str) -> str:
    """The flag of an option, without the leading dashes."""
    return name.replace("_", "-")


def options_from(values: Mapping[str, Any], origin: str, kind: type[Options]) -> Options:
    """Options of a kind from raw values; unknown, missing and ill-typed keys are refused."""
    fields = {option.name: option for option in dataclasses.fields(kind)}
    check_keys(values, fields, origin)
    missing = [n for n, o in fields.items() if o.default is dataclasses.MISSING and values.get(n) is None]
    if missing:
        raise OptionError(
            "options are missing",
            where={"given in": origin},
            findings=[f"--{flag(name)}" for name in missing],
        )
    return kind(**{name: _convert(name, str(fields[name].type), value) for name, value in values.items()})


def check_keys(keys: Iterable[str], known: Iterable[str], origin: str) -> None:
    """Raise OptionError naming, for each unknown key, the nearest known one."""
    known = list(known)
    findings = []
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key).replace("-", "_"), known, n=1, cutoff=0.5)
            findings.append(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if findings:
        raise OptionError(
            "unknown options", where={"given in": origin}, expected=", ".join(known), findings=findings
        )


def read_job(path: Path) -> dict[str, Any]:
    """The values of a job file. Relative paths in it are relative to the working directory, as those of flags
    are.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"the job file can't be read: {error}", where={"file": path}) from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise OptionError("a job file must be a mapping of option names to values", where={"file": path})
    return value


def parse_setting(text: str) -> tuple[str, Any]:
    """`key=value` as --set takes it; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise OptionError("--set takes key=value", got=text)
    try:
        return key.strip().replace("-", "_"), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise OptionError(f"the value of --set is not YAML: {error}", got=text) from error


def _convert(name: str, kind: str, value: Any) -> Any:
    if (value is None and kind.endswith("None")) or (kind == "bool" and isinstance(value, bool)):
        return value
    try:
        if kind.startswith("Path") and isinstance(value, (str, Path)):
            return Path(value)
        if kind.startswith("str") and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if kind.startswith("int") and not isinstance(value, (bool, float)):
            return int(value)
        if kind.startswith("float") and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise OptionError(f"--{flag(name)} has a value of the wrong type", expected=kind, got=repr(value))
