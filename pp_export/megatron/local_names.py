"""Megatron's parameter names on one rank, and how its tensor parallel ranks cut each parameter.

A rank counts layers and experts from 0. The table repeats what megatron-core's modules say of themselves:
column parallel linears are cut along dim 0, row parallel ones along dim 1 (tensor_parallel/layers.py,
extensions/transformer_engine.py), everything else is on every rank. A name that the table does not know has
no rule; it is never guessed.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pp_export.core.errors import CheckpointError
from pp_export.core.tensors import Shape
from pp_export.core.views import View


class Split(enum.Enum):
    """How a parameter lies on the tensor parallel ranks."""

    ROWS = enum.auto()
    COLUMNS = enum.auto()
    COPIES = enum.auto()
    FC1 = enum.auto()
    """Rows; where it is gated, each rank has rows of the gate, then as many of the up projection."""
    LATENT = enum.auto()
    """Rows or copies, as it depends on the release (a down projection of multi-latent attention)."""
    NORM = enum.auto()
    """Copies, or rows where layers of a framework's own norm all queries of a token together."""
    SECTIONS = enum.auto()
    """Rows in sections of several sizes, of each of which a rank has its part (`sections`)."""


_LAYER = re.compile(
    r"(decoder|mtp)\.layers\.(\d+)\.(?:(?:transformer_layer|mtp_model_layer)\.(?:layers\.\d+\.)?)?(.+)"
)
_MTP_INNER = re.compile(r"^(mtp\.layers\.\d+\.)mtp_model_layer\.(?!layers\.)")
_EXPERT = re.compile(r"^(.+\.mlp\.experts)\.(.+)$")
_SEQUENTIAL = re.compile(r"local_experts\.(\d+)\.(.+)")
_GROUPED_BY_NAME = re.compile(r"(linear_fc[12]\.(?:weight|bias))(\d+)")
_STACKED = re.compile(r"linear_fc[12]\.(?:weight|bias)")
_GROUPED = {"weight1": "linear_fc1.weight", "weight2": "linear_fc2.weight"}

_MAMBA = ("num_heads", "head_dim", "num_groups", "state_dim")
_DELTA_NET = ("num_key_heads", "key_head_dim", "num_value_heads", "value_head_dim")
_MLP = r"mlp\.(?:shared_experts\.|experts\.\d+\.)?"
_OUTSIDE = {
    r"embedding\.word_embeddings\.weight|output_layer\.(?:weight|bias)": Split.ROWS,
    r"embedding\.(?:position|tokentype)_embeddings\.weight": Split.COPIES,
    r"decoder\.final_(?:layer)?norm\.(?:weight|bias)": Split.COPIES,
}
_INSIDE = {
    r"self_attention\.linear_(?:qkv|q_proj|q_up_proj|kv_up_proj)\.(?:weight|bias)": Split.ROWS,
    r"self_attention\.core_attention\.softmax_offset": Split.ROWS,
    r"self_attention\.linear_(?:q|kv)_down_proj\.weight": Split.LATENT,
    r"self_attention\.core_attention\.indexer\.(?:linear_\w+\.weight|k_norm\.(?:weight|bias))": Split.COPIES,
    r"self_attention\.linear_proj\.weight": Split.COLUMNS,
    r"self_attention\.linear_proj\.bias": Split.COPIES,
    _MLP + r"linear_fc1\.(?:weight|bias)": Split.FC1,
    _MLP + r"linear_fc2\.weight": Split.COLUMNS,
    _MLP + r"linear_fc2\.bias": Split.COPIES,
    r"mlp\.router\.(?:weight|bias|expert_bias)": Split.COPIES,
    r"mlp\.shared_experts\.gate_weight|mlp\.fc[12]_latent_proj\.(?:weight|bias)": Split.COPIES,
    r"self_attention\.[qk]_layernorm\.(?:weight|bias)": Split.NORM,
    r"(?:\w+\.)*\w*layer_?norm[._](?:weight|bias)": Split.COPIES,
    # Mamba and gated delta nets (ssm/mamba_mixer.py, ssm/gated_delta_net.py)
    r"(?:mixer|self_attention)\.(?:in_proj\.weight|conv1d[._](?:weight|bias))": Split.SECTIONS,
    r"(?:mixer|self_attention)\.(?:A_log|D|dt_bias)|mixer\.norm\.weight": Split.ROWS,
    r"(?:mixer|self_attention)\.out_proj\.weight": Split.COLUMNS,
    r"self_attention\.out_norm\.weight|norm\.weight": Split.COPIES,
}
_MTP = {
    r"eh_proj\.(?:weight|bias)": Split.ROWS,
    r"[eh]norm\.(?:weight|bias)": Split.COPIES,
}


def local_layer(name: str) -> tuple[str, int] | None:
    """`decoder` or `mtp` and the number of the layer within its stage, or None outside of layers."""
    match = _LAYER.fullmatch(name)
    return None if match is None else (match[1], int(match[2]))


