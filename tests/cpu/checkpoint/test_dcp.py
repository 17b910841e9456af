"""Claims of `pp_export.checkpoint.dcp` and `file_reader`: what is read is what torch would load, or the fault
is named.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

import pp_export
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.file_reader import FileReader
from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Slice
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.boxes import whole, within
from tests.fixtures.element_types import bytes_of, random_bits
from tests.fixtures.stored import canonical_values, edit_metadata, read_stored, refused, write_stored

ROOT = Path(pp_export.__file__).resolve().parents[1]
REAL = [("qwen2", "tp2pp2"), ("qwen3_moe", "pp2ep2")]
TENSORS = {
    "embedding.word_embeddings.weight": random_bits((8, 6), "float32", 1),
    "decoder.layers.mlp.linear_fc2.weight": random_bits((3, 4, 6), "bfloat16", 2),
    "decoder.final_layernorm.weight": random_bits((6,), "float32", 3),
}
FC2 = "decoder.layers.mlp.linear_fc2.weight"
EDIT = Callable[[Metadata], object]


def read(reader: FileReader, slice_: Slice) -> bytes:
    into = bytearray(slice_.num_bytes)
    reader.read(slice_, memoryview(into))
    return bytes(into)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in the stored form, of three tensors in a box each."""
    return write_stored(tmp_path / "iter_0000010", TENSORS, {"num_layers": 3})


@pytest.fixture
def boxed(tmp_path: Path) -> Path:
    """A checkpoint of one tensor in three boxes: columns 0 to 3, and 4 to 5 of the upper and the lower
    rows.
    """
    full = TENSORS["embedding.word_embeddings.weight"]
    parts = {"0": full[:, :4], "1": full[:4, 4:], "2": full[4:, 4:]}
    offsets = {"0": (0, 0), "1": (0, 4), "2": (4, 4)}
    folder = write_stored(tmp_path / "iter_0000010", {n: p.contiguous() for n, p in parts.items()}, None)

    def join(metadata: Metadata) -> None:
        part = metadata.state_dict_metadata["0"]
        assert isinstance(part, TensorStorageMetadata)
        boxes = [ChunkStorageMetadata(torch.Size(offsets[n]), p.shape) for n, p in parts.items()]
        metadata.state_dict_metadata = {"w": TensorStorageMetadata(part.properties, full.shape, boxes)}
        places = {index.fqn: info for index, info in metadata.storage_data.items()}
        metadata.storage_data = {
            MetadataIndex("w", torch.Size(offsets[name])): places[name] for name in reversed(parts)
        }

    edit_metadata(folder, join)
    return folder


# --- what is there


@pytest.mark.parametrize(("model", "layout"), REAL)
def test_the_catalog_is_what_torch_reads(checkpoint: Checkpoint, model: str, layout: str) -> None:
    """Of a real checkpoint, all model tensors have the sizes, types, boxes and places that torch's reader
    says.
    """
    catalog = describe_checkpoint(checkpoint(model, layout), None)
    truth = FileSystemReader(checkpoint(model, layout) / "iter_0000010").read_metadata()
    tensors = {
        key: meta
        for key, meta in truth.state_dict_metadata.items()
        if isinstance(meta, TensorStorageMetadata) and not re.match(r"(chained_\d+\.)?optimizer\.", key)
    }
    assert [tensor.key for tensor in catalog.tensors] == sorted(tensors)
    for tensor in catalog.tensors:
        meta = tensors[tensor.key]
        assert tensor.shape == tuple(meta.size)
        assert f"torch.{tensor.dtype.torch_name}" == str(meta.properties.dtype)
        places = [truth.storage_data[MetadataIndex(tensor.key, box.offsets)] for box in meta.chunks]
        assert [
            (b.box.offset, b.box.shape, catalog.files[r.file], r.offset, r.length)
            for b, r in ((b, catalog.stored_items[b.item]) for b in tensor.boxes)
        ] == [
            (tuple(box.offsets), tuple(box.sizes), place.relative_path, place.offset, place.length)
            for box, place in zip(meta.chunks, places)
        ]
    others = sum(count for count, _ in catalog.description.other.values())
    assert others == len(truth.storage_data) - sum(len(meta.chunks) for meta in tensors.values())
    assert "optimizer" in catalog.description.other


