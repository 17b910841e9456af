"""Claims of `pp_export.checkpoint.training_args`: wherever a run left its args they are found, whatever
objects of frameworks are among them, and which source counts is certain.
"""

from __future__ import annotations

import collections
import json
import os
import shutil
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from pp_export.checkpoint.catalog import Description
from pp_export.checkpoint.formats import describe_checkpoint
from pp_export.core.errors import CheckpointError, UnsafePickleError
from tests.fixtures import foreign
from tests.fixtures.legacy import FILE, Run, toy_args, toy_tensors, write_ranks
from tests.fixtures.stored import write_plain, write_stored

X = {"x": torch.ones(2, 2)}
RUN = Run(layers=[[[0]]])
NOTE = (
    "the training args hold objects of swift.megatron (model_info, model_meta), kept as text and never used"
)
Write = Callable[[Path, dict[str, Any], dict[str, Any]], Path]


def described(folder: Path) -> Description:
    return describe_checkpoint(folder, None).description


def common_pt(root: Path, args: dict[str, Any], more: dict[str, Any]) -> Path:
    folder = write_stored(root / "iter_0000010", X, None)
    torch.save({"args": Namespace(**args), "iteration": 10, **more}, folder / "common.pt")
    return folder


def common_state(root: Path, args: dict[str, Any], more: dict[str, Any]) -> Path:
    state = {"args": Namespace(**args), "iteration": 10, **more}
    folder = root / "iter_0000010"
    planner = DefaultSavePlanner(flatten_state_dict=False)  # the list is one item, as megatron-core has it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = {**X, "common_state/shard_0_1": [state]}
        state_dict_saver.save(whole, checkpoint_id=folder, planner=planner, no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    return folder


def item(root: Path, args: dict[str, Any], more: dict[str, Any]) -> Path:
    return write_plain(root / "iter_0000010", {**X, "args": Namespace(**args), "iteration": 10, **more})


def legacy(root: Path, args: dict[str, Any], more: dict[str, Any]) -> Path:
    folder = write_ranks(root / "iter_0000010", RUN, toy_args(RUN), toy_tensors(toy_args(RUN)))
    path = folder / "mp_rank_00" / FILE
    state = torch.load(path, weights_only=False)
    torch.save(state | {"args": Namespace(**toy_args(RUN), **args), **more}, path)
    return folder


PLACES: dict[str, Write] = {f.__name__: f for f in (common_pt, common_state, item, legacy)}


@pytest.fixture
def objects() -> Iterator[dict[str, Any]]:
    foreign.place()
    yield foreign.objects()
    foreign.forget()


@pytest.mark.parametrize("place", PLACES)
def test_objects_of_frameworks_are_text_and_noted(
    tmp_path: Path, objects: dict[str, Any], place: str
) -> None:
    """In all four places args are kept, objects of a framework become text, and a note names them."""
    args = {"model_meta": objects["meta"], "model_info": [objects["class"]], "lr": 0.5}
    folder = PLACES[place](tmp_path, args, {})
    foreign.forget()
    found = described(folder)
    assert found.args is not None
    assert found.args["model_meta"] == f"{foreign.MODULE}.Meta()"
    assert found.args["model_info"] == [f"{foreign.MODULE}.Bridge"]
    assert (found.args["lr"], found.notes) == (0.5, (NOTE,))
    json.dumps(found.args)


@pytest.mark.parametrize("place", PLACES)
def test_beside_the_args_they_are_refused(tmp_path: Path, objects: dict[str, Any], place: str) -> None:
    """An object of a framework in the rest of the state stops the reading in every place that is read."""
    folder = PLACES[place](tmp_path, {"lr": 0.5}, {"rerun": {"deep": objects["meta"]}})
    if place == "item":  # where no other item is read
        assert described(folder).notes == ()
        return
    with pytest.raises(UnsafePickleError, match="outside of the training args"):
        described(folder)


@pytest.mark.parametrize("place", PLACES)
def test_hostile_args_are_refused(tmp_path: Path, place: str) -> None:
    """What runs something is refused among the args as well."""

    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'marker'}",)

    folder = PLACES[place](tmp_path, {"a": Payload()}, {}) if place != "legacy" else None
    if folder is not None:
        with pytest.raises(UnsafePickleError, match=r"posix\.system"):
            described(folder)
        assert not (tmp_path / "marker").exists()


def test_values_of_configs_are_no_news(tmp_path: Path) -> None:
    """Times, numbers and activations among the args become text, and need no note."""
    found = described(common_pt(tmp_path, foreign.harmless(), {}))
    assert found.args is not None
    assert found.args["timeout"] == "datetime.timedelta(0, 600, 0)"
    assert found.args["silu"] == "torch.nn.functional.silu"
    assert found.notes == ()


@pytest.mark.parametrize("args", [Namespace(), {}, None, 5, "x"])
def test_empty_args_are_none(tmp_path: Path, args: Any) -> None:
    """A state without a single arg says nothing, as one without args."""
    folder = write_stored(tmp_path / "iter_0000010", X, None)
    torch.save({"args": args, "iteration": 10}, folder / "common.pt")
    assert described(folder).args is None


