"""Claims of `pp_export.architecture.transforms`: moves give what independently written torch code gives."""

from __future__ import annotations

import pytest
import torch

from pp_export.architecture.transforms import TRANSFORMS, Geometry, Move, Transform
from pp_export.core.errors import AccountingError, CheckpointError
from pp_export.core.tensors import Shape
from pp_export.core.views import View

SIZES = {"num_attention_heads": 6, "num_query_groups": 2, "head_dim": 3, "value_head_dim": 2, "vocab_size": 7}


def apply(name: str, source: torch.Tensor, sizes: dict[str, int] = SIZES) -> dict[str, torch.Tensor]:
    """The outputs that the transform's moves make of `source`; what no move fills stays NaN."""
    transform, shape = TRANSFORMS[name], tuple(source.shape)
    geometry = transform.geometry(shape, sizes)
    transform.check(shape, geometry)
    outputs = {role: torch.full(of, torch.nan) for role, of in geometry.outputs.items()}
    for move in geometry.moves:
        seen(outputs[move.role], move.target).copy_(seen(source, move.source))
    return outputs


def seen(tensor: torch.Tensor, view: View) -> torch.Tensor:
    return tensor.as_strided(view.shape, view.strides, view.offset)


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (2, 3, 4)])
def test_copy_keeps_the_tensor(shape: Shape) -> None:
    """`copy` gives the source under one name, whatever its number of dims."""
    outputs = apply("copy", numbered(*shape))
    assert outputs.keys() == {""}
    assert torch.equal(outputs[""], numbered(*shape))


@pytest.mark.parametrize("rest", [(4,), ()], ids=["weight", "bias"])
@pytest.mark.parametrize(("heads", "groups", "dim"), [(6, 2, 3), (4, 4, 2), (5, 1, 4), (6, 3, 1)])
def test_split_qkv_separates_query_groups(heads: int, groups: int, dim: int, rest: Shape) -> None:
    """Each group's queries, key and value end in q, k and v in the order of the heads, for weights and
    biases.
    """
    fused = numbered((heads + 2 * groups) * dim, *rest)
    sizes = {"num_attention_heads": heads, "num_query_groups": groups, "head_dim": dim}
    by_group = fused.reshape(groups, heads // groups + 2, dim, *rest)
    expected = {
        "q": by_group[:, :-2].reshape(heads * dim, *rest),
        "k": by_group[:, -2].reshape(groups * dim, *rest),
        "v": by_group[:, -1].reshape(groups * dim, *rest),
    }
    outputs = apply("split_qkv", fused, sizes)
    assert outputs.keys() == expected.keys()
    assert all(torch.equal(outputs[role], expected[role]) for role in expected)


@pytest.mark.parametrize("rest", [(4,), ()], ids=["weight", "bias"])
@pytest.mark.parametrize(("heads", "groups", "dim"), [(6, 2, 3), (4, 4, 2), (5, 1, 4)])
def test_split_gated_qkv_joins_queries_and_gate(heads: int, groups: int, dim: int, rest: Shape) -> None:
    """A group has its queries, as many rows of a gate, a key and a value; q has both of each head."""
    fused = numbered(2 * (heads + groups) * dim, *rest)
    sizes = {"num_attention_heads": heads, "num_query_groups": groups, "head_dim": dim}
    each = heads // groups
    by_group = fused.reshape(groups, 2 * each + 2, dim, *rest)
    queries, gates = by_group[:, :each], by_group[:, each : 2 * each]
    outputs = apply("split_gated_qkv", fused, sizes)
    assert outputs.keys() == {"q", "k", "v"}
    assert torch.equal(outputs["q"], torch.stack([queries, gates], dim=2).reshape(2 * heads * dim, *rest))
    assert torch.equal(outputs["k"], by_group[:, -2].reshape(groups * dim, *rest))
    assert torch.equal(outputs["v"], by_group[:, -1].reshape(groups * dim, *rest))


DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 5,
    "linear_value_head_dim": 4,
}


