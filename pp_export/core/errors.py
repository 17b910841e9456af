"""The one tree of errors a user can meet.

A message says what went wrong, where, what was expected, what was found, and what to do next. Everything
that was found at once is listed at once. The same fields go into the report as JSON, because torchrun's
exit code is always 1.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Mapping, Sequence

MAX_PRINTED_FINDINGS = 40
MAX_FRAMES = 8


class ExportError(Exception):
    """Base of every error that pp_export raises on purpose.

    `where` names places (`rank`, `stage`, `tensor`, `file`, `operation`...) in the order in which they
    should be read. `findings` lists everything that is wrong, not only the first thing.
    """

    def __init__(
        self,
        what: str,
        *,
        where: Mapping[str, object] | None = None,
        expected: object = None,
        got: object = None,
        advice: str | None = None,
        findings: Sequence[str] = (),
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = {key: str(value) for key, value in (where or {}).items()}
        self.expected = None if expected is None else str(expected)
        self.got = None if got is None else str(got)
        self.advice = advice
        self.findings = tuple(findings)

    def at(self, **where: object) -> ExportError:
        """The same error with more places known; places already named stay."""
        self.where = {key: str(value) for key, value in where.items()} | self.where
        return self

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append("  where:    " + ", ".join(f"{key} {value}" for key, value in self.where.items()))
        lines += [
            f"  {label + ':':<10}{text}"
            for label, text in (("expected", self.expected), ("got", self.got), ("do", self.advice))
            if text is not None
        ]
        lines += [f"  - {finding}" for finding in self.findings[:MAX_PRINTED_FINDINGS]]
        if len(self.findings) > MAX_PRINTED_FINDINGS:
            lines.append(
                f"  - and {len(self.findings) - MAX_PRINTED_FINDINGS} more (--report FILE lists all)"
            )
        lines.append(f"  more:     pp_export docs {self._section}")
        return "\n".join(lines)

    @property
    def _section(self) -> str:
        """The part of docs/troubleshooting.md that tells of such errors: that of the nearest class here."""
        return next(kind.__name__ for kind in type(self).__mro__ if kind.__module__ == __name__)

    def to_json(self) -> dict[str, object]:
        """The fields of the error, for the report and for the other ranks."""
        return {
            "kind": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "got": self.got,
            "advice": self.advice,
            "findings": list(self.findings),
        }


class OptionError(ExportError):
    """A flag, a key of a job file or a combination of them is wrong."""


class CheckpointError(ExportError):
    """The source is missing, unfinished, damaged or of a kind that can't be read."""


class UnsafePickleError(CheckpointError):
    """A pickle of the checkpoint names something outside the allow-list; nothing of it was run."""


class ReferenceFolderError(ExportError):
    """The Hugging Face reference folder is missing, damaged or disagrees with the checkpoint."""


class RuleError(ExportError):
    """An architecture table is wrong in itself."""


class AccountingError(ExportError):
    """Megatron tensors and expected Hugging Face tensors do not match one to one."""


class TargetError(ExportError):
    """The output folder can't be made, written or published."""


class VerificationError(ExportError):
    """What is on disk is not what was frozen in memory, or breaks a rule of the format."""


class PeerError(ExportError):
    """Another rank failed, died or stopped making progress; `where` names it."""


class LaunchError(ExportError):
    """The processes were not started as the ranks of one export."""


class StoppedError(ExportError):
    """The process was told to stop (SIGTERM, SIGINT)."""


class StopRequest(BaseException):
    """A signal told this process to stop; raised wherever its main thread happens to be. Not an Exception,
    so that nothing that expects damaged input takes it for that; where all ends, it becomes a
    StoppedError.
    """

    def __init__(self, signal_name: str) -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name

    def as_error(self) -> StoppedError:
        """What the user is told."""
        return StoppedError(f"stopped by {self.signal_name}")


def as_export_error(error: BaseException) -> ExportError:
    """Whatever was raised, as the ExportError that is reported."""
    if isinstance(error, StopRequest):
        return error.as_error()
    return error if isinstance(error, ExportError) else unforeseen(error)


def unforeseen(error: BaseException) -> ExportError:
    """An exception that nobody planned for, as an ExportError that tells where in the code it was raised.

    What the filesystem or the memory of the machine refused is no defect, and says what was asked for.
    """
    if isinstance(error, OSError) and error.errno is not None:
        names = [name for name in (error.filename, error.filename2) if name is not None]
        return ExportError(
            f"the operating system answered: {os.strerror(error.errno)}",
            where={"file": os.fsdecode(names[0])} if names and not isinstance(names[0], int) else None,
            got=f"errno {error.errno} ({errno.errorcode.get(error.errno, 'unknown')})",
            advice="check the filesystem or the network that this is about, then try again",
        )
    if isinstance(error, MemoryError):
        return ExportError(
            "this process could not get more memory from its machine",
            advice="compare the peak memory that `pp_export plan` prints with what is free; lower"
            " --memory-limit, or use more ranks",
        )
    frames = traceback.format_list(traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:])
    return ExportError(
        f"{type(error).__name__}: {error}",
        advice="this may be a defect of pp_export: please report it, with these lines",
        findings=[" ".join(frame.split()) for frame in frames],
    )


def from_json(fields: Mapping[str, object]) -> ExportError:
    """The error that `ExportError.to_json` described, of the same class."""
    kinds = {kind.__name__: kind for kind in ExportError.__subclasses__()} | {
        kind.__name__: kind for kind in CheckpointError.__subclasses__()
    }
    kind = kinds.get(str(fields["kind"]), ExportError)
    where, findings = fields.get("where"), fields.get("findings")
    return kind(
        str(fields["what"]),
        where=where if isinstance(where, Mapping) else None,
        expected=fields.get("expected"),
        got=fields.get("got"),
        advice=None if fields.get("advice") is None else str(fields["advice"]),
        findings=[str(finding) for finding in findings] if isinstance(findings, list) else (),
    )