@pytest.mark.parametrize("args", ["ordered", "tree", "slots"])
def test_args_of_other_classes(tmp_path: Path, objects: dict[str, Any], args: str) -> None:
    """Args in a dict, or in a framework's own class, with a state or with items, are args too."""
    kinds = {
        "ordered": collections.OrderedDict(left=1),
        "tree": foreign.Tree(left=1),
        "slots": objects["slots"],
    }
    folder = write_stored(tmp_path / "iter_0000010", X, None)
    torch.save({"args": kinds[args]}, folder / "common.pt")
    foreign.forget()
    found = described(folder)
    assert found.args is not None
    assert found.args["left"] == 1
    assert found.iteration == 10


# --- configs beside

CONFIG = {"num_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "params_dtype": "torch.bfloat16"}


def bridge(folder: Path, **config: Any) -> None:
    (folder / "run_config.yaml").write_text(yaml.safe_dump({"model": CONFIG | config}))


def test_the_config_of_bridge_goes_before_args(tmp_path: Path) -> None:
    """run_config.yaml counts, and where args that are there too say otherwise, a note says so."""
    args = {"num_layers": 3, "hidden_size": 16, "params_dtype": torch.bfloat16, "rotary_base": 5}
    folder = common_pt(tmp_path, args, {})
    bridge(folder)
    found = described(folder)
    assert found.args is not None
    assert found.args["hidden_size"] == 8
    assert "rotary_base" not in found.args
    assert found.notes == (
        "run_config.yaml counts where the training args say otherwise: hidden_size (8, not 16)",
    )
    assert (found.writer, found.iteration) == ("Megatron-Bridge, megatron-core 0.16 to 0.18", 10) or (
        found.writer == "Megatron-Bridge"
    )


def test_a_config_that_says_no_model_is_noted(tmp_path: Path) -> None:
    """Where a framework nests its model's config as none is known to, next to nothing is compared, and a note
    says why.
    """
    folder = common_pt(tmp_path, {}, {})
    (folder / "run_config.yaml").write_text(yaml.safe_dump({"model": {"of_a_fork": CONFIG}}))
    (note,) = described(folder).notes
    assert note.startswith("run_config.yaml has no model's sizes where they are known to stand")
    bridge(folder)
    assert not described(folder).notes


def test_bridge_does_not_need_its_common_state(tmp_path: Path, objects: dict[str, Any]) -> None:
    """With run_config.yaml, a common.pt that can't be trusted is left alone and noted, not refused."""
    folder = common_pt(tmp_path, {}, {"callback": objects["meta"]})
    bridge(folder)
    foreign.forget()
    found = described(folder)
    assert found.args is not None
    assert found.args["num_layers"] == 3
    assert "it was left alone, since run_config.yaml says all" in found.notes[0]
    (folder / "common.pt").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"common\.pt is damaged"):
        described(folder)


def verl(root: Path) -> Path:
    """As verl's checkpoint manager leaves an actor: what its config can't say in JSON is left out."""
    folder = write_stored(root / "actor" / "dist_ckpt", X, None)
    torch.save({"lr_scheduler": {"max_lr": 1e-5}, "rng_state": None}, folder / "common.pt")
    dump = CONFIG | {"gated_linear_unit": True, "num_query_groups": 1, "init_method_std": 0.02}
    (root / "actor" / "transformer_config.json").write_text(json.dumps(dump, indent=2))
    return folder


@pytest.mark.parametrize("inside", [False, True])
def test_verl(tmp_path: Path, inside: bool) -> None:
    """verl's transformer_config.json gives the args, beside the weights' folder or in it."""
    folder = verl(tmp_path)
    if inside:
        shutil.move(folder.parent / "transformer_config.json", folder)
    found = described(folder)
    assert found.writer.startswith("verl")
    assert found.args is not None
    assert (found.args["num_layers"], found.args["num_query_groups"]) == (3, 1)
    assert found.args["params_dtype"] == "torch.bfloat16"
    assert found.iteration is None


@pytest.mark.parametrize("other", ["transformer_config.json", "context"])
def test_other_configs_stand_in_for_args_only(tmp_path: Path, other: str) -> None:
    """Where the common state has args, a config of verl or NeMo beside them is not asked."""
    folder = common_pt(tmp_path / "root", {"num_layers": 7}, {})
    if other == "context":
        (folder.parent / "context").mkdir()
        (folder.parent / "context" / "model.yaml").write_text(yaml.safe_dump({"config": CONFIG}))
    else:
        (folder.parent / other).write_text(json.dumps(CONFIG))
    assert described(folder).args == {"num_layers": 7}
    torch.save({"iteration": 10}, folder / "common.pt")
    found = described(folder)
    assert found.args is not None
    assert (found.args["num_layers"], found.iteration) == (3, 10)


def test_another_iteration_than_the_folder_says_is_noted(tmp_path: Path) -> None:
    """A state of another iteration than its folder is named after is exported, and a note says so."""
    for place, write in PLACES.items():
        folder = write(tmp_path / place, {"lr": 1}, {"iteration": 20})
        found = described(folder)
        assert found.iteration == 20
        assert found.notes == ("the folder's name says iteration 10, the state in it 20: it was renamed",)
