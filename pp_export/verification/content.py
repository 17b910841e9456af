"""The bytes of files against their recorded digests, read once, from the disk and not from a cache of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import xxhash

from pp_export.core.digest import STEP_BYTES, sha256
from pp_export.verification.claims import ShardClaim
from pp_export.verification.findings import Fault, shown
from pp_export.verification.reading import UncachedFile, make_buffer

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Promise:
    """What is recorded of one file: its SHA-256, by each source that names one, and its header and tensors if
    it has any. `with_sha256` is False where these tell all and nobody needs the SHA-256.
    """

    file: str
    sha256_by_source: dict[str, str]
    claim: ShardClaim | None = None
    with_sha256: bool = True


@dataclass(frozen=True)
class Digests:
    """What one pass over a file found: SHA-256, empty if nobody needs it, and XXH3-128 of the parts, by
    tensor, or None for the header.
    """

    num_bytes: int
    sha256: str
    parts: dict[str | None, str]


class Reader:
    """Reads files and counts the bytes.

    At most `threads` threads digest, each a file of its own; those that are left over, because fewer files
    are in hand, take SHA-256 off the others. The next bytes of every file are read meanwhile.
    """

    def __init__(self, folder: Path, on_bytes: OnBytes | None = None, threads: int = 1) -> None:
        self._folder, self._on_bytes, self._threads = folder, on_bytes, threads
        self._lock, self._is_over = threading.Lock(), threading.Event()
        self._may_digest = threading.Semaphore(threads)
        self._pool = ThreadPoolExecutor(2 * threads, thread_name_prefix="read")
        self.num_bytes_read = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def check(self, promise: Promise) -> list[Fault]:
        """The faults of one file. What differs is read again before the disk is blamed."""
        return self.digest(promise)[1]

    def digest(self, promise: Promise) -> tuple[str, list[Fault]]:
        """The same, and the SHA-256 of the bytes that were judged."""
        first = self._attempt(promise)
        if isinstance(first, Digests) and _is_kept(promise, first):
            return first.sha256, _compare(promise, first)
        second = self._attempt(promise)
        if isinstance(second, OSError):
            text = f"it cannot be read: {second.strerror}"
            return "", [Fault("unreadable-file", promise.file, None, text)]
        faults = _compare(promise, second)
        if isinstance(first, OSError):
            what = f"a read failed ({first.strerror})"
        else:
            damaged = [fault.tensor for fault in _compare(promise, first) if fault.tensor is not None]
            what = f"a read gave wrong bytes{' of ' + shown(', '.join(damaged[:3])) if damaged else ''}"
        if first != second:
            text = f"{what}, the next read gave others: suspect memory, bus, network or controller"
            if _is_kept(promise, second):
                text = f"{what}, the next was right: suspect memory, bus, network or controller"
            faults.append(Fault("transient-read", promise.file, None, text))
        return second.sha256, faults

    def check_all(self, promises: Iterable[Promise]) -> list[Fault]:
        """The faults of many files, several at a time; the order of the result is that of `promises`."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="digest") as pool:
            futures = [pool.submit(self.check, promise) for promise in promises]
            try:
                return [fault for future in futures for fault in future.result()]
            finally:  # after an exception the other threads stop at their next read
                self._is_over.set()
                for future in futures:
                    future.cancel()

    def _attempt(self, promise: Promise) -> Digests | OSError:
        try:
            file = UncachedFile(self._folder / promise.file)
        except OSError as error:
            return error
        with file, self._may_digest:
            return self._digest(file, promise)

    def _digest(self, file: UncachedFile, promise: Promise) -> Digests | OSError:
        """One pass over the file. A failed read is returned, not raised: `on_bytes` may raise OSError too."""
        file.forget()
        whole = sha256() if promise.with_sha256 else None
        parts, position = _PartDigests(promise.claim), 0
        with closing(self._steps(file)) as steps:
            for step in steps:
                if isinstance(step, OSError):
                    return step
                beside = self._beside(whole.update, step) if whole else None
                parts.update(position, step)
                if beside is not None:
                    beside.result()
                elif whole:
                    whole.update(step)
                position += len(step)
                self._count(len(step))
                if self._is_over.is_set():
                    break
        return Digests(position, whole.hexdigest() if whole else "", parts.finish())

    def _steps(self, file: UncachedFile) -> Generator[memoryview | OSError]:
        """The bytes of the file in order, or the error that ends them. The next ones are read while those
        before, which are gone then, are in use.
        """
        step_bytes = max(1, min(STEP_BYTES, file.num_bytes))
        this, other = make_buffer(step_bytes), make_buffer(step_bytes)
        position = 0
        ahead = self._pool.submit(file.read, 0, step_bytes, this)
        try:
            while step := ahead.result():
                position += len(step)
                this, other = other, this
                ahead = self._pool.submit(file.read, position, step_bytes, this)
                yield step
        except OSError as error:
            yield error
        finally:
            ahead.exception()  # nobody reads any more when the file is closed

    def _beside(self, digest: Callable[[memoryview], None], step: memoryview) -> Future[None] | None:
        """`digest` at work in a thread that has nothing else to do, or None if there is none."""
        if not self._may_digest.acquire(blocking=False):
            return None
        beside = self._pool.submit(digest, step)
        beside.add_done_callback(lambda _: self._may_digest.release())
        return beside

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes_read += num_bytes
            if self._on_bytes is not None:
                self._on_bytes(num_bytes)


