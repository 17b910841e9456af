"""Claims of `pp_export.distributed.shared_keys`: values of any size come back, no call waits for ever,
and what was set can be taken back.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]

from pp_export.core.errors import PeerError, TargetError
from pp_export.distributed import caller, shared_keys
from pp_export.distributed.shared_keys import SharedKeys
from pp_export.distributed.store import missing


@pytest.fixture
def store() -> Store:
    store = HashStore()
    store.set_timeout(timedelta(milliseconds=300))
    return store


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 25])
def test_values_of_any_size_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A value comes back as it was, in one piece or several, alone or with others, and nothing of it is left
    when its setter's keys are deleted.
    """
    monkeypatch.setattr(shared_keys, "_PIECE_BYTES", 10)
    monkeypatch.setattr(shared_keys, "_BATCH_BYTES", 10)
    keys, value = SharedKeys(store), bytes(range(size))
    keys.set("k", value)
    keys.set_many({"a": value, "b": b"small", "c": value})
    assert keys.check("k", "a", "b", "c")
    assert keys.get("k") == value
    assert keys.get_many(["c", "b", "a"]) == [value, b"small", value]
    assert store.num_keys() == 4 + 3 * (0 if size <= 10 else -(-size // 10))
    for key in keys.own_keys():
        keys.delete(key)
    assert not any(map(keys.check, "kabc"))
    assert store.num_keys() == 0
    assert keys.own_keys() == []


def test_many_keys_need_few_requests(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many values are set, looked for and got in batches; each key has its own value."""
    monkeypatch.setattr(shared_keys, "_MAX_KEYS", 100)
    calls: list[str] = []

    class Counted(SharedKeys):
        def _call(self, call: Any) -> Any:
            calls.append("")
            return super()._call(call)

    keys, values = Counted(store), {f"k{n}": b"%d" % n for n in range(950)}
    keys.set_many(values)
    assert keys.check(*values)
    assert keys.get_many(list(values)) == list(values.values())
    assert len(calls) == 30


def test_missing_keys_are_found_among_many(store: Store) -> None:
    """Those that are not set are named in their order, whichever they are."""
    keys, names = SharedKeys(store), [f"k{n}" for n in range(37)]
    assert missing(keys, names) == names
    for absent in ([], ["k0"], ["k36"], ["k3", "k4", "k20"]):
        keys.set_many({name: b"" for name in names if name not in absent})
        assert missing(keys, names) == absent
        for name in names:
            keys.delete(name)


@pytest.mark.parametrize("value", [b"#2", b"=", b"\0\xff"])
def test_values_are_never_taken_for_pieces(store: Store, value: bytes) -> None:
    """Whatever bytes a value begins with, they are its own."""
    keys = SharedKeys(store)
    keys.set("k", value)
    assert keys.get("k") == value


def test_the_first_value_stays(store: Store) -> None:
    """`set_first` gives the value that was there first, and `get` the same."""
    keys = SharedKeys(store)
    assert [keys.set_first("k", value) for value in ("0", "1")] == [b"0", b"0"]
    assert keys.get("k") == b"0"
    keys.set("known", b"kept")
    assert keys.set_first("known", "other") == b"kept"


@pytest.mark.parametrize("patience", [None, 5.0])
def test_a_store_that_is_gone_is_a_peer_error(store: Store, patience: float | None) -> None:
    """Whatever goes wrong in the store is a PeerError with torch's reason in one line."""
    keys = SharedKeys(store, patience_seconds=patience)
    with pytest.raises(PeerError, match="store does not answer") as caught:
        keys.get("absent")
    assert caught.value.got
    assert "\n" not in caught.value.got
    keys.close()
    with pytest.raises(PeerError, match="was closed"):
        keys.check("k")


class Stopped:
    """A store whose process was stopped."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def check(self, keys: list[str]) -> bool:
        self.goes_on.wait(20)
        return True


def test_a_store_that_is_stopped_is_not_waited_for_for_ever() -> None:
    """Its answer is waited for as long as the patience lasts, however many ask; an answer that comes later is
    one.
    """
    stopped: Any = Stopped()
    keys = SharedKeys(stopped, whose="the store of rank 3", patience_seconds=0.2)
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(PeerError, match="the store of rank 3 has not answered for 0 s"):
            keys.check("k")
        assert 0.2 <= time.monotonic() - begun < 3
    stopped.goes_on.set()
    assert keys.check("k")
    keys.close()


def test_who_waits_for_a_stopped_store_hears_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done meanwhile may raise, and that is raised to the caller."""
    monkeypatch.setattr(caller, "_LOOK_SECONDS", 0.05)
    stopped: Any = Stopped()

    def meanwhile() -> None:
        raise TargetError("heard")

    keys = SharedKeys(stopped, patience_seconds=20, meanwhile=meanwhile)
    with pytest.raises(TargetError, match="heard"):
        keys.check("k")
    begun = time.monotonic()
    monkeypatch.setattr(keys._caller, "_meanwhile", None)
    with pytest.raises(PeerError, match="has not answered"):
        keys.check("k")  # what is still to be said at the end of a process must not take the patience again
    assert time.monotonic() - begun < 5
    stopped.goes_on.set()
    keys.close()


def test_any_thread_may_call() -> None:
    """Threads that share a connection get their own answers, and its thread ends with it."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    keys = SharedKeys(server, patience_seconds=20)
    before, found = threading.active_count(), []

    def act(number: int) -> None:
        for step in range(50):
            keys.set(f"{number}/{step}", b"%d" % number)
            found.append(keys.get(f"{number}/{step}") == b"%d" % number)

    threads = [threading.Thread(target=act, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 400
    assert threading.active_count() == before + 1
    keys.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
