"""Folders of DCP, as a format that can be exported where the save is finished and torch's."""

from __future__ import annotations

from pathlib import Path

from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.dcp import catalog as dcp_catalog
from pp_export.checkpoint.dcp import metadata_json
from pp_export.checkpoint.dcp.metadata import OnFault
from pp_export.checkpoint.source import Reader
from pp_export.core.errors import CheckpointError


class DcpFormat:
    """`.distcp` files, and `.metadata` that says what lies where in them; `metadata.json` where megatron-core
    wrote them.
    """

    name = dcp_catalog.READER

    def recognise(self, folder: Path) -> bool:
        marks = (".metadata", "metadata.json", "common.pt")
        return any((folder / mark).exists() for mark in marks) or any(folder.glob("*.distcp"))

    def is_finished(self, folder: Path, latest: int | None) -> bool:
        """megatron-core writes metadata.json last; without it, and without its common.pt, .metadata is it."""
        if (folder / "metadata.json").is_file():
            return True
        return (folder / ".metadata").is_file() and not (folder / "common.pt").exists()

    def describe(self, folder: Path, *, masters: bool = False, on_fault: OnFault | None = None) -> Catalog:
        _check_finished(folder)
        return dcp_catalog.read_catalog(folder, masters=masters, on_fault=on_fault)

    def open(self, catalog: Catalog, *, check_source: bool) -> Reader:
        from pp_export.checkpoint.file_reader import FileReader  # who only describes needs none

        return FileReader(catalog, check_source=check_source)


def _check_finished(folder: Path) -> None:
    """Raise CheckpointError unless the folder is a finished save of torch's DCP."""
    where = {"folder": folder}
    if not (folder / ".metadata").exists() and any(folder.glob("*.distcp")):
        raise CheckpointError(
            "the save is unfinished: there are .distcp files but no .metadata, which is written last",
            where=where,
            advice="wait for an asynchronous save to end, or take an earlier iteration",
        )
    found = metadata_json.backends(folder)
    backend = None if found is None else found.sharded
    if backend is None and (folder / "common.pt").exists():
        raise dcp_catalog.unfinished(folder)
    if backend == "zarr":
        raise CheckpointError(
            "the checkpoint is stored as zarr arrays, which megatron-core dropped in release 0.16",
            where=where,
            expected="torch_dist",
            advice="load and save it with megatron-core 0.15 or older and --ckpt-format torch_dist",
        )
    if backend not in (None, "torch_dist"):
        raise CheckpointError(
            "the checkpoint's backend can't be read", where=where, expected="torch_dist", got=backend
        )
    if not (folder / ".metadata").is_file():
        raise CheckpointError("the folder has metadata.json but no .metadata", where=where)
