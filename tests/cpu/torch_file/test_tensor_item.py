"""Claims of `pp_export.torch_file.tensor_item`: a tensor is found exactly, or its archive is refused."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pytest
import torch
from isal import isal_zlib

from pp_export.core.dtypes import from_torch
from pp_export.core.errors import CheckpointError, UnsafePickleError
from pp_export.core.tensors import Shape, TensorSpec
from pp_export.torch_file.tensor_item import StoredBytes, locate
from tests.fixtures.element_types import TORCH_NAMES, bytes_of, random_bits

BEFORE, BEHIND = b"PK\x05\x06" * 20 + b"x" * 5, b"PK\x01\x02" * 9


def archive_of(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def spec(shape: Shape, name: str) -> TensorSpec:
    return TensorSpec(shape, from_torch(name))


@pytest.fixture
def store() -> Iterator[Callable[[bytes], tuple[int, int, int]]]:
    """Puts an archive between other bytes of a file in memory: descriptor, offset and length of it."""
    descriptor = os.memfd_create("stored")

    def put(archive: bytes) -> tuple[int, int, int]:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, BEFORE + archive + BEHIND, 0)
        return descriptor, len(BEFORE), len(archive)

    yield put
    os.close(descriptor)


Store = Callable[[bytes], tuple[int, int, int]]


@contextmanager
def counted_reads() -> Iterator[list[int]]:
    """The bytes of each read that is made meanwhile."""
    sizes: list[int] = []
    pread = os.pread

    def counting(descriptor: int, num_bytes: int, at: int) -> bytes:
        data = pread(descriptor, num_bytes, at)
        sizes.append(len(data))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", counting)
        yield sizes


def read(descriptor: int, found: StoredBytes) -> bytes:
    return os.pread(descriptor, found.num_bytes, found.offset)


@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (1, 4, 1)], ids=str)
@pytest.mark.parametrize("name", TORCH_NAMES)
def test_tensors_of_every_type_are_found(store: Store, name: str, shape: Shape) -> None:
    """The bytes and the CRC of a tensor that torch saved are found, whatever its type and shape are."""
    tensor = random_bits(shape, name)
    where = store(archive_of(tensor))
    found = locate(*where, spec(shape, name))
    assert read(where[0], found) == bytes_of(tensor)
    assert found.crc == zlib.crc32(bytes_of(tensor))


def test_a_large_tensor_is_found_by_its_directory_alone(store: Store) -> None:
    """Of a large tensor only the archive's small members are read, not the tensor."""
    tensor = random_bits((1 << 20,), "float32")
    descriptor, offset, length = store(archive_of(tensor))
    with counted_reads() as reads:
        found = locate(descriptor, offset, length, spec((1 << 20,), "float32"))
    assert read(descriptor, found) == bytes_of(tensor)
    assert reads == [4096, 4096]  # what is behind the tensor, and what is before it


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_a_small_archive_is_one_read(store: Store, name: str) -> None:
    """An archive of a small tensor is read as a whole, at once."""
    tensor = random_bits((3, 4), name)
    descriptor, offset, length = store(archive_of(tensor))
    with counted_reads() as reads:
        found = locate(descriptor, offset, length, spec((3, 4), name))
    assert read(descriptor, found) == bytes_of(tensor)
    assert reads == [length]


def test_an_archive_with_a_long_directory_takes_few_reads(store: Store) -> None:
    """Where long names fill more than one read on both sides of the tensor, a few more are made."""
    archive, buffer = archive_of(random_bits((1 << 16,), "float32")), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w") as new:
        for member in old.infolist():
            name = "f" * 900 + "/" + member.filename.partition("/")[2]
            new.writestr(zipfile.ZipInfo(name, (1980, 0, 0, 0, 0, 0)), old.read(member))
    descriptor, offset, length = store(buffer.getvalue())
    with counted_reads() as reads:
        found = locate(descriptor, offset, length, spec((1 << 16,), "float32"))
    assert zlib.crc32(read(descriptor, found)) == found.crc
    assert len(reads) <= 5
    assert sum(reads) < 25_000


