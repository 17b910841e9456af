"""A checkpoint as a side of a comparison: what an export would make of it, on metadata alone, and the plan to
assemble it piece by piece in bounded memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pp_export.architecture.accounting import Account
from pp_export.architecture.multimodal import language_config
from pp_export.checkpoint.folder_source import CheckpointSource
from pp_export.core.collector import paused_collector
from pp_export.core.errors import ExportError
from pp_export.options.kinds import ExportOptions
from pp_export.planning.capacity import Capacity
from pp_export.planning.export_plan import ExportPlan
from pp_export.planning.output_files import REFERENCE
from pp_export.steps.functions import Function
from pp_export.steps.inputs import ExportInputs, checkpoint_source, plan_export
from pp_export.steps.model import read_statements, settle
from pp_export.steps.pending import PendingInputs


@dataclass(frozen=True)
class ComparedCheckpoint:
    """What an export of a checkpoint would make, but that no tensor has to be there: whether the other side
    has others is what is asked.
    """

    options: ExportOptions
    source: CheckpointSource
    inputs: ExportInputs
    function: Function

    @property
    def specs(self) -> dict[str, str]:
        """Dtype and shape of each Hugging Face tensor, as safetensors says it."""
        outputs = self.inputs.account.outputs
        return {name: f"{spec.dtype.safetensors_name}{list(spec.shape)}" for name, spec in outputs.items()}

    def plan(self, names: Collection[str], capacity: Capacity, like: Mapping[str, str] | None) -> ExportPlan:
        """The plan by which one rank assembles the tensors `names`: in shards of its own choice, or in those
        that the names have in `like`, in the order of these.
        """
        options, reference = self.options, self.inputs.reference
        if like is not None:
            options, reference = replace(options, layout=REFERENCE), replace(reference, weights=like)
        account = restricted(self.inputs.account, names)
        plan = plan_export(replace(self.inputs, account=account, reference=reference), options, 1)
        return replace(plan, capacity=capacity)


def describe_compared(options: ExportOptions) -> ComparedCheckpoint:
    """Read all metadata of a checkpoint; called by one process. Raises what an export would refuse, but for
    tensors that are missing or too many, and errors say of which checkpoint.
    """
    source, pending = checkpoint_source(options), PendingInputs.start(options)
    try:
        with paused_collector():
            pending.check()
            catalog = source.describe(())
            pending.hear(catalog)
            stated = replace(read_statements(catalog, pending, options), is_closed=False)
            found = settle(stated, pending, wait=True)
        answer = pending.known(pending.question)
    except ExportError as error:
        raise error.at(checkpoint=options.checkpoint) from None
    finally:
        pending.cancel()
    architecture, reference = pending.architecture, pending.reference
    inputs = ExportInputs(catalog, architecture, found.sizes, found.account, found.model, reference)
    library: Mapping[str, Any] | None = None
    if answer is not None and answer.definition is not None:
        library = language_config(architecture.within, answer.definition.config)
    settings = found.model.meaning.values
    return ComparedCheckpoint(
        options, source, inputs, Function(reference.config, architecture, settings, library)
    )


def restricted(account: Account, names: Collection[str]) -> Account:
    """The account of those Hugging Face tensors alone; encodings are of one tensor each."""
    kept = frozenset(names)
    return replace(
        account,
        encodings=tuple(each for each in account.encodings if each.outputs.keys() <= kept),
        outputs={name: spec for name, spec in account.outputs.items() if name in kept},
        unit_of={name: unit for name, unit in account.unit_of.items() if name in kept},
    )
