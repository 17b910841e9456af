"""The model's own definition, heard while the bytes are on their way, or before the folder is completed.

An export is planned with what the files say. Whatever the definition refutes ends it; what it says besides
(values in effect, the words of config.json) is in the inputs that come out here.
"""

from __future__ import annotations

from dataclasses import replace

from pp_export.core.errors import AccountingError
from pp_export.distributed.world import World
from pp_export.steps.inputs import Whole
from pp_export.steps.model import Settled, settle_so_far
from pp_export.steps.pending import PendingInputs


class Confirmation:
    """The definition's word on what is exported; main thread only. Ranks other than 0 have neither `whole`
    nor `pending`, and hear nothing.
    """

    def __init__(self, whole: Whole | None, pending: PendingInputs | None) -> None:
        self._whole, self._pending = whole, pending
        self._awaited = () if whole is None else whole.inputs.model.awaited

    def look(self) -> None:
        """Take up what is new; cheap enough to be called in every poll. Raises what the definition refutes,
        as soon as it is known.
        """
        if self._awaited and self._pending is not None and any(map(self._pending.is_here, self._awaited)):
            self._hear(self._pending)

    def wait(self, world: World) -> Whole | None:
        """The whole with the inputs as they are at last. Called by all ranks; rank 0 waits for the
        definition, and the others for rank 0 in their next step.
        """
        while self._awaited and self._pending is not None:
            self._pending.wait(self._awaited[0], world.control.check)
            self.look()
        return self._whole

    def _hear(self, pending: PendingInputs) -> None:
        assert self._whole is not None
        inputs = self._whole.inputs
        planned = Settled(inputs.sizes, inputs.account, inputs.model)
        found = settle_so_far(inputs.model.stated, pending, planned)
        self._awaited = found.awaited
        if found.settled is not None and not found.awaited:
            _check_same(planned, found.settled)
            sizes, account, model = found.settled.sizes, found.settled.account, found.settled.model
            self._whole = replace(
                self._whole, inputs=replace(inputs, sizes=sizes, account=account, model=model)
            )


def _check_same(planned: Settled, found: Settled) -> None:
    """Raise where the definition gives another account than the one that everything was planned with."""
    if replace(found.account, truth=planned.account.truth) == planned.account:
        return
    before, after = planned.sizes.values, found.sizes.values
    raise AccountingError(
        "the model's own definition has other values than the export was planned with, from config.json"
        " and the table",
        findings=[
            f"{name}: planned with {before.get(name)}, transformers says {after.get(name)}"
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ],
        advice="export again: the answer is in the cache now, and the plan will use it; without a cache,"
        " write these values into the reference's config.json",
    )
