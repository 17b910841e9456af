"""What the model is that a checkpoint and a reference describe together: settled on metadata alone, or
refused.

The files say most of it. What only the class knows comes when it comes: until then the table's defaults and
the reference's own weights stand for it, and everything is settled again with the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from pp_export.architecture import accounting, meaning, vocabulary
from pp_export.architecture.accounting import Account, Expected
from pp_export.architecture.adapter_names import adapted_weights
from pp_export.architecture.decisions import Decisions
from pp_export.architecture.lora import ADAPTER, Lora
from pp_export.architecture.meaning import Meaning
from pp_export.architecture.mtp import Depths, settle_count
from pp_export.architecture.multimodal import Within, language_config, with_language_config
from pp_export.architecture.recognition import check_names
from pp_export.architecture.rules import Architecture
from pp_export.architecture.sizes import ModelSizes, model_sizes
from pp_export.checkpoint.catalog import Catalog
from pp_export.core.errors import ExportError, ReferenceFolderError
from pp_export.core.file_names import ADAPTER_CONFIG, CONFIG
from pp_export.core.settings import agree
from pp_export.core.strict_json import MAX_CONFIG_BYTES
from pp_export.megatron import settings
from pp_export.options.kinds import ResultOptions
from pp_export.reference import config_json
from pp_export.reference.definition_cache import Answer
from pp_export.reference.reference_folder import Reference
from pp_export.reference.safe_files import read_bytes, read_json
from pp_export.reference.tokenizer import token_id_notes
from pp_export.steps.adapters import adapter_config, depths_of_base, lora_of, notes_on
from pp_export.steps.element_types import checked_types, types_of
from pp_export.steps.expected import Resized, mtp_notes, tensors_of
from pp_export.steps.from_reference import taken_notes
from pp_export.steps.made_reference import origin_of
from pp_export.steps.pending import PendingInputs, question_of
from pp_export.steps.quantized import checked_quantization, quantization_notes

Config = Mapping[str, Any]
Ask = Callable[[Config], Answer | None]
"""What the definition of a config.json is; None where that is not known yet."""


@dataclass(frozen=True)
class FinalConfig:
    """The bytes of the export's config.json, and a sentence for each change to the reference's and for each
    key that says outright what the reference leaves open, or says in another spelling. Where it was made of
    the training args, there are `origins` instead: key -> where its value comes from. `file` is another one
    for an adapter, which is no model.
    """

    image: bytes
    corrections: tuple[str, ...] = ()
    additions: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    file: str = CONFIG


@dataclass(frozen=True)
class Stated:
    """What the files say, before the model's definition is heard. The vocabulary has `num_rows` rows, of
    which the first `vocab_size` are real. The export has `num_mtp` MTP layers.
    """

    catalog: Catalog
    architecture: Architecture
    reference: Reference
    options: ResultOptions
    trained: meaning.Settings | None
    num_rows: int
    vocab_size: int
    depths: Depths
    num_mtp: int
    is_closed: bool = True
    lora: Lora | None = None

    @cached_property
    def language(self) -> Config:
        """The reference's config of the language model."""
        return language_config(self.architecture.within, self.reference.config)

    def settle(self, question: Config, ask: Ask, planned: Settled | None = None) -> Settled:
        return _settle(self, question, ask, planned)


class Statements(Protocol):
    """What the files say, of whatever kind of source, before the model's definition is heard."""

    def settle(self, question: Config, ask: Ask, planned: Settled | None = None) -> Settled:
        """Settle everything with what `ask` answers, first about `question`. The account that was `planned`
        with is held against the answer. Raises what is refuted, or can't be settled without an answer.
        """


@dataclass(frozen=True)
class SettledModel:
    """What its config.json will be, which settings were held against which, and what a user should know.

    `args_unknown` are training args that switch something on and that no table knows. `awaited` are the
    config.jsons whose definition is not known yet: as long as there are any, all of this is provisional.
    """

    stated: Statements
    meaning: Meaning
    config: FinalConfig
    args_unknown: tuple[str, ...]
    notes: tuple[str, ...]
    is_cached: bool
    awaited: tuple[Config, ...] = ()


@dataclass(frozen=True)
class Settled:
    """All that is settled of a model."""

    sizes: ModelSizes
    account: Account
    model: SettledModel


def settle_model(catalog: Catalog, pending: PendingInputs, options: ResultOptions, *, wait: bool) -> Settled:
    """Settle with what is known now, or `wait` for the model's definition; waits for it as well where nothing
    can be settled without.

    What is wrong in the names is said before what is wrong in the sizes, which would follow from it; what
    the files alone show, before anything is waited for.
    """
    return settle(read_statements(catalog, pending, options), pending, wait=wait)


