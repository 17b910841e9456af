"""What the model is that a checkpoint and a reference describe together: settled on metadata alone, or
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pp_export.architecture import accounting, meaning, vocabulary
from pp_export.architecture.accounting import Account
from pp_export.architecture.decisions import Decisions
from pp_export.architecture.meaning import Meaning
from pp_export.architecture.recognition import check_names
from pp_export.architecture.rules import Architecture
from pp_export.architecture.sizes import ModelSizes, model_sizes
from pp_export.checkpoint.catalog import Catalog
from pp_export.core import dtypes
from pp_export.core.errors import ReferenceFolderError
from pp_export.core.file_names import CONFIG
from pp_export.core.tensors import Shape
from pp_export.megatron import settings
from pp_export.options.kinds import ResultOptions
from pp_export.reference import config_json
from pp_export.reference.definition import Definition
from pp_export.reference.own_weights import read_specs
from pp_export.reference.reference_folder import Reference
from pp_export.reference.safe_files import MAX_JSON_BYTES, read_bytes, read_json
from pp_export.reference.tokenizer import token_id_notes
from pp_export.steps.pending import PendingInputs

Expected = tuple[Mapping[str, Shape | None] | None, str]
"""Names and shapes (None where not known), and where they are from; None where nothing is known."""


@dataclass(frozen=True)
class FinalConfig:
    """The bytes of the export's config.json, and a sentence for each change to the reference's and for each
    key that says outright what the reference leaves open, or says in another spelling.
    """

    image: bytes
    corrections: tuple[str, ...] = ()
    additions: tuple[str, ...] = ()


@dataclass(frozen=True)
class SettledModel:
    """What its config.json will be, which settings were held against which, and what a user should know.

    `args_unknown` are training args that switch something on and that no table knows.
    """

    meaning: Meaning
    config: FinalConfig
    args_unknown: tuple[str, ...]
    notes: tuple[str, ...]


def settle_model(
    catalog: Catalog, pending: PendingInputs, options: ResultOptions
) -> tuple[ModelSizes, Account, SettledModel]:
    """What is wrong in the names is said before what is wrong in the sizes, which would follow from it; what
    the files alone show, before the child is waited for.
    """
    reference, architecture = pending.reference, pending.architecture
    check_names(architecture, catalog.specs)
    args = catalog.description.args
    trained = None if args is None else settings.derive(args)
    correct = options.config_from == "checkpoint"
    meaning.settle(architecture, trained, reference.config, None, correct=correct, provisional=True)
    rows = vocabulary.num_rows(catalog.specs)
    size = vocabulary.true_size(
        rows,
        asked=options.vocab_size,
        stated=reference.config.get("vocab_size"),
        args=args or {},
        num_tokens=reference.tokenizer.ids.at_least,
    )
    definition = pending.definition()
    library = None if definition is None else definition.config
    settled = meaning.settle(architecture, trained, reference.config, library, correct=correct)
    definition = pending.definition_of(settled.config, size)
    source = "config.json" if args is None else "training args"
    sizes = model_sizes(settled.values, source=source, vocab_size=size, padded_vocab_size=rows)
    account = settle_account(catalog, architecture, sizes, _expected(definition, reference), options)
    config = _final_config(architecture, reference, settled, account, size, options)
    padded = vocabulary.says_padding(args or {})
    is_counted = padded or reference.tokenizer.num_ids is not None
    unknown = Decisions(architecture, settings.read_by()).unknown(args or {})
    notes = (
        *_notes(args, settled, account, rows - size, is_counted),
        *token_id_notes(reference.tokenizer, size),
    )
    return sizes, account, SettledModel(settled, config, tuple(unknown), notes)


def settle_account(
    catalog: Catalog,
    architecture: Architecture,
    sizes: ModelSizes,
    expected: Expected,
    options: ResultOptions,
) -> Account:
    """The account of the checkpoint's tensors against the `expected` ones; the same on every rank."""
    shapes, truth = expected
    return accounting.account(
        architecture,
        catalog.specs,
        sizes,
        expected=shapes,
        truth=truth,
        dtype=None if options.dtype == "checkpoint" else dtypes.from_torch(options.dtype),
        drop_mtp=options.mtp == "drop",
    )


def _notes(
    args: Mapping[str, object] | None, settled: Meaning, account: Account, num_cut: int, known_tokens: bool
) -> list[str]:
    """Sentences on what was settled, and on what could not be."""
    notes = list(settled.notes)
    if args is None:
        notes.append(
            "The checkpoint has no training args, so nothing tells whether config.json means the model that"
            " was trained."
        )
    if num_cut and not known_tokens:
        notes.append(
            f"{num_cut:,} rows of the embedding are cut off as padding, because config.json says so; neither"
            " training args nor tokenizer do."
        )
    if account.truth == accounting.TABLE:
        notes.append(
            "Nothing but the table says which tensors the model has: transformers doesn't know the class, and"
            " the reference has no weights."
        )
    if others := account.other_dtypes:
        first = ", ".join(f"{name} {dtype.torch_name}" for name, dtype in list(others.items())[:3])
        notes.append(f"{len(others)} tensors are not {account.main_dtype.torch_name}: {first}, ...")
    return notes


def _final_config(
    architecture: Architecture,
    reference: Reference,
    settled: Meaning,
    account: Account,
    vocab_size: int,
    options: ResultOptions,
) -> FinalConfig:
    """What the export's config.json is, known before a byte is read."""
    own = reference.config if options.config_as_reference else settled.config
    says_dtype = not options.config_as_reference or any(key in own for key in config_json.DTYPE_KEYS)
    config, corrections = config_json.corrected(
        own,
        dtype=account.main_dtype.torch_name if says_dtype else None,
        vocab_size=vocab_size,
        num_mtp_layers=0 if options.mtp == "drop" else None,
        both_spellings=not options.config_as_reference,
    )
    if not options.config_as_reference:
        spelled = meaning.changes(reference.config, settled)
        added = meaning.additions(reference.config, settled)
        return FinalConfig(config_json.to_bytes(config), (*spelled, *corrections), tuple(added))
    corrections += meaning.overruled(architecture, reference.config, settled.config)
    if read_json(reference.folder, CONFIG) != reference.config:
        corrections.append("config.json: auto_map is removed, because code is left out.")
    if corrections:
        raise ReferenceFolderError(
            "config.json can't stay as it is in the reference",
            where={"file": reference.folder / CONFIG},
            findings=corrections,
            advice="leave --config-as-reference out, or give a reference of which all of this is true",
        )
    return FinalConfig(read_bytes(reference.folder, CONFIG, MAX_JSON_BYTES))


def _expected(definition: Definition | None, reference: Reference) -> Expected:
    """From the model's definition; else the names that the reference's own weights have, with shapes where
    the files are there; else nothing.
    """
    if definition is not None:
        return definition.tensors, accounting.DEFINITION
    if reference.weights is None:
        return None, accounting.TABLE
    specs = read_specs(reference.folder, reference.weights) or {}
    names = reference.weights
    return {name: specs[name].shape if name in specs else None for name in names}, accounting.INDEX
