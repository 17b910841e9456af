"""StoredItem how training frameworks call an exporter to Hugging Face, from their published archives.

    python tests/golden_calls/record.py ARCHIVE [ARCHIVE ...]

Each ARCHIVE is a wheel, a zip or a tar of a source tree, named as a package index names it. Nothing in it is
imported or run: every Python file is parsed, and the calls and definitions of the functions in `FUNCTIONS`
are written next to this script as `calls.json` and `signatures.json`.

What no archive holds stands in `read.json`, copied by hand from the frameworks' public sources: the text of
each call and of each definition's first line (annotations left out), its version the commit it was read at
("unknown" where only an excerpt was found) and its line null. Its records join those of the archives.
"""

import ast
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

FUNCTIONS = frozenset(
    {
        "convert_to_hf",
        "export_hf_weights",
        "from_hf_pretrained",
        "save_artifacts",
        "save_hf_adapter",
        "save_hf_model",
        "save_hf_model_to_path",
        "save_hf_pretrained",
        "save_hf_weights",
        "save_weights",
    }
)
LEFT_OUT = "/recipes/"  # Megatron-Bridge's: a hundred calls of `from_hf_pretrained`, none around a save
Function = ast.FunctionDef | ast.AsyncFunctionDef
StoredItem = dict[str, Any]


def python_files(archive: Path) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every Python file of a wheel, a zip or a tar."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for name in sorted(opened.namelist()):
                if name.endswith(".py"):
                    yield name, opened.read(name).decode("utf-8", errors="replace")
        return
    with tarfile.open(archive) as opened:
        for member in sorted(opened.getmembers(), key=lambda member: member.name):
            stream = opened.extractfile(member) if member.isfile() and member.name.endswith(".py") else None
            if stream is not None:
                # A source archive holds one folder, named for the release: a path starts within it.
                inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                yield str(inside), stream.read().decode("utf-8", errors="replace")


def identity(archive: Path) -> tuple[str, str]:
    """The framework and the version that an archive's file name states: `ms-swift` and `4.6.0`."""
    stem = re.sub(r"\.(whl|zip|tar|tar\.gz|tgz)$", "", archive.name)
    # A wheel's name goes on after the version, and has no hyphen before it.
    name, _, rest = stem.partition("-") if archive.name.endswith(".whl") else stem.rpartition("-")
    return re.sub(r"[-_.]+", "-", name).lower(), rest.split("-")[0]