def settle(stated: Statements, pending: PendingInputs, *, wait: bool) -> Settled:
    """The same, of what the files have stated."""
    settled = None if wait else settle_so_far(stated, pending).settled
    return settled or stated.settle(pending.question, pending.waited)


def read_statements(catalog: Catalog, pending: PendingInputs, options: ResultOptions) -> Stated:
    """Check what needs no definition; raises where the files contradict each other already."""
    reference, architecture = pending.reference, pending.architecture
    lora = lora_of(catalog, options)
    check_names(architecture, [*catalog.specs, *adapted_weights(catalog.specs)])
    args = catalog.description.args
    trained = None if args is None else settings.derive(args)
    correct = _corrects(options, reference)
    language = language_config(architecture.within, reference.config)
    meaning.settle(architecture, trained, language, None, correct=correct, provisional=True)
    promised = config_json.num_mtp_layers(reference.config)
    depths = Depths.of(catalog.specs)
    if lora is not None:
        depths = depths_of_base(depths, architecture, language, catalog, promised)
    num_mtp = settle_count(options.mtp, depths, args, promised, architecture.mtp_refusal)
    rows = vocabulary.num_rows(catalog.specs)
    if lora is not None and vocabulary.EMBEDDING not in catalog.specs:
        rows = options.vocab_size or language.get("vocab_size") or 0
    size = vocabulary.true_size(
        rows,
        asked=options.vocab_size,
        stated=language.get("vocab_size"),
        args=args or {},
        num_tokens=reference.tokenizer.ids.at_least,
    )
    return Stated(catalog, architecture, reference, options, trained, rows, size, depths, num_mtp, lora=lora)


@dataclass(frozen=True)
class SoFar:
    """What came of settling with the answers that are there. Where it failed for want of others, nothing is
    `settled`; `awaited` are the config.jsons that they are about.
    """

    settled: Settled | None
    awaited: tuple[Config, ...]


def settle_so_far(stated: Statements, pending: PendingInputs, planned: Settled | None = None) -> SoFar:
    """Settle without waiting; what is missing is asked. Raises what the answers that are there refute."""
    awaited: list[Config] = []

    def known(question: Config) -> Answer | None:
        answer = pending.known(question)
        if answer is None:
            awaited.append(question)
        return answer

    try:
        settled = stated.settle(pending.question, known, planned)
    except ExportError:
        if not awaited:
            raise
        return SoFar(None, tuple(awaited))
    return SoFar(replace(settled, model=replace(settled.model, awaited=tuple(awaited))), tuple(awaited))


def _settle(stated: Stated, question: Config, ask: Ask, planned: Settled | None = None) -> Settled:
    """Settle everything. The account that was `planned` with is held against the answer, and not made again,
    where its sizes stay what they were.
    """
    catalog, architecture, reference = stated.catalog, stated.architecture, stated.reference
    options, size = stated.options, stated.vocab_size
    args = catalog.description.args
    first = answer = ask(question)
    definition, within = None if first is None else first.definition, architecture.within
    library = None if definition is None else language_config(within, definition.config)
    correct = _corrects(options, reference)
    settled = meaning.settle(architecture, stated.trained, stated.language, library, correct=correct)
    final = question_of(with_language_config(within, reference.config, settled.config), size)
    is_unknown = first is not None and first.definition is None  # a class that the library doesn't have
    asked = language_config(within, question)
    if not is_unknown and not _is_answered(language_config(within, final), asked, library):
        answer = ask(final)
    source = "config.json" if args is None else "training args"
    sizes = model_sizes(
        architecture,
        settled.values,
        source=source,
        vocab_size=size,
        padded_vocab_size=stated.num_rows,
    )
    resized = Resized.of(stated.depths.num_layers, architecture, stated.language, settled)
    expected = tensors_of(answer, reference, architecture, resized)._replace(binds=stated.is_closed)
    if planned is not None and planned.sizes == sizes:
        account = accounting.held_against(planned.account, architecture, expected)
    else:
        account = settle_account(stated, sizes, expected)
    config = _final_config(stated, settled, account, expected)
    padded = vocabulary.says_padding(args or {})
    is_counted = padded or reference.tokenizer.num_ids is not None
    unknown = Decisions(architecture, settings.read_by()).unknown(args or {})
    notes = (
        *_notes(args, settled, account, stated.num_rows - size, is_counted),
        *mtp_notes(account, expected),
        *taken_notes(account),
        *notes_on(account.adapted),
        *quantization_notes(account),
        *token_id_notes(reference.tokenizer, size),
    )
    is_cached = answer is not None and answer.definition is not None and answer.is_cached
    return Settled(sizes, account, SettledModel(stated, settled, config, tuple(unknown), notes, is_cached))


