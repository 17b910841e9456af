"""What stands for a reference folder where none is given: config.json made of the training args, and the
tokenizer of a folder of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pp_export.architecture import made_config, table_files, vocabulary
from pp_export.architecture.made_config import DEFAULT, TENSORS, Told, make_config
from pp_export.architecture.mtp import Depths
from pp_export.architecture.recognition import check_names
from pp_export.architecture.rules import Architecture
from pp_export.checkpoint.catalog import Catalog
from pp_export.core.config_keys import QUANTIZATION_CONFIG
from pp_export.core.errors import AccountingError, ReferenceFolderError, RuleError
from pp_export.core.file_names import CONFIG
from pp_export.megatron import settings
from pp_export.options.kinds import TargetOptions
from pp_export.reference.reference_folder import Reference, read_reference, read_tokenizer_folder
from pp_export.reference.tokenizer import NO_TOKENIZER, TokenizerFacts, check_tokenizer

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_NOBODY = "nothing says it"
_MADE = "config.json is made of the training args, since no reference is given."


@dataclass(frozen=True)
class Beginning:
    """What is known before the checkpoint is read: the class, as what its table serves, and the tokenizer
    that the user gave.
    """

    architecture: Architecture
    tokenizer: Reference | None


def begin(options: TargetOptions) -> Beginning:
    """See what can be seen without the checkpoint; raises what is wrong with it."""
    assert options.architecture is not None
    is_larger = options.architecture in table_files.multimodal()
    architecture = None if is_larger else table_files.named(options.architecture)
    if architecture is None or architecture.within is not None:
        raise RuleError(
            "the class holds more than a language model, and only a reference says what",
            where={"architecture": options.architecture},
            advice="give --reference, or name the class of the language model alone",
        )
    made_config.class_of(architecture)
    made_config.model_type_of(architecture)
    tokenizer = None
    if options.tokenizer is not None:
        tokenizer = read_tokenizer_folder(options.tokenizer, code=options.code)
        if not tokenizer.tokenizer.is_there:
            raise ReferenceFolderError(
                "the tokenizer folder has no tokenizer",
                where={"tokenizer": options.tokenizer},
                expected="tokenizer.json, or another file that holds a vocabulary, that can be read",
                findings=tokenizer.notes,
            )
    return Beginning(architecture, tokenizer)


def make_reference(begun: Beginning, catalog: Catalog, options: TargetOptions) -> Reference:
    """What stands for the reference of a checkpoint; called on rank 0. Raises AccountingError with all that
    its training args don't determine.
    """
    args, architecture = catalog.description.args, begun.architecture
    if args is None:
        raise AccountingError(
            "the checkpoint has no training args, so config.json can't be made of them",
            where={"checkpoint": catalog.description.folder},
            advice="give --reference, a folder with the config.json of the model that was trained",
        )
    check_names(architecture, catalog.specs)
    found = begun.tokenizer or _named_tokenizer(args, code=options.code)
    base = found or Reference(None, {}, (), (), None, (NO_TOKENIZER,), tokenizer=TokenizerFacts())
    if options.require_tokenizer:
        check_tokenizer(base.tokenizer, base.folder)
    told = _vocabulary(args, options, base.tokenizer)
    further = {"vocab_size": told, **_special_tokens(base.tokenizer)}
    mtp = architecture.mtp
    if mtp is not None and mtp.count is not None:
        further[mtp.count] = Told(len(Depths.of(catalog.specs).mtp), TENSORS)
    made = make_config(architecture, trained_of(args), catalog.specs, further, usual=table_files.usual())
    return replace(
        base,
        config=made.config,
        origins=made.origins,
        notes=(_MADE, *base.notes, *_notes(base.tokenizer, told)),
        left=(*base.left, *_left(base)),
    )


def reference_of(options: TargetOptions, catalog: Catalog) -> Reference:
    """The reference folder of an export of `catalog`, or what stands for it."""
    if options.reference is not None:
        return read_reference(options.reference, code=options.code)
    return make_reference(begin(options), catalog, options)


def origin_of(key: str, reference: Reference) -> str:
    """Where the value of a key of the export's config.json comes from, where that was made: what the pipeline
    says outright afterwards are defaults of the class, the type of the tensors, and how they are quantized.
    """
    if key == QUANTIZATION_CONFIG:
        return "option: --quantize"
    return reference.origins.get(key, TENSORS if "dtype" in key else DEFAULT)


def trained_of(args: Mapping[str, Any]) -> dict[str, Any]:
    """What was trained. A window that no sequence of the training went beyond is still said, as longer ones
    will.
    """
    found = settings.derive(args)
    endless = settings.derive({**args, "seq_length": None, "max_position_embeddings": None})
    windows = endless["windows"].value
    has_none = isinstance(windows, list) and not any(windows)
    return {**found, "windows": replace(found["windows"], value=None if has_none else windows)}


def _vocabulary(args: Mapping[str, Any], options: TargetOptions, tokenizer: TokenizerFacts) -> Told:
    """How many rows of the embedding are tokens, by the first that knows. Rows are never guessed from the
    padding.
    """
    if options.vocab_size is not None:
        return Told(options.vocab_size, "option: --vocab-size")
    if vocabulary.is_count(args.get("vocab_size")):
        return Told(args["vocab_size"], "args: vocab_size")
    padded, ids = args.get("padded_vocab_size"), tokenizer.num_ids
    if ids and vocabulary.rows_for(ids, args) not in (None, padded):
        raise AccountingError(
            "the tokenizer's number of ids does not fit the vocabulary that was trained",
            expected=f"a number that pads to {padded} rows",
            got=f"{ids} ids ({tokenizer.ids.file}), which pad to {vocabulary.rows_for(ids, args)}",
            advice="pass --vocab-size, the number of rows that are tokens (as the model was trained), or the"
            " tokenizer of the training",
        )
    if ids:
        return Told(ids, f"tokenizer: {tokenizer.ids.file}")
    raise AccountingError(
        "the embedding may be padded and its true vocabulary size is not known",
        expected="vocab_size in the training args, or a tokenizer that lists its ids",
        got=f"padded_vocab_size {padded}",
        advice="pass --vocab-size, or --tokenizer with a folder that has a tokenizer.json",
    )


def _special_tokens(tokenizer: TokenizerFacts) -> dict[str, Told]:
    """The ids that the class would else take from its own first model."""
    named = {key: Told(value, f"tokenizer: {file}") for key, (value, file) in tokenizer.named.items()}
    return {key: named.get(key, Told(None, _NOBODY)) for key in _TOKENS}


def _named_tokenizer(args: Mapping[str, Any], *, code: bool) -> Reference | None:
    """The tokenizer that the training args name, where that is a folder here which holds one."""
    name = args.get("tokenizer_model")
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    folder = Path(name)
    try:
        found = read_tokenizer_folder(folder, code=code) if folder.is_absolute() else None
    except (OSError, ReferenceFolderError):  # of another machine, or not as it was: the user may name one
        return None
    if found is None or not found.tokenizer.is_there:
        return None
    note = "The tokenizer is that of the folder that the training args name (tokenizer_model)."
    return replace(found, notes=(note, *found.notes))


def _notes(tokenizer: TokenizerFacts, vocabulary_told: Told) -> list[str]:
    missing = [key for key in _TOKENS[:2] if key not in tokenizer.named]
    notes = [f"config.json: {key} is null, because nothing says it." for key in missing]
    if vocabulary_told.origin.startswith("tokenizer"):
        notes.append(
            f"The vocabulary is as large as the tokenizer has ids, {vocabulary_told.value:,}, because the"
            " training args don't count it."
        )
    return notes


def _left(base: Reference) -> list[str]:
    is_there = base.folder is not None and (base.folder / CONFIG).is_file()
    return [f"{CONFIG}: it is made of the training args"] if is_there else []