def parameters(function: Function) -> list[StoredItem]:
    """A definition's parameters in order, with the kinds `inspect` names and defaults as source text."""
    arguments = function.args
    positional = [
        *((one, "POSITIONAL_ONLY") for one in arguments.posonlyargs),
        *((one, "POSITIONAL_OR_KEYWORD") for one in arguments.args),
    ]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += arguments.defaults
    found = [(one, kind, default) for (one, kind), default in zip(positional, defaults, strict=True)]
    if arguments.vararg is not None:
        found.append((arguments.vararg, "VAR_POSITIONAL", None))
    found += [
        (one, "KEYWORD_ONLY", default)
        for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg is not None:
        found.append((arguments.kwarg, "VAR_KEYWORD", None))
    return [
        {"name": one.arg, "kind": kind, "default": None if default is None else ast.unparse(default)}
        for one, kind, default in found
    ]


def called(node: ast.Call) -> str | None:
    """The last name of what a call calls: `save_weights` of `self.bridge.save_weights(...)`."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else None


class Reader(ast.NodeVisitor):
    """Collects the calls and the definitions of `FUNCTIONS` in one file."""

    def __init__(self, framework: str, version: str, file: str) -> None:
        """Start with nothing collected; the arguments say where the file is from."""
        self.place: StoredItem = {"framework": framework, "version": version, "file": file}
        self.calls: list[StoredItem] = []
        self.signatures: list[StoredItem] = []
        self._classes: list[str] = []
        self._functions: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Go into a class, whose functions are its own and not those of a function around it."""
        functions, self._functions = self._functions, []
        self._classes.append(node.name)
        self.generic_visit(node)
        self._classes.pop()
        self._functions = functions

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Collect a definition and go into it."""
        self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Collect a definition and go into it."""
        self._function(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Collect a call and go into its arguments."""
        if called(node) in FUNCTIONS:
            self.calls.append(self.place | call(node, self._functions[-1] if self._functions else "<module>"))
        self.generic_visit(node)

    def _function(self, node: Function) -> None:
        # A function inside a function is nobody's method: only calls are taken from there.
        if node.name in FUNCTIONS and not self._functions:
            self.signatures.append(self.place | signature(node, self._classes[-1] if self._classes else None))
        self._functions.append(node.name)
        self.generic_visit(node)
        self._functions.pop()


def call(node: ast.Call, context: str) -> StoredItem:
    """What is recorded of a call: a starred argument counts as one, a `**mapping` is the keyword "**"."""
    return {
        "line": node.lineno,
        "function": called(node),
        "positional": len(node.args),
        "keywords": [keyword.arg or "**" for keyword in node.keywords],
        "text": ast.unparse(node),
        "context": context,
    }


def signature(node: Function, owner: str | None) -> StoredItem:
    """What is recorded of a definition in the class `owner`, or in none."""
    return {"line": node.lineno, "class": owner, "function": node.name, "parameters": parameters(node)}


def read(archive: Path) -> tuple[list[StoredItem], list[StoredItem]]:
    """The calls and the signatures of one archive."""
    framework, version = identity(archive)
    calls: list[StoredItem] = []
    signatures: list[StoredItem] = []
    for file, text in python_files(archive):
        if LEFT_OUT in file or not any(function in text for function in FUNCTIONS):
            continue
        try:
            tree = ast.parse(text)
        except SyntaxError:  # a template of Python rather than Python
            continue
        reader = Reader(framework, version, file)
        reader.visit(tree)
        calls += reader.calls
        signatures += reader.signatures
    return calls, signatures


def read_by_hand(path: Path) -> tuple[list[StoredItem], list[StoredItem]]:
    """The calls and the signatures of `read.json`, as if they had been parsed where they were read."""
    held = json.loads(path.read_text(encoding="utf-8"))
    calls: list[StoredItem] = []
    for one in held["calls"]:
        node = ast.parse(one["text"], mode="eval").body
        assert isinstance(node, ast.Call), one["text"]
        calls.append(_place(one) | call(node, one["context"]) | {"line": None})
    signatures: list[StoredItem] = []
    for one in held["signatures"]:
        function = ast.parse(one["text"]).body[0]
        assert isinstance(function, ast.FunctionDef), one["text"]
        signatures.append(_place(one) | signature(function, one["class"]) | {"line": None})
    return calls, signatures


def _place(record: StoredItem) -> StoredItem:
    return {key: record[key] for key in ("framework", "version", "file")}


def write(path: Path, records: list[StoredItem]) -> None:
    """Write records, one a line, in an order that the archives' order does not change."""
    order = ("framework", "version", "file", "line", "function")
    records = sorted(records, key=lambda one: [one[key] or 0 if key == "line" else one[key] for key in order])
    path.write_text("[\n" + ",\n".join(json.dumps(one) for one in records) + "\n]\n", encoding="utf-8")


def main(archives: list[str]) -> int:
    """StoredItem the archives given on the command line, and what was read by hand."""
    if not archives:
        sys.stderr.write(__doc__ or "")
        return 2
    folder = Path(__file__).resolve().parent
    calls, signatures = read_by_hand(folder / "read.json")
    for archive in archives:
        more_calls, more_signatures = read(Path(archive))
        calls += more_calls
        signatures += more_signatures
    write(folder / "calls.json", calls)
    write(folder / "signatures.json", signatures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