def test_the_sections_of_a_delta_net_are_kept_or_regrouped() -> None:
    """`delta_net` cuts between its sections; `delta_net_by_head` gives each key head its own of each."""
    fused = numbered(10 + 10 + 24 + 24 + 6 + 6, 3)
    q, k, v, z, b, a = torch.split(fused, [10, 10, 24, 24, 6, 6])
    outputs = apply("delta_net", fused, DELTA_NET)
    expected = {"qkv": torch.cat([q, k, v]), "z": z, "b": b, "a": a}
    assert outputs.keys() == expected.keys()
    assert all(torch.equal(outputs[role], expected[role]) for role in expected)
    outputs = apply("delta_net_by_head", fused, DELTA_NET)
    by_head = {
        role: torch.cat([torch.cat([part.chunk(2)[head] for part in parts]) for head in range(2)])
        for role, parts in {"qkvz": (q, k, v, z), "ba": (b, a)}.items()
    }
    assert outputs.keys() == by_head.keys()
    assert all(torch.equal(outputs[role], by_head[role]) for role in by_head)


@pytest.mark.parametrize("name", ["delta_net", "delta_net_by_head"])
def test_a_delta_net_of_another_size_is_refused(name: str) -> None:
    """Rows that don't fit, and value heads that key heads don't divide."""
    with pytest.raises(AccountingError, match=f"{name} does not fit") as caught:
        TRANSFORMS[name].geometry((81, 3), DELTA_NET)
    assert caught.value.expected == "2 x 10 + 2 x 24 + 2 x 6 rows"
    with pytest.raises(AccountingError, match=f"{name} does not fit") as caught:
        TRANSFORMS[name].geometry((70, 3), DELTA_NET | {"linear_num_value_heads": 5})
    assert caught.value.expected == "5 value heads in equal parts for 2 key heads"


@pytest.mark.parametrize("rest", [(4,), ()], ids=["weight", "bias"])
def test_split_glu_separates_gate_and_up(rest: Shape) -> None:
    """The first half of the rows is the gate, the second half the up projection."""
    fused = numbered(10, *rest)
    gate, up = fused.chunk(2)
    outputs = apply("split_glu", fused)
    assert outputs.keys() == {"gate", "up"}
    assert torch.equal(outputs["gate"], gate)
    assert torch.equal(outputs["up"], up)


@pytest.mark.parametrize("rows", [7, 8, 64])
def test_vocabulary_leaves_the_padding_out(rows: int) -> None:
    """Only the rows of true tokens remain, also where there is no padding."""
    outputs = apply("vocabulary", numbered(rows, 3))
    assert torch.equal(outputs[""], numbered(rows, 3)[:7])


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("split_qkv", (29, 4), "(6 heads + 2 x 2 groups) x 3 = 30 rows"),
        ("split_qkv", (), "(6 heads + 2 x 2 groups) x 3 = 30 rows"),
        ("split_gated_qkv", (47, 4), "2 x (6 heads + 2 groups) x 3 = 48 rows, equal groups"),
        ("split_qkv_of_values", (31, 4), "6 heads x 3 + 5 rows for each of some equal groups"),
        ("split_qkv_of_values", (18 + 20, 4), "6 heads x 3 + 5 rows for each of some equal groups"),
        ("split_glu", (9, 4), "an even number of rows"),
        ("split_glu", (), "an even number of rows"),
        ("vocabulary", (6, 4), "at least vocab_size = 7 rows"),
        ("vocabulary", (), "at least vocab_size = 7 rows"),
        ("transpose", (4,), "two dims"),
        ("one_row", (4, 1), "one dim"),
        ("interleave_glu", (9, 4), "an even number of rows"),
        ("interleave_glu_transposed", (8,), "two dims"),
    ],
)
def test_misfits_are_refused(name: str, shape: Shape, expected: str) -> None:
    """A tensor that a transform can't take apart evenly is refused, with the rows it should have."""
    with pytest.raises(AccountingError, match=f"{name} does not fit") as caught:
        TRANSFORMS[name].geometry(shape, SIZES)
    assert caught.value.expected == expected
    assert caught.value.got == f"shape {list(shape)}"


@pytest.mark.parametrize("groups", [0, 4], ids=["no groups", "groups that do not divide the heads"])
def test_heads_that_groups_do_not_divide_are_refused(groups: int) -> None:
    """Without a whole number of heads per group nothing is split, even if the number of rows happens to
    fit.
    """
    sizes = {"num_attention_heads": 6, "num_query_groups": groups, "head_dim": 3}
    with pytest.raises(AccountingError, match="split_qkv does not fit"):
        TRANSFORMS["split_qkv"].geometry(((6 + 2 * groups) * 3, 4), sizes)