@pytest.mark.parametrize("num_bytes", [3, 5 << 30])
def test_a_tensor_of_any_length_is_found(num_bytes: int) -> None:
    """A tensor whose length takes more than 32 bits is found by the wide numbers of headers and directory, in
    two reads; its zeros are a hole in the file here.
    """
    with tempfile.TemporaryFile() as file:
        begin, crc = write_zip64(file, num_bytes)
        with counted_reads() as reads:
            found = locate(file.fileno(), 0, os.fstat(file.fileno()).st_size, spec((num_bytes,), "uint8"))
    assert (found.offset, found.num_bytes, found.crc) == (begin, num_bytes, crc)
    assert len(reads) <= 2


def write_zip64(file: IO[bytes], num_bytes: int) -> tuple[int, int]:
    """An archive of `num_bytes` zeros with wide numbers, as miniz writes them: where they begin, the CRC."""

    class Zeros:
        def __reduce__(self) -> Any:
            hooks: Any = collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, (storage, 0, (num_bytes,), (1,), False, hooks)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.ByteStorage, "0", "cpu", num_bytes) if value is storage else None

    storage, image = object(), io.BytesIO()
    Pickler(image, 2).dump(Zeros())
    crc, length = 0, 0
    for bit in f"{num_bytes:b}":  # of twice as many zeros, and one more
        crc, length = isal_zlib.crc32_combine(crc, crc, length), 2 * length
        if bit == "1":
            crc, length = zlib.crc32(b"\0", crc), length + 1
    directory, begin = b"", 0
    for name, data in ((b"a/data.pkl", image.getvalue()), (b"a/data/0", None), (b"a/version", b"3\n")):
        size = num_bytes if data is None else len(data)
        check = crc if data is None else zlib.crc32(data)
        header = file.tell()
        wide = struct.pack("<HHQQ", 1, 16, size, size)
        fields = (45, 0, 0, 0, 0, check, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(wide))
        file.write(struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", *fields) + name + wide)
        if data is None:
            begin = file.tell()
            file.seek(num_bytes, os.SEEK_CUR)
        else:
            file.write(data)
        wide = struct.pack("<HHQQQ", 1, 24, size, size, header)
        entry = (45, 45, 0, 0, 0, 0, check, *[0xFFFFFFFF] * 2, len(name), len(wide), 0, 0, 0, 0, 0xFFFFFFFF)
        directory += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", *entry) + name + wide
    at = file.tell()
    file.write(directory)
    end = file.tell()
    file.write(struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, len(directory), at))
    file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1))
    file.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 3, 3, len(directory), 0xFFFFFFFF, 0))
    file.flush()
    return begin, crc


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_no_flipped_bit_yields_wrong_bytes(store: Store, name: str) -> None:
    """Any flipped bit of an archive is refused, or shown by the CRC, or leaves the tensor's bytes right."""
    tensor = random_bits((3, 4), name)
    archive, wanted = archive_of(tensor), spec((3, 4), name)
    descriptor, offset, length = store(archive)
    outcomes: collections.Counter[str] = collections.Counter()
    harmless = set()
    for at in range(length):
        for bit in range(8) if name == "bfloat16" else (at % 8,):
            os.pwrite(descriptor, bytes([archive[at] ^ 1 << bit]), offset + at)
            try:
                found = locate(descriptor, offset, length, wanted)
            except CheckpointError:
                outcomes["refused"] += 1
            else:
                data = read(descriptor, found)
                if zlib.crc32(data) != found.crc:
                    outcomes["shown by the CRC"] += 1
                else:
                    outcomes["harmless"] += 1
                    harmless.add(at)
                    assert data == bytes_of(tensor), f"bit {bit} of byte {at}"
        os.pwrite(descriptor, archive[at : at + 1], offset + at)
    assert outcomes["shown by the CRC"] == len(bytes_of(tensor)) * (8 if name == "bfloat16" else 1)
    assert outcomes["refused"] > 6 * outcomes["harmless"]
    # What goes unnoticed are fields of the zip's headers that say nothing about the members' bytes.
    assert not harmless & member_bytes(archive)


def member_bytes(archive: bytes) -> set[int]:
    """Where the bytes of the archive's members lie."""
    found: set[int] = set()
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        for member in file.infolist():
            name_length, extra_length = struct.unpack_from("<HH", archive, member.header_offset + 26)
            begin = member.header_offset + 30 + name_length + extra_length
            assert archive[begin : begin + member.file_size] == file.read(member)
            found |= set(range(begin, begin + member.file_size))
    return found


