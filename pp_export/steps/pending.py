"""The reference folder, and what the model's own definition says: from the cache, or from a child process
that nobody waits for before the plan.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pp_export.architecture import meaning, own_names, table_files
from pp_export.architecture.multimodal import language_config, with_language_config
from pp_export.architecture.rules import Architecture
from pp_export.checkpoint.catalog import Catalog
from pp_export.checkpoint.hf_shards.source import own_reference
from pp_export.core.errors import OptionError, RuleError
from pp_export.distributed.world import World
from pp_export.options.consolidation import ConsolidateOptions
from pp_export.options.kinds import TargetOptions
from pp_export.reference import config_json
from pp_export.reference.definition import class_name
from pp_export.reference.definition_cache import Answer
from pp_export.reference.pending_definition import PendingDefinition
from pp_export.reference.reference_folder import Reference, read_reference
from pp_export.reference.tokenizer import check_tokenizer
from pp_export.steps.made_reference import Beginning, begin, make_reference

Config = Mapping[str, Any]

_LOOK_SECONDS = 0.02


class PendingInputs:
    """The reference, and the questions about its model that were asked so far; on rank 0 only.

    A child takes seconds, so the first question is asked before everything else that takes time; where no
    reference is given, as soon as `hear` has made what stands for it. What is wrong with the reference is
    raised by `check`, at a point where all ranks hear it.
    """

    reference: Reference
    architecture: Architecture
    question: Config
    """The config.json of the export, as far as the reference alone tells it."""

    def __init__(self, options: TargetOptions) -> None:
        self._error: Exception | None = None
        self._options = options
        self._begun: Beginning | None = None
        self._asked: dict[str, PendingDefinition] = {}
        try:
            if isinstance(options, ConsolidateOptions):
                self._consolidate(options)
                return
            if options.reference is None:
                self._begun = begin(options)
                return
            reference = read_reference(options.reference, code=options.code)
            if options.require_tokenizer:
                check_tokenizer(reference.tokenizer, reference.folder)
            self._ask(reference, _architecture(reference.config, options.architecture))
        except Exception as error:  # noqa: BLE001  raised by `check`
            self._error = error
        except BaseException:  # a signal: nobody will have this object to end its children
            self.cancel()
            raise

    @classmethod
    def start(cls, options: TargetOptions) -> PendingInputs:
        """Ask and return at once."""
        return cls(options)

    def check(self) -> None:
        """Raise what is wrong with the reference."""
        if self._error is not None:
            raise self._error

    def hear(self, catalog: Catalog) -> None:
        """Where no reference is given, make what stands for it of the checkpoint's own args, and ask; raises
        what they don't determine.
        """
        if self._begun is not None:
            self._ask(make_reference(self._begun, catalog, self._options), self._begun.architecture)

    def _consolidate(self, options: ConsolidateOptions) -> None:
        """The folder that is named, else the one that lies with the input, else nothing."""
        folder = options.reference or own_reference(options.input)
        if folder is None:
            if options.config_as_reference:
                raise OptionError("--config-as-reference needs a --reference")
            self.reference, self.architecture = Reference.nothing(), own_names.architecture("")
            self.question = {}
            return
        reference = read_reference(folder, code=options.code)
        self._ask(reference, own_names.architecture(class_name(reference.config)))

    def _ask(self, reference: Reference, architecture: Architecture) -> None:
        self.reference, self.architecture = reference, architecture
        within, config = architecture.within, reference.config
        language = meaning.spelled_out(architecture, language_config(within, config))
        asked = with_language_config(within, config, language)
        self.question = question_of(asked, self._options.vocab_size)
        self._of(self.question)

    def known(self, question: Config) -> Answer | None:
        """What the definition of a config.json is, as soon as that is known; None until then. The first
        call asks. Raises ReferenceFolderError where the class refuses it.
        """
        asked = self._of(question)
        return asked.answer() if asked.is_here else None

    def waited(self, question: Config) -> Answer:
        """The same, waited for."""
        self.wait(question, lambda: None)
        return self._of(question).answer()

    def wait(self, question: Config, check: Callable[[], None]) -> None:
        """Return when there is news about a question; meanwhile `check` is called now and then, and may
        raise.
        """
        while not self.is_here(question):
            check()
            time.sleep(_LOOK_SECONDS)

    def is_here(self, question: Config) -> bool:
        """Whether there is news about a question: an answer, or the reason why there is none."""
        return self._of(question).is_here

    def cancel(self) -> None:
        """End the children that still run."""
        for asked in self._asked.values():
            asked.close()

    def _of(self, question: Config) -> PendingDefinition:
        key = json.dumps(question, sort_keys=True)
        if key not in self._asked:
            self._asked[key] = PendingDefinition.start(question, cache=self._options.cache)
        return self._asked[key]


@contextmanager
def asking(
    world: World, options: TargetOptions, begun: PendingInputs | None
) -> Iterator[PendingInputs | None]:
    """On rank 0 its inputs, those that were `begun` ahead or new ones, until the export ends, and no child
    longer; nothing elsewhere.
    """
    pending = (begun or PendingInputs.start(options)) if world.rank == 0 else None
    try:
        yield pending
    finally:
        if pending is not None:
            pending.cancel()


def question_of(config: Config, vocab_size: int | None) -> dict[str, Any]:
    """The config that the definition is asked about: the one that the folder will have, without its
    quantization.
    """
    return config_json.corrected(config, vocab_size=vocab_size)[0]


def table_file(table: str) -> str:
    """The file that `--architecture` names, with or without its ending."""
    return table if table.endswith((".yaml", ".yml")) else f"{table}.yaml"


def _architecture(config: Mapping[str, Any], table: str | None) -> Architecture:
    """The user's table, or the packaged one for the class that config.json names."""
    if table is not None:
        return table_files.named(table)
    classes = config.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1:
        raise RuleError(
            "the reference config.json must name one model class",
            expected='"architectures": ["..."]',
            got=classes,
            advice="add it, or pass a table with --architecture FILE.yaml",
        )
    return table_files.for_class(str(classes[0]), config)
