"""The folder that is asked for: what it may replace, and where it grows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from pp_export.core.errors import OptionError, TargetError
from pp_export.disk import calls, folders, litter, owner, publish
from pp_export.disk.beside import alone_in, publish_beside
from pp_export.options.kinds import RunOptions, TargetOptions
from pp_export.process.log import logger


@dataclass(frozen=True)
class Target:
    """The `folder` that is asked for, and the `staging` folder beside it in which run `run_id` makes it. With
    `beside`, what else the folder holds is left alone.
    """

    folder: Path
    staging: Path
    run_id: str
    beside: bool

    @classmethod
    def of(cls, options: TargetOptions, run_id: str) -> Target:
        """Nothing is looked at yet, so that nothing can fail."""
        try:
            folder = Path(os.path.abspath(options.output))
        except OSError:  # the working directory is gone: `check` says what that means
            folder = options.output
        return cls(folder, folders.staging_path(folder, run_id), run_id, options.beside)

    def check(self, options: TargetOptions, sources: Iterable[Path], *, acts: bool = True) -> None:
        """Raise TargetError unless the folder may be made; called on rank 0. Who `acts` makes missing
        parents, if asked for, and puts right what killed runs have left where it must be; the rest is named.
        """
        folders.check_names(self.staging)
        if options.parents and acts:
            folders.make_parents(self.folder)
        if calls.is_folder(self.folder.parent):
            for sentence in litter.put_right(self.folder, self.run_id) if acts else ():
                logger.warning("%s", sentence)
            for sentence in self.litter():
                logger.warning("%s", sentence)
        publish.check_target(
            self.folder,
            overwrite=options.overwrite,
            beside=options.beside,
            sources=[*sources, *_given(options.reference, options.tokenizer), *_working_directory()],
        )

    def claim(self) -> None:
        """Write down whose the staging folder is that comes now; called on rank 0."""
        owner.claim(self.staging, self.run_id, publish.mark_of(self.folder, beside=self.beside))

    def publish(self, options: TargetOptions) -> list[str]:
        """Give the finished staging folder, or what is in it, its name; called on rank 0. Returns what could
        not be done afterwards. Raises TargetError where that may not be, or not any more, or fails; the
        target is then what it was.
        """
        with alone_in(self.folder) if self.beside else nullcontext():
            publish.check_target(self.folder, overwrite=options.overwrite, beside=self.beside)
            expected = publish.check_publishable(self.staging, self.folder, self.run_id, beside=self.beside)
            if self.beside:
                return publish_beside(self.staging, self.folder)
            return publish.publish(self.staging, self.folder, expected)

    def litter(self) -> list[str]:
        """A sentence for each folder that another run has left beside the target, or is making."""
        try:
            found = litter.leftovers_of(self.folder, self.run_id)
        except TargetError:
            return []
        return [f"{each}; {each.life()[1]} (pp_export clean {self.folder.parent})" for each in found]


def _given(*folders: Path | None) -> list[Path]:
    return [folder for folder in folders if folder is not None]


def _working_directory() -> list[Path]:
    try:
        return [Path.cwd()]
    except OSError:
        return []


def check_path(options: RunOptions) -> None:
    """Raise OptionError where a report, or its page, could not be written: that must not be found out at
    the end.
    """
    for name, what, path in (("--report", "report", options.report), ("--html", "page", options.html)):
        if path is None:
            continue
        if is_inside(path, options.output):
            raise OptionError(
                f"the {what} can't lie in the output, which holds the model only",
                where={name: path},
                advice=f"write the {what} beside the output",
            )
        _check_place(name, what, path)


def check_page(path: Path, folders: Iterable[Path]) -> None:
    """The same for the page of something that is only looked at: one inside of its `folders` would be a part
    of it.
    """
    _check_place("--html", "page", path)
    for folder in folders:
        if is_inside(path, folder):
            raise OptionError(
                "the page can't lie in the folder that it tells of",
                where={"--html": path, "folder": folder},
                advice="write the page beside the folder",
            )


def _check_place(name: str, what: str, path: Path) -> None:
    if not calls.is_folder(path.absolute().parent):
        raise OptionError(
            f"the {what}'s folder does not exist",
            where={name: path},
            advice="make it, or look for a misspelt name",
        )
    if calls.is_folder(path):
        raise OptionError(f"the {what}'s place is a folder", expected="a file", where={name: path})


def is_inside(path: Path, output: Path) -> bool:
    """Whether a path is of something in the output."""
    return output.absolute() in path.absolute().parents
