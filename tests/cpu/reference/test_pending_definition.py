"""Claims of `pp_export.reference.pending_definition` and `definition_cache`: an answer comes from the cache
or from one child, whatever the child does, and what the cache holds is believed only if it is that answer.

The children here are shell scripts in place of Python, so that they take no seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pp_export.core.errors import ReferenceFolderError
from pp_export.reference import definition, definition_cache, pending_definition
from pp_export.reference.definition_cache import CachePlace
from pp_export.reference.pending_definition import PendingDefinition

CONFIG: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope": float("inf")}
SAYS = {"definition": {"tensors": {"a": [2, 3]}, "config": {"b": 1.5, "c": float("inf")}}, "missing": []}
Child = Callable[[str], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the answers, not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "pp_export" / "definitions"


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """Lets a script stand in for the child, and counts in a file how often it was started."""

    def install(script: str) -> Path:
        python, started = tmp_path / "python", tmp_path / "started"
        python.write_text(f"#!/bin/sh\necho x >> '{started}'\n{script}\n")
        python.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(python))
        started.write_text("")
        return started

    return install


@pytest.fixture
def answering(child: Child) -> Path:
    return child(f"cat <<'END'\n{json.dumps(SAYS)}\nEND")


def ask(config: Any = CONFIG, *, use_cache: bool = True) -> Any:
    with PendingDefinition.start(config, cache=use_cache) as pending:
        return pending.answer()


def num_started(started: Path) -> int:
    return len(started.read_text().split())


def test_an_answer_is_asked_for_once(answering: Path) -> None:
    """The second time it comes from the cache, the same and marked as such, and no child is started."""
    first, second = ask(), ask()
    assert first.definition == second.definition
    assert first.definition.tensors == {"a": (2, 3)}
    assert first.definition.config == {"b": 1.5, "c": float("inf")}
    assert (first.is_cached, second.is_cached) == (False, True)
    assert num_started(answering) == 1


def test_a_class_that_the_library_lacks_is_remembered_too(child: Child) -> None:
    """That there is no definition is an answer."""
    started = child("""echo '{"definition": null, "missing": []}'""")
    assert [ask().definition for _ in range(2)] == [None, None]
    assert num_started(started) == 1


def test_without_cache_nothing_is_read_or_kept(answering: Path, cache: Path) -> None:
    """`cache=False` asks every time, and makes no folder."""
    ask(use_cache=False)
    assert not cache.exists()
    ask()
    assert not ask(use_cache=False).is_cached
    assert num_started(answering) == 3


def test_another_question_is_another_answer(answering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another config.json, another version of a library or of pp_export, and code that was touched where it
    lies are all asked about anew.
    """
    ask()
    ask(CONFIG | {"hidden_size": 2})
    with monkeypatch.context() as patch:
        patch.setattr(definition_cache, "VERSION", "another")
        ask()
    with monkeypatch.context() as patch:
        installed = metadata.Distribution
        patch.setattr(installed, "version", property(lambda _: "another"))
        ask()
    with monkeypatch.context() as patch:
        times = definition_cache._times
        patch.setattr(definition_cache, "_times", lambda files: times(files)[::-1])
        ask()
    assert num_started(answering) == 5
    assert ask().is_cached


def test_the_times_of_the_models_own_modules_count(tmp_path: Path) -> None:
    """A file of the model's folder in the library that is written anew gives another key."""
    folder = tmp_path / "transformers" / "models" / "qwen2_moe"
    folder.mkdir(parents=True)
    for file in (folder / "modeling.py", tmp_path / "transformers" / "core.py"):
        file.write_text("x")
    package = tmp_path / "transformers"

    def digest(model_type: object) -> str:
        files = list(definition_cache._files(package, {"model_type": model_type}))
        return definition_cache._times(files)

    before = digest("qwen2-moe")
    os.utime(folder / "modeling.py", (1, 1))
    assert digest("qwen2-moe") != before
    assert digest("other") == digest(None) == digest("../../x") != before


