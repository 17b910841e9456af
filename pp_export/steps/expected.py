"""Which Hugging Face tensors a model has, from whoever knows: its class, or the reference's own weights."""

from __future__ import annotations

from collections.abc import Iterable

from pp_export.architecture.accounting import DEFINITION, INDEX, TABLE, Account, Expected
from pp_export.architecture.rules import Architecture
from pp_export.core.config_keys import QUANTIZATION
from pp_export.core.tensors import Shape
from pp_export.reference.definition_cache import Answer
from pp_export.reference.own_weights import read_specs
from pp_export.reference.reference_folder import Reference

_VALUES = ("weight", "bias")
"""What names of tensors end in that are no scales and the like of quantized ones."""


def tensors_of(
    answer: Answer | None, reference: Reference, architecture: Architecture, num_layers: int
) -> Expected:
    """From the model's definition; else the names that the reference's own weights have, with shapes where
    the files are there; else nothing. Those of MTP layers, beyond the `num_layers` others, only from the
    reference.
    """
    weights, mtp = reference.weights, architecture.mtp
    of_mtp = {} if mtp is None else {name: None for name in weights or () if mtp.covers(name, num_layers)}
    if any(key in reference.config for key in QUANTIZATION):
        further: dict[str, Shape | None] = {name: None for name in of_mtp if name.endswith(_VALUES)}
    else:
        further = _shapes(reference, of_mtp)
    if answer is not None and answer.definition is not None:
        tensors, within = answer.definition.tensors, architecture.within
        if within is not None and weights is not None:
            # Other parts have had several names on disk; loaders know those that the reference has.
            beside = (name for name in weights if not within.covers(name))
            own = {name: shape for name, shape in tensors.items() if within.covers(name)}
            return Expected({**own, **_shapes(reference, beside)}, DEFINITION, further or None)
        return Expected(tensors, DEFINITION, further or None)
    if weights is None:
        return Expected(None, TABLE)
    return Expected(
        _shapes(reference, (name for name in weights if name not in of_mtp)), INDEX, further or None
    )


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
