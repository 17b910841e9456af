"""What ranks did when, and what went from one to the other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Any

from pp_export.core.timeline import WORDS, Timeline
from pp_export.view.pages.sections import Column, Section, table
from pp_export.view.text import human_bytes

_MAX_LINKS = 20_000
_COARSE = (
    "Of many ranks, some. Drag to move, double click or Ctrl and the wheel to zoom. Paler: merged spans, with"
    " pauses between them."
)


def timeline(title: str, value: Mapping[str, Any]) -> list[Section]:
    """A timeline, and in numbers how long ranks were busy with what."""
    found = Timeline.from_json(value)
    busy: defaultdict[str, Counter[int]] = defaultdict(Counter)
    num_bytes = Counter[str]()
    for rank in found.ranks:
        for span in (span for lane in rank.lanes for span in lane.spans):
            busy[span.word][rank.rank] += span.busy_seconds  # type: ignore[assignment]
            num_bytes[span.word] += span.num_bytes
    rows = []
    for word in (word for word in WORDS if word in busy):
        (most_at, most), *_ = busy[word].most_common(1)
        rows.append([word, median_low(busy[word].values()), most, most_at, num_bytes[word] or None])
    columns = [
        Column("word"),
        Column("median of the ranks", "seconds"),
        Column("most", "seconds"),
        Column("of rank", "count"),
        Column("bytes of all shown", "bytes"),
    ]
    if not rows:
        return []
    return [
        {"kind": "timeline", "title": title, "note": _COARSE, "timeline": value, "end": found.end},
        table(f"{title}: seconds busy", columns, rows),
    ]


def links(found: Sequence[Mapping[str, int]]) -> Section:
    """What went from rank to rank; of very many, the most."""
    most = sorted(found, key=lambda link: -link["bytes"])[:_MAX_LINKS]
    title = f"Links: {len(found):,}, {human_bytes(sum(link['bytes'] for link in found))}"
    title += f"; the {_MAX_LINKS:,} with most" * (len(found) > _MAX_LINKS)
    columns = [Column("from rank", "count"), Column("to rank", "count"), Column("bytes", "bytes")]
    return table(title, columns, ([link["sender"], link["receiver"], link["bytes"]] for link in most))


def bytes_of_ranks(
    found: Sequence[Mapping[str, int]], timeline: Mapping[str, Any], num_ranks: int
) -> dict[str, list[int]]:
    """What each rank sent and received, and what it read, wrote, verified if the timeline has all."""
    totals = {"sends": [0] * num_ranks, "receives": [0] * num_ranks}
    for link in found:
        totals["sends"][link["sender"]] += link["bytes"]
        totals["receives"][link["receiver"]] += link["bytes"]
    ranks = Timeline.from_json(timeline).ranks
    if len(ranks) < num_ranks:
        return totals
    of_disk = {word: [0] * num_ranks for word in ("reads", "writes", "verifies")}
    for rank in ranks:
        for span in (span for lane in rank.lanes for span in lane.spans if span.word in of_disk):
            of_disk[span.word][rank.rank] += span.num_bytes
    return {**of_disk, **totals}