def test_code_that_may_change_unseen_is_asked_every_time(
    answering: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of an editable install are not kept."""
    monkeypatch.setattr(metadata.PathDistribution, "read_text", lambda *_: '{"dir_info": {"editable": true}}')
    assert [ask().is_cached for _ in range(2)] == [False, False]
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "not JSON", "others may write"])
def test_what_is_not_whole_and_our_own_is_asked_again(answering: Path, cache: Path, damage: str) -> None:
    """An entry that is cut, that has a flipped bit, that belongs to another question, that holds no JSON, or
    that other users could have written, is none; asking again heals it.
    """
    ask()
    (file,) = cache.iterdir()
    data = file.read_bytes()
    place = CachePlace.of(CONFIG)
    assert place is not None
    if damage == "cut":
        file.write_bytes(data[:-3])
    elif damage == "flipped":
        file.write_bytes(data.replace(b'"a"', b'"c"'))
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "foreign":
        place.cache.keep(file.name, json.dumps({"asked": "else", "definition": None}).encode())
    elif damage == "not JSON":
        place.cache.keep(file.name, b'{"asked": NaN}')
    else:
        file.chmod(0o666)
    healed = ask()
    assert not healed.is_cached
    assert healed.definition.tensors == {"a": (2, 3)}
    assert ask().is_cached
    assert num_started(answering) == 2


def test_a_missing_library_needs_no_child(child: Child, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers or accelerate isn't installed, the answer is there at once, and is not kept."""
    started = child("exit 1")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert definition.missing_libraries() == ["accelerate"]
    with PendingDefinition.start(CONFIG) as pending:
        assert pending.is_here
        assert pending.result() is None
    assert num_started(started) == 0
    assert not cache.exists()


def test_what_a_child_without_the_library_says_is_not_kept(child: Child) -> None:
    """A child that sees fewer libraries than this process answers for itself only."""
    started = child("""echo '{"definition": null, "missing": ["accelerate"]}'""")
    assert [ask().is_cached for _ in range(2)] == [False, False]
    assert num_started(started) == 2


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("printf 'a warning\\nValueError: too wide\\n\\n' >&2\nexit 3", "ValueError: too wide"),
        ("exit 3", "nothing on stderr"),
        ("kill -9 $$", "ended by signal 9: nothing on stderr"),
        ("echo hello", "an answer that can't be understood"),
        ("true", "an answer that can't be understood"),
        (
            """echo '{"definition": {"tensors": {"a": [-1]}, "config": {}}, "missing": 0}'""",
            "without a shape",
        ),
        ("""echo '{"definition": {"tensors": []}, "missing": []}'""", "no tensors and config"),
        ("""echo '{"definition": null}'""", "an answer that can't be understood"),
    ],
)
def test_a_child_that_fails_is_an_error_and_no_answer(
    child: Child, cache: Path, script: str, told: str
) -> None:
    """However the child fails, the error has the class's name and what it said last; nothing is kept."""
    child(script)
    with pytest.raises(ReferenceFolderError) as refused:
        ask()
    assert refused.value.where["class"] == "Qwen2ForCausalLM"
    assert told in (refused.value.got or "")
    assert not cache.exists()


def test_a_child_that_cannot_be_started_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, no answer, and no error of another kind."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ReferenceFolderError) as refused:
        PendingDefinition.start(CONFIG)
    assert "no process could be started" in (refused.value.got or "")


def test_a_child_that_hangs_is_ended_in_time(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time runs from its start, whoever asks how often; then it is killed and the error says so."""
    child("exec sleep 60")
    monkeypatch.setattr(pending_definition, "PATIENCE_SECONDS", 0.3)
    with PendingDefinition.start(CONFIG) as late:
        assert not late.is_here
        time.sleep(0.4)
        assert late.is_here
        with pytest.raises(ReferenceFolderError) as refused:
            late.answer()
    assert refused.value.got == "no answer in 0.3 seconds"
    assert late._child is not None
    assert late._child._process.returncode == -signal.SIGKILL


def test_close_ends_the_child(child: Child) -> None:
    """A child that still works is ended, and closing twice is fine."""
    child("exec sleep 60")
    pending = PendingDefinition.start(CONFIG)
    pending.close()
    pending.close()
    assert pending._child is not None
    assert pending._child._process.returncode == -signal.SIGKILL
