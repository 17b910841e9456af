"""Claims about the structure of `pp_export`: imports go downward only, and each wall has one door."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pp_export

PACKAGE = Path(pp_export.__file__).parent
MAX_LINES = 400
MAX_SHARE = 0.2
MAX_LEVELS = 9

# Rooms from the ground up; a room is a folder, or a module that lies flat. Imports go downward only.
FLOORS: tuple[set[str], ...] = (
    {"core"},
    {
        "process",
        "disk",
        "distributed",
        "torch_file",
        "megatron",
        "architecture",
        "verification",
        "schemas",
        "options",
    },
    {"reference", "checkpoint", "planning"},
    {"shards"},
    {"steps"},
    {"export", "difference", "view", "background"},
    {"api", "comparing", "many", "flags", "shipped", "aids"},
    {"cli", "consolidation", "integrations", ""},
    {"__main__"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS = sorted(room for room in FLOOR_OF if room and (PACKAGE / room / "__init__.py").is_file())


def module_name(path: Path) -> str:
    """Name below the package, for example `checkpoint.record`; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.partition(".")[0]


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


def rooms_below(room: str) -> set[str]:
    """The other rooms that a room imports."""
    imported_by = {other for module in MODULES if room_of(module) == room for other in own_imports(module)}
    return {room_of(other) for other in imported_by} - {room}


def levels(room: str) -> int:
    """How many rooms stand on each other, `room` on top."""
    return 1 + max((levels(other) for other in rooms_below(room)), default=0)


def test_every_room_has_a_floor() -> None:
    """Each room of the package stands on one floor, and no floor names a room that is gone."""
    rooms = {room_of(module) for module in MODULES}
    assert rooms - FLOOR_OF.keys() == set(), "new rooms: say on which floor they stand"
    assert FLOOR_OF.keys() - rooms == set(), "these rooms are gone"
    assert sum(map(len, FLOORS)) == len(FLOOR_OF)


def test_imports_between_rooms_go_downward_only() -> None:
    """A room imports from floors below its own only; on one floor, rooms don't know each other."""
    upward = {
        f"{room} imports {other}"
        for room in FLOOR_OF
        for other in rooms_below(room)
        if FLOOR_OF[other] >= FLOOR_OF[room]
    }
    assert upward == set()


def test_imports_have_no_circles() -> None:
    """No module imports itself by way of others, inside its room either, not even for the type checker."""
    graph = {module: own_imports(module, with_typing=True) - {"", module} for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES) - 1


def test_the_house_can_be_seen_at_a_glance() -> None:
    """Few rooms stand on each other, and none holds more than a fifth of the code."""
    assert levels("__main__") <= MAX_LEVELS
    lines = Counter(dict.fromkeys(FLOOR_OF, 0))
    for module, path in MODULES.items():
        lines[room_of(module)] += len(path.read_text(encoding="utf-8").splitlines())
    assert max(lines.values()) <= MAX_SHARE * sum(lines.values()), lines.most_common(3)


def test_every_room_says_what_it_is_for() -> None:
    """A folder's `__init__` tells in some lines its purpose, its words and who may import it."""
    for room in FOLDERS:
        text = ast.get_docstring(tree_of(room)) or ""
        assert len(text.split()) >= 30, room
        assert "mport" in text, f"{room} does not say who may import it"


def test_the_verifier_is_a_stranger() -> None:
    """Verification shares no knowledge, no writer and no file access with what it checks: `core` only."""
    assert rooms_below("verification") == {"core"}


def test_doors_are_used_by_those_who_own_them() -> None:
    """One room talks to torch.distributed, one module unpickles, few map memory, nobody imports Megatron."""
    assert {room_of(module) for module in importers_of("torch.distributed")} == {"distributed"}
    reached = {m for m in MODULES for node in ast.walk(tree_of(m)) if is_torch_distributed(node)}
    assert reached == set()
    assert importers_of("pickle") == {"torch_file.unpickler"}
    assert importers_of("mmap") <= {"process.ring_buffer", "checkpoint.file_reader", "verification.reading"}
    assert importers_of("megatron") == set()
    for library in (
        "cloudpickle",
        "dill",
        "joblib",
        "marshal",
        "shelve",
        "requests",
        "urllib.request",
    ):
        assert importers_of(library) == set(), library
    assert importers_of("socket") == {"distributed.address"}, "where a block's store listens"
    asked = importers_of("transformers") | importers_of("accelerate")
    assert asked <= {"reference.definition", "verification.loading"}


def test_knowledge_touches_neither_disk_nor_network() -> None:
    """What is planned and known opens no file; tables, cards, job files and schemas are read by the modules
    named here.
    """
    readers = {"architecture.families", "architecture.table_files", "options.values", "schemas"}
    for module in MODULES:
        if room_of(module) not in ("core", "options", "megatron", "architecture", "planning", "schemas"):
            continue
        for name, _ in calls(module):
            if name.rpartition(".")[2] in ("open", "read_text", "read_bytes"):
                assert module in readers, f"{module}: {name}"


def test_all_writing_goes_through_one_door() -> None:
    """No room but `disk` makes, renames or removes a file or a folder."""
    names = {
        *("write_text", "write_bytes", "mkdir", "makedirs", "unlink", "rename", "renames", "replace_file"),
        *("rmtree", "symlink_to", "hardlink_to", "touch", "copyfile", "copytree", "move"),
    }
    for module in MODULES:
        found = {name for name, _ in calls(module) if name.rpartition(".")[2] in names}
        assert room_of(module) == "disk" or not found, f"{module}: {found}"


def test_nothing_runs_or_prints() -> None:
    """No module prints, evaluates text, or lets torch or pickle run what a file says."""
    never = {
        *("print", "eval", "exec", "compile", "__import__", "os.system"),
        *("pickle.load", "pickle.loads", "torch.load", "yaml.load", "yaml.unsafe_load"),
    }
    safe = {"weights_only": "True", "trust_remote_code": "False", "shell": "False"}
    for module in MODULES:
        for name, call in calls(module):
            assert name not in never, f"{module}: {name}"
            for keyword in call.keywords:
                if keyword.arg in safe:
                    assert ast.unparse(keyword.value) == safe[keyword.arg], f"{module}: {name}"
        attributes = {node.attr for node in ast.walk(tree_of(module)) if isinstance(node, ast.Attribute)}
        assert "Unpickler" not in attributes or module == "torch_file.unpickler", module


def test_no_file_is_long() -> None:
    """Every file can be read in one sitting."""
    long = {m for m, path in MODULES.items() if len(path.read_text("utf-8").splitlines()) > MAX_LINES}
    assert long == set()
