"""The folder that is asked for: what it may replace, and where it grows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pp_export.disk import files, publish
from pp_export.options.kinds import TargetOptions


@dataclass(frozen=True)
class Target:
    """The `folder` that is asked for, and the `staging` folder beside it in which run `run_id` makes it."""

    folder: Path
    staging: Path

    @classmethod
    def of(cls, options: TargetOptions, run_id: str) -> Target:
        folder = Path(os.path.abspath(options.output))
        return cls(folder, files.staging_path(folder, run_id))

    def check(self, options: TargetOptions, sources: Iterable[Path]) -> None:
        """Raise TargetError unless the folder may be made; called on rank 0. Missing parents are made, if
        asked for.
        """
        if options.parents:
            files.make_parents(self.folder)
        publish.check_target(
            self.folder,
            overwrite=options.overwrite,
            beside=options.beside,
            sources=[*sources, options.reference, Path.cwd()],
        )
