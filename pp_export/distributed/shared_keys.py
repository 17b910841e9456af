"""A rendezvous store of torch's as a `Store`: large values, bounded answers, and a memory of what was set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pp_export.core.errors import PeerError
from pp_export.distributed.broken import first_line
from pp_export.distributed.caller import Caller

if TYPE_CHECKING:
    from torch.distributed import Store as TorchStore  # type: ignore[attr-defined]

T = TypeVar("T")

_PIECE_BYTES = 1 << 20
_BATCH_BYTES = 64 << 10  # a server reads a batch anew with each part of it that arrives
_MAX_KEYS = 1024
_WHOLE, _PIECES = b"=", b"#"


class SharedKeys:
    """A store that lives with another process, so whatever goes wrong with it is a PeerError.

    torch's TCPStore takes 8 MB per value and breaks the connection above, so large values go in pieces.
    Its calls never return while the process that serves it is stopped. So where `patience_seconds` is
    given, a thread makes them, and the caller waits that long for an answer; `meanwhile` is called every
    second of it, and may raise. `whose` store it is stands in errors.
    """

    def __init__(
        self,
        store: TorchStore,
        *,
        whose: str = "the launcher's store",
        patience_seconds: float | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        self._store: Any = store
        self._whose, self._own = whose, set[str]()
        self._caller = None if patience_seconds is None else Caller(whose, patience_seconds, meanwhile)

    def set(self, key: str, value: bytes) -> None:
        pieces = [value[begin : begin + _PIECE_BYTES] for begin in range(0, len(value), _PIECE_BYTES)]
        if len(pieces) < 2:
            self._set(key, _WHOLE + value)
            return
        for number, piece in enumerate(pieces):
            self._set(f"{key}.{number}", piece)
        self._set(key, _PIECES + b"%d" % len(pieces))

    def set_many(self, values: Mapping[str, bytes]) -> None:
        batch: dict[str, bytes] = {}
        num_bytes = 0
        for key, value in values.items():
            if len(value) > _BATCH_BYTES:
                self.set(key, value)
                continue
            if batch and (num_bytes + len(value) > _BATCH_BYTES or len(batch) == _MAX_KEYS):
                self._set_batch(batch)
                batch, num_bytes = {}, 0
            batch[key] = _WHOLE + value
            num_bytes += len(value)
        if batch:
            self._set_batch(batch)

    def set_first(self, key: str, value: str) -> bytes:
        first: bytes = self._call(lambda store: store.compare_set(key, "", _WHOLE.decode() + value))[1:]
        self._own.add(key)  # deleting twice does no harm
        return first

    def get(self, key: str) -> bytes:
        return self._whole(key, bytes(self._call(lambda store: store.get(key))))

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        found: list[bytes] = []
        for begin in range(0, len(keys), _MAX_KEYS):
            some = list(keys[begin : begin + _MAX_KEYS])
            values = self._call(lambda store, some=some: store.multi_get(some))
            found += [self._whole(key, bytes(value)) for key, value in zip(some, values)]
        return found

    def check(self, *keys: str) -> bool:
        return all(
            self._call(lambda store, begin=begin: store.check(list(keys[begin : begin + _MAX_KEYS])))
            for begin in range(0, len(keys), _MAX_KEYS)
        )

    def own_keys(self) -> list[str]:
        return sorted(self._own)

    def delete(self, key: str) -> None:
        self._call(lambda store: store.delete_key(key))
        self._own.discard(key)

    def close(self) -> None:
        if self._caller is not None:
            self._caller.end()
        self._store = None

    def _set(self, key: str, value: bytes) -> None:
        self._call(lambda store: store.set(key, value))
        self._own.add(key)

    def _set_batch(self, batch: Mapping[str, bytes]) -> None:
        self._call(lambda store: store.multi_set(list(batch), list(batch.values())))
        self._own.update(batch)

    def _whole(self, key: str, value: bytes) -> bytes:
        if value[:1] == _WHOLE:
            return value[1:]
        return b"".join(
            bytes(self._call(lambda store, n=n: store.get(f"{key}.{n}"))) for n in range(int(value[1:]))
        )

    def _call(self, call: Callable[..., T]) -> T:
        store = self._store
        if store is None:
            raise PeerError(f"{self._whose} was closed")
        try:
            return call(store) if self._caller is None else self._caller.call(lambda: call(store))
        except RuntimeError as error:
            raise PeerError(
                f"{self._whose} does not answer: its process or node is gone", got=first_line(error)
            ) from error
