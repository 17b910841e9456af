"""The options as keywords of the Python functions, so that type checkers and editors know every name and
value.

The fields of `ResultOptions`, `RunOptions`, `ExportOptions` and `SideOptions` that no function names itself;
a test holds the two against each other. Sizes and numbers may be texts, as in a job file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

Folder = str | Path
Dtype = Literal["checkpoint", "float32", "bfloat16", "float16", "keep", "fp32", "bf16", "fp16"]
Quantize = Literal["none", "fp8-block", "fp8-channel", "int8-channel"]
Layout = Literal["auto", "layers", "size", "reference"]
Contents = Literal["folder", "model", "weights"]


class FolderKeywords(TypedDict, total=False):
    """What a folder is, whatever it is made of."""

    dtype: Dtype
    dtype_of: str | Mapping[str, str] | None
    allow_overflow: bool
    config_as_reference: bool
    provenance: Literal["model", "full", "none"]
    card: bool
    layout: Layout
    max_shard_size: str | int
    code: bool
    contents: Contents


class ResultKeywords(FolderKeywords, total=False):
    """What the result is, of a model of Megatron."""

    quantize: Quantize
    mtp: Literal["export", "drop", "require"]
    lora: Literal["refuse", "merge", "adapter"]
    lora_alpha: float | None
    take_missing_from_reference: str | None
    vocab_size: int | None
    architecture: str | None
    config_from: Literal["reference", "checkpoint"]


class RunKeywords(TypedDict, total=False):
    """How it is made."""

    overwrite: bool
    parents: bool
    leaders_per_stage: str | int
    backend: Literal["auto", "gloo", "nccl"]
    threads: int | None
    memory_limit: str | int | None
    stall_seconds: float
    require_finite: bool
    require_tokenizer: bool
    verify: bool
    cache: bool
    report: Folder | None
    html: Folder | None


class TargetKeywords(ResultKeywords, RunKeywords, total=False):
    """What the result is and how it is made: what `export_model` takes."""

    tokenizer: Folder | None


class ConsolidateKeywords(FolderKeywords, RunKeywords, total=False):
    """What `consolidate` takes."""

    input_ranks: int | None
    check_source: bool
    resume: bool


class ExportKeywords(TargetKeywords, total=False):
    """The same, and where a checkpoint's values come from: what `export_checkpoint` and `plan` take."""

    iteration: int | None
    weights: Literal["model", "master"]
    base: Folder | None
    check_source: bool
    resume: bool
    pipeline_parallel: int | None
    tensor_parallel: int | None
    expert_parallel: int | None


class SideKeywords(TypedDict, total=False):
    """As what the checkpoints are taken that `diff` compares."""

    architecture: str | None
    iteration: int | None
    weights: Literal["model", "master"]
    check_source: bool
    dtype: Dtype
    dtype_of: str | Mapping[str, str] | None
    allow_overflow: bool
    mtp: Literal["export", "drop", "require"]
    vocab_size: int | None
    memory_limit: str | int | None
    cache: bool
