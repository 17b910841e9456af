"""Claims that hold for every reader: one model gives the same names, specs, values and args, whatever it is
stored as, and what is wrong with a file is said by tensor and file. A new format needs an entry in
`FORMS`.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.folder_source import CheckpointSource
from pp_export.checkpoint.formats import FORMATS, describe_checkpoint
from pp_export.checkpoint.live_source import ModelSource
from pp_export.checkpoint.refused import RefusedFormat
from pp_export.checkpoint.source import Reader, Source
from pp_export.core.dtypes import from_torch
from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Slice, TensorSpec, check_coverage
from tests.fixtures.boxes import whole, within
from tests.fixtures.element_types import bytes_of
from tests.fixtures.legacy import Run, toy_args, toy_tensors, write_ranks
from tests.fixtures.parts import Part, entry
from tests.fixtures.stored import write_plain, write_stored

Tensors = dict[str, torch.Tensor]
RUN = Run([[[0]], [[1]]], tp=2, ep=2)
ARGS = toy_args(
    RUN, num_experts=4, moe_ffn_hidden_size=8, moe_shared_expert_intermediate_size=16, moe_layer_freq=[1, 1]
)
TENSORS: Tensors = toy_tensors(ARGS)
# The same sizes in the words of TransformerConfig, which Bridge, NeMo and a live model have instead of args.
CONFIG = {
    **{name: ARGS[name] for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")},
    **{name: ARGS[name] for name in ("kv_channels", "moe_ffn_hidden_size")},
    "moe_shared_expert_intermediate_size": ARGS["moe_shared_expert_intermediate_size"],
    "num_moe_experts": ARGS["num_experts"],
    "gated_linear_unit": ARGS["swiglu"],
    "activation_func": "torch.nn.functional.silu",
    "share_embeddings_and_output_weights": not ARGS["untie_embeddings_and_output_weights"],
}
SIZES = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels", "num_experts"),
    *("moe_ffn_hidden_size", "moe_shared_expert_intermediate_size"),
    "untie_embeddings_and_output_weights",
)


# --- the same model in every form; two ranks read each


@dataclass(frozen=True)
class Form:
    """`write` makes the model below a new folder and returns the sources of two ranks; `reader` is what the
    catalog says of itself.
    """

    write: Callable[[Path], Sequence[Source]]
    reader: str


def place_of(name: str) -> tuple[str, tuple[int, ...]]:
    """The key that megatron-core stacks a parameter under, and where it is in the stack."""
    at = re.findall(r"\.(?:layers|experts)\.(\d+)(?=\.)", name)
    key = re.sub(r"\.experts\.\d+\.", ".experts.experts.", re.sub(r"layers\.\d+\.", "layers.", name))
    return key, tuple(map(int, at))


def stacked(tensors: Tensors) -> Tensors:
    found: dict[str, dict[tuple[int, ...], torch.Tensor]] = {}
    for name, values in tensors.items():
        key, at = place_of(name)
        found.setdefault(key, {})[at] = values
    return {key: in_stack(parts) for key, parts in found.items()}


def in_stack(parts: Mapping[tuple[int, ...], torch.Tensor]) -> torch.Tensor:
    (*_, last) = sorted(parts)
    flat = torch.stack([parts[at] for at in sorted(parts)])
    return flat.view(*(number + 1 for number in last), *flat.shape[1:])


def per_layer(tensors: Tensors) -> Tensors:
    """Layers with keys of their own, as a model of unlike layers has them."""
    found: Tensors = {}
    for layer in range(ARGS["num_layers"]):
        own = {n: v for n, v in tensors.items() if n.startswith(f"decoder.layers.{layer}.")}
        alone = stacked({n.replace(f"layers.{layer}.", "layers.0."): v for n, v in own.items()})
        found |= {k.replace("decoder.layers.", f"decoder.layers.{layer}."): v[0] for k, v in alone.items()}
    return found | {n: v for n, v in tensors.items() if ".layers." not in n}


def of_folder(root: Path) -> Sequence[Source]:
    return [CheckpointSource(root, None, check_source=True) for _ in range(2)]


def torch_dist(root: Path) -> Sequence[Source]:
    return of_folder(write_stored(root / "iter_0000010", stacked(TENSORS), ARGS))


def torch_dist_per_layer(root: Path) -> Sequence[Source]:
    return of_folder(write_stored(root / "iter_0000010", per_layer(TENSORS), ARGS))


def legacy(root: Path) -> Sequence[Source]:
    return of_folder(write_ranks(root / "iter_0000010", RUN, ARGS, TENSORS))


def plain(root: Path, model: Mapping[str, torch.Tensor], ckpt_format: str) -> Sequence[Source]:
    state = {"model": model, "args": Namespace(**ARGS, ckpt_format=ckpt_format), "iteration": 10}
    return of_folder(write_plain(root / "iter_0000010", state))


def torch_dcp(root: Path) -> Sequence[Source]:
    names = {name: re.sub(r"\.experts\.(?=\d)", ".experts.local_experts.", name) for name in TENSORS}
    return plain(root, {names[name]: values for name, values in TENSORS.items()}, "torch_dcp")


def fsdp_dtensor(root: Path) -> Sequence[Source]:
    model: Tensors = {}
    for name, values in TENSORS.items():
        key = "module." + re.sub(r"\.experts\.(\d+)\.(linear_fc\d)\.weight", r".experts.\2.weight\1", name)
        if ".linear_fc1.weight" in key:
            model |= {f"{key}_{half}": part.clone() for half, part in zip("wv", values.chunk(2))}
        else:
            model[key] = values
    return plain(root, model, "fsdp_dtensor")


def bridge(root: Path) -> Sequence[Source]:
    folder = write_stored(root / "iter_0000010", stacked(TENSORS), None)
    (folder / "run_config.yaml").write_text(yaml.safe_dump({"model": CONFIG}))
    return of_folder(folder)


def nemo(root: Path) -> Sequence[Source]:
    write_stored(root / "weights", {f"module.{k}": v for k, v in stacked(TENSORS).items()}, None)
    (root / "context").mkdir()
    (root / "context" / "model.yaml").write_text(yaml.safe_dump({"config": CONFIG}))
    return of_folder(root)


def live(_: Path) -> Sequence[Source]:
    """Two pipeline stages; the router of the first is on both ranks."""
    return [ModelSource([Part(held_by(rank), **CONFIG)]) for rank in range(2)]


def held_by(rank: int) -> dict[str, Any]:
    state = {}
    for name, values in TENSORS.items():
        is_first = name.startswith(("embedding.", "decoder.layers.0."))
        if (rank == 0) != is_first and not name.endswith("layers.0.mlp.router.weight"):
            continue
        key, at = place_of(name)
        stack = tuple({1: (2,), 2: (2, 4)}.get(len(at), ()))
        state[name] = entry(
            key,
            values,
            global_shape=(*stack, *values.shape),
            global_offset=(*at, *(0,) * values.dim()),
            prepend_axis_num=len(at),
        )
    return state


FORMS = {
    "torch_dist": Form(torch_dist, "DCP"),
    "torch_dist_per_layer": Form(torch_dist_per_layer, "DCP"),
    "torch_dcp": Form(torch_dcp, "DCP"),
    "fsdp_dtensor": Form(fsdp_dtensor, "DCP"),
    "bridge": Form(bridge, "DCP"),
    "nemo": Form(nemo, "DCP"),
    "legacy": Form(legacy, "torch"),
    "live": Form(live, ""),
}
FILES = [name for name, form in FORMS.items() if form.reader]


@dataclass(frozen=True)
class Input:
    """The sources of two ranks, and what rank 0 described, as it arrives on another rank."""

    form: Form
    sources: Sequence[Source]
    catalog: Catalog

    def readers(self, stack: ExitStack) -> list[Reader]:
        return [stack.enter_context(source.open(self.catalog)) for source in self.sources]

    def holders(self, slice_: Slice) -> Sequence[int]:
        if self.catalog.holders is None:
            return range(len(self.sources))
        return self.catalog.holders[self.catalog.stored_items[slice_.item].file]

    def slices(self) -> list[Slice]:
        return [slice_ for slices in self.catalog.slices.values() for slice_ in slices]

    def file_of(self, slice_: Slice) -> Path:
        item = self.catalog.stored_items[slice_.item]
        return Path(self.catalog.description.folder) / self.catalog.files[item.file]


def described(form: Form, root: Path) -> Input:
    """As an export asks: all check, all announce, rank 0 describes, and what it says travels."""
    sources = form.write(root)
    for source in sources:
        source.check()
    announced = [source.announce() for source in sources]
    assert all(announced) != sources[0].is_shared
    whole = sources[0].describe(announced)
    received = Catalog.from_bytes(whole.image_of(range(len(whole.stored_items))))
    return Input(form, sources, replace(received, description=whole.description))


@pytest.fixture(params=FORMS)
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Input:
    return described(FORMS[request.param], tmp_path / "checkpoint")


@pytest.fixture(params=FILES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Input:
    return described(FORMS[request.param], tmp_path / "checkpoint")


def read(reader: Reader, slice_: Slice) -> bytes:
    into = bytearray(slice_.num_bytes)
    reader.read(slice_, memoryview(into))
    return bytes(into)


def read_whole(reader: Reader, slices: Sequence[Slice]) -> None:
    for slice_ in slices:
        read(reader, slice_)
    reader.finish()


def truth(slice_: Slice) -> bytes:
    whole_tensor = TENSORS[slice_.name]
    return bytes_of(whole_tensor[within(slice_.box, whole(tuple(whole_tensor.shape)))])


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- what every reader gives


def test_every_format_that_can_be_exported_is_held_to_the_contract() -> None:
    """Formats have names of their own, and each but those that are only refused is in `FORMS`."""
    names = [known.name for known in FORMATS if not isinstance(known, RefusedFormat)]
    assert sorted(names) == sorted({form.reader for form in FORMS.values() if form.reader})
    assert len({known.name for known in FORMATS}) == len(FORMATS)


def test_the_model_is_the_same(given: Input) -> None:
    """Canonical names, shapes and types are those of the model, whatever the keys; the description names the
    format that opens it.
    """
    expected = {
        name: TensorSpec(tuple(values.shape), from_torch(str(values.dtype)))
        for name, values in TENSORS.items()
    }
    assert given.catalog.specs == expected
    assert given.catalog.description.reader == given.form.reader


def test_slices_cover_every_tensor_and_lie_in_their_items(given: Input) -> None:
    """Every element is in exactly one slice, and no slice reaches beyond what its item holds."""
    catalog = given.catalog
    assert set(catalog.slices) == set(TENSORS)
    for name, slices in catalog.slices.items():
        check_coverage(name, tuple(TENSORS[name].shape), [slice_.box for slice_ in slices])
        for slice_ in slices:
            item = catalog.stored_items[slice_.item]
            archived = catalog.spec_of_item.get(slice_.item)
            is_archive = item.crc is None and bool(catalog.files)
            length = archived.num_bytes if is_archive and archived is not None else item.length
            assert 0 <= slice_.begin <= slice_.begin + slice_.num_bytes <= length


def test_values_are_those_of_the_model_bit_for_bit(given: Input) -> None:
    """Whoever holds a slice gives the same values, and reading all of it finds no fault."""
    with ExitStack() as stack:
        readers = given.readers(stack)
        for slice_ in given.slices():
            assert given.holders(slice_)
            for rank in given.holders(slice_):
                assert read(readers[rank], slice_) == truth(slice_), slice_
        for reader in readers:
            reader.finish()


@pytest.mark.parametrize("seed", range(3))
def test_slices_are_read_in_any_order_and_in_any_size(given: Input, seed: int) -> None:
    """Parts of a few rows, shuffled, have the same values, and checksums still hold at the end."""
    parts = [part for slice_ in given.slices() for part in slice_.rows(64)]
    random.Random(seed).shuffle(parts)
    with ExitStack() as stack:
        readers = given.readers(stack)
        for part in parts:
            assert read(readers[given.holders(part)[0]], part) == truth(part), part
        for reader in readers:
            reader.finish()


def test_args_tell_the_same_sizes(given: Input) -> None:
    """Training args, or a config in their place, are given in Megatron-LM's words."""
    args = given.catalog.description.args
    assert args is not None
    assert {name: args[name] for name in SIZES} == {name: ARGS[name] for name in SIZES}


def test_only_what_is_in_memory_has_holders(given: Input) -> None:
    """Live values are read by who has them, and every item has someone; anybody reads any file."""
    catalog = given.catalog
    assert (catalog.holders is not None) == (not given.sources[0].is_shared) == (not catalog.files)
    if catalog.holders is not None:
        assert {rank for ranks in catalog.holders for rank in ranks} == {0, 1}
        assert all(catalog.holders[item.file] for item in catalog.stored_items)


def test_closing_gives_back_what_was_opened(given: Input) -> None:
    """No descriptor is left, also when the reading ends with an error."""
    before = num_descriptors()
    for ends_well in (True, False):
        with ExitStack() as stack:
            if not ends_well:
                stack.enter_context(pytest.raises(KeyboardInterrupt))
            readers = given.readers(stack)
            for slice_ in given.slices():
                read(readers[given.holders(slice_)[0]], slice_)
            assert (num_descriptors() > before) == given.sources[0].is_shared
            if not ends_well:
                raise KeyboardInterrupt
        assert num_descriptors() == before


def test_the_folders_that_are_read_are_told(given: Input, tmp_path: Path) -> None:
    """What an export must not replace; a live model reads none."""
    folders = [folder for source in given.sources for folder in source.folders]
    assert bool(folders) == given.sources[0].is_shared
    assert all(folder.is_relative_to(tmp_path) for folder in folders)


# --- what every reader of files refuses


def test_a_damaged_value_is_named(stored: Input) -> None:
    """One flipped bit of any tensor is a CheckpointError with tensor and file; unchecked, it is read as it
    is.
    """
    slice_ = random.Random(1).choice(stored.slices())
    path = stored.file_of(slice_)
    item = stored.catalog.stored_items[slice_.item]
    data = bytearray(path.read_bytes())
    at = data.index(truth(slice_), item.offset)
    assert at + slice_.num_bytes <= item.offset + item.length
    data[at] ^= 1
    path.write_bytes(data)
    with ExitStack() as stack:
        (reader, _) = stored.readers(stack)
        with pytest.raises(CheckpointError, match="CRC-32") as caught:
            read_whole(reader, stored.catalog.slices[slice_.name])
    stored_key = stored.catalog.key_of_item[slice_.item]
    assert caught.value.where["tensor"] in (slice_.name, stored_key)
    assert caught.value.where["file"] == str(path)
    (folder,) = stored.sources[0].folders
    with CheckpointSource(folder, None, check_source=False).open(stored.catalog) as unchecked:
        assert read(unchecked, slice_) == bytes(data[at : at + slice_.num_bytes]) != truth(slice_)


@pytest.mark.parametrize("size", [None, 0, 1000])
def test_a_file_that_went_after_it_was_described_is_named(stored: Input, size: int | None) -> None:
    """A file that is missing or cut when it is read is a CheckpointError with tensor and file."""
    slice_ = max(stored.slices(), key=lambda one: stored.catalog.stored_items[one.item].offset)
    path = stored.file_of(slice_)
    if size is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])
    with ExitStack() as stack:
        reader = stored.readers(stack)[0]
        with pytest.raises(CheckpointError) as caught:
            read(reader, slice_)
    assert caught.value.where["tensor"] == slice_.name
    assert caught.value.where["file"] == str(path)


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_file_that_is_missing_or_cut_is_not_described(stored: Input, is_cut: bool) -> None:
    """Rank 0 finds it before anything is read, and the error has the file's name."""
    path = stored.file_of(stored.slices()[0])
    if is_cut:
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    (folder,) = stored.sources[0].folders
    with pytest.raises(CheckpointError) as caught:
        describe_checkpoint(folder, None)
    assert path.name in str(caught.value)


def test_an_unknown_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    """What no format recognises is no checkpoint, whether it is given itself or by a tracker."""
    folder = tmp_path / "iter_0000010"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"...")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    for given, named in ((tmp_path, folder), (folder, folder)):
        with pytest.raises(CheckpointError) as caught:
            describe_checkpoint(given, None)
        assert caught.value.where == {"folder": str(named)}


@pytest.mark.parametrize("mark", ["modelopt_state", "adapter_config.json"])
def test_what_is_known_and_refused_goes_before_what_it_resembles(tmp_path: Path, mark: str) -> None:
    """A folder that a refused format recognises is not taken for the format that it is stored in."""
    (source, _) = torch_dist(tmp_path)
    (folder,) = source.folders
    (folder / mark).write_text("")
    refused = next(k for k in FORMATS if isinstance(k, RefusedFormat) and k.recognise(folder))
    with pytest.raises(CheckpointError, match=re.escape(refused.what)):
        describe_checkpoint(folder, None)
    shutil.rmtree(folder)
