"""The reference folder, and what the model's own definition says: from the cache, or from a child process
that nobody waits for before the plan.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pp_export.architecture import meaning, table_files
from pp_export.architecture.multimodal import language_config, with_language_config
from pp_export.architecture.rules import Architecture
from pp_export.core.errors import RuleError
from pp_export.distributed.world import World
from pp_export.options.kinds import TargetOptions
from pp_export.reference import config_json
from pp_export.reference.definition_cache import Answer
from pp_export.reference.pending_definition import PendingDefinition
from pp_export.reference.reference_folder import read_reference
from pp_export.reference.tokenizer import check_tokenizer

Config = Mapping[str, Any]

_LOOK_SECONDS = 0.02


class PendingInputs:
    """The reference, and the questions about its model that were asked so far; on rank 0 only.

    A child takes seconds, so the first question is asked before everything else that takes time. What is
    wrong with the reference is raised by `check`, at a point where all ranks hear it.
    """

    def __init__(self, options: TargetOptions) -> None:
        self._error: Exception | None = None
        self._cache = options.cache
        self._asked: dict[str, PendingDefinition] = {}
        try:
            self.reference = read_reference(options.reference, code=options.code)
            if options.require_tokenizer:
                check_tokenizer(self.reference.tokenizer, self.reference.folder)
            self.architecture = _architecture(self.reference.config, options.architecture)
            within, config = self.architecture.within, self.reference.config
            language = meaning.spelled_out(self.architecture, language_config(within, config))
            self.question = question_of(with_language_config(within, config, language), options.vocab_size)
            """The config.json of the export, as far as the reference alone tells it."""
            self._of(self.question)
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
            self._asked[key] = PendingDefinition.start(question, cache=self._cache)
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
        return table_files.load(table_file(table))
    classes = config.get("architectures")
    if not isinstance(classes, list) or len(classes) != 1:
        raise RuleError(
            "the reference config.json must name one model class",
            expected='"architectures": ["..."]',
            got=classes,
            advice="add it, or pass a table with --architecture FILE.yaml",
        )
    return table_files.for_class(str(classes[0]), config)
