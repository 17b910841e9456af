"""pp_export: Megatron checkpoints and live Megatron models to complete, verified Hugging Face folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pp_export.api import export_checkpoint, export_model
    from pp_export.background import BackgroundExport
    from pp_export.core.errors import ExportError
    from pp_export.steps.report import ExportReport

__version__ = "0.1.0"
__all__ = ["BackgroundExport", "ExportError", "ExportReport", "export_checkpoint", "export_model"]

_MODULES = {
    "BackgroundExport": "background",
    "ExportError": "errors",
    "ExportReport": "report",
    "export_checkpoint": "api",
    "export_model": "api",
}


def __getattr__(name: str) -> Any:
    """The names above, imported when they are first asked for: the command line must start before torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
