"""Claims about the structure of `pp_export`: imports go downward only, and each wall has one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pp_export

PACKAGE = Path(pp_export.__file__).parent
MAX_LINES = 400

# From the ground up. A room is a module, or a folder of modules that belong together.
FLOORS: tuple[tuple[str, set[str]], ...] = (
    (
        "words",
        {"arena", "child", "config", "digest", "dtypes", "errors", "interrupt", "log", "tensors", "topology"},
    ),
    (
        "knowledge",
        {
            "accounting",
            "architectures",
            "config_json",
            "expected",
            "freeze",
            "layout",
            "manifest",
            "dealers",
            "dealing",
            "plan",
            "rules",
            "sizes",
            "stages",
            "transformer_config",
            "transforms",
        },
    ),
    ("files", {"files", "publish"}),
    ("hands", {"assets", "checkpoint", "diff", "merge", "verify", "world", "write"}),
    ("story", {"export", "origin", "prepare", "report", "stream"}),
    ("door", {"", "__main__", "api", "background", "cli", "integrations", "show"}),
)
SHARED_ROOMS = {"watch": "world", "collectives": "world"}
FLOOR_OF = {room: number for number, (_, rooms) in enumerate(FLOORS) for room in rooms}
NAMES = {name: number for number, (name, _) in enumerate(FLOORS)}


def module_name(path: Path) -> str:
    """Name below the package, for example `checkpoint.record`; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    top = module.partition(".")[0]
    return SHARED_ROOMS.get(top, top)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imported(module: str) -> tuple[tuple[str, bool], ...]:
    """Full names of what a module imports, anywhere in it, and whether only for the type checker."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in typing_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            found += [(f"{node.module}.{alias.name}", id(node) in typing_only) for alias in node.names]
    return tuple(found)


def own_imports(module: str, *, with_typing: bool = False) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for name, typing_only in imported(module):
        parts = name.split(".")
        if parts[0] != "pp_export" or (typing_only and not with_typing):
            continue
        inner = ".".join(parts[1:])
        found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


def importers_of(library: str) -> set[str]:
    """The modules that import `library` or something below it."""
    return {
        module
        for module in MODULES
        if any(name == library or name.startswith(f"{library}.") for name, _ in imported(module))
    }


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a module, by the text of what is called."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def is_torch_distributed(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute) and node.attr == "distributed" and ast.unparse(node.value) == "torch"
    )


def test_every_module_has_a_floor() -> None:
    """Each module of the package stands on one floor, and no floor names a room that is gone."""
    rooms = {room_of(module) for module in MODULES}
    assert rooms - FLOOR_OF.keys() == set(), "new modules: say on which floor they stand"
    assert FLOOR_OF.keys() - rooms == set(), "these rooms are gone"
    assert sum(len(names) for _, names in FLOORS) == len(FLOOR_OF)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downward_only(module: str) -> None:
    """A module imports from floors below its own, or from its own floor; types may be named from above by
    show.
    """
    own = FLOOR_OF[room_of(module)]
    for other in own_imports(module, with_typing=True):
        assert FLOOR_OF[room_of(other)] <= own, f"{module} imports {other} from a floor above"


@pytest.mark.parametrize("module", [m for m in MODULES if FLOOR_OF[room_of(m)] == NAMES["hands"]])
def test_hands_do_not_import_each_other(module: str) -> None:
    """A hand knows words, knowledge and files, and no other hand."""
    for other in own_imports(module, with_typing=True):
        if FLOOR_OF[room_of(other)] == NAMES["hands"]:
            assert room_of(other) == room_of(module), f"{module} imports the hand {other}"


def test_imports_have_no_circles() -> None:
    """No module imports itself by way of others, on its own floor either."""
    graph = {module: own_imports(module) - {"", module} for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES) - 1


def test_the_verifier_is_a_stranger() -> None:
    """Verification shares no knowledge, no writer and no file access with what it checks: words only."""
    for module in MODULES:
        if room_of(module) == "verify":
            others = {other for other in own_imports(module, with_typing=True) if room_of(other) != "verify"}
            assert {FLOOR_OF[room_of(other)] for other in others} <= {NAMES["words"]}, module


def test_doors_are_used_by_those_who_own_them() -> None:
    """One module talks to torch.distributed, one unpickles, one maps memory, and nobody imports Megatron."""
    assert importers_of("torch.distributed") == {"collectives"}
    reached = {m for m in MODULES for node in ast.walk(tree_of(m)) if is_torch_distributed(node)}
    assert reached == set()
    assert importers_of("pickle") == {"checkpoint.unpickle"}
    assert importers_of("mmap") <= {"arena", "checkpoint.reader"}
    assert importers_of("megatron") == set()
    for library in (
        "cloudpickle",
        "dill",
        "joblib",
        "marshal",
        "shelve",
        "requests",
        "urllib.request",
        "socket",
    ):
        assert importers_of(library) == set(), library
    assert importers_of("transformers") | importers_of("accelerate") <= {"expected", "verify.loading"}


def test_words_and_knowledge_touch_neither_disk_nor_network() -> None:
    """The lower floors open no file for writing and no socket; tables and an answer of transformers are
    read.
    """
    for module in MODULES:
        if FLOOR_OF[room_of(module)] > NAMES["knowledge"]:
            continue
        for name, _ in calls(module):
            last = name.rpartition(".")[2]
            assert last not in ("write_text", "write_bytes", "mkdir", "unlink", "rename", "rmtree"), (
                f"{module}: {name}"
            )
            if last in ("open", "read_text", "read_bytes"):
                assert module in ("rules", "config"), f"{module}: {name}"


def test_all_writing_goes_through_one_door() -> None:
    """No module but `files` and its `publish` makes, renames or removes a file or a folder."""
    names = {
        *("write_text", "write_bytes", "mkdir", "makedirs", "unlink", "rename", "renames", "replace_file"),
        *("rmtree", "symlink_to", "hardlink_to", "touch", "copyfile", "copytree", "move"),
    }
    for module in MODULES:
        found = {name for name, _ in calls(module) if name.rpartition(".")[2] in names}
        assert module in ("files", "publish") or not found, f"{module}: {found}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_runs_or_prints(module: str) -> None:
    """No module prints, evaluates text, or lets torch or pickle run what a file says."""
    for name, call in calls(module):
        assert name not in ("print", "eval", "exec", "compile", "__import__", "os.system"), (
            f"{module}: {name}"
        )
        assert name not in ("pickle.load", "pickle.loads", "torch.load", "yaml.load", "yaml.unsafe_load"), (
            module
        )
        for keyword in call.keywords:
            if keyword.arg == "weights_only":
                assert ast.unparse(keyword.value) == "True", module
            if keyword.arg in ("trust_remote_code", "shell"):
                assert ast.unparse(keyword.value) == "False", f"{module}: {name}"
    if module != "checkpoint.unpickle":
        assert "Unpickler" not in {
            node.attr for node in ast.walk(tree_of(module)) if isinstance(node, ast.Attribute)
        }


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_long(module: str) -> None:
    """Every file can be read in one sitting."""
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES
