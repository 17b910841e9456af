"""Quantized weights: which tensors of a model are quantized, which of them alike, and what they become.

Weights of linear layers are, and nothing else. Servers fuse some layers into one (queries, keys and values,
gate and up projection, all experts of a layer), which they can only do where all of them are stored alike:
these are a group. One tensor that the scheme has no form for keeps its whole group as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.architecture.encodings import Encoding, Types
from pp_export.architecture.rules import Architecture, Rule
from pp_export.core import dtypes
from pp_export.core.dtypes import DType
from pp_export.core.tensors import TensorSpec

FP8_BLOCK, FP8_CHANNEL, INT8_CHANNEL = "fp8-block", "fp8-channel", "int8-channel"
"""Kinds of encodings: float8 with a scale for each block, or each row, and int8 with one for each row."""
SCHEMES = (FP8_BLOCK, FP8_CHANNEL, INT8_CHANNEL)
BLOCK = 128
PACKED = 4
"""How many int8 values an int32 holds."""

_WEIGHT = ".weight"
_EXPERTS = ".experts."
_LINEAR = frozenset(
    {
        *("linear_qkv", "linear_proj", "linear_q_proj", "linear_fc1", "linear_fc2", "out_proj"),
        *("linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj", "linear_kv_up_proj"),
    }
)
"""Megatron's modules that are linear layers alone. Routers, heads, convolutions, an indexer and a state
space's `in_proj`, which makes its step sizes, are none of them.
"""
_PARTS_OF_DELTA_NET = ("qkv", "z", "qkvz")
"""What `in_proj` of a gated delta net makes beside the gates of its state."""
_INTO_ONE = {"linear_q_down_proj": "linear_down_proj", "linear_kv_down_proj": "linear_down_proj"}
"""Megatron's modules that servers fuse, though they are two."""
_NO_ROWS = frozenset({"transpose", "glu_transposed", "fuse_qkv_transposed", "interleave_glu_transposed"})
_STACKED = "the class holds the experts of a layer in one tensor"
_TRANSPOSED = "the class stores it transposed, so that its rows are no outputs"
_CHOSEN = "--dtype-of says its type"


@dataclass(frozen=True)
class Projection:
    """The weight of a linear layer, of a `group` that is stored alike. `parts` are the rows of the matrices
    that it consists of, if it is several; `reason` is why no scheme can quantize it, or "".
    """

    group: str
    parts: tuple[int, ...] = ()
    reason: str = ""

    @classmethod
    def of(
        cls, rule: Rule, role: str, source: str, shape: tuple[int, ...], sizes: Mapping[str, int]
    ) -> Projection | None:
        """What `rule` makes of `source` in a `role`, if it is the weight of a linear layer."""
        module, _, kind = rule.megatron.rpartition(".")
        module = module.rpartition(".")[2]
        is_linear = module in _LINEAR or (module == "in_proj" and role in _PARTS_OF_DELTA_NET)
        if kind != "weight" or not is_linear:
            return None
        group = (
            source.partition(_EXPERTS)[0]
            if _EXPERTS in source
            else source.replace(module, _INTO_ONE.get(module, module))
        )
        if rule.stacked:
            return cls(group, reason=_STACKED)
        if rule.transform.name in _NO_ROWS or len(shape) != 2 or not rule.hf[role].endswith(_WEIGHT):
            return cls(group, reason=_TRANSPOSED)
        return cls(group, _parts(rule.transform.name, shape[0], sizes))


@dataclass(frozen=True)
class Quantization:
    """What is quantized by a `scheme`: `tensors` by the names and types that the model computes with, which
    the `encodings` store in another form. `kept` are the weights of linear layers that stay as they are, and
    why; `excluded` all modules whose weights do.
    """

    scheme: str
    encodings: tuple[Encoding, ...]
    tensors: Mapping[str, TensorSpec]
    kept: Mapping[str, str]
    excluded: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """`quantization_config` of config.json, as transformers and vLLM read it."""
        if self.scheme == FP8_BLOCK:
            return {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [BLOCK, BLOCK],
                "modules_to_not_convert": list(self.excluded),
            }
        is_float = self.scheme == FP8_CHANNEL
        one = {"num_bits": 8, "type": "float" if is_float else "int", "symmetric": True}
        activations = {**one, "strategy": "token", "dynamic": True} if is_float else None
        group = {
            "targets": ["Linear"],
            "weights": {**one, "strategy": "channel", "dynamic": False},
            "input_activations": activations,
            "output_activations": None,
        }
        # vLLM looks for single experts, under names that not all classes give them.
        experts = [f"re:{module}[.].*" for module in self.excluded if module.endswith(_EXPERTS[:-1])]
        return {
            "quant_method": "compressed-tensors",
            "format": "float-quantized" if is_float else "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [*self.excluded, *experts],
        }


