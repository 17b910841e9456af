"""The model card of an export: a README.md with what is known of the weights, and of nothing but them.

It says no more of the run than the manifest beside it does. Nothing lists it, so that its owner may write on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pp_export.core import file_names
from pp_export.core.words import counted
from pp_export.steps.report import Completed

if TYPE_CHECKING:
    from pp_export.planning.export_plan import ExportPlan
    from pp_export.steps.inputs import ExportInputs

FILE = "README.md"
_LAYOUT = {
    "tensor_model_parallel_size": "TP",
    "pipeline_model_parallel_size": "PP",
    "expert_model_parallel_size": "EP",
    "context_parallel_size": "CP",
}


def card(
    inputs: ExportInputs, plan: ExportPlan, completed: Completed, provenance: Mapping[str, Any]
) -> bytes:
    """The card, as text in UTF-8; `provenance` is the manifest's."""
    account, serves = inputs.account, inputs.architecture.serves
    name = serves[0] if serves else inputs.architecture.name
    types = ", ".join(dict.fromkeys([account.main_dtype.torch_name, *_others(inputs)]))
    facts = {
        "class": f"`{name}`",
        "parameters": f"{plan.total_parameters:,}",
        "element types": types,
        "weights": f"{counted(len(plan.files), 'file')}, {plan.total_size:,} bytes",
        "vocabulary": counted(inputs.sizes.vocab_size, "token"),
        **_of_run(provenance),
        "held against": account.truth,
        "made by": ", ".join(f"{of} {version}" for of, version in provenance["versions"].items() if version),
    }
    left_out = [f"`{tensor}`: {why}" for tensor, why in account.dropped.items()]
    sections = {
        "Left out": left_out,
        "Changed in config.json": [*completed.corrections, *completed.additions],
        "Not finite": [f"`{tensor}`: {count:,} values" for tensor, count in completed.not_finite.items()],
    }
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- megatron-core",
        "- pp_export",
        "---",
        "",
        f"# {name}",
    ]
    lines += [
        "",
        "Exported from a Megatron-Core checkpoint; every tensor is accounted for.",
        "",
        "| | |",
        "| --- | --- |",
    ]
    lines += [f"| {fact} | {_cell(text)} |" for fact, text in facts.items()]
    for title, found in sections.items():
        if found:
            lines += ["", f"## {title}", "", *(f"- {_cell(each)}" for each in found)]
    lines += [
        *("", "## Proof", ""),
        f"`{file_names.MANIFEST}` and `{file_names.SUMS}` tell of every other file: `pp_export verify .`",
        "holds the folder against them and against the model's definition, `sha256sum -c SHA256SUMS` against",
        "the sums alone.",
        "",
    ]
    return "\n".join(lines).encode()


def _others(inputs: ExportInputs) -> list[str]:
    account = inputs.account
    found = {spec.dtype.torch_name for spec in account.outputs.values()}
    return sorted(found - {account.main_dtype.torch_name})


def _of_run(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What the manifest says of the run, if anything."""
    args, told = provenance["args"] or {}, {}
    layout = [f"{short}{args[name]}" for name, short in _LAYOUT.items() if args.get(name) not in (None, 1)]
    if provenance["format"] is not None:
        told["checkpoint"] = f"{provenance['format']}, iteration {provenance['iteration']}"
    if layout:
        told["trained with"] = " ".join(layout)
    return told


def _cell(text: str) -> str:
    """In one cell of a table, whatever it holds."""
    return text.replace("|", "\\|").replace("\n", " ")
