"""The first job file of a checkpoint: what was found in it, and every option with what it means."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pp_export.core.words import counted
from pp_export.options.kinds import ExportOptions, ResultOptions, RunOptions, SourceOptions
from pp_export.reference.reference_folder import check_folder
from pp_export.steps.checkpoint_report import CheckpointReport

_WIDTH = 110
_ASKED_FOR = ("checkpoint", "iteration", "reference", "output", "report")
_PURPOSES = (
    ("Where from", SourceOptions),
    ("What the result is", ResultOptions),
    ("How it is made", RunOptions),
    ("Reference and grid", ExportOptions),
)
_SIZES = {
    "num_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "num_experts": "experts",
    "padded_vocab_size": "rows of the vocabulary, with padding",
}


def first_job(found: CheckpointReport, checkpoint: Path, reference: Path | None) -> str:
    """The text of a job file, as YAML, that exports `checkpoint` with the model of `reference`. Options that
    nobody has to set are comments, with their defaults.
    """
    if reference is not None:
        check_folder(reference)
    name = checkpoint.name or "model"
    at = "" if found.iteration is None else f"-{found.iteration}"
    values: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "iteration": found.iteration,
        "reference": None if reference is None else str(reference),
        "output": str(checkpoint.parent / f"{name}{at}-hf"),
        "report": str(checkpoint.parent / f"{name}{at}-hf.report.json"),
    }
    lines = [
        *_comment(_about(found)),
        *_comment("Start it: pp_export export THIS_FILE, or under torchrun."),
        "",
    ]
    for option in _ASKED_FOR:
        lines += [*_comment(_help(option)), _line(option, values[option]), ""]
    if reference is None:
        lines += _comment(
            "Without a reference config.json is made of the training args, for this class"
            " (`pp_export families` lists them):"
        )
        lines += ["# architecture: Qwen2ForCausalLM", ""]
    for title, options in _by_purpose().items():
        lines += _comment(f"--- {title}. Each as it is by default.")
        for name in options:
            lines += ["", *_comment(_help(name)), f"# {_line(name, _default(name))}"]
        lines.append("")
    return "\n".join(lines)


def _about(found: CheckpointReport) -> str:
    args = found.args or {}
    sizes = [f"{args[key]} {what}" for key, what in _SIZES.items() if args.get(key)]
    layout = [f"{name} {size}" for name, size in found.layout.items() if size not in (None, 1)]
    weights = found.weights
    told = {
        "format": f"{found.format}, written by {found.writer}",
        "model": ", ".join(sizes) or "no training args: the reference says what model it is",
        "weights": f"{counted(weights.num_parameters, 'parameter')}, {weights.bytes / 1e9:.3g} GB",
        "layout": ", ".join(layout) or "one rank's",
    }
    return f"{found.folder}: " + "; ".join(f"{name}: {text}" for name, text in told.items()) + "."


def _by_purpose() -> dict[str, list[str]]:
    """The options that nobody has to set, each under the narrowest kind that has it."""
    left = [option.name for option in dataclasses.fields(ExportOptions) if option.name not in _ASKED_FOR]
    found: dict[str, list[str]] = {}
    for title, kind in _PURPOSES:
        names = {option.name for option in dataclasses.fields(kind)}
        found[title] = [name for name in left if name in names]
        left = [name for name in left if name not in names]
    return found


def _options() -> Mapping[str, dataclasses.Field[Any]]:
    return {option.name: option for option in dataclasses.fields(ExportOptions)}


def _help(name: str) -> str:
    option = _options()[name]
    choices = option.metadata["choices"]
    text: str = option.metadata["help"]
    return text + (f" [{', '.join(choices)}]" if choices else "")


def _default(name: str) -> Any:
    default = _options()[name].default
    return None if default is dataclasses.MISSING else default


def _line(name: str, value: Any) -> str:
    """A key and its value in the part of YAML that is JSON."""
    return f"{name}: {json.dumps(value, ensure_ascii=False)}"


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"
