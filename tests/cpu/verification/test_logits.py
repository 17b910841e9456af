"""Claims of `pp_export.verification.logits` and its neighbours: a folder that answers as the recorded model
passes, one that computes something else does not, and nothing else is compared by mistake.
"""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pp_export
from pp_export.core.errors import OptionError, TargetError, VerificationError
from pp_export.verification.logits import LIMITS
from tests.cpu.conftest import Checkpoint, Reference
from tests.fixtures.damage import edit_json
from tests.fixtures.exports import export_here
from tests.fixtures.processes import run_python
from tests.fixtures.releases import transformers_5
from tests.fixtures.tiny_models import ask, write_tiny_model

pytest.importorskip("transformers")
BATCH, SEQUENCE, VOCABULARY = 3, 7, 250
Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, not to be changed."""
    folder = tmp_path_factory.mktemp("model") / "llama"
    write_tiny_model("llama", folder)
    return folder


@pytest.fixture(scope="module")
def token_ids() -> torch.Tensor:
    return torch.randint(VOCABULARY, (BATCH, SEQUENCE), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def logits(model: Path, token_ids: torch.Tensor) -> torch.Tensor:
    """What transformers says of the small model, asked without pp_export."""
    return ask(model, token_ids)


def padded(logits: torch.Tensor, num_columns: int, value: float) -> torch.Tensor:
    return torch.nn.functional.pad(logits, (0, num_columns - logits.shape[-1]), value=value)


# --- what is compared


@pytest.fixture(scope="module")
def megatron(
    checkpoint: Checkpoint, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """An export of a checkpoint, and a folder of recordings that Megatron's own model made of it."""
    root = tmp_path_factory.mktemp("megatron")
    source = checkpoint("qwen3_moe", "tp2ep2etp1")
    export_here(checkpoint=source, reference=reference("qwen3_moe"), output=root / "export")
    (root / "recordings").mkdir()
    command = ["-m", "tests.fixtures.recorded_logits", str(source), "qwen3_moe", str(root / "recordings")]
    run_python(command, root / "output").checked()
    return root / "export", root / "recordings"


@pytest.mark.parametrize("name", ["float32", "top", "bfloat16"])
def test_an_export_answers_as_megatron_recorded(megatron: tuple[Path, Path], name: str) -> None:
    """A true export holds, with a margin, against what Megatron computed: all logits or the largest, in
    float32 or in bfloat16 handed out as float32; padding columns are told and left out.
    """
    export, recordings = megatron
    result = pp_export.compare_logits(export, recordings / name)
    assert result.ok
    assert result.recorded_dtype == "float32"
    assert result.precision == ("bfloat16" if name == "bfloat16" else "float32")
    assert (result.tolerance, result.required_share) == LIMITS[result.precision]
    assert result.difference < result.tolerance / (50 if name != "bfloat16" else 2)
    assert result.num_padding_columns == 256 - VOCABULARY
    assert result.num_columns == (20 if name == "top" else 256)
    assert result.top_token_agreement > 0.9