def test_the_catalog_is_what_megatron_core_reads(checkpoint: Checkpoint) -> None:
    """Keys, global shapes and types equal those that megatron-core's own `load_tensors_metadata` reports."""
    code = (
        "import sys, json; from megatron.core import dist_checkpointing as d;"
        "print(json.dumps([{k: [list(t.global_shape), str(t.dtype)]"
        " for k, t in d.load_tensors_metadata(f).items()} for f in sys.argv[1:]]))"
    )
    roots = [checkpoint(model, layout) for model, layout in REAL]
    command = [sys.executable, "-W", "ignore", "-c", code, *(str(root / "iter_0000010") for root in roots)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    for root, truth in zip(roots, json.loads(answer.stdout.splitlines()[-1])):
        found = {
            t.key: [list(t.shape), f"torch.{t.dtype.torch_name}"]
            for t in describe_checkpoint(root, None).tensors
        }
        assert found == {key: value for key, value in truth.items() if "optimizer." not in key}
        assert len(found) >= 10


@pytest.mark.parametrize(("model", "layout"), REAL)
def test_every_slice_has_the_bytes_that_torch_loads(checkpoint: Checkpoint, model: str, layout: str) -> None:
    """Every slice of every canonical tensor has exactly the bytes that torch's own loader gives for its
    box.
    """
    root = checkpoint(model, layout)
    catalog = describe_checkpoint(root, None)
    truth = canonical_values(read_stored(root)[0])
    assert catalog.slices.keys() == catalog.specs.keys() == truth.keys()
    num_cut = 0
    with FileReader(catalog, check_source=True) as reader:
        for name, slices in catalog.slices.items():
            spec = catalog.specs[name]
            assert (spec.shape, str(truth[name].dtype)) == (
                tuple(truth[name].shape),
                f"torch.{spec.dtype.torch_name}",
            )
            assert sum(slice_.box.volume for slice_ in slices) == spec.num_elements
            num_cut += len(slices) > 1
            for slice_ in slices:
                values = truth[name][within(slice_.box, whole(spec.shape))]
                assert read(reader, slice_) == bytes_of(values), (name, slice_.box)
        reader.finish()
    assert num_cut > 10


@pytest.mark.parametrize("seed", range(4))
def test_slices_in_any_order_are_read_once_and_checked(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Parts of slices in any order are read from the file once each, and their CRCs are put together: nothing
    is read again for them, and what nobody asked for is read at the end.
    """
    catalog = describe_checkpoint(checkpoint(*REAL[0]), None)
    numbers = random.Random(seed)
    rows = [row for slices in catalog.slices.values() for s in slices for row in s.rows(1000)]
    numbers.shuffle(rows)
    left = rows[: seed * 3]
    preadv, num_read = os.preadv, 0

    def counting(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        nonlocal num_read
        count = preadv(descriptor, buffers, offset, flags)
        num_read += count
        return count

    needed = sum(row.num_bytes for row in rows)
    with FileReader(catalog, check_source=True) as reader:
        monkeypatch.setattr(os, "preadv", counting)
        for row in rows[len(left) :]:
            read(reader, row)
        in_rows, num_read = num_read, 0
        reader.finish()
    assert in_rows == needed - sum(row.num_bytes for row in left)
    assert num_read <= sum(row.num_bytes for row in left)


def test_one_flipped_bit_is_found_in_any_order(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """An item of which the last bytes are read first is found damaged all the same."""
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint(*REAL[0]), copy)
    catalog = describe_checkpoint(copy, None)
    slice_ = max((s for slices in catalog.slices.values() for s in slices), key=lambda s: s.num_bytes)
    file = Path(catalog.description.folder) / catalog.files[catalog.stored_items[slice_.item].file]
    with FileReader(catalog, check_source=True) as reader:
        data = bytearray(file.read_bytes())
        data[data.index(read(reader, slice_)) + slice_.num_bytes // 2] ^= 4
        file.write_bytes(data)
        read(reader, slice_)
    with FileReader(catalog, check_source=True) as reader:
        for row in reversed(slice_.rows(1000)[1:]):
            read(reader, row)
        with pytest.raises(CheckpointError, match="CRC-32"):
            reader.finish()


def test_the_description_says_what_the_checkpoint_is(checkpoint: Checkpoint, folder: Path) -> None:
    """Iteration, format, args and kind of keys are described; args are None where common.pt has none."""
    real = describe_checkpoint(checkpoint("qwen2", "tp2pp2"), None).description
    assert (real.format, real.iteration) == ("torch_dist", 10)
    assert describe_checkpoint(checkpoint("qwen2", "tp2pp2"), None).is_stacked
    assert real.layout["tensor_model_parallel_size"] == real.layout["pipeline_model_parallel_size"] == 2
    assert real.args is not None
    assert Path(real.folder) == checkpoint("qwen2", "tp2pp2") / "iter_0000010"
    described = describe_checkpoint(folder, None).description
    assert (described.args, described.other, described.iteration) == ({"num_layers": 3}, {}, 10)
    torch.save({"iteration": 10}, folder / "common.pt")
    assert describe_checkpoint(folder, None).description.args is None


def test_a_catalog_travels_as_bytes(checkpoint: Checkpoint) -> None:
    """A catalog of which another rank reads all has the same slices and records there."""
    catalog = describe_checkpoint(checkpoint("qwen3_moe", "pp2ep2"), None)
    image = catalog.image_of(range(len(catalog.stored_items)))
    received = Catalog.from_bytes(image)
    assert received.slices == catalog.slices
    assert received.specs == catalog.specs
    assert received.stored_items == catalog.stored_items
    assert received.files == catalog.files
    assert len(image) < 100 * len(catalog.stored_items)


def test_boxes_in_any_order_become_slices(boxed: Path) -> None:
    """A tensor stored in several boxes is described and read box by box, wherever each box lies."""
    catalog = describe_checkpoint(boxed, None)
    assert len(catalog.slices["w"]) == 3
    full = TENSORS["embedding.word_embeddings.weight"]
    with FileReader(catalog, check_source=True) as reader:
        for slice_ in catalog.slices["w"]:
            assert read(reader, slice_) == bytes_of(full[within(slice_.box, whole((8, 6)))])


def test_a_stacked_record_is_read_in_parts(folder: Path) -> None:
    """Layers of a stacked record are parts of it, read in the order of their bytes, in rows if need be."""
    catalog = describe_checkpoint(folder, None)
    layers = [catalog.slices[f"decoder.layers.{number}.mlp.linear_fc2.weight"][0] for number in range(3)]
    assert len({slice_.item for slice_ in layers}) == 1
    with FileReader(catalog, check_source=True) as reader:
        rows = [row for slice_ in layers for row in slice_.rows(24)]
        assert len(rows) == 6
        assert b"".join(read(reader, row) for row in rows) == bytes_of(TENSORS[FC2])
        reader.finish()


# --- damage


def test_a_flipped_bit_in_a_record_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One flipped bit anywhere in sampled weights' bytes is refused with the tensor and the file; unchecked,
    read.
    """
    shutil.copytree(checkpoint("qwen2", "tp2pp2"), tmp_path / "ckpt")
    catalog = describe_checkpoint(tmp_path / "ckpt", None)
    chance = random.Random(0)
    slices = [slice_ for slices in catalog.slices.values() for slice_ in slices]
    for slice_ in chance.sample(slices, 25):
        stored = catalog.stored_items[slice_.item]
        path = tmp_path / "ckpt" / "iter_0000010" / catalog.files[stored.file]
        with FileReader(catalog, check_source=True) as reader:
            good = read(reader, slice_)
        before = path.read_bytes()
        begin = before.index(good, stored.offset, stored.offset + stored.length)
        image = bytearray(before)
        image[begin + chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        path.write_bytes(image)
        with FileReader(catalog, check_source=True) as reader:
            with pytest.raises(CheckpointError, match="CRC-32 is not the one") as caught:
                read(reader, slice_)
            assert caught.value.where == {"tensor": slice_.name, "file": str(path)}
            assert caught.value.expected != caught.value.got
        with FileReader(catalog, check_source=False) as reader:
            assert read(reader, slice_) == image[begin : begin + len(good)]
        path.write_bytes(before)


def test_a_flipped_bit_in_an_archive_s_frame_is_named(folder: Path) -> None:
    """A flipped bit in the header or the directory around a tensor is refused with the tensor and the
    file.
    """
    catalog = describe_checkpoint(folder, None)
    slice_ = catalog.slices["decoder.final_layernorm.weight"][0]
    stored = catalog.stored_items[slice_.item]
    path = folder / catalog.files[stored.file]
    before = path.read_bytes()
    for at in (0, 31, 100, before.index(b"PK\1\2", stored.offset) - stored.offset):
        image = bytearray(before)
        image[stored.offset + at] ^= 1
        path.write_bytes(image)
        with FileReader(catalog, check_source=True) as reader, pytest.raises(CheckpointError) as caught:
            read(reader, slice_)
        assert caught.value.where == {"tensor": slice_.name, "file": str(path)}


def test_the_check_covers_records_that_are_read_in_parts(folder: Path) -> None:
    """A flipped bit in the first part of a record is found when its last part is read, unless checks are
    off.
    """
    catalog = describe_checkpoint(folder, None)
    layers = [catalog.slices[f"decoder.layers.{number}.mlp.linear_fc2.weight"][0] for number in range(3)]
    stored = catalog.stored_items[layers[0].item]
    path = folder / catalog.files[stored.file]
    image = bytearray(path.read_bytes())
    image[image.index(bytes_of(TENSORS[FC2]))] ^= 1
    path.write_bytes(image)
    with FileReader(catalog, check_source=True) as reader:
        read(reader, layers[0])
        read(reader, layers[1])
        with pytest.raises(CheckpointError, match="are damaged"):
            read(reader, layers[2])
    with FileReader(catalog, check_source=False) as reader:
        assert read(reader, layers[2]) == bytes_of(TENSORS[FC2][2])
        assert read(reader, layers[0]) != bytes_of(TENSORS[FC2][0])
        reader.finish()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1,), (0,), (0, 2)])
