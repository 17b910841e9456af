"""Claims of `pp_export.distributed.backends`: NCCL where it helps and can work, Gloo everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from pp_export.core.errors import OptionError
from pp_export.distributed import backends
from pp_export.distributed.backends import Backend, RankFacts, choose, expected, facts

NCCL = (2, 28, 9)
PAIR = ((0, 1),)


def gpus(*hosts: str, on_gpu: bool = True) -> list[RankFacts]:
    """Ranks on these hosts, with a GPU each."""
    return [RankFacts(host, f"GPU-{rank}", NCCL, on_gpu) for rank, host in enumerate(hosts)]


CPUS = [RankFacts("a"), RankFacts("b")]


@pytest.mark.parametrize(
    ("asked", "ranks", "name", "why"),
    [
        ("gloo", gpus("a", "a"), "gloo", "asked for"),
        ("nccl", gpus("a", "a", on_gpu=False), "nccl", "asked for"),
        ("auto", gpus("a", "a"), "nccl", "the values lie on GPUs"),
        ("auto", gpus("a", "b"), "nccl", "the values lie on GPUs"),
        ("auto", gpus("a", "b", on_gpu=False), "nccl", "ranks of several hosts exchange"),
        ("auto", gpus("a", "a", on_gpu=False), "gloo", "only ranks of one host exchange"),
        ("auto", CPUS, "gloo", "but rank 0 has no GPU"),
        ("auto", [gpus("a")[0], RankFacts("b")], "gloo", "but rank 1 has no GPU"),
        ("auto", [gpus("a")[0], gpus("a")[0]], "gloo", "but ranks 0 and 1 share a GPU"),
        ("nccl", [gpus("a")[0], gpus("a")[0]], "gloo", "nccl was asked for, but ranks 0 and 1 share a GPU"),
        ("auto", [replace(one, nccl=(2, 4, 8)) for one in gpus("a", "b")], "gloo", "NCCL on rank 0 is 2.4.8"),
        ("auto", [replace(one, nccl=None) for one in gpus("a", "b")], "gloo", "NCCL on rank 0 is missing"),
    ],
)
def test_the_choice_has_a_reason(asked: str, ranks: Sequence[RankFacts], name: str, why: str) -> None:
    """NCCL is taken for values on GPUs and between hosts, where every rank has a GPU to itself and NCCL is
    not too old; what stands in the way is said.
    """
    chosen = choose(asked, PAIR, ranks)
    assert chosen.name == name
    assert why in chosen.why
    assert Backend.from_bytes(chosen.to_bytes()) == chosen


def test_one_card_on_two_hosts_is_two() -> None:
    """A GPU belongs to the host that it is in; what NCCL takes for two hosts counts as two."""
    ranks = [RankFacts(host, "GPU-0", NCCL, on_gpu=True) for host in ("a", "b")]
    assert choose("auto", PAIR, ranks).name == "nccl"


@pytest.mark.parametrize("asked", ["auto", "gloo", "nccl"])
def test_ranks_that_exchange_nothing_need_nothing(asked: str) -> None:
    """Without groups no backend is chosen, whatever was asked; ranks outside all groups are of no matter."""
    assert choose(asked, (), CPUS).name is None
    assert expected(asked, ()).name is None
    ranks = [*gpus("a", "a"), RankFacts("a")]
    assert choose("auto", PAIR, ranks).name == "nccl"


def test_what_a_plan_can_say_before() -> None:
    """Without facts, what was asked for is expected; auto says what it depends on."""
    assert expected("nccl", PAIR) == Backend("nccl", "asked for, where each rank has a GPU of its own")
    assert expected("gloo", PAIR) == Backend("gloo", "asked for")
    assert expected("auto", PAIR).name == "gloo"
    assert "nccl" in expected("auto", PAIR).why


def test_facts_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank says of itself arrives as it was said, and NCCL_HOSTID makes a host of its own."""
    for one in (*CPUS, *gpus("a")):
        assert RankFacts.from_bytes(one.to_bytes()) == one
    assert RankFacts.from_bytes(facts(None).to_bytes()) == facts(None)
    here = facts(None).host
    monkeypatch.setenv("NCCL_HOSTID", "elsewhere")
    assert (facts(None).host, here != "elsewhere") == ("elsewhere", True)


def test_a_rank_s_gpu_is_where_its_values_lie() -> None:
    """The GPU of a live model's parameters counts, whatever a thread's current device and LOCAL_RANK are."""
    assert backends.own_device(torch.device("cuda", 5)) == torch.device("cuda", 5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nccl_without_a_gpu_is_refused() -> None:
    """`--backend nccl` on a rank without GPU is refused, and what to use instead is said."""
    with pytest.raises(OptionError, match="needs a GPU") as caught:
        backends.check("nccl")
    assert "gloo" in str(caught.value.advice)
    for asked in ("auto", "gloo"):
        backends.check(asked)