class _PartDigests:
    """XXH3-128 of header and tensors, which lie one after another, from bytes that come in file order."""

    def __init__(self, claim: ShardClaim | None) -> None:
        self._ends: list[tuple[str | None, int]] = []
        if claim is not None and claim.is_contiguous:
            start = claim.data_begin
            self._ends = [(None, start), *((entry.name, start + entry.end) for entry, _ in claim.tensors)]
        self._next = 0
        self._running = xxhash.xxh3_128()
        self._done: dict[str | None, str] = {}

    def update(self, position: int, step: memoryview) -> None:
        """Bytes of the file from `position` on."""
        at, stop = position, position + len(step)
        while self._next < len(self._ends) and at < stop:
            end = min(self._ends[self._next][1], stop)
            self._running.update(step[at - position : end - position])
            at = end
            self._close(at)

    def finish(self) -> dict[str | None, str]:
        """The digests by part; of parts that the file did not reach, those of the bytes that it had."""
        while self._next < len(self._ends):
            self._close(self._ends[self._next][1])
        return self._done

    def _close(self, position: int) -> None:
        while self._next < len(self._ends) and self._ends[self._next][1] <= position:
            self._done[self._ends[self._next][0]] = self._running.hexdigest()
            self._running.reset()
            self._next += 1


def _is_kept(promise: Promise, found: Digests) -> bool:
    """Whether the bytes are those that were promised."""
    if promise.sha256_by_source:
        return found.sha256 in promise.sha256_by_source.values()
    return not _compare(promise, found)


def _compare(promise: Promise, found: Digests) -> list[Fault]:
    """What is wrong with one pass over a file; a tensor is named where its digest says which it is."""
    file, claim = promise.file, promise.claim
    wrong = {source: digest for source, digest in promise.sha256_by_source.items() if digest != found.sha256}
    is_right = len(wrong) < len(promise.sha256_by_source)
    claimed: dict[str | None, str] = {entry.name: each for entry, each in claim.tensors} if claim else {}
    claimed[None] = claim.header_digest if claim else ""
    damaged = [name for name, digest in found.parts.items() if claimed[name] != digest]
    faults = []
    for name in damaged:
        what = "bytes" if name is not None else "header"
        text = f"XXH3-128 of its {what} is {found.parts[name]}, recorded is {claimed[name]}"
        if is_right:
            text += "; the file's SHA-256 is right, so the record is wrong"
        faults.append(Fault("wrong-digest", file, name, text))
    if wrong and (is_right or not damaged):
        claims = ", ".join(f"{source} says {digest}" for source, digest in wrong.items())
        text = f"SHA-256 is {found.sha256}; {claims}"
        if claim and found.parts and not is_right and found.num_bytes == claim.whole.num_bytes:
            text += "; header and every tensor match, so the recorded digest is wrong"
        faults.append(Fault("wrong-digest", file, None, text))
    return faults
