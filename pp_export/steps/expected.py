"""Which Hugging Face tensors a model has, from whoever knows: its class, or the reference's own weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pp_export.architecture import meaning
from pp_export.architecture.accounting import DEFINITION, INDEX, TABLE, Account, Expected
from pp_export.architecture.meaning import Meaning
from pp_export.architecture.rules import Architecture
from pp_export.core.config_keys import QUANTIZATION
from pp_export.core.tensors import Shape
from pp_export.reference.definition_cache import Answer
from pp_export.reference.own_weights import read_specs
from pp_export.reference.reference_folder import Reference

_SIZES = (
    *("hidden_size", "ffn_hidden_size", "moe_ffn_hidden_size", "shared_expert_size", "num_experts"),
    *("num_attention_heads", "num_query_groups", "head_dim", "value_head_dim", "v_head_dim"),
    *("kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "moe_latent_size"),
)
"""Settings by which shapes follow."""
_VALUES = ("weight", "bias")
"""What names of tensors end in that are no scales and the like of quantized ones."""
_SCALES = ("_scale_inv", "_scale")
"""What names of the scales end in that float8 weights have beside them."""


@dataclass(frozen=True)
class Resized:
    """How many layers beside MTP layers the checkpoint has, and how many the reference; where the reference
    `has_other_sizes`, its weights tell no shapes.
    """

    num_layers: int
    before: int
    has_other_sizes: bool

    @classmethod
    def of(
        cls, num_layers: int, architecture: Architecture, reference: Mapping[str, Any], settled: Meaning
    ) -> Resized:
        """What follows from a config.json that was `settled` for a checkpoint with so many layers, and from
        the `reference` config of the language model.
        """
        before = meaning.num_layers_of(architecture, reference) or num_layers
        readings = [architecture.readings[name] for name in _SIZES if name in architecture.readings]
        sizes = {key for reading in readings for key in reading.keys}
        return cls(num_layers, before, has_other_sizes=not sizes.isdisjoint(settled.corrected))


def tensors_of(
    answer: Answer | None, reference: Reference, architecture: Architecture, resized: Resized
) -> Expected:
    """From the model's definition; else the names that the reference's own weights have, with shapes where
    the files are there; else nothing, and so where the reference has another number of layers. Those of MTP
    layers only from the reference, counted on from the checkpoint's last layer.
    """
    weights, mtp = reference.weights, architecture.mtp
    now, before = resized.num_layers, resized.before
    of_mtp = [name for name in weights or () if mtp is not None and mtp.covers(name, before)]
    is_quantized = any(key in reference.config for key in QUANTIZATION)
    if is_quantized:
        shapes: dict[str, Shape | None] = {name: None for name in of_mtp if name.endswith(_VALUES)}
    elif resized.has_other_sizes:
        shapes = dict.fromkeys(of_mtp)
    else:
        shapes = _shapes(reference, of_mtp)
    further = {name if mtp is None else mtp.moved(name, before, now): shapes[name] for name in shapes}
    if answer is not None and answer.definition is not None:
        tensors, within = answer.definition.tensors, architecture.within
        if within is not None and weights is not None:
            # Other parts have had several names on disk; loaders know those that the reference has.
            beside = (name for name in weights if not within.covers(name))
            own = {name: shape for name, shape in tensors.items() if within.covers(name)}
            return Expected({**own, **_shapes(reference, beside)}, DEFINITION, further or None)
        return Expected(tensors, DEFINITION, further or None)
    if weights is None or now != before:
        return Expected(None, TABLE, further or None)
    of_others = set(of_mtp)
    others = [name for name in weights if name not in of_others]
    if is_quantized:
        shapes = dict.fromkeys(name for name in others if not name.endswith(_SCALES))
    else:
        shapes = dict.fromkeys(others) if resized.has_other_sizes else _shapes(reference, others)
    return Expected(shapes, INDEX, further or None)


def mtp_notes(account: Account, expected: Expected) -> list[str]:
    """What a user should know of the MTP layers of an export."""
    if not account.mtp:
        names = expected.mtp or {}
        return [f"The reference has MTP layers ({len(names)} tensors), the export has none."] if names else []
    notes = []
    if expected.mtp is None:
        notes.append(
            f"Nothing but the table says which tensors MTP layers have ({len(account.mtp)} here): the"
            " reference's weights name none, and transformers leaves them out."
        )
    if account.copies:
        said = "the table writes them" if expected.mtp is None else "the reference's index has them"
        copies = ", ".join(f"{name} of {of}" for name, of in list(account.copies.items())[:2])
        notes.append(f"{len(account.copies)} tensors of MTP layers are copies ({copies}): {said}.")
    return notes


def _shapes(reference: Reference, names: Iterable[str]) -> dict[str, Shape | None]:
    """The shapes of the reference's own tensors, as far as their files are there."""
    files = {name: (reference.weights or {})[name] for name in names}
    specs = read_specs(reference.folder, files) or {}
    return {name: specs[name].shape if name in specs else None for name in files}