FAULTS: dict[str, Callable[[Any], None]] = {
    "another rotary base": lambda config: config.update(
        rope_theta=10_000.0, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}
    ),
    "another epsilon": lambda config: config.update(rms_norm_eps=1e-6),
    "twice the epsilon": lambda config: config.update(rms_norm_eps=4e-3),
    "weights of experts not normalised": lambda config: config.update(norm_topk_prob=False),
    "another activation": lambda config: config.update(hidden_act="gelu"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_config_that_says_something_else_is_found(
    megatron: tuple[Path, Path], tmp_path: Path, fault: str
) -> None:
    """A value of config.json that is in no tensor, and wrong, fails against every kind of recording."""
    export, recordings = megatron
    folder = Path(shutil.copytree(export, tmp_path / "export"))
    edit_json("config.json", FAULTS[fault])(folder)
    for name in ("float32", "top", "bfloat16"):
        result = pp_export.compare_logits(folder, recordings / name)
        assert not result.ok, name
        assert result.difference > (100 if name != "bfloat16" else 1.2) * result.tolerance


def test_a_small_change_of_the_rotary_base_is_found_in_float32(
    megatron: tuple[Path, Path], tmp_path: Path
) -> None:
    """A rotary base that is a tenth too large is seen in float32; bfloat16's own rounding hides it."""
    export, recordings = megatron
    folder = Path(shutil.copytree(export, tmp_path / "export"))
    base = 1.1 * 76_000
    edit_json(
        "config.json",
        lambda config: config.update(
            rope_theta=base, rope_parameters={"rope_type": "default", "rope_theta": base}
        ),
    )(folder)
    assert not pp_export.compare_logits(folder, recordings / "float32").ok
    assert pp_export.compare_logits(folder, recordings / "bfloat16").ok


# --- figures


def test_figures_are_those_of_torch(
    model: Path, token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    """Every figure is what torch computes of both sides; the worst logit is the one that was changed most."""
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)) * 0.05
    recorded = logits + noise
    recorded[1, 4, 77] += 3.0
    pp_export.record_logits(tmp_path / "r", token_ids, recorded)
    result = pp_export.compare_logits(model, tmp_path / "r", tolerance=0.06)
    wide, truth = logits.double(), recorded.double()
    errors = (wide - truth).abs()
    by_position = errors.square().mean(-1).sqrt() / wide.std(-1, correction=0)
    kl = torch.nn.functional.kl_div(
        wide.log_softmax(-1), truth.log_softmax(-1), log_target=True, reduction="none"
    )
    expected = {
        "max_difference": by_position.max(),
        "share_within": (by_position <= 0.06).double().mean(),
        "max_abs_difference": errors.max(),
        "mean_abs_difference": errors.mean(),
        "max_kl_divergence": kl.sum(-1).max(),
        "mean_kl_divergence": kl.sum(-1).mean(),
        "top_token_agreement": (wide.argmax(-1) == truth.argmax(-1)).double().mean(),
    }
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name
    worst = result.worst
    assert (worst.batch, worst.position, worst.token) == (1, 4, 77)
    assert worst.recorded == pytest.approx(float(recorded[1, 4, 77]))
    assert worst.exported == pytest.approx(float(logits[1, 4, 77]), abs=1e-5)


@pytest.mark.parametrize(("num_wrong", "ok"), [(5, True), (6, False)])
def test_rounding_may_move_a_quarter_of_the_positions(
    model: Path, token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path, num_wrong: int, ok: bool
) -> None:
    """In half precision 5 of 21 positions may be anywhere, as where rounding chose other experts; 6 may not.
    `difference` tells the verdict. In float32 one is too many.
    """
    recorded = logits.clone().flatten(0, 1)
    recorded[:num_wrong] = recorded[:num_wrong].flip(-1)
    recorded = recorded.view(logits.shape)
    pp_export.record_logits(tmp_path / "half", token_ids, recorded.bfloat16())
    result = pp_export.compare_logits(model, tmp_path / "half")
    assert result.ok is (result.share_within >= 0.75) is ok
    assert result.share_within == pytest.approx(1 - num_wrong / (BATCH * SEQUENCE))
    pp_export.record_logits(tmp_path / "whole", token_ids, recorded)
    assert not pp_export.compare_logits(model, tmp_path / "whole").ok
    assert pp_export.compare_logits(model, tmp_path / "whole", tolerance=10).ok


