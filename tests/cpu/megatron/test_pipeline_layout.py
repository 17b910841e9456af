"""Claims of `pp_export.megatron.pipeline_layout`: every stage holds the layers that megatron-core
builds there, or it is refused.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from pp_export.core.errors import CheckpointError
from pp_export.megatron.pipeline_layout import ALL, Stage, stages, virtual_size

Args = dict[str, Any]
ByMegatron = Callable[[Args], "tuple[Stage, ...] | None"]


def made(**short: Any) -> Args:
    """Training args from short names."""
    names = {
        "layers": "num_layers",
        "pp": "pipeline_model_parallel_size",
        "vp": "virtual_pipeline_model_parallel_size",
        "first": "decoder_first_pipeline_num_layers",
        "last": "decoder_last_pipeline_num_layers",
        "embedding": "account_for_embedding_in_pipeline_split",
        "loss": "account_for_loss_in_pipeline_split",
        "layout": "pipeline_model_parallel_layout",
        "mtp": "mtp_num_layers",
    }
    return {names.get(name, name): value for name, value in short.items()}


def held(args: Args) -> list[list[list[int]]]:
    """Layers per pipeline stage and virtual stage."""
    rows: dict[int, list[list[int]]] = {}
    for stage in stages(args):
        rows.setdefault(stage.pipeline, []).append(list(stage.layers))
    return list(rows.values())


def answer(args: Args) -> tuple[Stage, ...] | None:
    try:
        return stages(args)
    except CheckpointError:
        return None


@pytest.fixture
def by_megatron(monkeypatch: pytest.MonkeyPatch) -> ByMegatron:
    """What megatron-core builds with these args, None where it refuses them or does not build every layer
    once.
    """
    import torch
    from megatron.core import parallel_state
    from megatron.core.transformer.multi_token_prediction import get_mtp_num_layers_to_build
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    def build(args: Args) -> tuple[Stage, ...]:
        renamed = {
            "decoder_first_pipeline_num_layers": "num_layers_in_first_pipeline_stage",
            "decoder_last_pipeline_num_layers": "num_layers_in_last_pipeline_stage",
        }
        fields = {renamed.get(name, name): value for name, value in args.items()}
        config = TransformerConfig(
            hidden_size=8, num_attention_heads=1, pipeline_dtype=torch.float32, **fields
        )
        pipeline, size = config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size
        if pipeline == 1 and (size or 1) > 1:
            raise ValueError("training refuses this before (megatron/training/arguments.py)")
        monkeypatch.setattr(parallel_state, "_VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE", size)
        monkeypatch.setattr(parallel_state, "_MPU_PIPELINE_MODEL_PARALLEL_WORLD_SIZE", pipeline)
        built = []
        for rank, virtual in itertools.product(range(pipeline), range(size or 1)):
            monkeypatch.setattr(parallel_state, "_MPU_PIPELINE_MODEL_PARALLEL_RANK", rank)
            place = None if size is None else virtual
            begin = get_transformer_layer_offset(config, place, rank)
            built.append(
                Stage(
                    rank,
                    virtual,
                    range(begin, begin + get_num_layers_to_build(config, place, rank)),
                    parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=place),
                    parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=place),
                    get_mtp_num_layers_to_build(config, place, rank),
                )
            )
        return tuple(built)

    def build_or_refuse(args: Args) -> tuple[Stage, ...] | None:
        try:
            built = build(args)
        except (AssertionError, ValueError, NotImplementedError, IndexError):
            return None
        layers = sorted(layer for stage in built for layer in stage.layers)
        return built if layers == list(range(args["num_layers"])) else None

    return build_or_refuse


def test_a_hybrid_pattern_ends_stages() -> None:
    """Its parts are in the order of a layout: all pipeline stages of a virtual stage, then those of the next.
    The last place has what follows the slash.
    """
    args = made(layers=8, pp=2, hybrid_layer_pattern="M*M|-M*-M", hybrid_override_pattern="M*M-M*-M")
    assert held(args) == [[[0, 1, 2]], [[3, 4, 5, 6, 7]]]
    args = made(layers=9, pp=2, mtp=2, hybrid_layer_pattern="M|*M||-M*-MM/M*/M*")
    assert virtual_size(args) == 2
    assert held(args) == [[[0], []], [[1, 2], [3, 4, 5, 6, 7, 8]]]
    assert [stage.num_mtp_layers for stage in stages(args)] == [0, 0, 0, 2]
    assert [stage.has_embedding for stage in stages(args)] == [True, False, False, False]
    assert [stage.has_head for stage in stages(args)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (made(layers=8, pp=2, vp=2), "0-1,4-5 2-3,6-7"),
        (made(layers=10, pp=3, first=2, last=4), "0-1 2-5 6-9"),
        (made(layers=10, pp=3, first=4), "0-3 4-6 7-9"),
        (made(layers=14, pp=4, embedding=True, loss=True), "0-2 3-6 7-10 11-13"),
        (made(layers=14, pp=4, vp=2, embedding=True, loss=True), "0-0,7-8 1-2,9-10 3-4,11-12 5-6,13-13"),
        (made(layers=16, pp=4, vp=2, first=2, last=2), "0-0,8-8 1-3,9-11 4-6,12-14 7-7,15-15"),
        (made(layers=5), "0-4"),
    ],
)
def test_worked_examples(args: Args, expected: str, by_megatron: ByMegatron) -> None:
    """The examples of the facts: layers `begin-end` per virtual stage; megatron-core says the same."""
    told = [[f"{layers[0]}-{layers[-1]}" for layers in row] for row in held(args)]
    assert " ".join(",".join(row) for row in told) == expected
    assert stages(args) == by_megatron({"pipeline_model_parallel_size": 1} | args)


def test_a_grid_of_settings_is_as_megatron_has_it(by_megatron: ByMegatron) -> None:
    """Wherever megatron-core builds every layer once, the stages are equal; all else is refused."""
    ends: list[tuple[int | None, int | None, bool, bool]]
    ends = [(None, None, e, s) for e in (False, True) for s in (False, True)]
    ends += [(2, None, False, False), (None, 3, False, False), (2, 4, False, False), (4, 2, True, False)]
    num_built = num_refused = 0
    for layers, pp, vp, end in itertools.product(range(1, 17), range(1, 6), (None, 2, 3), ends):
        first, last, embedding, loss = end
        if pp == 2 and vp and first and last:
            continue  # megatron divides by the number of middle stages, zero; see the next test
        args = made(
            layers=layers, pp=pp, vp=vp, first=first, last=last, embedding=embedding, loss=loss, mtp=1
        )
        expected = by_megatron(args)
        assert answer(args) == expected, args
        num_built += expected is not None
        num_refused += expected is None
    assert num_built > 150
    assert num_refused > 150


def test_two_uneven_stages_with_virtual_ones() -> None:
    """The formula holds without middle stages too, where megatron-core 0.16.1 divides by zero."""
    assert held(made(layers=8, pp=2, vp=2, first=2, last=6)) == [[[0], [4]], [[1, 2, 3], [5, 6, 7]]]


def test_layouts_of_words_are_as_megatron_has_them(by_megatron: ByMegatron) -> None:
    """Layouts cut at random, some of them spoilt, are told as megatron-core builds them, or refused."""
    rng = random.Random(5)
    num_built = num_refused = 0
    for _ in range(1500):
        pp, vp, layers, mtp = (
            rng.randint(1, 4),
            rng.randint(1, 3),
            rng.randint(1, 9),
            rng.choice((0, 0, 1, 2)),
        )
        words = ["embedding", *["decoder"] * layers, *["mtp"] * mtp, "loss"]
        if rng.random() < 0.2:
            words[rng.randrange(len(words))] = rng.choice(("decoder", "mtp", "encoder", "loss"))
        if rng.random() < 0.1:
            rng.shuffle(words)
        num_places = pp * vp if rng.random() < 0.9 else pp * vp + 1
        within = len(words) - (1 + mtp if rng.random() < 0.5 else 0)
        cuts = sorted(rng.randint(0, within) for _ in range(num_places - 1))
        layout = [words[a:b] for a, b in itertools.pairwise([0, *cuts, len(words)])]
        args = made(
            layers=layers,
            pp=pp,
            vp=rng.choice((None, vp)) if vp > 1 else None,
            mtp=mtp or None,
            layout=layout,
        )
        expected = by_megatron(args)
        assert answer(args) == expected, args
        num_built += expected is not None
        num_refused += expected is None
    assert num_built > 300
    assert num_refused > 300


def test_layouts_of_text_are_unrolled_as_by_megatron(by_megatron: ByMegatron) -> None:
    """The worked example, and texts of random slices, each with the pipeline sizes that divide its stages."""
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout as Layout

    rng = random.Random(6)
    slices = [
        "t",
        "tt",
        "|",
        ",",
        "t*2",
        "t*12",
        "(t|)*3",
        "(tt|t)*2",
        "|*2",
        "(|t*2,)*2",
        "(t",
        ")",
        "*2",
        "x",
        " ",
    ]
    texts = ["Ettt|(tt|)*29,m|L", "E|(t|)*3,m|m||L", "", "|"]
    texts += [
        "E" + "".join(rng.choices(slices, [9] * 10 + [1] * 5, k=rng.randint(1, 5))) + "L" for _ in range(300)
    ]
    num_built = num_refused = 0
    for text, pp in itertools.product(texts, (1, 2, 3, 4, 8, 16, 32)):
        try:
            words = [word for row in Layout.parse_str_to_list(text) for word in row]
        except AssertionError:
            words = []
        num_layers = max(words.count(LayerType.decoder), 1)
        args = made(layers=num_layers, pp=pp, mtp=words.count(LayerType.mtp) or None, layout=text)
        expected = by_megatron(args)
        assert answer(args) == expected, args
        num_built += expected is not None
        num_refused += expected is None
    assert answer(made(layers=61, pp=16, mtp=1, layout=texts[0])) is not None
    assert num_built > 100
    assert num_refused > 100


def test_a_layout_places_mtp_layers() -> None:
    """MTP layers are where the layout has `m`, else in the last stage; repeated ones are one layer."""
    layout = made(layers=3, pp=2, mtp=2, layout="Et|t|tmm|L")
    assert [stage.num_mtp_layers for stage in stages(layout)] == [0, 2, 0, 0]
    plain = made(layers=8, pp=2, vp=2, mtp=2)
    assert [stage.num_mtp_layers for stage in stages(plain)] == [0, 0, 0, 2]
    assert [stage.num_mtp_layers for stage in stages(plain | {"mtp_use_repeated_layer": True})] == [
        0,
        0,
        0,
        1,
    ]


@pytest.mark.parametrize(
    "told",
    [
        {"virtual_pipeline_model_parallel_size": 3},
        {"num_virtual_stages_per_pipeline_rank": 3},
        {"num_layers_per_virtual_pipeline_stage": 2},
        {"virtual_pipeline_model_parallel_size": 3, "num_layers_per_virtual_pipeline_stage": 2},
        {"pipeline_model_parallel_layout": "Ett|tt|tt|tt|tt|ttL"},
        {"pipeline_model_parallel_layout": "Ett|(tt|)*4ttL", "virtual_pipeline_model_parallel_size": 3},
    ],
)
def test_virtual_stages_are_told_in_four_ways(told: Args) -> None:
    """Any arg, and any two that agree, give three virtual stages of two layers."""
    args = made(layers=12, pp=2) | dict.fromkeys(set(ALL[3:7])) | told
    assert virtual_size(args) == 3
    assert held(args) == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [10, 11]]]


def test_layers_per_virtual_stage_count_the_embedding_and_the_loss() -> None:
    """With places for embedding and loss, 14 layers are 16 units: two virtual stages of two on each of 4."""
    args = made(layers=14, pp=4, embedding=True, loss=True, num_layers_per_virtual_pipeline_stage=2)
    assert virtual_size(args) == 2
    assert held(args)[0] == [[0], [7, 8]]


def test_no_virtual_stages_count_as_one() -> None:
    """Absent, None and 1 are the same, with one pipeline stage too."""
    plain = stages(made(layers=4, pp=2))
    for told in ({}, made(vp=None), made(vp=1), {"num_layers_per_virtual_pipeline_stage": 2}):
        args = made(layers=4, pp=2) | told
        assert virtual_size(args) == 1
        assert stages(args) == plain
    assert virtual_size(made(layers=4, pp=1, vp=1)) == 1


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (made(pp=2), "num_layers: a whole number"),
        (made(layers=None), "num_layers: a whole number"),
        (made(layers="8"), "num_layers: a whole number"),
        (made(layers=True), "num_layers: a whole number"),
        (made(layers=0), "num_layers: a whole number, at least 1"),
        (made(layers=8, pp=0), "pipeline_model_parallel_size: a whole number"),
        (made(layers=8, pp=-2), "pipeline_model_parallel_size: a whole number"),
        (made(layers=8, pp=2, vp=0), "virtual_pipeline_model_parallel_size: a whole number"),
        (made(layers=8, pp=2, mtp=-1), "mtp_num_layers: a whole number, at least 0"),
        (made(layers=8, pp=2, num_layers_per_virtual_pipeline_stage=0), "stage: a whole number"),
        (made(layers=8, pp=2, embedding="no"), "account_for_embedding_in_pipeline_split: true or false"),
        (made(layers=8, pp=3), "8 layers that 3 x 1 stages hold"),
        (made(layers=8, pp=2, vp=3), "8 layers that 2 x 3 stages hold"),
        (made(layers=10, pp=2, vp=2, first=3), "10 layers that 2 x 2 stages hold"),
        (made(layers=8, pp=10**15), "at least one layer for each"),
        (made(layers=8, pp=1, vp=2), "no virtual stages where there is one"),
        (made(layers=8, pp=4, first=9), "layers for the 3 other pipeline stages"),
        (made(layers=4, pp=3, first=2, last=2), "layers for the 1 other pipeline stages"),
        (made(layers=8, pp=2, first=0), "decoder_first_pipeline_num_layers: a whole number"),
        (made(layers=8, pp=2, first=3, loss=True), "a number of its own"),
        (made(layers=8, pp=2, num_layers_per_virtual_pipeline_stage=3), "virtual ones of 3 layers"),
        (made(layers=8, pp=2, num_layers_per_virtual_pipeline_stage=8), "virtual ones of 8 layers"),
        (made(layers=8, pp=2, first=4, num_layers_per_virtual_pipeline_stage=2), "equal stages"),
        (made(layers=8, pp=2, vp=2, num_layers_per_virtual_pipeline_stage=1), "not 2 and 4"),
        (made(layers=2, pp=2, vp=2, layout="Et|tL"), "not 1 and 2"),
        (made(layers=3, pp=2, layout="Et|t|tL"), "a multiple of 2 stages, not 3"),
        (made(layers=3, pp=2, layout="Et|tL"), "3 decoder, 0 mtp"),
        (made(layers=2, pp=2, mtp=1, layout="Et|tL"), "2 decoder, 1 mtp"),
        (made(layers=2, pp=2, layout="tE|tL"), "in this order"),
        (made(layers=2, pp=2, mtp=2, layout="Ettm|mL"), "all MTP layers in one stage"),
        (made(layers=3, pp=2, mtp=1, layout="Etttm|||L"), "all MTP layers in one stage"),
        (made(layers=2, pp=2, first=1, layout="Et|tL"), "a layout alone"),
        (made(layers=2, pp=2, loss=True, layout="Et|tL"), "a layout alone"),
        (made(layers=2, pp=2, layout="Et|t*99999999L"), "a text like"),
        (made(layers=2, pp=2, layout="megatron.core.PipelineParallelLayerLayout(layout=[])"), "a text like"),
        (made(layers=2, pp=2, layout=[]), "a text like"),
        (made(layers=2, pp=2, layout=["Et", "tL"]), "a text like"),
        (made(layers=2, pp=2, layout=[["embedding", 4], ["decoder", "loss"]]), "a text like"),
        (made(layers=2, pp=2, layout={"input_data": "Et|tL"}), "a text like"),
        (made(layers=8, pp=2, hybrid_layer_pattern="M*M|-M*-"), "8 layers that 2 x 1 stages hold"),
        (made(layers=8, pp=2, hybrid_layer_pattern="M*M|-M*|-M"), "a multiple of 2 stages"),
        (made(layers=8, pp=2, hybrid_layer_pattern="M*M|-M[*-]M"), "a pattern of"),
        (made(layers=8, pp=2, first=3, hybrid_layer_pattern="M*M|-M*-M"), "a hybrid model's pattern alone"),
        (made(layers=2, pp=2, layout="Et|tL", hybrid_layer_pattern="M|*"), "a hybrid model's pattern alone"),
        (
            made(layers=8, pp=2, hybrid_layer_pattern="M*M|-M*-M", hybrid_override_pattern="M*M-M*MM"),
            "one pattern of a hybrid model's layers",
        ),
    ],
)
def test_args_that_do_not_fit_are_refused(args: Args, expected: str) -> None:
    """Whatever is missing or does not fit is one CheckpointError, which says what was expected and shows the
    args.
    """
    with pytest.raises(CheckpointError, match="do not tell which layers") as caught:
        stages(args)
    assert expected in str(caught.value.expected)
    shown = [name for name, value in args.items() if value is not None]
    assert all(f"{name}=" in str(caught.value.got) for name in shown)


def test_a_long_arg_is_cut() -> None:
    """An error shows no more than the beginning of a damaged arg."""
    with pytest.raises(CheckpointError) as caught:
        virtual_size(made(layers=2, pp=2, layout="x" * 100_000))
    assert len(str(caught.value)) < 1000
