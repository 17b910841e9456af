"""What a user can ask for: frozen dataclasses, from which flags, job files and docs are made.

Three kinds by purpose: what the result is, where it comes from, and how it is made. A function takes the
narrowest kind that tells it enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pp_export.core.errors import OptionError
from pp_export.options.texts import (
    MAX_NUMBER,
    TYPE_ALIASES,
    TYPES,
    brief,
    parse_bytes,
    parse_leaders,
    parse_types,
)

_MIN_SHARD_BYTES = 100  # less is a size whose unit was forgotten

WEIGHTS = "weights"
"""Of the contents: weights and index alone."""

NO_OUTPUT = Path("(no output)")
"""What the options say of a plan for nowhere."""


def flag(name: str) -> str:
    """The flag of an option, without the leading dashes."""
    return name.replace("_", "-")


def _option(
    help_text: str,
    default: Any = dataclasses.MISSING,
    *,
    choices: tuple[str, ...] | None = None,
    aliases: Mapping[str, str] | None = None,
    positive: bool = False,
    pairs: bool = False,
) -> Any:
    metadata = {"help": help_text, "choices": choices, "aliases": aliases or {}, "positive": positive}
    return field(default=default, metadata={**metadata, "pairs": pairs})


option_of = _option  # for kinds of options in modules of their own


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all kinds have in common: values are checked when they are made, and are JSON."""

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices is not None and value not in choices:
                raise OptionError(
                    f"--{flag(option.name)} has no such value", expected=", ".join(choices), got=value
                )
            if option.metadata["positive"] and value is not None and not value > 0:
                raise OptionError(f"--{flag(option.name)} must be positive", got=brief(value))
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and not -MAX_NUMBER <= value <= MAX_NUMBER:
                raise OptionError(
                    f"--{flag(option.name)} is no usable number",
                    expected=f"at most {MAX_NUMBER:,}",
                    got=brief(value),
                )

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class SourceOptions(Options):
    """Where the weights come from: a checkpoint. A live model needs no such options."""

    checkpoint: Path = _option("Megatron checkpoint: its root (with the tracker file) or an iteration folder")
    iteration: int | None = _option(
        "iteration to export; default: the tracker file's. With {iteration} in --output also several, with"
        " commas, `latest` and `all`",
        None,
    )
    weights: str = _option(
        "the model's weights, or the optimizer's own in float32, where the checkpoint has them by name",
        "model",
        choices=("model", "master"),
    )
    base: Path | None = _option(
        "Hugging Face folder of the model that a checkpoint holds adapters of: what the checkpoint lacks is"
        " taken from its weights; also the --reference where there is no other",
        None,
    )
    check_source: bool = _option(
        "check the CRC-32 that torch stored with every record while reading it", True
    )


