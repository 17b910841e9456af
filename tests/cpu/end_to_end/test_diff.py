"""Claims: checkpoints of megatron-core are compared with folders and with each other as what an export would
make of them; nothing is written, and memory is what was planned.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pp_export
from pp_export import cli
from pp_export.core.errors import AccountingError, CheckpointError, ExportError, OptionError
from pp_export.options import comparison
from pp_export.process.ring_buffer import RingBuffer
from pp_export.verification.diff import ConfigDifference
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.damage import flip, in_tensor
from tests.fixtures.exports import export_here, files_of, remembering
from tests.fixtures.models import MODELS
from tests.fixtures.processes import run_python
from tests.fixtures.stored import on_disk, read_stored, write_stored

Folder = Callable[[str], Path]

CHECKPOINTS = (
    ("qwen2", "tp2pp2"),
    ("qwen2_per_layer", "pp2"),
    ("qwen2_legacy", "pp2vpp3"),
    ("qwen3_moe", "ep2etp2"),
    ("qwen3_moe_legacy", "tp2ep2etp1"),
    ("qwen3_mtp", "pp2vpp3"),
)
QKV = "decoder.layers.self_attention.linear_qkv.weight"
EMBEDDINGS = ("embedding.word_embeddings.weight", "output_layer.weight")


@pytest.fixture(autouse=True)
def asked_once() -> Iterator[None]:
    with remembering():
        yield


@pytest.fixture(scope="module")
def exported(
    checkpoint: Checkpoint, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> Folder:
    """`exported(model)`: a folder that is made of the model's checkpoint with one rank."""
    root = tmp_path_factory.mktemp("exported")

    def find(model: str) -> Path:
        folder = root / model
        if not folder.exists():
            export_here(checkpoint=checkpoint(model, "tp1"), reference=reference(model), output=folder)
        return folder

    return find


@pytest.fixture
def copied(exported: Folder, tmp_path: Path) -> Path:
    """A folder of qwen2 to change."""
    return Path(shutil.copytree(exported("qwen2"), tmp_path / "copied"))


def model_of(name: str) -> str:
    return next(model for model in ("qwen2", "qwen3_moe", "qwen3_mtp") if name.startswith(model))


def stored_as(
    checkpoint: Path, folder: Path, change: Callable[[dict[str, torch.Tensor], Any], object]
) -> Path:
    """The checkpoint written anew by torch, with changed tensors and args."""
    tensors, args = read_stored(checkpoint)
    change(tensors, args)
    return write_stored(folder / "iter_0000010", tensors, args)


@pytest.mark.parametrize("which", CHECKPOINTS, ids="-".join)
def test_a_checkpoint_equals_the_export_of_another_layout(
    which: tuple[str, str], checkpoint: Checkpoint, exported: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every format; each tensor of the folder is compared, from whichever side, in shards of whatever
    size, and neither side is changed.
    """
    folder, of_checkpoint = exported(model_of(which[0])), checkpoint(*which)
    before = files_of(folder) | {f"c/{name}": data for name, data in files_of(of_checkpoint).items()}
    forth = pp_export.diff(of_checkpoint, folder)
    assert forth.identical
    assert forth.ok
    tensors = on_disk(folder)
    assert forth.num_equal == len(tensors) == sum(each.num_tensors for each in forth.by_layer)
    monkeypatch.setattr(comparison, "SHARD_SIZE", "10KB")
    back = pp_export.diff(folder, of_checkpoint)
    assert back.identical
    assert (back.num_equal, back.by_layer) == (forth.num_equal, forth.by_layer)
    assert back.num_bytes_read >= 2 * sum(tensor.nbytes for tensor in tensors.values())
    assert files_of(folder) | {f"c/{n}": data for n, data in files_of(of_checkpoint).items()} == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reader", "comparer"))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("qwen2", "tp1"), ("qwen2", "tp2pp2")),
        (("qwen2", "pp2vpp3"), ("qwen2_legacy", "tp4")),
        (("qwen3_moe", "tp1"), ("qwen3_moe_legacy", "tp2ep2etp1")),
    ],
)
def test_two_checkpoints_of_other_layouts_are_identical(
    one: tuple[str, str],
    other: tuple[str, str],
    checkpoint: Checkpoint,
    reference: Reference,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However their tensors are cut and stored, and with a reference's config.json only."""
    monkeypatch.setattr(comparison, "SHARD_SIZE", "30KB")
    found = pp_export.diff(checkpoint(*one), checkpoint(*other), reference=reference(one[0]), threads=3)
    assert found.identical
    assert found.num_equal > 70
    of_class = {"architecture": MODELS[one[0]].hf_class, "vocab_size": 250}
    without = pp_export.diff(checkpoint(*one), checkpoint(*other), of_a=of_class, of_b=of_class)
    assert without.identical


def test_one_bit_is_found(checkpoint: Checkpoint, copied: Path) -> None:
    """The tensor is named, with the errors of that one element, in its layer and kind."""
    name, file = "model.layers.3.mlp.up_proj.weight", "model-00005-of-00008.safetensors"
    before = load_file(copied / file)[name].clone()
    flip(file, in_tensor(name), bit=4)(copied)
    after = load_file(copied / file)[name]
    (at,) = (before != after).nonzero()
    one, other = (float(values[tuple(at)]) for values in (before, after))
    steps = abs(int(before.view(torch.int32)[tuple(at)]) - int(after.view(torch.int32)[tuple(at)]))
    found = pp_export.diff(checkpoint("qwen2", "tp4"), copied)
    assert not found.ok
    (value,) = found.other_values
    assert (value.name, value.num_different, value.num_elements) == (name, 1, before.numel())
    assert value.max_abs_error == abs(one - other)
    assert value.max_rel_error == abs(one - other) / max(abs(one), abs(other))
    assert value.max_ulp_error == steps > 0
    (layer,) = (each for each in found.by_layer if each.num_different)
    assert (layer.kind, layer.layer, layer.max_ulp_error) == ("mlp", 3, steps)
    assert pp_export.diff(checkpoint("qwen2", "tp4"), copied, ulps=steps).ok
    assert not pp_export.diff(copied, checkpoint("qwen2", "tp4"), ulps=steps - 1).ok


def test_values_of_two_checkpoints_that_differ(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """Noise in one layer is told of the Hugging Face tensors that it is in, as large as torch says it is."""

    def add_noise(tensors: dict[str, torch.Tensor], _: Any) -> None:
        noise = torch.randn(tensors[QKV].shape[1:], generator=torch.Generator().manual_seed(0))
        tensors[QKV][4] += noise / 100

    original, hf = checkpoint("qwen2", "tp2"), reference("qwen2")
    noisy = stored_as(original, tmp_path, add_noise)
    found = pp_export.diff(noisy, original, reference=hf)
    assert [value.name.split(".")[-2] for value in found.other_values] == ["k_proj", "q_proj", "v_proj"]
    assert {value.name.split(".")[2] for value in found.other_values} == {"4"}
    export_here(checkpoint=noisy, reference=hf, output=tmp_path / "noisy")
    export_here(checkpoint=original, reference=hf, output=tmp_path / "original")
    a, b = on_disk(tmp_path / "noisy"), on_disk(tmp_path / "original")
    for value in found.other_values:
        errors = (a[value.name].double() - b[value.name].double()).abs()
        assert value.max_abs_error == float(errors.max())
        assert value.num_different == int((errors > 0).sum())
    folders = pp_export.diff(tmp_path / "noisy", tmp_path / "original")
    assert (folders.other_values, folders.by_layer) == (found.other_values, found.by_layer)


def test_types_are_cast_as_an_export_casts_them(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bfloat16 folder and a float32 checkpoint have no tensor of one type; with --dtype every bit is the
    same, and a pattern of --dtype-of alone leaves the others.
    """
    original, folder = checkpoint("qwen2", "tp2"), tmp_path / "bf16"
    export_here(checkpoint=original, reference=reference("qwen2"), output=folder, dtype="bfloat16")
    num_tensors = len(on_disk(folder))
    plain = pp_export.diff(original, folder)
    assert (len(plain.other_spec), plain.num_equal, plain.ok) == (num_tensors, 0, False)
    assert any("--dtype" in note for note in plain.notes)
    assert pp_export.diff(original, folder, dtype="bf16").identical
    some = pp_export.diff(original, folder, of_a={"dtype_of": {"*norm.weight": "bf16"}})
    assert some.num_equal == 13
    assert len(some.other_spec) == num_tensors - 13
    both = pp_export.diff(
        original,
        checkpoint("qwen2_legacy", "tp4"),
        reference=reference("qwen2"),
        of_a={"dtype": "bf16"},
        of_b={"dtype": "bf16"},
    )
    assert both.identical
    assert cli.main(["diff", str(original), str(folder)]) == 1
    assert f"{num_tensors} tensors, F32 and BF16" in capsys.readouterr().out


def test_tensors_of_one_side_alone(
    checkpoint: Checkpoint, reference: Reference, copied: Path, tmp_path: Path
) -> None:
    """What a folder lacks, and what a checkpoint lacks, which no export would take, is named, and the rest
    compared.
    """
    file = "model-00003-of-00008.safetensors"
    tensors = load_file(copied / file)
    dropped = "model.layers.1.self_attn.q_proj.bias"
    del tensors[dropped]
    save_file({**tensors, "model.layers.1.extra": torch.ones(3)}, copied / file, metadata={"format": "pt"})
    found = pp_export.diff(checkpoint("qwen2", "tp1"), copied)
    assert (found.only_in_a, found.only_in_b) == ((dropped,), ("model.layers.1.extra",))
    assert not found.ok
    assert found.other_values == ()
    assert found.num_equal == len(on_disk(copied)) - 1

    short = stored_as(
        checkpoint("qwen2", "tp1"), tmp_path, lambda t, _: t.pop("decoder.final_layernorm.weight")
    )
    with pytest.raises(AccountingError):
        export_here(checkpoint=short, reference=reference("qwen2"), output=tmp_path / "refused")
    for a, b, only in ((short, copied, "only_in_b"), (copied, short, "only_in_a")):
        assert "model.norm.weight" in getattr(pp_export.diff(a, b), only)


def test_layers_for_further_tokens(
    checkpoint: Checkpoint, reference: Reference, exported: Folder, tmp_path: Path
) -> None:
    """Those that one side alone has are its own; dropped as an export drops them, the rest is the same."""
    original, folder = checkpoint("qwen3_mtp", "pp2"), tmp_path / "without"
    export_here(checkpoint=original, reference=reference("qwen3_mtp"), output=folder, mtp="drop")
    further = on_disk(exported("qwen3_mtp")).keys() - on_disk(folder).keys()
    found = pp_export.diff(original, folder)
    assert further
    assert set(found.only_in_a) == further
    assert found.only_in_b == ()
    assert found.other_values == ()
    dropped = pp_export.diff(original, folder, mtp="drop")
    assert dropped.identical
    assert [note for note in dropped.notes if "left out: --mtp drop" in note]


def test_a_tied_head_is_no_tensor_of_a_checkpoint(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """A folder that stores it all the same has one more."""
    original, folder = checkpoint("qwen2_tied", "pp2"), tmp_path / "tied"
    export_here(checkpoint=original, reference=reference("qwen2_tied"), output=folder)
    assert pp_export.diff(original, folder).identical
    tensors = on_disk(folder)
    stored = tmp_path / "stored"
    stored.mkdir()
    shutil.copy(folder / "config.json", stored)
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | head, stored / "model.safetensors", metadata={"format": "pt"})
    found = pp_export.diff(original, stored)
    assert (found.only_in_a, found.only_in_b) == ((), ("lm_head.weight",))
    assert found.num_equal == len(tensors)


def test_padding_of_the_vocabulary_is_no_difference(
    checkpoint: Checkpoint, exported: Folder, reference: Reference, tmp_path: Path
) -> None:
    """Rows beyond the vocabulary are cut off, however many there are and whatever is in them; it is said."""

    def pad(tensors: dict[str, torch.Tensor], args: Any) -> None:
        for name in EMBEDDINGS:
            rows = torch.randn(128, tensors[name].shape[1])
            tensors[name] = torch.cat([tensors[name][:250], rows])
        args["padded_vocab_size"] = 378

    padded = stored_as(checkpoint("qwen2", "tp1"), tmp_path, pad)
    found = pp_export.diff(padded, exported("qwen2"))
    assert found.identical
    assert any("128 rows" in note for note in found.notes)
    assert pp_export.diff(padded, checkpoint("qwen2", "tp2"), reference=reference("qwen2")).identical


def test_another_function_is_a_difference(checkpoint: Checkpoint, exported: Folder, copied: Path) -> None:
    """A config.json that says another rotary base, though every tensor is equal, is a line with both values,
    of checkpoints and of folders; what changes no answer, or says the same otherwise, is none.
    """
    config = json.loads((copied / "config.json").read_text())
    config |= {"use_cache": False, "transformers_version": "4.0"}
    (copied / "config.json").write_text(json.dumps(config))
    sides = (checkpoint("qwen2", "tp1"), exported("qwen2"))
    assert all(pp_export.diff(side, copied).identical for side in sides)
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}, "rope_theta": 5.0}
    (copied / "config.json").write_text(json.dumps(config))
    for side in sides:
        found = pp_export.diff(side, copied)
        assert found.config == (ConfigDifference("rotary_base", 54_000, 5.0),)
        assert found.other_values == ()
        assert not found.ok
        assert not found.identical
    config["architectures"] = ["OfNobody"]
    (copied / "config.json").write_text(json.dumps(config))
    unknown = pp_export.diff(exported("qwen2"), copied)
    assert {each.setting for each in unknown.config} >= {"architectures"}


def test_memory_is_what_was_planned(
    checkpoint: Checkpoint,
    reference: Reference,
    exported: Folder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The memory that is taken for values is the plan's, a part of the model's; a limit that is too small for
    one shard is refused before anything is read.
    """
    taken: list[int] = []
    make = RingBuffer.__init__

    def remember(ring: RingBuffer, num_bytes: int) -> None:
        make(ring, num_bytes)
        taken.append(ring.num_bytes)

    monkeypatch.setattr(RingBuffer, "__init__", remember)
    monkeypatch.setattr(comparison, "SHARD_SIZE", "100KB")
    one, folder = checkpoint("qwen2", "tp2"), exported("qwen2")
    size = sum(tensor.nbytes for tensor in on_disk(folder).values())
    alone = pp_export.diff(one, folder, threads=1)
    of_one = sum(taken)
    assert alone.identical
    assert 0 < of_one < size
    taken.clear()
    both = pp_export.diff(one, checkpoint("qwen2", "pp2"), reference=reference("qwen2"), threads=2)
    assert both.identical
    assert of_one < sum(taken) < 2 * size
    assert alone.planned_bytes is not None
    assert both.planned_bytes is not None
    assert alone.planned_bytes < both.planned_bytes
    taken.clear()
    limited = pp_export.diff(one, folder, threads=1, memory_limit=alone.planned_bytes - 1)
    assert limited.identical
    assert limited.planned_bytes is not None
    assert limited.planned_bytes < alone.planned_bytes
    assert sum(taken) < of_one
    taken.clear()
    for limit in ("1MB", limited.planned_bytes - 1):
        with pytest.raises(OptionError, match="memory-limit"):
            pp_export.diff(one, folder, threads=1, memory_limit=limit)
    assert taken == []


WATCHED = """
import json, re, sys, threading, time
sys.modules["accelerate"] = None  # nobody asks transformers
import pp_export

peak = 0

def look():
    global peak
    status = open("/proc/self/status").read()
    peak = max(peak, int(re.search(r"RssAnon:\\s+([0-9]+)", status)[1]) << 10)

def watch():
    while True:
        look()
        time.sleep(0.002)

threading.Thread(target=watch, daemon=True).start()
found = pp_export.diff(*sys.argv[1:3], reference=sys.argv[3], threads=2, on_bytes=lambda _: look())
print(json.dumps([peak, found.planned_bytes, found.num_bytes_read, found.num_equal]))
"""


def test_a_large_comparison_keeps_to_its_memory(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    """Of two checkpoints that are larger than what is planned, all of which is read, the process never holds
    more.
    """
    num_layers, hidden, ffn, rows = 8, 1024, 6144, 8192

    def enlarge(tensors: dict[str, torch.Tensor], args: Any) -> None:
        kv_channels = 128
        sizes = {6: num_layers, 64: hidden, 96: ffn, 192: 2 * ffn, 128: 2 * hidden, 256: rows}
        for name, tensor in tensors.items():
            shape = [sizes[size] for size in tensor.shape]
            if name.endswith("linear_proj.weight"):
                shape[-1] = 8 * kv_channels
            tensors[name] = torch.rand(shape).to(torch.bfloat16)
        args |= {"num_layers": num_layers, "hidden_size": hidden, "ffn_hidden_size": ffn}
        args |= {"kv_channels": kv_channels, "padded_vocab_size": rows, "vocab_size": rows}

    large = stored_as(checkpoint("qwen2", "tp1"), tmp_path, enlarge)
    config = json.loads((reference("qwen2") / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": num_layers}
    config |= {"vocab_size": rows, "layer_types": ["full_attention"] * num_layers}
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "config.json").write_text(json.dumps(config))
    command = ["-c", WATCHED, str(large), str(large), str(tmp_path / "reference")]
    ended = run_python(command, tmp_path / "ended", timeout_s=300).checked()
    peak, planned, num_bytes, num_equal = json.loads(ended.stdout)
    size = sum(path.stat().st_size for path in large.glob("*.distcp"))
    assert num_equal == 3 + 12 * num_layers
    assert 1.9 * size < num_bytes < 2 * size
    assert peak <= planned < num_bytes / 1.5


def test_a_damaged_checkpoint_ends_the_comparison(
    checkpoint: Checkpoint, exported: Folder, tmp_path: Path
) -> None:
    """A flipped bit on the checkpoint's side is no difference but an error of its CRC-32, and no worker
    stays.
    """
    broken = Path(shutil.copytree(checkpoint("qwen2", "tp2"), tmp_path / "broken"))
    for file in broken.rglob("*.distcp"):
        data = bytearray(file.read_bytes())
        for at in range(200, len(data), 400):
            data[at] ^= 1
        file.write_bytes(data)
    with pytest.raises(ExportError) as caught:
        pp_export.diff(exported("qwen2"), broken)
    assert isinstance(caught.value, CheckpointError)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reader", "comparer"))]


def test_the_command(
    checkpoint: Checkpoint, exported: Folder, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 0 where nothing differs, 1 where anything does, 2 for wrong flags; options are of both
    sides, or of one; JSON has the series of the chart that people see.
    """
    one, folder = str(checkpoint("qwen2", "tp2pp2")), str(exported("qwen2"))
    assert cli.main(["diff", one, folder, "--iteration", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["identical"] is True
    assert cli.main(["diff", one, folder, "--a", "iteration=11"]) == 1
    assert cli.main(["diff", one, folder, "--b", "iterations=10"]) == 1
    assert cli.main(["diff", one, folder, "--quick"]) == 1
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit) as usage:
        cli.main(["diff", one, folder, "--iterations", "10"])
    assert usage.value.code == 2
    capsys.readouterr()
    flip("model-00005-of-00008.safetensors", in_tensor("model.layers.3.mlp.up_proj.weight"), bit=4)(copied)
    assert cli.main(["diff", one, str(copied)]) == 1
    out = capsys.readouterr().out
    for text in ("layers 0 to 5", "attention ······ equal", "mlp       ···█·· "):
        assert text in out
    assert cli.main(["diff", one, str(copied), "--json"]) == 1
    series = json.loads(capsys.readouterr().out)["by_layer"]
    of_mlp = {each["layer"]: each["max_rel_error"] > 0 for each in series if each["kind"] == "mlp"}
    assert of_mlp == {layer: layer == 3 for layer in range(6)}
