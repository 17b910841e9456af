"""The reference folder, and a child process that finds out what the model's own definition says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pp_export.architecture import meaning, table_files
from pp_export.architecture.rules import Architecture
from pp_export.core.errors import RuleError
from pp_export.core.settings import agree
from pp_export.options.kinds import TargetOptions
from pp_export.reference import config_json
from pp_export.reference.definition import Definition, PendingDefinition
from pp_export.reference.reference_folder import read_reference
from pp_export.reference.tokenizer import check_tokenizer


class PendingInputs:
    """The reference, and the child process that is finding out what the model's definition says; on rank 0
    only.

    The child takes seconds, so it is started before everything else that takes time. What is wrong with
    the reference is raised by `check`, at a point where all ranks hear it.
    """

    def __init__(self, options: TargetOptions) -> None:
        self._error: Exception | None = None
        try:
            self.reference = read_reference(options.reference, code=options.code)
            if options.require_tokenizer:
                check_tokenizer(self.reference.tokenizer, self.reference.folder)
            self.architecture = _architecture(self.reference.config, options.architecture)
            config = meaning.spelled_out(self.architecture, self.reference.config)
            self._asked = _question(config, options.vocab_size)
            self._pending = PendingDefinition.start(self._asked)
        except Exception as error:  # noqa: BLE001  raised by `check`
            self._error = error

    @classmethod
    def start(cls, options: TargetOptions) -> PendingInputs:
        """Start the child and return at once."""
        return cls(options)

    def check(self) -> None:
        """Raise what is wrong with the reference."""
        if self._error is not None:
            raise self._error

    def definition(self) -> Definition | None:
        """Wait for the answer about the reference's own config.json."""
        self.check()
        return self._pending.result()

    def definition_of(self, config: Mapping[str, Any], vocab_size: int) -> Definition | None:
        """The definition for a config.json that may be a corrected one; asks again only if it is."""
        question, answer = _question(config, vocab_size), self.definition()
        library = {} if answer is None else answer.config
        if all(
            self._asked.get(key) == value or agree(library.get(key), value) for key, value in question.items()
        ):
            return answer
        with PendingDefinition.start(question) as again:
            return again.result()

    def cancel(self) -> None:
        """End the child, if it still runs."""
        if self._error is None:
            self._pending.close()


def table_file(table: str) -> str:
    """The file that `--architecture` names, with or without its ending."""
    return table if table.endswith((".yaml", ".yml")) else f"{table}.yaml"


def _question(config: Mapping[str, Any], vocab_size: int | None) -> dict[str, Any]:
    """The config that the definition is asked about: the one that the folder will have, without its
    quantization.
    """
    return config_json.corrected(config, vocab_size=vocab_size)[0]


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
    return table_files.for_class(str(classes[0]))