def test_random_damage_never_yields_wrong_bytes(store: Store) -> None:
    """Whatever happens to some bytes of an archive at once, the outcome is a refusal, a wrong CRC or the
    truth.
    """
    tensor = random_bits((3, 4), "float32")
    archive, wanted = archive_of(tensor), spec((3, 4), "float32")
    chance = random.Random(0)
    for _ in range(400):
        damaged = bytearray(archive)
        begin = chance.randrange(len(archive))
        for at in range(begin, min(begin + chance.choice([1, 2, 4, 8, 40]), len(archive))):
            damaged[at] = chance.choice([0, 0xFF, chance.randrange(256)])
        where = store(bytes(damaged))
        try:
            found = locate(*where, wanted)
        except CheckpointError:
            continue
        data = read(where[0], found)
        assert zlib.crc32(data) != found.crc or data == bytes_of(tensor)


@pytest.mark.parametrize("cut", [1, 22, 100, 600, 1200])
def test_a_cut_archive_is_refused(store: Store, cut: int) -> None:
    """An archive that lacks its end, or whose length is told wrong, is refused."""
    archive = archive_of(random_bits((3, 4), "float32"))
    descriptor, offset, length = store(archive[:-cut])
    with pytest.raises(CheckpointError, match="archive is damaged"):
        locate(descriptor, offset, length, spec((3, 4), "float32"))
    descriptor, offset, length = store(archive)
    for at, of in ((offset + cut, length - cut), (offset, length - cut), (offset - cut, length + cut)):
        with pytest.raises(CheckpointError, match="archive is damaged"):
            locate(descriptor, max(0, at), of, spec((3, 4), "float32"))


@pytest.mark.parametrize(
    ("shape", "name"), [((4, 3), "float32"), ((12,), "float32"), ((3, 4), "int32"), ((3, 4, 1), "float32")]
)
def test_another_tensor_than_announced_is_refused(store: Store, shape: Shape, name: str) -> None:
    """A tensor of another shape or type than the metadata says is refused, naming both."""
    where = store(archive_of(random_bits((3, 4), "float32")))
    with pytest.raises(CheckpointError, match=r"holds float32\[3, 4\], expected"):
        locate(*where, spec(shape, name))


BASE = torch.arange(24, dtype=torch.float32)


@pytest.mark.parametrize(
    "tensor",
    [
        BASE[:12].view(3, 4),
        BASE[12:].view(3, 4),
        BASE[::2].view(3, 4),
        BASE[:12].view(4, 3).t(),
        BASE[:1].expand(3, 4),
    ],
    ids=["larger storage", "offset", "strides", "transposed", "expanded"],
)
def test_a_tensor_that_does_not_fill_its_storage_is_refused(store: Store, tensor: torch.Tensor) -> None:
    """Where storage and tensor differ (a view of something larger, other strides), the bytes are not the
    tensor.
    """
    where = store(archive_of(tensor))
    with pytest.raises(CheckpointError, match="does not fill its storage contiguously"):
        locate(*where, spec((3, 4), "float32"))


def test_a_tensor_seen_through_negation_is_refused(store: Store) -> None:
    """A tensor whose values are the negated stored ones is refused, because the bytes alone would be
    wrong.
    """
    negated = torch._neg_view(BASE[:12].clone().view(3, 4))
    where = store(archive_of(negated))
    with pytest.raises(CheckpointError, match="another tensor seen through"):
        locate(*where, spec((3, 4), "float32"))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"x": torch.ones(3, 4)}, "not a tensor"),
        (torch.nn.Parameter(torch.ones(3, 4)), "not a tensor"),
        ([torch.ones(3, 4), torch.zeros(3, 4)], "not a tensor"),
        ("text", "damaged"),
    ],
    ids=["dict", "parameter", "two tensors", "no tensor"],
)
def test_anything_but_one_tensor_is_refused(store: Store, value: Any, match: str) -> None:
    """An item that holds something else than one plain tensor is refused."""
    with pytest.raises(CheckpointError, match=match):
        locate(*store(archive_of(value)), spec((3, 4), "float32"))