@dataclass(frozen=True, kw_only=True)
class ResultOptions(Options):
    """What the result is: with the same source, these decide every byte of it. The manifest records them and
    the plan's fingerprint covers them. Sizes in bytes are texts such as `5GB`.
    """

    dtype: str = _option(
        "element type of floating-point weights (also keep, fp32, bf16, fp16); a number that it has no finite"
        " value for is refused",
        "checkpoint",
        choices=TYPES,
        aliases=TYPE_ALIASES,
    )
    dtype_of: str | None = _option(
        "element types of tensors whose Hugging Face names fit patterns: PATTERN=TYPE, with commas, the first"
        " that fits counts; in a job file also a mapping",
        None,
        pairs=True,
    )
    allow_overflow: bool = _option("store numbers as infinite that --dtype has no finite value for", False)
    quantize: str = _option(
        "store linear layers' weights in 8 bits, with a scale for each block of 128 x 128 or for each row",
        "none",
        choices=("none", "fp8-block", "fp8-channel", "int8-channel"),
    )
    mtp: str = _option(
        "multi-token-prediction layers: export what the checkpoint has, drop them (config.json says so), or"
        " require at least one",
        "export",
        choices=("export", "drop", "require"),
    )
    lora: str = _option(
        "what becomes of adapters (LoRA): merge them into the weights, export the adapter alone as PEFT has"
        " it, or refuse checkpoints that have any",
        "refuse",
        choices=("refuse", "merge", "adapter"),
    )
    lora_alpha: float | None = _option(
        "alpha of the adapters; default: what the run says in its own files", None, positive=True
    )
    take_missing_from_reference: str | None = _option(
        "take tensors that the checkpoint lacks from the reference's own weights, byte for byte: patterns of"
        " Hugging Face names, with commas (model.visual.*)",
        None,
    )
    vocab_size: int | None = _option(
        "true vocabulary size; default: the reference config.json's, else as args or tokenizer say",
        None,
        positive=True,
    )
    architecture: str | None = _option(
        "architecture table: a .yaml file, or the class or the name of a packaged one; default: the packaged"
        " one for the reference's class",
        None,
    )
    config_from: str = _option(
        "what decides where config.json and the training args say different functions: the reference, so"
        " that the export is refused, or the checkpoint, so that config.json is corrected",
        "reference",
        choices=("reference", "checkpoint"),
    )
    config_as_reference: bool = _option(
        "leave config.json byte for byte; else it says outright, and in both spellings, what it leaves open",
        False,
    )
    provenance: str = _option(
        "what the manifest tells of the run: the model and its layout, all args and paths, or nothing",
        "model",
        choices=("model", "full", "none"),
    )
    card: bool = _option(
        "write README.md, a model card with the facts of the export and no more of the run than the manifest",
        False,
    )
    layout: str = _option(
        "how the weights are cut into files: layers, a file for each; size, one layer after another up to the"
        " maximal size; reference, the files of the reference's own weights; auto: layers, or, to"
        " consolidate, the reference's, and by size where it has none",
        "auto",
        choices=("auto", "layers", "size", "reference"),
    )
    max_shard_size: str = _option(
        "files by layer or by size are split above this size, or filled up to it", "5GB"
    )
    code: bool = _option(
        "copy the Python files that config.json's auto_map names, as data; else strip auto_map", True
    )
    contents: str = _option(
        "a folder of its own; or a whole model, or weights and index, beside what else the output holds: then"
        " names change one by one, and the output has no index for that moment; it has an index only with all"
        " of its files",
        "folder",
        choices=("folder", "model", "weights"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantize != "none" and self.lora != "refuse":
            raise OptionError("--quantize is for a model's own weights; export with --lora alone")
        if self.card and self.beside:
            raise OptionError("--card writes a folder's README.md, which would be another's with --contents")
        if parse_bytes(self.max_shard_size) < _MIN_SHARD_BYTES:
            raise OptionError(
                "--max-shard-size is a few bytes",
                expected="a size with its unit, for example 5GB",
                got=brief(self.max_shard_size),
            )
        parse_types(self.dtype_of)
        if self.quantize != "none" and (self.weights_only or self.config_as_reference):
            raise OptionError("--quantize needs a config.json that says how the weights are quantized")

    @property
    def result(self) -> ResultOptions:
        """These options alone, without where from and how."""
        names = (option.name for option in dataclasses.fields(ResultOptions))
        return ResultOptions(**{name: getattr(self, name) for name in names})

    @property
    def weights_only(self) -> bool:
        return self.contents == WEIGHTS

    @property
    def beside(self) -> bool:
        """Whether what else the output holds is left alone."""
        return self.contents != "folder"


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """How an export is made, and where to: whatever they say, the bytes are the same."""

    output: Path = _option("folder to make; {iteration} in it stands for the iteration's number")
    overwrite: bool = _option("replace an existing output once the new one is complete and verified", False)
    parents: bool = _option("make the folders above the output where they are missing", False)
    leaders_per_stage: str = _option(
        "ranks of a stage that gather and write shards: a number, or all; of no effect where each rank reads"
        " what it writes (a checkpoint without a parallel size asked for)",
        "all",
    )
    backend: str = _option(
        "what carries values between ranks; auto: nccl where they lie on GPUs or hosts exchange and each rank"
        " has a GPU, else gloo",
        "auto",
        choices=("auto", "gloo", "nccl"),
    )
    threads: int | None = _option(
        "threads that a rank keeps busy with reading, hashing, writing and verifying; default: its share of"
        " the node's cores",
        None,
        positive=True,
    )
    memory_limit: str | None = _option(
        "memory that a rank may take, as far as fewer shards in flight need less; default: its share of a"
        " quarter of the node's memory",
        None,
    )
    stall_seconds: float = _option("give up when no rank makes progress for so long", 600.0, positive=True)
    require_finite: bool = _option("refuse weights that hold NaN or infinity", False)
    require_tokenizer: bool = _option("refuse a reference that has no tokenizer", False)
    verify: bool = _option(
        "re-read and check every byte before publishing; files that several ranks write are re-read in any"
        " case, for their SHA-256",
        True,
    )
    cache: bool = _option(
        "take what transformers says of the model from the user's cache folder, and keep it there; else ask"
        " transformers",
        True,
    )
    report: Path | None = _option("write a JSON report there, also when the export fails", None)
    html: Path | None = _option(
        "draw there, as one HTML page, what was done; `plan` draws what will be", None
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_leaders(self.leaders_per_stage)
        if self.memory_limit is not None:
            parse_bytes(self.memory_limit)


@dataclass(frozen=True, kw_only=True)
class TargetOptions(RunOptions, ResultOptions):
    """The options of every export, whatever its source: what and how, and of which model."""

    reference: Path | None = _option(
        "Hugging Face folder of the model: config.json, tokenizer; weights are not needed. Without one,"
        " config.json is made of the training args for the class that --architecture names",
        None,
    )
    tokenizer: Path | None = _option(
        "folder whose tokenizer is copied where there is no reference; default: the one that the training"
        " args name, if it is here",
        None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora == "adapter" and self.contents != "folder":
            raise OptionError("--lora adapter makes a folder of its own", got=f"--contents {self.contents}")
        if self.reference is not None and self.tokenizer is not None:
            raise OptionError("--tokenizer is for exports without a reference, whose own is copied")
        for name in ("config_as_reference", "take_missing_from_reference"):
            if self.reference is None and getattr(self, name):
                raise OptionError(f"--{flag(name)} needs a --reference")
        if self.reference is None and self.architecture is None:
            raise OptionError(
                "neither a reference nor an architecture is given, and so no class of the model",
                expected="--reference DIR, or --architecture with a class, a table's name or a table's file",
                advice="`pp_export families` lists the classes",
            )


@dataclass(frozen=True, kw_only=True)
class ExportOptions(TargetOptions, SourceOptions):
    """The options of `export` and `plan`. Field names are the keys of a job file; flags have dashes.

    The grid is for a checkpoint alone, which any rank can read; in a live model, ranks read what they hold.
    """

    resume: bool = _option(
        "go on with what an earlier run of the same export has committed; if this one fails, leave what is"
        " committed for the next",
        False,
    )
    pipeline_parallel: int | None = _option(
        "the export's own number of stages; default: each rank reads what it writes", None, positive=True
    )
    tensor_parallel: int | None = _option(
        "ranks over which a stage's tensor parts are dealt; default: not dealt by part", None, positive=True
    )
    expert_parallel: int | None = _option(
        "ranks over which a stage's experts are dealt; default: not dealt by expert", None, positive=True
    )

    def __post_init__(self) -> None:
        if self.base is not None and self.reference is None:
            object.__setattr__(self, "reference", self.base)
        super().__post_init__()
        if self.base is not None and (self.lora != "merge" or self.take_missing_from_reference):
            raise OptionError(
                "--base gives what the adapters of a checkpoint are merged into, and all that it lacks",
                expected="--lora merge, without --take-missing-from-reference",
            )
