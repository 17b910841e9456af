"""Claims of `pp_export.view.text`: sizes as people say them."""

from __future__ import annotations

from pp_export.view.text import human_bytes


def test_bytes_are_shown_with_three_digits() -> None:
    """Sizes have a unit and three digits, also just below the next unit."""
    shown = {
        0: "0 B",
        999: "999 B",
        1000: "1 KB",
        3_550_000_000: "3.55 GB",
        999_499: "999 KB",
        999_600: "1 MB",
        999_999: "1 MB",
        10**12: "1 TB",
        25 * 10**14: "2.5e+03 TB",
    }
    assert {count: human_bytes(count) for count in shown} == shown
