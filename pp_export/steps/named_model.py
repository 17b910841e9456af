"""What the model is whose tensors have Hugging Face names already, with a reference if there is one: settled
on metadata, or refused.

Nothing of the function can be held against training args, of which there are none: config.json is the
reference's. What is left to settle are the tensors: all that the class has, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from pp_export.architecture import own_names
from pp_export.architecture.accounting import Account
from pp_export.architecture.meaning import Meaning
from pp_export.architecture.own_names import Decided, Model
from pp_export.architecture.sizes import ModelSizes
from pp_export.architecture.vocabulary import is_count
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.equality import are_equal
from pp_export.core.config_keys import QUANTIZATION
from pp_export.core.errors import AccountingError
from pp_export.core.file_names import INDEX
from pp_export.options.kinds import ResultOptions
from pp_export.planning.output_files import missing_in
from pp_export.reference import config_json
from pp_export.reference.definition_cache import Answer
from pp_export.reference.own_weights import read_specs
from pp_export.reference.reference_folder import Reference
from pp_export.reference.tokenizer import token_id_notes
from pp_export.steps.element_types import checked_types, types_of
from pp_export.steps.model import (
    Ask,
    Config,
    FinalConfig,
    Settled,
    SettledModel,
    final_config,
)
from pp_export.steps.pending import PendingInputs

_MAX_NAMED = 6


@dataclass(frozen=True)
class NamedStatements:
    """What input and reference say."""

    catalog: Catalog
    reference: Reference
    options: ResultOptions
    check_tie: Callable[[str, str], None]

    def settle(self, question: Config, ask: Ask, planned: Settled | None = None) -> Settled:
        """`Statements.settle`: the definition decides; without one the reference's index."""
        answer = ask(question) if self.reference.is_there else None
        model = self._model(answer)
        is_as_indexed = set(model.index or ()) == self.catalog.specs.keys()
        if answer is None and self.reference.is_there and not is_as_indexed:
            raise AccountingError("nobody but the class knows yet whether these are its tensors")
        decided = own_names.decide(self.catalog.specs, model)
        self._check_shapes(model)
        for name, of in decided.dropped.items():
            self.check_tie(name, of)
        types = types_of(self.options)
        account = own_names.account(self.catalog.specs, decided, model.truth, types)
        account = checked_types(account, types)
        stated = self.reference.config.get("vocab_size")
        vocab_size = int(stated) if is_count(stated) else 0
        settled = SettledModel(
            self,
            Meaning({}, self.reference.config),
            self._config(account),
            (),
            tuple(self._notes(decided, account)),
            is_cached=answer is not None and answer.definition is not None and answer.is_cached,
        )
        return Settled(ModelSizes({}, "config.json", vocab_size, vocab_size), account, settled)

    def _model(self, answer: Answer | None) -> Model:
        definition = None if answer is None else answer.definition
        weights, index = self.reference.weights, None
        if weights is not None:
            is_quantized = any(key in self.reference.config for key in QUANTIZATION)
            specs = None if is_quantized else read_specs(self.reference.folder, weights)
            index = {name: None if specs is None else specs[name].shape for name in weights}
        if definition is None:
            return Model(None, index, _usual_ties(self.reference.config, self.catalog.specs))
        return Model(definition.tensors, index, definition.tied)

    def _check_shapes(self, model: Model) -> None:
        """Raise AccountingError where nothing would tell that the last pieces of tensors are missing."""
        known, tied = model.tensors or {}, model.tied or {}
        unknown = [name for name in self.catalog.specs if known.get(name) is None and name not in tied]
        if self.catalog.infers_shapes and unknown:
            raise AccountingError(
                "the shapes of the tensors are not known: the ranks' safetensors don't tell, so missing"
                " files of the last ranks would go unnoticed",
                expected="--reference with a config.json that transformers knows, or with weights; or"
                " --input-ranks",
                got=f"no shape for {len(unknown)} tensors: {_first(unknown)}",
                advice="say how many ranks wrote the input (--input-ranks N), or give --reference",
            )

    def _config(self, account: Account) -> FinalConfig:
        if not self.reference.is_there:
            return FinalConfig(b"")
        own, options = self.reference.config, self.options
        says_dtype = not options.config_as_reference or any(key in own for key in config_json.DTYPE_KEYS)
        config, corrections = config_json.corrected(
            own,
            dtype=account.main_dtype.torch_name if says_dtype else None,
            both_spellings=not options.config_as_reference,
        )
        if any(spec.dtype.itemsize < 2 and spec.dtype.is_floating for spec in account.outputs.values()):
            config |= {key: own[key] for key in QUANTIZATION if key in own}  # the values are those of before
            corrections = [each for each in corrections if not _is_of(each, QUANTIZATION)]
        return final_config(self.reference, options, config, corrections)

    def _notes(self, decided: Decided, account: Account) -> Iterable[str]:
        catalog, reference = self.catalog, self.reference
        if not reference.is_there:
            yield (
                "There is no reference: the folder holds weights and index only, and nothing independent"
                " says that they are a whole model."
            )
        elif reference.folder is not None and reference.folder.is_relative_to(catalog.description.folder):
            yield f"The reference is {reference.folder.name}, which lies with the input."
        for kind, (count, num_bytes) in catalog.description.other.items():
            yield f"Left out, as no weights: {kind}, {count:,} items of {num_bytes:,} bytes."
        if not catalog.has_checksums:
            yield "No checksums are stored with safetensors: what was read is as the disk gave it."
        if decided.further:
            yield (
                f"{len(decided.further)} tensors are in the reference's index and not in the class, and are"
                f" kept: {_first(decided.further)}"
            )
        if decided.absent:
            yield (
                f"{len(decided.absent)} tensors of the reference's index are neither in the class nor in the"
                f" input: {_first(decided.absent)}"
            )
        if others := account.other_dtypes:
            named = [f"{name} {dtype.torch_name}" for name, dtype in others.items()]
            yield f"{len(others)} tensors are not {account.main_dtype.torch_name}: {_first(named)}"
        new = missing_in(account, reference.weights) if reference.weights else []
        if new and self.options.layout in ("auto", "reference"):
            yield (
                f"{len(new)} tensors are not in the reference's {INDEX}, and lie in the files of their"
                f" neighbours: {_first(new)}"
            )
        if is_count(vocab_size := reference.config.get("vocab_size")):
            yield from token_id_notes(reference.tokenizer, vocab_size)


def read_statements(catalog: Catalog, pending: PendingInputs, options: ResultOptions) -> NamedStatements:
    """What there is before the definition is heard."""

    @cache
    def check_tie(name: str, of: str) -> None:
        if not are_equal(catalog, name, of):
            raise AccountingError(
                "tensors that the class ties to each other differ in the input",
                where={"tensor": name},
                expected=f"the values of {of}, so that one of them is enough",
                got="other values",
                advice="the model was trained untied: give a reference whose config.json says so"
                " (tie_word_embeddings: false)",
            )

    return NamedStatements(catalog, pending.reference, options, check_tie)


def _usual_ties(config: Config, names: Iterable[str]) -> Mapping[str, str]:
    """What config.json ties, of a class that nobody knows: the head to the embedding."""
    embeddings = [name for name in names if name.endswith(("embed_tokens.weight", "wte.weight"))]
    if config.get("tie_word_embeddings") is not True or len(embeddings) != 1:
        return {}
    return {"lm_head.weight": embeddings[0]}


def _is_of(sentence: str, keys: Iterable[str]) -> bool:
    return any(sentence.startswith(f"config.json: {key} ") for key in keys)


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