def refused(moves: tuple[Move, ...], output: Shape) -> None:
    with pytest.raises((AccountingError, CheckpointError)):
        checked(moves, output)


def checked(moves: tuple[Move, ...], output: Shape) -> None:
    geometry = Geometry({"": output}, moves)
    Transform("test", ("",), lambda shape, sizes: geometry).check((4, 3), geometry)


def test_a_transform_that_loses_or_doubles_elements_is_refused() -> None:
    """`check` refuses moves that leave out an element, use one twice, leave a hole, overwrite, or change the
    shape on the way.
    """
    whole = View.of((4, 3))
    top, bottom = whole.narrow(0, 0, 2), whole.narrow(0, 2, 2)
    even, odd = whole.narrow(0, 0, 2, step=2), whole.narrow(0, 1, 2, step=2)
    refused((Move(top, "", View.of((2, 3))),), (2, 3))
    refused((Move(top, "", top), Move(top, "", bottom)), (4, 3))
    refused((Move(top, "", top), Move(bottom, "", top)), (4, 3))
    refused((Move(top, "", even), Move(bottom, "", top)), (4, 3))
    refused((Move(whole, "", View.of((6, 3)).narrow(0, 0, 4)),), (6, 3))
    refused((Move(whole, "", View.of((3, 4))),), (3, 4))
    checked((Move(top, "", bottom), Move(bottom, "", top)), (4, 3))
    checked((Move(top, "", odd), Move(bottom, "", even)), (4, 3))
    checked((Move(whole, "", View.of((3, 4)).transpose()),), (3, 4))


def test_transpose_swaps_rows_and_columns() -> None:
    """`transpose` gives what torch's does."""
    assert torch.equal(apply("transpose", numbered(4, 3))[""], numbered(4, 3).T)


@pytest.mark.parametrize("rest", [(4,), ()], ids=["weight", "bias"])
def test_interleave_glu_lets_gate_and_up_take_turns(rest: Shape) -> None:
    """Row 2i of the output is row i of the gate, row 2i + 1 that of the up projection."""
    fused = numbered(10, *rest)
    expected = torch.stack(fused.chunk(2), dim=1).reshape(10, *rest)
    assert torch.equal(apply("interleave_glu", fused)[""], expected)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_rows_tell_the_groups_where_values_have_another_size(groups: int) -> None:
    """`split_qkv_of_values` takes as many groups as the rows make, whatever the model's other layers have."""
    heads, dim, values = (SIZES[name] for name in ("num_attention_heads", "head_dim", "value_head_dim"))
    per_group = [heads // groups * dim, dim, values]
    fused = numbered(groups * sum(per_group), 4)
    parts = [torch.split(part, per_group) for part in torch.split(fused, sum(per_group))]
    outputs = apply("split_qkv_of_values", fused)
    for number, role in enumerate("qkv"):
        assert torch.equal(outputs[role], torch.cat([part[number] for part in parts]))


def test_one_row_adds_a_leading_dim() -> None:
    """`one_row` gives the one row that Ernie 4.5 has: [1, columns]."""
    assert torch.equal(apply("one_row", numbered(5))[""], numbered(5)[None])


def test_interleaved_columns_are_interleaved_rows_transposed() -> None:
    """`interleave_glu_transposed` gives the columns that gpt-oss has: [columns, 2 x rows], taking turns."""
    gate, up = numbered(10, 4).chunk(2)
    output = apply("interleave_glu_transposed", numbered(10, 4))[""]
    assert torch.equal(output[:, ::2], gate.T)
    assert torch.equal(output[:, 1::2], up.T)


def test_only_what_is_padded_may_drop_elements() -> None:
    """Every other transform is checked to use its whole source."""
    assert [name for name, t in TRANSFORMS.items() if t.drops] == ["vocabulary"]


def test_fused_queries_keys_and_values_are_stored_the_other_way_round() -> None:
    """GPT-2's linear layers are [inputs, outputs]: all queries, all keys and all values, as columns."""
    fused = numbered((6 + 2 * 2) * 3, 4)
    expected = torch.cat(list(apply("split_qkv", fused).values())).t()
    assert torch.equal(apply("fuse_qkv_transposed", fused)[""], expected)


def test_transposed_biases_do_not_exist() -> None:
    with pytest.raises(AccountingError, match="fuse_qkv_transposed does not fit"):
        apply("fuse_qkv_transposed", numbered(30))