def with_global_layer(name: str, layers: range) -> str:
    """The name with the layer's number in the model, and as the torch_dist format spells it.

    `layers` are the decoder layers of the stage, and the layer is one of them. The inner layer of multi-token
    prediction is `transformer_layer` there, which megatron-core calls `mtp_model_layer` from 0.17 on.
    """
    place = local_layer(name)
    if place is not None and place[0] == "decoder":
        return re.sub(r"^decoder\.layers\.\d+", f"decoder.layers.{layers[place[1]]}", name)
    return _MTP_INNER.sub(r"\1transformer_layer.", name)


def single_experts(name: str, view: View, experts: range) -> Iterator[tuple[str, View]]:
    """The parameters of single experts that a rank with `experts` stores under `name`; others as they are.

    megatron-core has SequentialMLP (`local_experts.{e}.`), TEGroupedMLP (`weight{e}`, or one weight with the
    expert as first axis) and, up to 0.16, GroupedMLP: `weight1` [hidden, experts x columns] is the memory of
    (experts, hidden, columns), transposed (transformer/moe/experts.py `sh_ten_build_fn`).
    """
    match = _EXPERT.fullmatch(name)
    if match is None:
        yield name, view
        return
    stem, rest = match[1], match[2]
    if found := _SEQUENTIAL.fullmatch(rest):
        yield f"{stem}.{_global(name, int(found[1]), experts)}.{found[2]}", view
    elif found := _GROUPED_BY_NAME.fullmatch(rest):
        yield f"{stem}.{_global(name, int(found[2]), experts)}.{found[1]}", view
    elif _STACKED.fullmatch(rest) and view.shape and view.shape[0] == len(experts):
        for local, expert in enumerate(experts):
            yield f"{stem}.{expert}.{rest}", view.select(0, local)
    elif rest in _GROUPED and len(view.shape) == 2 and view.shape[rest == "weight1"] % len(experts) == 0:
        rows, columns = view.shape
        shape = (rows, columns // len(experts)) if rest == "weight1" else (rows // len(experts), columns)
        stacked = _reshaped(view, (len(experts), *shape))
        for local, expert in enumerate(experts):
            yield f"{stem}.{expert}.{_GROUPED[rest]}", stacked.select(0, local).transpose()
    else:
        yield name, view


def split_of(name: str) -> Split | None:
    """How the ranks cut the parameter `name` (of a single expert), or None where no rule is known."""
    match = _LAYER.fullmatch(name)
    rules = _OUTSIDE if match is None else _INSIDE if match[1] == "decoder" else _INSIDE | _MTP
    rest = name if match is None else match[3]
    return next((split for pattern, split in rules.items() if re.fullmatch(pattern, rest)), None)


def is_of_experts(name: str) -> bool:
    """Whether a parameter is cut over expert tensor parallel ranks, not over tensor parallel ones."""
    return ".mlp.experts." in name


def latent_rows(name: str, args: Mapping[str, Any]) -> int | None:
    """Rows of a whole down projection of multi-latent attention, or None if the args don't say."""
    if "linear_q_down_proj" in name:
        return args.get("q_lora_rank")
    latent, position = args.get("kv_lora_rank"), args.get("qk_pos_emb_head_dim")
    return None if latent is None or position is None else int(latent) + int(position)


def norm_rows(args: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows of a norm of each head's queries, and of one of all of them, or None if the args don't say, or if
    norms are of latents.
    """
    heads, dim, hidden = (args.get(arg) for arg in ("num_attention_heads", "kv_channels", "hidden_size"))
    if args.get("multi_latent_attention") or not heads or not (dim or hidden):
        return None
    of_head = int(dim or hidden // heads)
    return of_head, int(heads) * of_head


def sections(name: str, args: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Rows of each section of a whole projection or convolution of a Mamba (z, x, B, C, dt) or of a gated
    delta net (queries, keys, values, z, beta, alpha), or None if the args don't say.
    """
    is_projection = ".in_proj." in name
    if ".mixer." in name:
        heads, dim, groups, state = (args.get(f"mamba_{arg}") for arg in _MAMBA)
        hidden = args.get("hidden_size")
        if heads is None and hidden and dim:
            heads = 2 * hidden // dim
        if not (heads and dim and groups and state):
            return None
        convolved = (heads * dim, groups * state, groups * state)
        return (heads * dim, *convolved, heads) if is_projection else convolved
    key_heads, key_dim, value_heads, value_dim = (args.get(f"linear_{arg}") for arg in _DELTA_NET)
    if not (key_heads and key_dim and value_heads and value_dim):
        return None
    convolved = (key_heads * key_dim, key_heads * key_dim, value_heads * value_dim)
    return (*convolved, value_heads * value_dim, value_heads, value_heads) if is_projection else convolved


def _reshaped(view: View, shape: Shape) -> View:
    try:
        return view.reshape(shape)
    except ValueError:
        raise CheckpointError(
            f"a stored tensor can't be viewed as shape {list(shape)}",
            expected="as many values, one after another",
            got=f"shape {list(view.shape)}, strides {list(view.strides)}",
        ) from None


def _global(name: str, local: int, experts: range) -> int:
    if local >= len(experts):
        raise CheckpointError(
            "a rank stores more experts than the training args give it",
            where={"tensor": name},
            expected=f"{len(experts)} experts per rank",
            got=f"expert {local}",
        )
    return experts[local]
