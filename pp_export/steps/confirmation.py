"""The model's own definition, heard while the bytes are on their way, or before the folder is sealed.

An export is planned with what the files say. Whatever the definition refutes ends it; what it says besides
(values in effect, the words of config.json) is in the inputs that come out here.
"""

from __future__ import annotations

from dataclasses import replace

from pp_export.core.errors import AccountingError
from pp_export.distributed.world import World
from pp_export.steps.inputs import ExportInputs
from pp_export.steps.model import Settled, settle_so_far
from pp_export.steps.pending import PendingInputs


class Confirmation:
    """The definition's word on the `inputs` of an export; main thread only. Ranks other than 0 have no
    `pending`, and nothing to hear.
    """

    def __init__(self, inputs: ExportInputs, pending: PendingInputs | None) -> None:
        self._inputs, self._pending = inputs, pending
        self._awaited = () if inputs.model is None else inputs.model.awaited

    def look(self) -> None:
        """Take up what is new; cheap enough to be called in every poll. Raises what the definition refutes,
        as soon as it is known.
        """
        pending, inputs = self._pending, self._inputs
        if pending is None or not any(map(pending.is_here, self._awaited)):
            return
        assert inputs.model is not None
        planned = Settled(inputs.sizes, inputs.account, inputs.model)
        found = settle_so_far(inputs.model.stated, pending, planned)
        self._awaited = found.awaited
        if found.settled is not None and not found.awaited:
            _check_same(planned, found.settled)
            self._inputs = replace(
                inputs,
                sizes=found.settled.sizes,
                account=found.settled.account,
                model=found.settled.model,
            )

    def wait(self, world: World) -> ExportInputs:
        """The inputs as they are at last; called by all ranks, of which rank 0 waits for the definition."""
        world.control.on_first(lambda: self._wait(world))
        return self._inputs

    def _wait(self, world: World) -> None:
        assert self._pending is not None
        while self._awaited:
            self._pending.waited(self._awaited[0], world.control.check)
            self.look()


def _check_same(planned: Settled, found: Settled) -> None:
    """Raise where the definition gives another account than the one that everything was planned with."""
    if replace(found.account, truth=planned.account.truth) == planned.account:
        return
    before, after = planned.sizes.values, found.sizes.values
    raise AccountingError(
        "the model's own definition has other values than config.json and the table, with which the export"
        " was planned",
        findings=[
            f"{name}: planned with {before.get(name)}, transformers says {after.get(name)}"
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ],
        advice="export again: the answer is in the cache now, and is planned with; without a cache, say these"
        " values outright in the reference's config.json",
    )
