"""What a program calls to compare models, as `pp_export diff` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pp_export.core.errors import OptionError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pp_export.options.keywords import Folder, SideKeywords
    from pp_export.verification.diff import Difference


def diff(
    a: Folder,
    b: Folder,
    *,
    reference: Folder | None = None,
    of_a: Mapping[str, Any] | None = None,
    of_b: Mapping[str, Any] | None = None,
    quick: bool = False,
    threads: int | None = None,
    atol: float = 0.0,
    rtol: float = 0.0,
    ulps: float = 0.0,
    on_bytes: Callable[[int], None] | None = None,
    on_total: Callable[[int], None] | None = None,
    html: Folder | None = None,
    **options: Unpack[SideKeywords],
) -> Difference:
    """Two models compared tensor by tensor, bit by bit: Hugging Face folders, however each is cut into files,
    or Megatron checkpoints of any format and layout, as what an export would make of them.

    `ok` of the result says whether no element differs by more than `atol` plus `rtol` of the larger of both,
    or by more than `ulps` values of its type, and both say the same function; `identical` whether no bit
    does. A checkpoint needs the `reference` that its export needs, by default the other side, if that is a
    folder, or an `architecture`. `options` are the fields of `SideOptions` for both sides; `of_a` and `of_b`
    are those of one (also `reference`).

    Called by one process, which writes nothing; of folders a few MiB of each side are in memory for each of
    `threads` threads, one per core that this process may use if None, of checkpoints what `planned_bytes` of
    the result says. Every byte is read, of folders past the page cache; `on_total` is told how many bytes of
    both sides that are, `on_bytes` those of every step. `quick` takes tensors of two folders as equal,
    unread, whose digests are so in the manifests of both. `html` is a file for a page of the result. Raises
    OptionError, VerificationError where a folder can't be read, and of a checkpoint what its export would
    raise, but that tensors are missing or too many.

    >>> pp_export.diff("/exports/run", "/exports/other").identical
    True
    >>> pp_export.diff("/checkpoints/run", "/exports/run", iteration=1000).identical
    True

    """
    from pp_export.checkpoint.formats import holds_checkpoint
    from pp_export.options.comparison import sides_from
    from pp_export.process.cores import usable_cores
    from pp_export.verification.side_by_side import Tolerance
    from pp_export.view.html import Page
    from pp_export.view.pages.compared import difference_page

    page = Page(html, a, b)
    common = {**options, **({} if reference is None else {"reference": reference})}
    sides = sides_from(common, of_a or {}, of_b or {})
    shared: dict[str, Any] = {
        "threads": usable_cores() if threads is None else threads,
        "tolerance": Tolerance(atol, rtol, ulps),
        "on_total": on_total or (lambda _: None),
        "on_bytes": on_bytes or (lambda _: None),
    }
    if holds_checkpoint(Path(a)) or holds_checkpoint(Path(b)):
        if quick:
            raise OptionError(
                "--quick compares two Hugging Face folders only: a checkpoint records no digests of tensors",
                advice="leave --quick out",
            )
        from pp_export.difference import diff_checkpoints

        return page.of(diff_checkpoints(Path(a), Path(b), sides, **shared), difference_page)
    from pp_export.steps.functions import Function, config_differences
    from pp_export.verification.diff import diff_folders

    config = config_differences(*(Function.of_folder(Path(side)) for side in (a, b)))
    result = replace(diff_folders(Path(a), Path(b), quick=quick, **shared), config=config)
    return page.of(result, difference_page)