def _corrects(options: ResultOptions, reference: Reference) -> bool:
    """Whether config.json may be corrected: not where it was made, and so must say what was trained."""
    return options.config_from == "checkpoint" and not reference.is_made


def _is_answered(final: Config, question: Config, library: Config | None) -> bool:
    """Whether the answer about `question`, of which the class made `library`, is about `final` too."""
    said = library or {}
    return all(question.get(key) == value or agree(said.get(key), value) for key, value in final.items())


def settle_account(stated: Stated, sizes: ModelSizes, expected: Expected) -> Account:
    """The account of the checkpoint's tensors against the `expected` ones; the same on every rank."""
    options = stated.options
    types = types_of(options)
    account = accounting.account(
        stated.architecture,
        stated.catalog.specs,
        sizes,
        expected=expected,
        types=types,
        drop_mtp=options.mtp == "drop",
        lora=stated.lora,
        depths=stated.depths,
        scheme=None if options.quantize == "none" else options.quantize,
    )
    return checked_quantization(checked_types(account, types))


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


def _final_config(stated: Stated, settled: Meaning, account: Account, expected: Expected) -> FinalConfig:
    """What the export's config.json is, known before a byte is read."""
    if account.adapted is not None and account.adapted.lora.form == ADAPTER:
        image = adapter_config(account.adapted, stated.architecture, expected.tensors)
        return FinalConfig(image, file=ADAPTER_CONFIG)
    architecture, reference, options = stated.architecture, stated.reference, stated.options
    within, language = architecture.within, stated.language
    whole = with_language_config(within, reference.config, settled.config)
    own = reference.config if options.config_as_reference else whole
    says_dtype = not options.config_as_reference or any(key in own for key in config_json.DTYPE_KEYS)
    mtp = architecture.mtp
    config, corrections = config_json.corrected(
        own,
        dtype=account.main_dtype.torch_name if says_dtype else None,
        vocab_size=stated.vocab_size,
        num_mtp_layers=stated.num_mtp,
        mtp_key=None if mtp is None else mtp.count,
        both_spellings=not options.config_as_reference,
        quantization=None if account.quantization is None else account.quantization.config(),
    )
    if reference.is_made:
        origins = {key: origin_of(key, reference) for key in config}
        return FinalConfig(_bounded(reference, config_json.to_bytes(config)), origins=origins)
    if options.config_as_reference:
        corrections += _placed(meaning.overruled(architecture, language, settled.config), within)
        return final_config(reference, options, config, corrections)
    spelled = _placed(meaning.changes(language, settled), within)
    added = _placed(meaning.additions(language, settled), within)
    return final_config(reference, options, config, [*spelled, *corrections], added)


def final_config(
    reference: Reference,
    options: ResultOptions,
    config: Config,
    corrections: list[str],
    additions: Iterable[str] = (),
) -> FinalConfig:
    """`config` as the export's config.json; the reference's own where that is asked for, which must then need
    no `corrections`.
    """
    if not options.config_as_reference:
        image = _bounded(reference, config_json.to_bytes(config))
        return FinalConfig(image, tuple(corrections), tuple(additions))
    assert reference.folder is not None
    if read_json(reference.folder, CONFIG) != reference.config:
        corrections.append("config.json: auto_map is removed, because code is left out.")
    if corrections:
        raise ReferenceFolderError(
            "config.json can't stay as it is in the reference",
            where={"file": reference.config_file},
            findings=corrections,
            advice="leave --config-as-reference out, or give a reference that already says all of this",
        )
    return FinalConfig(read_bytes(reference.folder, CONFIG, MAX_CONFIG_BYTES))


def _placed(sentences: list[str], within: Within | None) -> list[str]:
    """Sentences on config.json, saying in which part of it."""
    if within is None:
        return sentences
    return [sentence.replace("config.json: ", f"config.json: {within.config}.", 1) for sentence in sentences]


def _bounded(reference: Reference, config: bytes) -> bytes:
    """A config.json that `verify` reads too: with the corrections in it, and a line for each value."""
    if len(config) > MAX_CONFIG_BYTES:
        raise ReferenceFolderError(
            "config.json is larger than such a file can be",
            where={"file": reference.config_file},
            expected=f"at most {MAX_CONFIG_BYTES:,} bytes, with a line for each value",
            got=f"{len(config):,} bytes",
        )
    return config