def test_a_record_is_checked_whole_in_whatever_order_it_is_read(folder: Path, order: tuple[int, ...]) -> None:
    """Parts read in any order, or left out, don't keep damage in any part of a record from being found."""
    catalog = describe_checkpoint(folder, None)
    layers = [catalog.slices[f"decoder.layers.{number}.mlp.linear_fc2.weight"][0] for number in range(3)]
    with FileReader(catalog, check_source=True) as reader:
        assert [read(reader, layers[i]) for i in order] == [bytes_of(TENSORS[FC2][i]) for i in order]
        reader.finish()
    path = folder / catalog.files[0]
    image = path.read_bytes()
    for damaged in range(3):
        at = image.index(bytes_of(TENSORS[FC2][damaged]))
        path.write_bytes(image[:at] + bytes([image[at] ^ 1]) + image[at + 1 :])
        with FileReader(catalog, check_source=True) as reader:
            steps: list[Callable[[], object]] = [partial(read, reader, layers[i]) for i in order]
            with pytest.raises(CheckpointError, match="are damaged"):
                [step() for step in [*steps, reader.finish]]


def test_values_that_do_not_lie_together_are_read_by_their_strides(tmp_path: Path) -> None:
    """A slice with strides, such as a part of a transposed tensor, is read in C order, and bounded by its
    record.
    """
    full = random_bits((6, 8), "bfloat16", 4)
    folder = write_stored(tmp_path / "iter_0000010", {"w": full}, None)
    catalog = describe_checkpoint(folder, None)
    turned = catalog.slices["w"][0]._replace(box=whole((8, 6)), strides=(1, 8))
    with FileReader(catalog, check_source=True) as reader:
        assert read(reader, turned) == bytes_of(full.T.contiguous())
        rows = turned.rows(24)
        assert len(rows) == 4
        assert b"".join(read(reader, row) for row in rows) == bytes_of(full.T.contiguous())
        with pytest.raises(CheckpointError, match="reaches beyond the end of its stored item"):
            read(reader, turned._replace(strides=(1, 9)))
        reader.finish()


