"""The function that each side of a comparison says, and where the two differ. Called by one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pp_export.architecture import table_files
from pp_export.architecture.rules import Architecture
from pp_export.architecture.two_functions import different_keys, different_settings, settings_of
from pp_export.core.errors import ReferenceFolderError, RuleError
from pp_export.core.file_names import CONFIG
from pp_export.core.json_values import to_json_value
from pp_export.reference.safe_files import read_json
from pp_export.verification.diff import ConfigDifference

Config = Mapping[str, Any]

_CLASSES = "architectures"


@dataclass(frozen=True)
class Function:
    """What a side says: in config.json, and of a checkpoint in its training args, which count; the latter as
    `settings` of its `architecture`.
    """

    config: Config
    architecture: Architecture | None = None
    settings: Mapping[str, Any] | None = None
    library: Config | None = None
    """What the class makes of config.json, where somebody has asked."""

    @classmethod
    def of_folder(cls, folder: Path) -> Function | None:
        """None where there is no config.json. Raises ReferenceFolderError where it can't be read."""
        try:
            return cls(read_json(folder, CONFIG)) if (folder / CONFIG).is_file() else None
        except OSError as error:
            text = f"config.json can't be read: {error.strerror}"
            raise ReferenceFolderError(text, where={"folder": folder}) from error


def config_differences(a: Function | None, b: Function | None) -> tuple[ConfigDifference, ...]:
    """Where both say something, and not the same; of two config.jsons of a class that no table knows, each
    key that differs and may matter.
    """
    if a is None or b is None:
        return ()
    if a.settings is None and b.settings is None and a.config == b.config:
        return ()
    found = []
    if a.config.get(_CLASSES) != b.config.get(_CLASSES):
        found.append((_CLASSES, a.config.get(_CLASSES), b.config.get(_CLASSES)))
    architecture = a.architecture or b.architecture or _table_of(a.config)
    if architecture is None:
        found += [each for each in different_keys(a.config, b.config) if each[0] != _CLASSES]
    else:
        found += different_settings(architecture, _settings(architecture, a), _settings(architecture, b))
    return tuple(ConfigDifference(name, *map(to_json_value, values)) for name, *values in found)


def _settings(architecture: Architecture, side: Function) -> Mapping[str, Any]:
    if side.settings is not None:
        return side.settings
    return settings_of(architecture, side.config, side.library)


def _table_of(config: Config) -> Architecture | None:
    classes = config.get(_CLASSES)
    if not isinstance(classes, list) or len(classes) != 1:
        return None
    try:
        return table_files.for_class(str(classes[0]), config)
    except RuleError:
        return None
