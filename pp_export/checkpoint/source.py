"""What an input of an export must give. This page is all of it.

A kind of checkpoint folder is a `Format`: it recognises its folders, describes them as a catalog, and opens a
reader for a catalog. An export asks a `Source`, of which there are two: a folder in any of the formats, and
the model of a running job.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pp_export.checkpoint.catalog import Catalog
from pp_export.core.tensors import Slice

if TYPE_CHECKING:
    import torch


class Reader(AbstractContextManager["Reader"], Protocol):
    """Gives the values of slices, on one rank; leaving the context closes its files."""

    @property
    def allows_threads(self) -> bool:
        """Whether several threads may `read` at once."""

    def read(self, slice_: Slice, *into: memoryview) -> None:
        """Fill `into`, one after another, which together have exactly the slice's bytes and are of whole
        elements, with its values in C order.

        Slices may be asked for in any order. Raises CheckpointError, naming tensor and file, where the values
        can't be had or are not those that were stored. Where they come from a GPU, they are there after the
        next `settle`.
        """

    def settle(self) -> None:
        """Return when everything that was asked for is where it was asked for."""

    def on_device(self, slice_: Slice) -> torch.Tensor | None:
        """The slice's values in the memory of a GPU, in its shape and not always contiguous; None where they
        don't lie there. They may be used after the next `settle`.
        """

    def finish(self) -> None:
        """After the last slice: raise CheckpointError for damage that no single slice could show. Another
        call looks behind what was raised.
        """


class Format(Protocol):
    """One kind of checkpoint folder. A kind that is known and can't be exported is one too: its `describe`
    raises.
    """

    @property
    def name(self) -> str:
        """What `Description.reader` says of the catalogs that `open` understands; each format has its own."""

    def recognise(self, folder: Path) -> bool:
        """Whether `folder` holds a save of this kind, finished or not.

        Judged by the names of files, and cheap, since it is asked of folders that are no checkpoint too. Must
        not raise.
        """

    def is_finished(self, folder: Path, latest: int | None) -> bool:
        """Whether a save of this kind in the root's iteration folder `folder` is written to its end, as far
        as the names of files and `latest`, which the root's tracker file names, tell. May raise OSError.
        """

    def describe(self, folder: Path) -> Catalog:
        """All weights in `folder` under canonical names; called on rank 0 only. No tensor byte is read.

        The boxes fill every tensor exactly. `Description.args` are the training args in Megatron-LM's words,
        None where the folder has none. `Catalog.holders` stays None for files. Raises CheckpointError where
        the save is unfinished, damaged or can't be exported.
        """

    def open(self, catalog: Catalog, *, check_source: bool) -> Reader:
        """A reader of one rank for a catalog that `describe` made, perhaps on another rank.

        With `check_source` it compares what it reads with the checksums that were stored.
        """


class Source(Protocol):
    """Where an export's values come from. Ranks call `check`, `announce` and `open`, in this order. Where the
    source is `is_shared`, one rank of each node is enough to check, and nobody announces.
    """

    @property
    def folders(self) -> Sequence[Path]:
        """The folders that are read, and so must not be replaced."""

    @property
    def device(self) -> torch.device | None:
        """The GPU out of whose memory this rank gives values, if it does; known once it has announced."""

    @property
    def is_shared(self) -> bool:
        """Whether rank 0 sees everything by itself and needs no announcement to describe it."""

    def check(self) -> None:
        """Raise CheckpointError where this rank can't take part. Talks to no other rank."""

    def announce(self) -> bytes:
        """What this rank alone can say of its part, for rank 0; b"" where `is_shared`.

        Called by all ranks, after `check` has passed on all: it may use the training job's own collectives.
        """

    def describe(self, announced: Sequence[bytes]) -> Catalog:
        """What there is, without values; called on rank 0 with the announcements of all ranks, in order."""

    def open(self, catalog: Catalog) -> Reader:
        """The reader of this rank for what rank 0 described."""