def test_files_are_closed_and_losing_one_is_named(folder: Path) -> None:
    """The reader closes its files; a file that vanishes or shrinks after planning is named with the
    tensor.
    """
    before = len(os.listdir("/proc/self/fd"))
    catalog = describe_checkpoint(folder, None)
    slice_ = catalog.slices["decoder.final_layernorm.weight"][0]
    path = folder / catalog.files[0]
    with FileReader(catalog, check_source=True) as reader:
        read(reader, slice_)
        layers = catalog.slices["decoder.layers.0.mlp.linear_fc2.weight"]
        assert read(reader, layers[0])
        path.write_bytes(path.read_bytes()[:1])
        following = catalog.slices["decoder.layers.1.mlp.linear_fc2.weight"][0]
        with pytest.raises(CheckpointError, match="the file ends inside a tensor"):
            read(reader, following)
    assert len(os.listdir("/proc/self/fd")) == before
    path.unlink()
    with FileReader(catalog, check_source=True) as reader:
        with pytest.raises(CheckpointError, match="can't open: No such file") as caught:
            read(reader, slice_)
        assert caught.value.where == {"tensor": slice_.name, "file": str(path)}


def test_missing_and_truncated_files_are_all_listed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Before a byte is read, every missing and every truncated file is listed at once."""
    shutil.copytree(checkpoint("qwen2", "tp2pp2"), tmp_path / "ckpt")
    folder = tmp_path / "ckpt" / "iter_0000010"
    (folder / "__0_1.distcp").unlink()
    os.truncate(folder / "__2_0.distcp", 5000)
    (folder / "__1_0.distcp").unlink()
    (folder / "__1_0.distcp").mkdir()
    error = refused(tmp_path / "ckpt", "missing, truncated")
    assert error.where == {"folder": str(folder)}
    assert {finding.partition(":")[0] for finding in error.findings} == {
        "__0_1.distcp is missing",
        "__1_0.distcp is missing",
        "__2_0.distcp is truncated",
    }
    assert any(re.fullmatch(r".*truncated: 5000 bytes, at least \d+ needed", f) for f in error.findings)


# --- metadata that is wrong


def boxes_of(metadata: Metadata, key: str) -> list[ChunkStorageMetadata]:
    meta = metadata.state_dict_metadata[key]
    assert isinstance(meta, TensorStorageMetadata)
    return meta.chunks


def test_a_box_has_no_more_bytes_than_its_record(boxed: Path) -> None:
    """A tensor of 24 GB whose record has a kilobyte is refused before anybody plans memory for it; so is one
    whose boxes would be cut into each other without end.
    """
    good = (boxed / ".metadata").read_bytes()

    def claim(metadata: Metadata) -> None:
        meta = metadata.state_dict_metadata["w"]
        assert isinstance(meta, TensorStorageMetadata)
        meta.size = torch.Size((12 << 30, 1))
        meta.chunks = [ChunkStorageMetadata(torch.Size((0, 0)), meta.size)]

    edit_metadata(boxed, claim)
    error = refused(boxed, "more bytes than are stored for it")
    assert error.where["tensor"] == "w"
    assert error.where["file"].endswith(".distcp")
    (boxed / ".metadata").write_bytes(good)


def test_missing_and_overlapping_boxes_are_refused(boxed: Path) -> None:
    """Boxes that leave a gap, come twice or overlap are refused with the tensor's key."""
    good = (boxed / ".metadata").read_bytes()
    wide = ChunkStorageMetadata(torch.Size((0, 4)), torch.Size((5, 2)))
    changes: list[EDIT] = [
        lambda m: boxes_of(m, "w").pop(),
        lambda m: boxes_of(m, "w").append(boxes_of(m, "w")[0]),
        lambda m: boxes_of(m, "w").__setitem__(1, wide),
        lambda m: boxes_of(m, "w").clear(),
    ]
    for change in changes:
        (boxed / ".metadata").write_bytes(good)
        edit_metadata(boxed, change)
        assert refused(boxed, "do not fill the tensor exactly").where == {"tensor": "w"}
    (boxed / ".metadata").write_bytes(good)
    edit_metadata(
        boxed,
        lambda m: boxes_of(m, "w").__setitem__(
            0, ChunkStorageMetadata(torch.Size((0, 0)), torch.Size((9, 4)))
        ),
    )
    assert refused(boxed, "reaches outside its tensor").where == {"tensor": "w"}


