"""pp_export: Megatron checkpoints and live Megatron models to complete, verified Hugging Face folders.

What is public is named here, in `pp_export.integrations`, and in docs/api.md; everything else may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pp_export.core import version

if TYPE_CHECKING:
    from pp_export.api import (
        compare_logits,
        export_checkpoint,
        export_model,
        inspect,
        plan,
        record_logits,
        verify,
    )
    from pp_export.background import BackgroundExport
    from pp_export.comparing import diff
    from pp_export.consolidation import consolidate, write_consolidate_script
    from pp_export.core.errors import ExportError
    from pp_export.steps.checkpoint_report import CheckpointReport
    from pp_export.steps.plan_report import PlanReport
    from pp_export.steps.report import ExportReport
    from pp_export.verification import Verification
    from pp_export.verification.comparison import LogitComparison
    from pp_export.verification.diff import Difference

__version__ = version.VERSION
__all__ = [
    "BackgroundExport",
    "CheckpointReport",
    "Difference",
    "ExportError",
    "ExportReport",
    "LogitComparison",
    "PlanReport",
    "Verification",
    "__version__",
    "compare_logits",
    "consolidate",
    "diff",
    "export_checkpoint",
    "export_model",
    "inspect",
    "plan",
    "record_logits",
    "verify",
    "write_consolidate_script",
]

_HOMES = {
    "BackgroundExport": "background",
    "CheckpointReport": "steps.checkpoint_report",
    "Difference": "verification.diff",
    "ExportError": "core.errors",
    "ExportReport": "steps.report",
    "LogitComparison": "verification.comparison",
    "PlanReport": "steps.plan_report",
    "Verification": "verification",
    "compare_logits": "api",
    "consolidate": "consolidation",
    "diff": "comparing",
    "export_checkpoint": "api",
    "export_model": "api",
    "inspect": "api",
    "plan": "api",
    "record_logits": "api",
    "verify": "api",
    "write_consolidate_script": "consolidation",
}


if not TYPE_CHECKING:  # so that a name that isn't there is an error of type checkers

    def __getattr__(name: str) -> Any:
        """The names above, imported when first asked for: the command line must start before torch."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        globals()[name] = value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