def rewritten(
    archive: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED
) -> bytes:
    """The same members in a new zip by Python's own writer, each passed through `change`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for member in old.infolist():
            new.writestr(
                zipfile.ZipInfo(member.filename, (1980, 0, 0, 0, 0, 0)),
                change(member.filename.partition("/")[2], old.read(member)),
                method,
            )
    return buffer.getvalue()


def test_big_endian_bytes_are_refused(store: Store) -> None:
    """A tensor that a big-endian machine saved is refused; only its byte order differs from one that is
    read.
    """
    archive = archive_of(random_bits((3, 4), "float32"))

    def swap(name: str, data: bytes) -> bytes:
        return b"big" if name == "byteorder" else data

    same = store(rewritten(archive, lambda name, data: data))
    assert locate(*same, spec((3, 4), "float32")).num_bytes == 48
    with pytest.raises(CheckpointError, match="not stored in little-endian order"):
        locate(*store(rewritten(archive, swap)), spec((3, 4), "float32"))


def test_compressed_members_are_refused(store: Store) -> None:
    """An archive whose members are compressed is refused: its bytes are not the tensor's."""
    archive = rewritten(archive_of(torch.zeros(30, 40)), lambda name, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="not where or how torch stores it"):
        locate(*store(archive), spec((30, 40), "float32"))


def test_bytes_that_belong_to_no_member_are_refused(store: Store) -> None:
    """Bytes before the first member, between members or before the directory are refused."""
    archive = archive_of(random_bits((3, 4), "float32"))
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        places = [0, file.infolist()[3].header_offset, file.start_dir]
    for at in places:
        padded = archive[:at] + b"PK\0\0" + archive[at:]
        with pytest.raises(CheckpointError, match="archive is damaged"):
            locate(*store(padded), spec((3, 4), "float32"))


def test_a_tensor_of_another_size_than_its_record_is_refused(store: Store) -> None:
    """A record that has more or fewer bytes than its tensor needs is refused, though its own CRC is right."""
    archive = archive_of(random_bits((3, 4), "float32"))
    for change in (lambda data: data[:-4], lambda data: data + b"\0" * 4):
        other = rewritten(archive, lambda name, data, c=change: c(data) if name == "data/0" else data)  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=r"the tensor has (44|52) bytes, expected 48"):
            locate(*store(other), spec((3, 4), "float32"))


def test_two_members_of_one_name_are_refused(store: Store) -> None:
    """An archive in which two members could be the tensor is refused."""
    buffer = io.BytesIO(rewritten(archive_of(torch.ones(3, 4)), lambda name, data: data))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(zipfile.ZipInfo("other/data/0", (1980, 0, 0, 0, 0, 0)), bytes(48))
    with pytest.raises(CheckpointError, match="two members have one name"):
        locate(*store(buffer.getvalue()), spec((3, 4), "float32"))


@pytest.mark.parametrize(
    "described",
    [
        pickle.dumps(5, 2),
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n(NNNNNNtR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(X\x01\0\0\0aK\0K\0K\0K\0K\0tR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storageK\x01K\x02K\x03K\x04tQK\0K\x01K\x01K\0K\0tR.",
        b"garbage",
    ],
)
def test_descriptions_that_make_no_sense_are_refused(store: Store, described: bytes) -> None:
    """An archive whose CRCs are right but whose pickle describes no tensor is refused without a crash."""
    archive = archive_of(torch.ones(3, 4))
    other = rewritten(archive, lambda name, data: described if name == "data.pkl" else data)
    with pytest.raises(CheckpointError):
        locate(*store(other), spec((3, 4), "float32"))


def test_a_payload_in_an_item_does_not_run(store: Store, tmp_path: Any) -> None:
    """A stored tensor whose pickle carries a payload is refused by the payload's global, and nothing runs."""
    marker = tmp_path / "marker"

    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {marker}",)

    archive = rewritten(
        archive_of(torch.ones(3, 4)),
        lambda name, data: pickle.dumps(Payload()) if name == "data.pkl" else data,
    )
    with pytest.raises(UnsafePickleError, match=r"posix\.system"):
        locate(*store(archive), spec((3, 4), "float32"))
    assert not marker.exists()