@pytest.mark.parametrize(
    ("kept", "precision"),
    [(torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16")],
)
def test_the_tolerance_follows_from_what_the_values_can_say(
    model: Path,
    token_ids: torch.Tensor,
    logits: torch.Tensor,
    tmp_path: Path,
    kept: torch.dtype,
    precision: str,
) -> None:
    """Values that were rounded to a narrower type are judged by it, also where they were recorded as
    float32.
    """
    for recorded in (logits.to(kept), logits.to(kept).float()):
        pp_export.record_logits(tmp_path / "r", token_ids, recorded)
        result = pp_export.compare_logits(model, tmp_path / "r")
        assert result.ok
        assert (result.precision, result.tolerance) == (precision, LIMITS[precision][0])
        assert result.recorded_dtype == str(recorded.dtype).removeprefix("torch.")


def test_padding_changes_nothing(
    model: Path, token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    """Padding columns may hold anything, the largest of all logits or -inf, and leave every figure as it
    is; of the largest logits, those of padding are left out.
    """
    pp_export.record_logits(tmp_path / "plain", token_ids, logits)
    plain = pp_export.compare_logits(model, tmp_path / "plain").to_json()
    for value in (100.0, -torch.inf):
        pp_export.record_logits(tmp_path / "padded", token_ids, padded(logits, 256, value))
        result = pp_export.compare_logits(model, tmp_path / "padded").to_json()
        assert result.pop("num_padding_columns") == 6
        same = {key: result[key] for key in result if key not in ("recording", "num_columns")}
        assert same == {key: plain[key] for key in same}
    pp_export.record_logits(tmp_path / "top", token_ids, padded(logits, 256, 100.0), top_k=10)
    result = pp_export.compare_logits(model, tmp_path / "top").to_json()
    assert result["ok"]
    assert result["top_token_agreement"] == 1
    assert result["worst"]["token"] < VOCABULARY


# --- larger than memory


@transformers_5
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_weights_may_stay_on_disk(
    token_ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With little memory the answers are the same; dense weights are read where they lie, only experts are
    written to scratch space, and nothing is left there.
    """
    folder, scratch, recording = tmp_path / "model", tmp_path / "scratch", tmp_path / "r"
    write_tiny_model(name, folder)
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    pp_export.record_logits(recording, token_ids, ask(folder, token_ids))
    written: list[str] = []
    accelerate: Any = importlib.import_module("transformers.integrations.accelerate")
    resave = accelerate.save_file

    def tell(tensors: dict[str, torch.Tensor], file: str) -> None:
        written.extend(tensors)
        resave(tensors, file)

    monkeypatch.setattr(accelerate, "save_file", tell)
    assert not pp_export.compare_logits(folder, recording).partly_on_disk
    result = pp_export.compare_logits(folder, recording, max_memory="150KB")
    assert result.partly_on_disk
    assert result.max_abs_difference < 1e-5
    assert all(".experts." in tensor for tensor in written)
    assert bool(written) is (name == "qwen3_moe")
    assert list(scratch.iterdir()) == []
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_no_code_of_the_folder_runs(
    model: Path, token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    """Code that config.json points at is not run."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    marker = tmp_path / "was run"
    (folder / "modeling_x.py").write_text(f"open({str(marker)!r}, 'w')\nclass X: pass\n")
    edit_json("config.json", lambda config: config.update(auto_map={"AutoModelForCausalLM": "modeling_x.X"}))(
        folder
    )
    pp_export.record_logits(tmp_path / "r", token_ids, logits)
    assert pp_export.compare_logits(folder, tmp_path / "r").ok
    assert not marker.exists()


# --- the file


def test_the_file_is_as_documented_and_the_same_each_time(
    token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    """The tensors lie in a safetensors file as they were given; the same input gives the same bytes, and a
    second recording replaces the first.
    """
    file = tmp_path / "r"
    pp_export.record_logits(file, token_ids, logits.transpose(0, 1).half().transpose(0, 1))
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pp_export logits 1"}
    whole = load_file(file)
    assert whole.keys() == {"token_ids", "logits"}
    assert torch.equal(whole["token_ids"], token_ids)
    assert torch.equal(whole["logits"], logits.half())
    pp_export.record_logits(str(file), token_ids, logits.clone().requires_grad_(), top_k=4)
    first = file.read_bytes()
    top = load_file(file)
    assert top.keys() == {"token_ids", "top_values", "top_ids", "num_columns"}
    assert torch.equal(top["top_values"], logits.sort(descending=True).values[..., :4])
    assert torch.equal(logits.gather(-1, top["top_ids"]), top["top_values"])
    assert top["num_columns"].tolist() == [VOCABULARY]
    pp_export.record_logits(file, token_ids, logits, top_k=4)
    assert file.read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def nan_at(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[1, 2, 3] = value
    return changed


WRONG_CALLS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], tuple[object, ...]], list[str]]] = {
    "a part of the batch": (
        lambda i, x: (i, x[:2]),
        ["logits is of another shape", "[3, 7, columns]", "[2, 7,"],
    ),
    "no batch": (lambda i, x: (i[0], x[0]), ["token_ids is of another shape", "[batch, sequence]", "[7]"]),
    "no columns": (lambda i, x: (i, x[..., 0]), ["logits is of another shape", "gathered"]),
    "nothing": (lambda i, x: (i[:0], x[:0]), ["token_ids is of another shape", "[0, 7]"]),
    "one rank's columns": (lambda i, x: (i, x[..., :100]), ["token_ids is beyond the columns", "0 to 99"]),
    "negative ids": (lambda i, x: (i - 250, x), ["token_ids is beyond the columns", "0 to 249", "-2"]),
    "ids of another type": (
        lambda i, x: (i.float(), x),
        ["token_ids is of another type", "int64", "float32"],
    ),
    "float64": (lambda i, x: (i, x.double()), ["logits is of another type", "bfloat16", "float64"]),
    "NaN": (lambda i, x: (i, nan_at(x, torch.nan)), ["logits is not finite", "nan at [1, 2, 3]"]),
    "one -inf": (lambda i, x: (i, nan_at(x, -torch.inf)), ["logits is not finite", "-inf at [1, 2, 3]"]),
    "no top": (lambda i, x: (i, x, 0), ["no such top_k", "1 to 250", "0"]),
    "more than all": (lambda i, x: (i, x, 251), ["no such top_k", "1 to 250", "251"]),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_what_is_no_recording_is_not_written(
    token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path, case: str
) -> None:
    """A wrong call is refused with the file, what was expected and what was given; nothing is written."""
    change, told = WRONG_CALLS[case]
    ids, values, *top_k = change(token_ids, logits)
    with pytest.raises(OptionError) as caught:
        pp_export.record_logits(tmp_path / "r", ids, values, top_k=top_k[0] if top_k else None)  # type: ignore[arg-type]
    for text in (*told, str(tmp_path / "r"), "expected:", "got:"):
        assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_said(
    token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    """Where the file can't be written, the error names operation and file."""
    with pytest.raises(TargetError, match=r"(?s)create failed.*absent/r"):
        pp_export.record_logits(tmp_path / "absent" / "r", token_ids, logits)


def without(name: str) -> Change:
    return lambda tensors: tensors.pop(name)


def with_tensor(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda tensors: tensors.update({name: make(tensors[name])})


DAMAGES: dict[str, tuple[Change, list[str]]] = {
    "no token ids": (without("token_ids"), ["other tensors", "logits, token_ids", "num_columns, top_ids"]),
    "no values": (without("top_values"), ["other tensors", "num_columns, token_ids, top_ids, top_values"]),
    "one more": (lambda t: t.update(more=torch.ones(1)), ["other tensors", "more"]),
    "other shape": (with_tensor("top_values", lambda x: x[:, :6]), ["top_values is of another shape"]),
    "other shape of ids": (with_tensor("top_ids", lambda x: x[..., :3]), ["top_ids is of another shape"]),
    "other type": (
        with_tensor("top_values", lambda x: x.double()),
        ["top_values is of another type", "float64"],
    ),
    "other type of ids": (with_tensor("top_ids", lambda x: x.int()), ["top_ids is of another type", "int64"]),
    "infinite": (with_tensor("top_values", lambda x: nan_at(x, torch.inf)), ["not finite", "[1, 2, 3]"]),
    "an id too large": (
        with_tensor("top_ids", lambda x: x + 249),
        ["top_ids is beyond the columns", "0 to 249"],
    ),
    "an id twice": (
        with_tensor("top_ids", lambda x: x[..., :1].expand(3, 7, 4)),
        ["top_ids is the same twice"],
    ),
    "no number": (
        with_tensor("num_columns", lambda x: x.float()),
        ["the recording's num_columns is not a number", "int64 [1]"],
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_recording_is_refused(
    model: Path, token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path, case: str
) -> None:
    """Whatever in the file is not as documented is named, with the file, what is expected and what is
    there.
    """
    change, told = DAMAGES[case]
    file = tmp_path / "r"
    pp_export.record_logits(file, token_ids, logits, top_k=4)
    tensors = load_file(file)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, {"format": "pp_export logits 1"})
    with pytest.raises(VerificationError) as caught:
        pp_export.compare_logits(model, file)
    for text in (*told, str(file), "expected:", "got:"):
        assert text in str(caught.value)


def test_other_files_are_refused(
    model: Path, token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    """A missing file, one that is no safetensors file, and one of another kind or version are named."""
    file = tmp_path / "r"
    with pytest.raises(VerificationError, match="the recording can't be read"):
        pp_export.compare_logits(model, file)
    file.write_bytes(b"nonsense")
    with pytest.raises(VerificationError, match="the recording can't be read"):
        pp_export.compare_logits(model, file)
    for metadata in (None, {"format": "pt"}, {"format": "pp_export logits 2"}):
        save_file({"token_ids": token_ids, "logits": logits}, file, metadata)
        with pytest.raises(VerificationError, match="not a recording of logits") as caught:
            pp_export.compare_logits(model, file)
        assert "pp_export.record_logits" in str(caught.value)


def test_recordings_of_another_model_are_refused(
    model: Path, token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    """Fewer columns than the folder's vocabulary, tokens or largest logits beyond it, and masked columns in
    it are faults that are told before the model runs.
    """
    file, logits = tmp_path / "r", logits.clone()
    low = token_ids % 200
    for top_k in (None, 5):
        pp_export.record_logits(file, low, logits[..., :200], top_k=top_k)
        with pytest.raises(VerificationError, match="narrower than the folder's vocabulary") as caught:
            pp_export.compare_logits(model, file)
        assert caught.value.expected == "at least 250 columns"
        assert caught.value.got == "200"
        assert "gather" in str(caught.value.advice)
    other = low.clone()
    other[2, 5] = 253
    pp_export.record_logits(file, other, padded(logits, 256, 0.0))
    with pytest.raises(VerificationError, match="token_ids lie beyond the folder's vocabulary") as caught:
        pp_export.compare_logits(model, file)
    assert (caught.value.where["at"], caught.value.got) == ("[2, 5]", "253")
    pp_export.record_logits(file, low, padded(logits, 256, 100.0), top_k=5)
    with pytest.raises(VerificationError, match="top_ids lie beyond the folder's vocabulary"):
        pp_export.compare_logits(model, file)
    logits[..., 7] = -torch.inf
    pp_export.record_logits(file, low, logits)
    with pytest.raises(VerificationError, match="logits of the vocabulary are -inf"):
        pp_export.compare_logits(model, file)


def test_a_folder_that_can_t_answer_is_an_error(
    model: Path, token_ids: torch.Tensor, logits: torch.Tensor, tmp_path: Path
) -> None:
    """A folder without a tensor that the model has is never compared with random values in its place; nor
    is one that transformers can't run, or that has no config.json.
    """
    pp_export.record_logits(tmp_path / "r", token_ids, logits)
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    edit_json("config.json", lambda config: config.update(num_hidden_layers=3))(folder)
    with pytest.raises(VerificationError, match=r"not what its config\.json describes") as caught:
        pp_export.compare_logits(folder, tmp_path / "r")
    assert any("model.layers.2.mlp.up_proj.weight" in finding for finding in caught.value.findings)
    edit_json("config.json", lambda config: config.update(hidden_act="no such thing"))(folder)
    with pytest.raises(VerificationError, match="transformers can't run the model"):
        pp_export.compare_logits(folder, tmp_path / "r")
    edit_json("config.json", lambda config: config.pop("vocab_size"))(folder)
    with pytest.raises(VerificationError, match="no vocab_size"):
        pp_export.compare_logits(folder, tmp_path / "r")
    with pytest.raises(VerificationError, match=r"config\.json can't be read"):
        pp_export.compare_logits(tmp_path, tmp_path / "r")


def test_logits_that_say_nothing_are_an_error(model: Path, token_ids: torch.Tensor, tmp_path: Path) -> None:
    """A model whose logits are all alike, or not finite, can't hold, whatever was recorded."""
    pp_export.record_logits(tmp_path / "r", token_ids, torch.zeros(BATCH, SEQUENCE, VOCABULARY))
    for value in (0.0, torch.nan):
        folder = Path(shutil.copytree(model, tmp_path / str(value)))
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        file = folder / index["weight_map"]["lm_head.weight"]
        tensors = load_file(file)
        tensors["lm_head.weight"] = torch.full_like(tensors["lm_head.weight"], value)
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(VerificationError, match="not finite, or all alike") as caught:
            pp_export.compare_logits(folder, tmp_path / "r")
        assert (caught.value.where["batch"], caught.value.where["position"]) == ("0", "0")


@pytest.mark.parametrize(
    "options", [{"tolerance": -1.0}, {"tolerance": float("nan")}, {"max_memory": "much"}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    """Before anything is read."""
    with pytest.raises(OptionError):
        pp_export.compare_logits("absent", "absent", **options)  # type: ignore[arg-type]
