"""The answer about a model's definition, from the cache or on its way from a child process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from pp_export.core.strict_json import JsonError, parse_object
from pp_export.process import child
from pp_export.reference.definition import Definition, missing_libraries, refused
from pp_export.reference.definition_cache import Answer, CachePlace

PATIENCE_SECONDS = 600.0


class PendingDefinition:
    """What `define` says of a config.json.

    A child is started only where the answer isn't in the cache and the libraries are installed; `close` ends
    it.
    """

    def __init__(self, config: Mapping[str, Any], *, cache: bool) -> None:
        self._config = config
        self._child: _Child | None = None
        self._answer: Answer | None = None
        self._place: CachePlace | None = None
        if missing_libraries():
            self._answer = Answer(None)
            return
        if cache and (place := CachePlace.of(config)) is not None:
            self._place, self._answer = place, place.read()
        if self._answer is None:
            self._child = _Child(config)

    @classmethod
    def start(cls, config: Mapping[str, Any], *, cache: bool = True) -> PendingDefinition:
        """Look into the cache, unless it is not to be used, and start the child if need be; returns at
        once.
        """
        return cls(config, cache=cache)

    @property
    def is_here(self) -> bool:
        """Whether `answer` needn't wait: it is known, or the child has ended or used up its time."""
        return self._child is None or self._child.has_ended

    def answer(self) -> Answer:
        """What the cache or the child says; waits for it.

        Raises ReferenceFolderError where the class refuses the config, or the child gives no answer.
        """
        if self._answer is None:
            assert self._child is not None
            found, is_missing = self._child.result()
            self._answer = Answer(found)
            if self._place is not None and not is_missing:
                self._place.keep(self._answer)
        return self._answer

    def result(self) -> Definition | None:
        """The definition of the answer."""
        return self.answer().definition

    def close(self) -> None:
        """End the child if it still runs; never raises."""
        if self._child is not None:
            self._child.close()

    def __enter__(self) -> PendingDefinition:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Child:
    """`python -m pp_export.reference.definition`, and what it says."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config, self._deadline = config, time.monotonic() + PATIENCE_SECONDS
        with ExitStack() as opened:
            try:
                # Files and no pipes: the child never waits for us, and ends as soon as it knows the answer.
                question, self._said, self._complaint = (
                    opened.enter_context(tempfile.TemporaryFile()) for _ in range(3)
                )
                question.write(json.dumps(config).encode())
                question.seek(0)
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "pp_export.reference.definition"],
                    stdin=question,
                    stdout=self._said,
                    stderr=self._complaint,
                    env=child.environment(),
                    # `-m` may put the working directory first on the path, and that may be the reference
                    # folder.
                    cwd=child.PACKAGE_PARENT,
                )
            except OSError as error:
                raise refused(config, f"no process could be started for it: {error}") from error
            self._files = opened.pop_all()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None or time.monotonic() > self._deadline

    def result(self) -> tuple[Definition | None, bool]:
        """The definition, and whether a library was missing; waits for them."""
        try:
            code = self._process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise refused(self._config, f"no answer in {PATIENCE_SECONDS:g} seconds") from None
        self._said.seek(0)
        self._complaint.seek(0)
        if code != 0:
            lines = self._complaint.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing on stderr")
            raise refused(self._config, last if code > 0 else f"ended by signal {-code}: {last}")
        try:
            answer = parse_object(self._said.read(), allow_infinity=True)
            found, missing = answer["definition"], answer["missing"]
            return None if found is None else Definition.from_json(found), bool(missing)
        except (JsonError, KeyError, ValueError) as error:
            raise refused(self._config, f"an answer that can't be understood: {error}") from error

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._files.close()
