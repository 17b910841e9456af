"""What the manifest tells of where the weights came from. It is published with them, so by default it says
what describes the model and nothing of the job: no paths, no free text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pp_export.architecture.decisions import Decisions
from pp_export.core.json_values import to_json_value
from pp_export.megatron import settings
from pp_export.options.kinds import ResultOptions
from pp_export.steps import adapters
from pp_export.steps.versions import versions

if TYPE_CHECKING:
    from pp_export.checkpoint.catalog import Description
    from pp_export.planning.export_plan import ExportPlan
    from pp_export.steps.inputs import ExportInputs

_WORDS = {
    "normalization": {"RMSNorm", "LayerNorm"},
    "position_embedding_type": {"rope", "yarn", "mrope", "learned_absolute", "none"},
    "moe_router_score_function": {"softmax", "sigmoid", "sqrtsoftplus"},
    "softmax_type": {"vanilla", "off-by-one", "learnable"},
}
"""The words that args may have for values; any other text isn't published."""


def provenance(inputs: ExportInputs, plan: ExportPlan, options: ResultOptions) -> dict[str, Any]:
    """As much of it as `options.provenance` allows, as JSON values."""
    source = inputs.catalog.description
    decisions = Decisions(inputs.architecture, settings.read_by())
    whole = {
        **_source(source, options.provenance, decisions.describes_model),
        "weights": source.weights,
        "architecture": inputs.architecture.name,
        "expected_from": inputs.account.truth,
        "dropped": dict(inputs.account.dropped),
        "taken_from_reference": list(inputs.account.taken),
        "lora": adapters.to_json(inputs.account.adapted),
        "options": told_options(options),
        "inputs_digest": None if options.provenance == "none" else inputs.digest,
        "plan_fingerprint": plan.of_everything.fingerprint,
        "versions": versions(),
    }
    found: dict[str, Any] = to_json_value(whole)
    return found


def told_options(options: ResultOptions) -> dict[str, Any]:
    """The options of the result as the manifest tells them: with paths only if all may be told."""
    result = options.result.to_json()
    if options.provenance != "full" and options.architecture is not None:
        result["architecture"] = PurePath(options.architecture).name
    return result


def _source(source: Description, level: str, describes_model: Callable[[str], bool]) -> dict[str, Any]:
    if level == "none":
        return dict.fromkeys(("checkpoint", "format", "iteration", "args"))
    whole = {"checkpoint": source.folder, "format": source.format, "iteration": source.iteration}
    if level == "full":
        return {**whole, "args": to_json_value(source.args)}
    args = source.args
    return {
        **whole,
        "checkpoint": PurePath(source.folder).name,
        "args": None if args is None else _of_model(args, source.layout, describes_model),
    }


def _of_model(
    args: Mapping[str, Any], layout: Mapping[str, int], describes_model: Callable[[str], bool]
) -> dict[str, Any]:
    return {
        name: value
        for name, value in args.items()
        if (name in layout or describes_model(name))
        and (_is_number(value) or (isinstance(value, str) and value in _WORDS.get(name, ())))
    }


def _is_number(value: Any) -> bool:
    """Numbers, switches, nothing, and lists of them: no text can hide in them."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_number, value))
    return value is None or (isinstance(value, (bool, int, float)) and math.isfinite(value))