def test_a_box_that_is_stored_nowhere_is_refused(boxed: Path) -> None:
    """A box without a place in the files is refused with its tensor and offset."""
    edit_metadata(boxed, lambda m: m.storage_data.pop(MetadataIndex("w", torch.Size((0, 4)))))
    error = refused(boxed, "stored nowhere")
    assert (error.where, error.got) == ({"tensor": "w"}, "offset (0, 4)")


def test_two_boxes_in_the_same_bytes_are_refused(boxed: Path) -> None:
    """Metadata that gives two boxes of equal shape the same item is refused: one of them would be wrong."""
    first, second = (MetadataIndex("w", torch.Size(offset)) for offset in ((0, 4), (4, 4)))
    edit_metadata(boxed, lambda m: m.storage_data.__setitem__(first, m.storage_data[second]))
    assert refused(boxed, "not what .metadata says").findings == (
        "__0_0.distcp: w and w are stored in the same bytes",
    )


@pytest.mark.parametrize(
    "path",
    [
        "../x.distcp",
        "/etc/x.distcp",
        "a/b.distcp",
        ".hidden.distcp",
        "..",
        "",
        "x.bin",
        "x.distcp\n",
        "a\0.distcp",
    ],
)
def test_a_file_name_that_leaves_the_checkpoint_is_refused(folder: Path, path: str) -> None:
    """Stored file names are plain names of .distcp files; anything else is refused, whether or not it
    exists.
    """

    def change(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = path

    edit_metadata(folder, change)
    assert refused(folder, "names a file outside the checkpoint").got == repr(path)


def test_transformed_items_are_refused(folder: Path) -> None:
    """An item that is stored through a transform, such as compression, is refused as such."""

    def change(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            object.__setattr__(info, "transform_descriptors", ["zstd"])

    edit_metadata(folder, change)
    assert refused(folder, "stored through a transform").got == "['zstd']"


@pytest.mark.parametrize("key", ["a b", "a/b", "../a", "a\n", "ä", "{0.__class__}", ""])
def test_keys_that_no_parameter_has_are_refused(folder: Path, key: str) -> None:
    """A stored key with unusual characters is refused before anything is made of it."""

    def change(metadata: Metadata) -> None:
        metadata.state_dict_metadata[key] = metadata.state_dict_metadata.pop(FC2)

    edit_metadata(folder, change)
    refused(folder, "characters that no parameter name has")


def test_stacked_and_single_keys_of_one_tensor_are_refused(tmp_path: Path) -> None:
    """A layer that is stored both stacked and alone is refused by its canonical name."""
    double = {FC2: TENSORS[FC2], "decoder.layers.1.mlp.linear_fc2.weight": TENSORS[FC2][1].clone()}
    folder = write_stored(tmp_path / "iter_0000010", double, None)
    error = refused(folder, "stored twice: stacked over layers")
    assert error.findings == ("decoder.layers.1.mlp.linear_fc2.weight",)


def test_items_that_are_no_weights_are_counted_and_left(folder: Path) -> None:
    """Optimizer state and objects are counted by kind, not exported, and need not be covered or even
    there.
    """

    def change(metadata: Metadata) -> None:
        some = metadata.state_dict_metadata[FC2]
        metadata.state_dict_metadata["optimizer.state.exp_avg.x"] = some
        metadata.state_dict_metadata["chained_0.optimizer.state.exp_avg.x"] = some
        metadata.state_dict_metadata["rng_state/shard_0_1"] = BytesStorageMetadata()
        metadata.state_dict_metadata["decoder.x._extra_state/shard_0_1"] = BytesStorageMetadata()

    edit_metadata(folder, change)
    catalog = describe_checkpoint(folder, None)
    assert set(catalog.description.other) == {"_extra_state", "optimizer", "rng_state"}
    assert {tensor.key for tensor in catalog.tensors} == TENSORS.keys()


@pytest.mark.parametrize(
    "value", [None, 5, {"a": 1}, [], torch.Size([1]), ChunkStorageMetadata(torch.Size(), torch.Size())]
)
def test_a_pickle_of_something_else_is_no_metadata(folder: Path, value: Any) -> None:
    """A `.metadata` that holds anything else is refused by name."""
    (folder / ".metadata").write_bytes(pickle.dumps(value))
    error = refused(folder, "not what torch writes")
    assert error.where == {"file": str(folder / ".metadata")}


def test_damaged_metadata_never_ends_in_another_error(folder: Path) -> None:
    """Whatever bit of `.metadata` flips, the catalog is read or a CheckpointError says that it can't be."""
    image = (folder / ".metadata").read_bytes()
    chance = random.Random(0)
    num_refused = 0
    for _ in range(500):
        damaged = bytearray(image)
        damaged[chance.randrange(len(image))] ^= 1 << chance.randrange(8)
        (folder / ".metadata").write_bytes(damaged)
        try:
            describe_checkpoint(folder, None)
        except CheckpointError:
            num_refused += 1
    assert num_refused > 250


# --- alone


_ALONE = """
import json, sys

sys.modules["megatron"] = None  # its import would fail
from pp_export.api import export_checkpoint
from tests.fixtures.undefined import without_definition

with without_definition():
    report = export_checkpoint(**json.loads(sys.argv[1]))
import torch

print(json.dumps({
    "loaded": sorted({name.partition(".")[0] for name in sys.modules if sys.modules[name] is not None}),
    "cuda": torch.cuda.is_initialized(),
    "group": torch.distributed.is_initialized(),
    "files": report.num_files,
}))
"""


def test_an_export_needs_neither_megatron_nor_cuda(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """A whole export by one process works where megatron can't be imported, starts no CUDA and no process
    group.
    """
    options = {
        "checkpoint": str(checkpoint("qwen2", "tp2pp2")),
        "reference": str(reference("qwen2")),
        "output": str(tmp_path / "out"),
    }
    answer = subprocess.run(
        [sys.executable, "-c", _ALONE, json.dumps(options)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    seen = json.loads(answer.stdout.splitlines()[-1])
    assert not {"megatron", "transformers", "accelerate"} & set(seen["loaded"])
    assert (seen["cuda"], seen["group"]) == (False, False)
    assert seen["files"] == 8
    assert (tmp_path / "out" / "export_manifest.json").exists()
