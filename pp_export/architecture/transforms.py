"""The closed list of transforms: how one Megatron tensor becomes one or more Hugging Face tensors.

A transform is geometry, not arithmetic: moves from a view of the source to a view of an output of the same
shape. So splits, stacking, transposes and interleaving are said alike; shapes, bytes and completeness are
known before anything is read, and every byte is copied once, straight to its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pp_export.core.errors import AccountingError
from pp_export.core.tensors import Shape
from pp_export.core.views import View, check_filled

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Move:
    """The elements of `source`, a view of the Megatron tensor, become those of `target`, a view of output
    `role` ("" for a single output), which has the same shape.
    """

    source: View
    role: str
    target: View


@dataclass(frozen=True)
class Geometry:
    """The shape of each output, by role, and the moves that fill them."""

    outputs: Mapping[str, Shape]
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Transform:
    """`geometry(shape, sizes)` tells what becomes of a source of `shape`; raises AccountingError where it
    does not fit.

    `num_parts` is the number of equal blocks along dim 0 that tensor parallelism splits each on its own (2
    for a fused gate and up projection). `drops` says that some rows (padding) go nowhere; `needs` are the
    `sizes` that it asks for.
    """

    name: str
    roles: tuple[str, ...]
    geometry: Callable[[Shape, Sizes], Geometry]
    num_parts: int = 1
    drops: bool = False
    needs: tuple[str, ...] = ()

    def check(self, shape: Shape, geometry: Geometry) -> None:
        """Raise unless every element of the source goes to exactly one place, and every place is filled."""
        for move in geometry.moves:
            if move.source.shape != move.target.shape:
                raise AccountingError(
                    f"a move of {self.name} changes the shape",
                    expected=move.source.shape,
                    got=move.target.shape,
                )
        if not self.drops:
            check_filled(self.name, shape, [move.source for move in geometry.moves])
        for role, output in geometry.outputs.items():
            filled = [move.target for move in geometry.moves if move.role == role]
            check_filled(f"{self.name} {role}".strip(), output, filled)


_HEADS = ("num_attention_heads", "num_query_groups", "head_dim")
_DELTA_NET = (
    *("linear_num_key_heads", "linear_num_value_heads"),
    *("linear_key_head_dim", "linear_value_head_dim"),
)
_HEADS_OF_VALUES = ("num_attention_heads", "head_dim", "value_head_dim")


def _num_rows(shape: Shape) -> int:
    return shape[0] if shape else 0


def _copy(shape: Shape, sizes: Sizes) -> Geometry:
    whole = View.of(shape)
    return Geometry({"": shape}, (Move(whole, "", whole),))


def _transpose(shape: Shape, sizes: Sizes) -> Geometry:
    """[rows, columns] to [columns, rows], as layers that are stored the other way round have it."""
    if len(shape) != 2:
        raise _misfit("transpose", shape, "two dims")
    output = (shape[1], shape[0])
    return Geometry({"": output}, (Move(View.of(shape), "", View.of(output).transpose()),))


def _swap_halves(shape: Shape, sizes: Sizes) -> Geometry:
    """The right half of the columns before the left one: of a projection of two inputs that a class takes the
    other way round (vLLM's mimo_mtp: `input_proj`).
    """
    if len(shape) != 2 or shape[1] % 2:
        raise _misfit("swap_halves", shape, "two dims, an even number of columns")
    half, whole = shape[1] // 2, View.of(shape)
    left, right = whole.narrow(1, 0, half), whole.narrow(1, half, half)
    return Geometry({"": shape}, (Move(left, "", right), Move(right, "", left)))


def _one_row(shape: Shape, sizes: Sizes) -> Geometry:
    """[columns] to [1, columns] (transformers' ernie4_5_moe: `e_score_correction_bias`)."""
    if len(shape) != 1:
        raise _misfit("one_row", shape, "one dim")
    output = (1, *shape)
    return Geometry({"": output}, (Move(View.of(shape), "", View.of(output).select(0, 0)),))


def _vocabulary(shape: Shape, sizes: Sizes) -> Geometry:
    """Rows beyond the true vocabulary are padding to a multiple that TP divides (megatron's
    `padded_vocab_size`).
    """
    num_rows = sizes["vocab_size"]
    if not num_rows <= _num_rows(shape):
        raise _misfit("vocabulary", shape, f"at least vocab_size = {num_rows} rows")
    output = (num_rows, *shape[1:])
    return Geometry({"": output}, (Move(View.of(shape).narrow(0, 0, num_rows), "", View.of(output)),))


def _split_qkv(shape: Shape, sizes: Sizes) -> Geometry:
    """Rows come per query group: its queries, its key, its value (megatron/core/transformer/attention.py)."""
    return _split_groups(shape, *_qkv_groups("split_qkv", shape, sizes))


def _split_qkv_of_values(shape: Shape, sizes: Sizes) -> Geometry:
    """The same where values have a size of their own, and the rows tell how many groups a layer has
    (Megatron-Bridge's MiMo-V2-Flash).
    """
    heads, dim, values = (sizes[size] for size in _HEADS_OF_VALUES)
    groups, rest = divmod(_num_rows(shape) - heads * dim, dim + values)
    if rest or groups < 1 or heads % groups:
        expected = f"{heads} heads x {dim} + {dim + values} rows for each of some equal groups"
        raise _misfit("split_qkv_of_values", shape, expected)
    return _split_groups(shape, groups, {"q": heads // groups * dim, "k": dim, "v": values})


def _split_groups(shape: Shape, groups: int, counts: Mapping[str, int]) -> Geometry:
    """An output for each part, of all groups one after the other."""
    outputs = {role: (groups * count, *shape[1:]) for role, count in counts.items()}
    targets = {role: View.of(output) for role, output in outputs.items()}
    return Geometry(
        outputs, _from_groups(shape, groups, counts, targets, {role: (role, 0) for role in counts})
    )


def _fuse_qkv(shape: Shape, sizes: Sizes) -> Geometry:
    """All queries, then all keys, then all values (transformers' phi3: `qkv_proj`)."""
    return _fused_qkv("fuse_qkv", shape, sizes, shape, View.of(shape))


def _fuse_qkv_transposed(shape: Shape, sizes: Sizes) -> Geometry:
    """The same as columns: layers that are stored the other way round (transformers' gpt2: `c_attn`)."""
    if len(shape) != 2:
        raise _misfit("fuse_qkv_transposed", shape, "two dims")
    output = (shape[1], shape[0])
    return _fused_qkv("fuse_qkv_transposed", shape, sizes, output, View.of(output).transpose())


def _fused_qkv(name: str, shape: Shape, sizes: Sizes, output: Shape, target: View) -> Geometry:
    """All queries, keys and values to the rows of `target`, a view of the output."""
    groups, counts = _qkv_groups(name, shape, sizes)
    begins = {"q": 0, "k": groups * counts["q"], "v": groups * (counts["q"] + counts["k"])}
    places = {part: ("", begins[part]) for part in counts}
    return Geometry({"": output}, _from_groups(shape, groups, counts, {"": target}, places))


def _qkv_groups(name: str, shape: Shape, sizes: Sizes) -> tuple[int, dict[str, int]]:
    """How many query groups a fused projection has, and the rows of each part of a group."""
    heads, groups, dim = (sizes[size] for size in _HEADS)
    num_rows = (heads + 2 * groups) * dim
    if _num_rows(shape) != num_rows:
        raise _misfit(name, shape, f"({heads} heads + 2 x {groups} groups) x {dim} = {num_rows} rows")
    if groups < 1 or heads % groups:
        raise _misfit(name, shape, f"{heads} heads in equal groups, not {groups}")
    return groups, {"q": heads // groups * dim, "k": dim, "v": dim}


def _from_groups(
    shape: Shape,
    groups: int,
    counts: Mapping[str, int],
    targets: Mapping[str, View],
    places: Mapping[str, tuple[str, int]],
) -> tuple[Move, ...]:
    """Rows that come in `groups`, each of parts with so many rows: of every part all groups, one after the
    other, from the row on that `places` gives it in the view of an output.
    """
    source, moves, begin = View.of(shape), [], 0
    for group in range(groups):
        for part, count in counts.items():
            role, first = places[part]
            target = targets[role].narrow(0, first + group * count, count)
            moves.append(Move(source.narrow(0, begin, count), role, target))
            begin += count
    return tuple(moves)


def _split_glu(shape: Shape, sizes: Sizes) -> Geometry:
    """All rows of the gate, then all rows of the up projection, whatever the TP size that wrote them."""
    half = _half("split_glu", shape)
    output = (half, *shape[1:])
    gate, up = (View.of(shape).narrow(0, begin, half) for begin in (0, half))
    moves = (Move(gate, "gate", View.of(output)), Move(up, "up", View.of(output)))
    return Geometry({"gate": output, "up": output}, moves)


def _interleave_glu(shape: Shape, sizes: Sizes) -> Geometry:
    """Gate and up rows take turns in one output: gate 0, up 0, gate 1, ... (gpt-oss: `gate_up_proj_bias`)."""
    return _interleaved(shape, View.of(shape), shape, _half("interleave_glu", shape))


def _interleave_glu_transposed(shape: Shape, sizes: Sizes) -> Geometry:
    """[2 x rows, columns] to [columns, 2 x rows], where gate and up take turns (gpt-oss: `gate_up_proj`)."""
    half = _half("interleave_glu_transposed", shape)
    if len(shape) != 2:
        raise _misfit("interleave_glu_transposed", shape, "two dims")
    output = (shape[1], shape[0])
    return _interleaved(shape, View.of(output).transpose(), output, half)


def _interleaved(shape: Shape, target: View, output: Shape, half: int) -> Geometry:
    """Gate and up halves of the source to every second row of `target`, a view of the output."""
    gate, up = (View.of(shape).narrow(0, begin, half) for begin in (0, half))
    even, odd = (target.narrow(0, first, half, step=2) for first in (0, 1))
    return Geometry({"": output}, (Move(gate, "", even), Move(up, "", odd)))


def _split_gated_qkv(shape: Shape, sizes: Sizes) -> Geometry:
    """As `split_qkv`, but a group's queries are followed by as many rows of an output gate: each head's own
    join its query rows in q (megatron/core/transformer/attention.py, `attention_output_gate`).
    """
    heads, groups, dim = (sizes[size] for size in _HEADS)
    num_rows = 2 * (heads + groups) * dim
    if _num_rows(shape) != num_rows or groups < 1 or heads % groups:
        expected = f"2 x ({heads} heads + {groups} groups) x {dim} = {num_rows} rows, equal groups"
        raise _misfit("split_gated_qkv", shape, expected)
    counts = {"q": 2 * heads * dim, "k": groups * dim, "v": groups * dim}
    outputs = {role: (count, *shape[1:]) for role, count in counts.items()}
    parts = [("q", 2 * dim * head + of_gate * dim) for of_gate in (0, 1) for head in range(heads // groups)]
    moves, begin = [], 0
    for group in range(groups):
        own = [("q", row + group * counts["q"] // groups) for _, row in parts]
        for role, row in (*own, ("k", group * dim), ("v", group * dim)):
            target = View.of(outputs[role]).narrow(0, row, dim)
            moves.append(Move(View.of(shape).narrow(0, begin, dim), role, target))
            begin += dim
    return Geometry(outputs, tuple(moves))


def _delta_net_sections(name: str, shape: Shape, sizes: Sizes) -> dict[str, int]:
    """The rows of each section of a gated delta net's projection (megatron/core/ssm/gated_delta_net.py)."""
    key_heads, value_heads, key_dim, value_dim = (sizes[size] for size in _DELTA_NET)
    keys, values = key_heads * key_dim, value_heads * value_dim
    counts = {"q": keys, "k": keys, "v": values, "z": values, "b": value_heads, "a": value_heads}
    if _num_rows(shape) != sum(counts.values()):
        raise _misfit(name, shape, f"2 x {keys} + 2 x {values} + 2 x {value_heads} rows")
    if value_heads % key_heads:
        raise _misfit(name, shape, f"{value_heads} value heads in equal parts for {key_heads} key heads")
    return counts


def _delta_net(shape: Shape, sizes: Sizes) -> Geometry:
    """Queries, keys and values stay one tensor; z, b and a become tensors of their own (Qwen3.5)."""
    counts = _delta_net_sections("delta_net", shape, sizes)
    parts = {"qkv": counts["q"] + counts["k"] + counts["v"], **{role: counts[role] for role in "zba"}}
    moves, begin = [], 0
    for role, count in parts.items():
        moves.append(Move(View.of(shape).narrow(0, begin, count), role, View.of((count, *shape[1:]))))
        begin += count
    return Geometry({role: (count, *shape[1:]) for role, count in parts.items()}, tuple(moves))


def _delta_net_by_head(shape: Shape, sizes: Sizes) -> Geometry:
    """Each key head's queries, keys, values and z in one tensor, its b and a in another (Qwen3-Next)."""
    counts = _delta_net_sections("delta_net_by_head", shape, sizes)
    heads, begins, begin = sizes[_DELTA_NET[0]], {}, 0
    for part, count in counts.items():
        begins[part], begin = begin, begin + count
    outputs: dict[str, Shape] = {}
    moves = []
    for role in ("qkvz", "ba"):
        outputs[role] = (sum(counts[part] for part in role), *shape[1:])
        at = 0
        for head in range(heads):
            for part in role:
                count = counts[part] // heads
                source = View.of(shape).narrow(0, begins[part] + head * count, count)
                moves.append(Move(source, role, View.of(outputs[role]).narrow(0, at, count)))
                at += count
    return Geometry(outputs, tuple(moves))


def _half(name: str, shape: Shape) -> int:
    if not shape or shape[0] % 2:
        raise _misfit(name, shape, "an even number of rows")
    return shape[0] // 2


def _misfit(name: str, shape: Shape, expected: str) -> AccountingError:
    return AccountingError(f"{name} does not fit the tensor", expected=expected, got=f"shape {list(shape)}")


TRANSFORMS = {
    transform.name: transform
    for transform in (
        Transform("copy", ("",), _copy),
        Transform("transpose", ("",), _transpose),
        Transform("one_row", ("",), _one_row),
        Transform("swap_halves", ("",), _swap_halves),
        Transform("vocabulary", ("",), _vocabulary, drops=True),
        Transform("split_qkv", ("q", "k", "v"), _split_qkv, needs=_HEADS),
        Transform("split_gated_qkv", ("q", "k", "v"), _split_gated_qkv, needs=_HEADS),
        Transform("delta_net", ("qkv", "z", "b", "a"), _delta_net, needs=_DELTA_NET),
        Transform("delta_net_by_head", ("qkvz", "ba"), _delta_net_by_head, needs=_DELTA_NET),
        Transform("split_qkv_of_values", ("q", "k", "v"), _split_qkv_of_values, needs=_HEADS_OF_VALUES),
        Transform("fuse_qkv", ("",), _fuse_qkv, needs=_HEADS),
        Transform("fuse_qkv_transposed", ("",), _fuse_qkv_transposed, needs=_HEADS),
        Transform("split_glu", ("gate", "up"), _split_glu, num_parts=2),
        Transform("glu", ("",), _copy, num_parts=2),
        Transform("glu_transposed", ("",), _transpose, num_parts=2),
        Transform("interleave_glu", ("",), _interleave_glu, num_parts=2),
        Transform("interleave_glu_transposed", ("",), _interleave_glu_transposed, num_parts=2),
    )
}
