"""Adapters (LoRA) of a checkpoint: whether what is asked for can be done, and the base that they are merged
into.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pp_export.architecture import meaning
from pp_export.architecture.adapter_names import adapted_weights, is_of_adapter
from pp_export.architecture.lora import ADAPTER, Adapted, Lora, LoraSettings
from pp_export.architecture.mtp import Depths
from pp_export.architecture.rules import Architecture
from pp_export.architecture.vocabulary import EMBEDDING
from pp_export.checkpoint.catalog import Catalog
from pp_export.core.errors import AccountingError, OptionError
from pp_export.core.tensors import REFERENCE
from pp_export.options.kinds import ResultOptions, SourceOptions
from pp_export.reference.own_weights import read_weight_map
from pp_export.reference.reference_folder import Reference
from pp_export.steps.from_reference import with_reference

_REFUSE = "refuse"
_MAX_SHOWN = 8


def with_base(catalog: Catalog, options: ResultOptions) -> Catalog:
    """The catalog, and in it the tensors of the base model that `options` name, if any; on rank 0."""
    if not isinstance(options, SourceOptions) or options.base is None:
        return catalog
    weights = read_weight_map(options.base) if options.base.is_dir() else None
    if weights is None:
        raise OptionError(
            "--base has no weights to merge adapters into",
            where={"folder": options.base},
            expected="a Hugging Face folder with model.safetensors, or an index and its files",
        )
    base = replace(Reference.nothing(), folder=options.base, weights=weights)
    return with_reference(catalog, base, "*")


def lora_of(catalog: Catalog, options: ResultOptions) -> Lora | None:
    """What becomes of the adapters among canonical tensors; None where there are none. Raises where that is
    not said, can't be done, or their alpha isn't known.
    """
    found = [name for name in catalog.specs if is_of_adapter(name)]
    if not found:
        if options.lora != _REFUSE:
            raise OptionError(f"--lora {options.lora}: the checkpoint has no adapters", got=_first(catalog))
        return None
    if catalog.holders is not None:
        raise AccountingError(
            "adapters of a live model are not exported",
            got=f"{len(found)} tensors of adapters: {found[0]}, ...",
            advice="save a checkpoint, and export that with --lora merge or --lora adapter",
        )
    is_alone = not any(weight in catalog.specs for weight in adapted_weights(found))
    has_base = isinstance(options, SourceOptions) and options.base is not None
    if options.lora == _REFUSE:
        base = ", with --base HF_DIR, the folder of the model that was adapted" if is_alone else ""
        raise AccountingError(
            "the checkpoint holds adapters (LoRA)"
            + (" alone, without the model's weights" if is_alone else ""),
            got=f"{len(found)} tensors of adapters",
            advice=f"--lora merge adds them to the weights{base}; --lora adapter exports them alone, as a"
            " folder of PEFT",
            findings=[f"{name} belongs to an adapter (LoRA)" for name in found],
        )
    others = [name for name in catalog.specs if not (is_of_adapter(name) or name.startswith(REFERENCE))]
    if options.lora == ADAPTER and is_alone and others:
        raise AccountingError(
            "besides adapters the checkpoint holds trained weights, which an adapter alone can't hold",
            got=f"{len(others)} tensors: {', '.join(others[:_MAX_SHOWN])}",
            advice="--lora merge, with --base HF_DIR",
        )
    if options.lora != ADAPTER and EMBEDDING not in catalog.specs and not has_base:
        raise OptionError(
            "--lora merge needs the base model's weights: the checkpoint holds adapters alone",
            expected="--base HF_DIR, the Hugging Face folder of the model that was adapted",
            advice="or export them alone, as a folder of PEFT, with --lora adapter",
        )
    settings = catalog.description.lora or LoraSettings()
    alpha = options.lora_alpha or settings.alpha
    if alpha is None:
        raise OptionError(
            "the adapters' alpha is not known, and without it neither is their scale",
            where={"folder": catalog.description.folder},
            expected="--lora-alpha, or peft.alpha in run_config.yaml (Megatron-Bridge), lora_alpha among the"
            " training args (ms-swift) or in lora_train_meta.json (verl)",
        )
    return Lora(options.lora, alpha, settings, takes_rest=has_base)


def depths_of_base(
    depths: Depths, architecture: Architecture, language: Mapping[str, Any], catalog: Catalog, promised: int
) -> Depths:
    """The layers of the whole model, of which adapters show some."""
    num_layers = meaning.num_layers_of(architecture, language) or depths.num_layers
    names = [name.removeprefix(REFERENCE) for name in catalog.specs if name.startswith(REFERENCE)]
    mtp = architecture.mtp
    has_mtp = mtp is not None and any(mtp.covers(name, num_layers) for name in names)
    found = tuple(range(promised)) if has_mtp else depths.mtp
    return replace(depths, num_layers=max(num_layers, depths.num_layers), mtp=found)


def notes_on(adapted: Adapted | None) -> list[str]:
    """What a user should know of adapters that were merged or exported."""
    if adapted is None:
        return []
    lora, ranks = adapted.lora, sorted(set(adapted.ranks.values()))
    said = lora.settings.alpha
    notes = [
        f"Adapters of rank {', '.join(map(str, ranks))} and alpha {lora.alpha:g}"
        + (" by the square root of the rank" if lora.settings.is_stabilized else "")
        + (" are exported for " if lora.form == ADAPTER else " are merged into ")
        + f"{len(adapted.ranks)} tensors."
    ]
    if said is not None and said != lora.alpha:
        notes.append(f"--lora-alpha {lora.alpha:g} is used; {lora.settings.said_by} says {said:g}.")
    return notes


def to_json(adapted: Adapted | None) -> dict[str, Any] | None:
    """What reports and manifests tell of adapters."""
    if adapted is None:
        return None
    return {
        "form": adapted.lora.form,
        "alpha": adapted.lora.alpha,
        "rank_stabilized": adapted.lora.settings.is_stabilized,
        "ranks": sorted(set(adapted.ranks.values())),
        "tensors": len(adapted.ranks),
    }


def adapter_config(adapted: Adapted, architecture: Architecture, tensors: Any) -> bytes:
    """The `adapter_config.json` of PEFT; `tensors` are those of the whole model, None where nobody knows.

    Modules have their last name where all of that name are adapted, else their whole one. The base model has
    no name in it: where that lies is the user's affair.
    """
    modules = {name.removesuffix(".weight"): rank for name, rank in adapted.ranks.items()}
    others = {name.removesuffix(".weight") for name in tensors or ()} - modules.keys()
    left = {name.rpartition(".")[2] for name in others}
    names = {module: module.rpartition(".")[2] for module in modules} if tensors is not None else {}
    rank = max(set(modules.values()), key=lambda rank: list(modules.values()).count(rank))
    transposed = any(
        of is not None and of[0].transform.name.endswith(("transpose", "transposed"))
        for of in map(architecture.made_by, adapted.ranks)
    )
    value = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(adapted.lora.alpha) if adapted.lora.alpha.is_integer() else adapted.lora.alpha,
        "lora_dropout": adapted.lora.settings.dropout,
        "use_rslora": adapted.lora.settings.is_stabilized,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": sorted(
            {short if (short := names.get(module)) and short not in left else module for module in modules}
        ),
        "rank_pattern": {name: of for name, of in sorted(modules.items()) if of != rank},
        "alpha_pattern": {},
    }
    return (json.dumps(value, indent=2) + "\n").encode()


def _first(catalog: Catalog) -> str:
    return f"{len(catalog.specs)} tensors, such as {next(iter(catalog.specs), 'none')}"