def decide(
    projections: Mapping[str, Projection], mapped: Mapping[str, TensorSpec], scheme: str, types: Types
) -> Quantization:
    """Which of the `projections`, by Hugging Face names, are quantized; those of a group all, or none."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name, projection in projections.items():
        groups[projection.group].append(name)
    kept: dict[str, str] = {}
    tensors: dict[str, TensorSpec] = {}
    for names in groups.values():
        reasons = {name: _reason(name, projections[name], mapped[name], scheme, types) for name in names}
        first = next((name for name, reason in reasons.items() if reason), None)
        for name, reason in reasons.items():
            if first is None:
                tensors[name] = TensorSpec(mapped[name].shape, types.default or mapped[name].dtype)
            else:
                kept[name] = reason or f"servers fuse it with {first}: {reasons[first]}"
    encodings = tuple(
        Encoding(scheme, {name: mapped[name]}, _stored(name, spec, scheme)) for name, spec in tensors.items()
    )
    return Quantization(scheme, encodings, tensors, kept)


def modules_kept(
    quantization: Quantization, outputs: Mapping[str, TensorSpec], architecture: Architecture
) -> tuple[str, ...]:
    """The modules whose weights are stored as they are, those of `outputs` in their order; the head among
    them where it is tied, and so not stored.
    """
    of_encodings = {name for encoding in quantization.encodings for name in encoding.outputs}
    named = [
        name.removesuffix(_WEIGHT) for name in outputs if name.endswith(_WEIGHT) and name not in of_encodings
    ]
    # Whatever the tensors are called, in memory the experts of a layer are one module of this name.
    layers = [
        name.partition(_EXPERTS)[0] if _EXPERTS in name else name.removesuffix(_WEIGHT).rpartition(".")[0]
        for name, reason in quantization.kept.items()
        if _EXPERTS in name or reason == _STACKED
    ]
    stacked = [layer + _EXPERTS[:-1] for layer in layers]
    head = architecture.match("output_layer.weight")
    heads = [] if head is None else [name.removesuffix(_WEIGHT) for name in head[0].hf.values()]
    return tuple(dict.fromkeys([*named, *stacked, *heads]))


def _parts(transform: str, num_rows: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if transform == "glu":
        return (num_rows // 2,) * 2
    if transform == "fuse_qkv":
        keys = sizes["num_query_groups"] * sizes["head_dim"]
        return num_rows - 2 * keys, keys, keys
    return ()


def _reason(name: str, projection: Projection, spec: TensorSpec, scheme: str, types: Types) -> str:
    if projection.reason or types.fits(name):
        return projection.reason or _CHOSEN
    num_rows, num_columns = spec.shape
    if scheme == FP8_BLOCK and any(size % BLOCK for size in (*projection.parts, num_rows, num_columns)):
        rows = (
            f"{num_rows} rows ({', '.join(map(str, projection.parts))})"
            if projection.parts
            else f"{num_rows} rows"
        )
        return f"{rows} x {num_columns} columns aren't whole blocks of {BLOCK} x {BLOCK}"
    if scheme == INT8_CHANNEL and num_columns % PACKED:
        return f"{num_columns} columns are no multiple of {PACKED}"
    return ""


def _stored(name: str, spec: TensorSpec, scheme: str) -> dict[str, TensorSpec]:
    """What a weight becomes: its values, then its scales, then what else there is."""
    num_rows, num_columns = spec.shape
    scales = {f"{name}_scale": TensorSpec((num_rows, 1), spec.dtype)}
    if scheme == FP8_BLOCK:
        grid = (num_rows // BLOCK, num_columns // BLOCK)
        scales = {f"{name}_scale_inv": TensorSpec(grid, _type("float32"))}
    if scheme != INT8_CHANNEL:
        return {name: TensorSpec(spec.shape, _type("float8_e4m3fn")), **scales}
    packed = TensorSpec((num_rows, num_columns // PACKED), _type("int32"))
    return {f"{name}_packed": packed, **scales, f"{name}_shape": TensorSpec((2,), _type("int64"))}


def _type(name: str) -> DType:
    return dtypes.from_torch(name)
