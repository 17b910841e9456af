"""Claims of `pp_export.verification.folder`: links are followed inside the folder and its Hub cache only."""

from __future__ import annotations

from pathlib import Path

import pytest

from pp_export.verification import verify_folder
from tests.fixtures.damage import swap_for_link
from tests.fixtures.hf_folders import INDEX, MIDDLE, SHARDS, found, sha256
from tests.fixtures.opened_paths import opened


@pytest.mark.parametrize("flipped", [False, True])
def test_snapshot_of_the_hub_cache(sealed: Path, tmp_path: Path, flipped: bool) -> None:
    """A cache snapshot's links to its own blobs are followed; a blob must have the digest that names it."""
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in [*SHARDS, INDEX, "config.json"]:
        data = bytearray((sealed / name).read_bytes())
        blob = blobs / sha256(data)
        if flipped and name == SHARDS[0]:
            data[-1] ^= 1
        blob.write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
    result = verify_folder(snapshot)
    assert found(result) == ({(SHARDS[0], None, "wrong-digest")} if flipped else set())
    assert result.depth == "full"
    assert not result.made_by_us


def test_link_out_is_never_opened(folder: Path) -> None:
    """A symbolic link that leads out of the folder is a fault and is not followed."""
    swap_for_link(MIDDLE)(folder)
    opened.clear()
    verify_folder(folder)
    assert opened
    assert not any(path.endswith((MIDDLE, "elsewhere")) for path in opened)
