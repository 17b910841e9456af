"""The model's definition, asked for once: an export asks transformers every time, which takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pp_export.reference.definition import Definition, PendingDefinition


class OnceAsked(PendingDefinition):
    """Stands in for `PendingDefinition`: starts a child only for what it has not answered yet."""

    answers: ClassVar[dict[str, Definition | None]] = {}

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._question = json.dumps(config, sort_keys=True)
        self._is_known = self._question in self.answers
        if not self._is_known:
            super().__init__(config)

    @classmethod
    def start(cls, config: Mapping[str, Any]) -> OnceAsked:
        return cls(config)

    def result(self, timeout_s: float = 600) -> Definition | None:
        if not self._is_known:
            self.answers[self._question] = super().result(timeout_s)
        return self.answers[self._question]

    def close(self) -> None:
        if not self._is_known:
            super().close()
