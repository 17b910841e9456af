"""A reference folder is read as data: the right files are copied unchanged, and none of them is run."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pp_export.core import dtypes
from pp_export.core.errors import ReferenceFolderError
from pp_export.core.tensors import TensorSpec
from pp_export.reference import folder as reference_folder
from pp_export.reference.folder import Reference, copy_assets, read_reference, reference_specs

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 16}
AUTO_MAP = {"AutoConfig": "configuration_toy.ToyConfig", "AutoModelForCausalLM": "modeling_toy.Toy"}
INDEX = "model.safetensors.index.json"

COPIED = [
    *("LICENSE", "Qwen LICENSE AGREEMENT", "NOTICE.txt", "USE_POLICY.md", "license.txt"),
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "tekken.json",
        "spiece.model",
    ),
    *(
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "qwen.tiktoken",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    *("chat_template.jinja", "chat_template.json", "tool_use.jinja", "additional_chat_templates/rag.jinja"),
    *(
        "generation_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
    ),
]
LEFT = [
    *(
        "README.md",
        ".gitattributes",
        ".cache/x",
        "original/tokenizer.model",
        "model-00001-of-00002.safetensors",
    ),
    *(
        "pytorch_model.bin",
        "tokenizer.model.pkl",
        "vocab.bin",
        "tokenizer.pt",
        "tokenizer.index.json",
        "figure.png",
    ),
    *(
        "hf_quant_config.json",
        "quantize_config.json",
        "modeling_toy.py",
        "tokenizer.py",
        "tokenizer\n.json",
        "$(x).model",
    ),
    *(
        "additional_chat_templates/notes.txt",
        "additional_chat_templates/evil\n.jinja",
        "export_manifest.json",
        "SHA256SUMS",
    ),
]


def _write(folder: Path, files: dict[str, Any]) -> Path:
    """Write files; anything but text and bytes as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


@contextmanager
def _opened() -> Iterator[list[str]]:
    """The paths that Python opens in the meantime."""
    paths: list[str] = []
    active = [True]
    sys.addaudithook(lambda event, args: paths.append(str(args[0])) if active and event == "open" else None)
    yield paths
    active.clear()


def _refused(folder: Path, **options: bool) -> ReferenceFolderError:
    with pytest.raises(ReferenceFolderError) as refused:
        read_reference(folder, **options)
    return refused.value


def test_what_is_copied_and_what_is_left(tmp_path: Path) -> None:
    """Tokenizers, templates, processors and licences travel unchanged; all else stays, with a reason."""
    content = {name: f"content of {name}".encode() for name in COPIED + LEFT}
    content |= {name: b'{"a":  1.0}' for name in COPIED if name.endswith("config.json")}
    source = _write(tmp_path / "source", {"config.json": CONFIG} | content)
    reference = read_reference(source)
    assert sorted(reference.assets) == sorted(COPIED)
    assert len(reference.left) == len(LEFT)
    assert all(": " in reason and reason.isprintable() for reason in reference.left)
    assert reference.config == CONFIG
    assert (reference.weights, reference_specs(reference)) == (None, None)
    assert any("chat_template.jinja" in note and "never rendered" in note for note in reference.notes)

    staging = tmp_path / "staging"
    staging.mkdir()
    copy_assets(reference, staging)
    written = {path.relative_to(staging).as_posix(): path for path in staging.rglob("*") if not path.is_dir()}
    assert {name: path.read_bytes() for name, path in written.items()} == {
        name: content[name] for name in COPIED
    }
    assert not any(path.is_symlink() for path in written.values())


def test_missing_folder_and_missing_config(tmp_path: Path) -> None:
    """A folder that isn't there, or has no config.json, is an error that names it."""
    assert _refused(tmp_path / "nowhere").where == {"reference": str(tmp_path / "nowhere")}
    assert _refused(tmp_path).where == {"file": str(tmp_path / "config.json")}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[1]", "list"),
        ('{"a": 1, "a": 1}', "'a' twice"),
        ('{"x": {"a": 1, "b": 2, "a": 3}}', "'a' twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": ' + "9" * 5000 + "}", "integer"),
        ("[" * 100_000, ""),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "deep"),
        (b'{"a": "\xff"}', "utf-8"),
        ('{"a": "\\ud800"}', "surrogates"),
        ('\ufeff{"a": 1}', ""),
    ],
)
def test_strict_json(content: str | bytes, reason: str, tmp_path: Path) -> None:
    """Config files are JSON objects without repeated keys, NaN, bombs or text that can't be written again."""
    error = _refused(_write(tmp_path, {"config.json": content}))
    assert error.where == {"file": str(tmp_path / "config.json")}
    assert reason in (error.got or "")


def test_infinity_and_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinity is read, because published Mamba configs have it; a file above the limit is refused."""
    _write(tmp_path, {"config.json": '{"time_step_limit": [0.0, Infinity]}'})
    assert read_reference(tmp_path).config["time_step_limit"] == [0.0, float("inf")]
    monkeypatch.setattr(reference_folder, "MAX_JSON_BYTES", 20)
    assert "larger" in _refused(tmp_path).what


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.text('{}[]",:ae\\u01tN', max_size=25).map(str.encode)))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever config.json and the index contain, the answer is a reference or our own error."""
    with tempfile.TemporaryDirectory() as name:
        for file in ("config.json", INDEX):
            _write(Path(name), {"config.json": CONFIG} | {file: data})
            try:
                read_reference(Path(name))
            except ReferenceFolderError:
                continue


JSON_VALUES = st.recursive(
    st.none() | st.text("ab./-_\0 ", max_size=12) | st.sampled_from(["a.B", "o/r--a.B", "../a.B"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(JSON_VALUES, st.booleans())
def test_any_auto_map_is_read_or_refused(value: Any, code: bool) -> None:
    """No auto_map makes the reader fail but by our own error, and without code it is always gone."""
    with tempfile.TemporaryDirectory() as name:
        folder = _write(Path(name), {"config.json": CONFIG | {"auto_map": value}, "a.py": ""})
        try:
            reference = read_reference(folder, code=code)
        except ReferenceFolderError:
            assert code
        else:
            assert ("auto_map" in reference.config) is code


# Code: copied as data, completely or not at all.

MODELING = """
from .layers import Attention
try:
    from . import kernels
except ImportError:
    pass
import torch, os
open(os.environ["MARKER"], "w").close()
def late():
    from .late import x
"""


def _with_code(folder: Path) -> Path:
    return _write(
        folder,
        {
            "config.json": CONFIG
            | {"auto_map": AUTO_MAP, "llm_config": {"auto_map": {"AutoModel": "inner.Inner"}}},
            "tokenizer_config.json": {
                "auto_map": {"AutoTokenizer": ["tokenization_toy.Toy", None]},
                "z": "é",
                "a": 1,
            },
            "processor_config.json": {"auto_map": {"AutoProcessor": "other/repo--processing_toy.Toy"}},
            "modeling_toy.py": MODELING,
            "configuration_toy.py": "class ToyConfig: ...",
            **dict.fromkeys(("tokenization_toy.py", "layers.py", "kernels.py", "late.py", "inner.py"), ""),
        },
    )


def test_code_is_copied_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python files that auto_map needs are copied unchanged and reported; none is imported or run."""
    marker = tmp_path / "marker"
    monkeypatch.setenv("MARKER", str(marker))
    monkeypatch.chdir(_with_code(tmp_path / "source"))
    modules = set(sys.modules)
    reference = read_reference(tmp_path / "source")
    (tmp_path / "staging").mkdir()
    copy_assets(reference, tmp_path / "staging")
    scripts = {path.name for path in (tmp_path / "staging").glob("*.py")}
    assert scripts == {path.name for path in (tmp_path / "source").glob("*.py")}
    assert (tmp_path / "staging/modeling_toy.py").read_text() == MODELING
    tokenizer_config = "tokenizer_config.json"
    assert (tmp_path / "staging" / tokenizer_config).read_bytes() == Path(tokenizer_config).read_bytes()
    assert reference.config["auto_map"] == AUTO_MAP
    assert any("never run" in note for note in reference.notes)
    assert any("'other/repo--processing_toy.Toy'" in note for note in reference.notes)
    assert not marker.exists()
    assert not {module for module in set(sys.modules) - modules if "toy" in module or "layers" in module}


def test_every_missing_module_is_listed(tmp_path: Path) -> None:
    """All modules that auto_map names, or that those import relatively at any depth, must be there."""
    folder = _with_code(tmp_path)
    for name in ("configuration_toy.py", "tokenization_toy.py", "kernels.py", "inner.py"):
        (folder / name).unlink()
    _write(
        folder,
        {"layers.py": "from .sub.deep import x\nfrom ..outside import y", "late.py": "from .layers import z"},
    )
    assert sorted(_refused(folder).findings) == [
        "../outside.py is missing, named by layers.py",
        "configuration_toy.py is missing, named by auto_map of config.json",
        "inner.py is missing, named by auto_map of config.json",
        "kernels.py is missing, named by modeling_toy.py",
        "sub/deep.py is missing, named by layers.py",
        "tokenization_toy.py is missing, named by auto_map of tokenizer_config.json",
    ]


def test_code_left_out(tmp_path: Path) -> None:
    """Without code no Python file is copied, and every auto_map is gone from configs else the same."""
    reference = read_reference(_with_code(tmp_path / "source"), code=False)
    assert reference.config == CONFIG | {"llm_config": {}}
    staging = tmp_path / "staging"
    staging.mkdir()
    copy_assets(reference, staging)
    assert sorted(path.name for path in staging.iterdir()) == [
        "processor_config.json",
        "tokenizer_config.json",
    ]
    assert (staging / "tokenizer_config.json").read_text() == '{\n  "z": "é",\n  "a": 1\n}\n'
    changed = [note for note in reference.notes if "auto_map is removed" in note]
    assert [note.split(":")[0] for note in changed] == [
        "config.json",
        "processor_config.json",
        "tokenizer_config.json",
    ]
    assert "modeling_toy.py: code is left out" in reference.left


def test_code_without_auto_map_is_left(tmp_path: Path) -> None:
    """Python files that no config refers to are not copied."""
    reference = read_reference(
        _write(tmp_path, {"config.json": CONFIG, "convert.py": "", "tokenizer_config.json": {}})
    )
    assert reference.assets == ("tokenizer_config.json",)
    assert reference.left == ("convert.py: no auto_map refers to it",)


@pytest.mark.parametrize(
    "name", ["../evil.Toy", "/tmp/evil.Toy", "a.b.Toy", "evil", "..Toy", "a/b.Toy", "a\0.Toy", ""]
)
def test_auto_map_is_module_and_class(name: str, tmp_path: Path) -> None:
    """What isn't module.Class is refused, and no path is made of it."""
    _write(tmp_path, {"evil.py": "", "source/config.json": CONFIG | {"auto_map": {"AutoModel": name}}})
    with _opened() as opened:
        error = _refused(tmp_path / "source")
    assert error.findings == (f"config.json: auto_map names {name!r}, which isn't module.Class",)
    assert not [path for path in opened if "evil" in path]


@pytest.mark.parametrize(
    "script",
    ["def f(:", "x = 1\0", "(" * 5000, "-" * 100_000 + "1", "a" + ".b" * 50_000, "x = '\\d'", "\ud800"],
)
def test_code_that_cannot_be_parsed(script: str, tmp_path: Path) -> None:
    """Code in another Python, or made to overwhelm a parser, is copied and reported, not an error."""
    data = script.encode(errors="surrogatepass")
    folder = _write(tmp_path, {"config.json": CONFIG | {"auto_map": {"AutoModel": "a.Toy"}}, "a.py": data})
    reference = read_reference(folder)
    assert reference.assets == ("a.py",)
    assert any("can't be parsed" in note for note in reference.notes) or script == "x = '\\d'"


# Links: followed inside the folder and the Hub's cache only.


def _hub_cache(root: Path, files: dict[str, Any]) -> Path:
    """A snapshot as the Hub's cache has it: every file a link to a blob."""
    repository = root / "models--org--toy"
    snapshot = repository / "snapshots" / "0123abc"
    for number, (name, content) in enumerate(files.items()):
        _write(repository, {f"blobs/{number:040x}": content})
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(
            os.path.relpath(repository / f"blobs/{number:040x}", (snapshot / name).parent)
        )
    return snapshot


def test_hub_cache(tmp_path: Path) -> None:
    """A snapshot of the Hub's cache is a reference, also through a link to it; files are written."""
    files = {"config.json": CONFIG, "tokenizer.json": b"{ }", "additional_chat_templates/rag.jinja": b"{{x}}"}
    snapshot = _hub_cache(tmp_path / "cache", files)
    (tmp_path / "toy").symlink_to(snapshot)
    reference = read_reference(tmp_path / "toy")
    (tmp_path / "staging").mkdir()
    copy_assets(reference, tmp_path / "staging")
    copies = [tmp_path / "staging" / name for name in files if name != "config.json"]
    assert [copy.read_bytes() for copy in copies] == [b"{ }", b"{{x}}"]
    assert not any(copy.is_symlink() for copy in copies)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    """A link to a file elsewhere, to a missing one or to a device is refused unopened; all are listed."""
    outside = _write(tmp_path, {"outside.json": b"secret", "elsewhere/a.jinja": b"secret"})
    for folder in (
        _write(tmp_path / "plain", {"config.json": CONFIG}),
        _hub_cache(tmp_path, {"config.json": CONFIG}),
    ):
        (folder / "tokenizer.json").symlink_to(outside / "outside.json")
        (folder / "vocab.json").symlink_to("../../../outside.json")
        (folder / "merges.txt").symlink_to("/dev/zero")
        (folder / "added_tokens.json").symlink_to("nowhere.json")
        (folder / "inside.model").symlink_to("config.json")
        (folder / "README.md").symlink_to(outside / "outside.json")
        (folder / "loop.model").symlink_to("loop.model")
        os.mkfifo(folder / "pipe.model")
        with _opened() as opened:
            error = _refused(folder)
        assert sorted(finding.split(":")[0] for finding in error.findings) == sorted(
            ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "loop.model", "pipe.model"]
        )
        assert not [path for path in opened if "outside" in path or path.startswith("/dev/zero")]


@pytest.mark.parametrize("name", ["config.json", INDEX, "model.safetensors", "additional_chat_templates"])
def test_no_file_that_is_read_may_be_a_link_out(name: str, tmp_path: Path) -> None:
    """The files that are read for what they say, and the folder of templates, obey the same rule."""
    elsewhere = _write(
        tmp_path / "elsewhere", {"config.json": CONFIG, INDEX: {"weight_map": {}}, "t/a.jinja": ""}
    )
    save_file({"x": np.zeros(1)}, elsewhere / "model.safetensors")
    folder = _write(tmp_path / "source", {} if name == "config.json" else {"config.json": CONFIG})
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(elsewhere / ("t" if name == "additional_chat_templates" else name))
    assert _refused(folder).what == "a link leads out of the reference folder"


def test_a_link_planted_after_reading_is_not_followed(tmp_path: Path) -> None:
    """Files are checked again when they are copied."""
    source = _write(tmp_path / "source", {"config.json": CONFIG, "tokenizer.json": "{}"})
    reference = read_reference(source)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.json").symlink_to(_write(tmp_path, {"outside": "secret"}) / "outside")
    (tmp_path / "staging").mkdir()
    with pytest.raises(ReferenceFolderError, match="leads out"):
        copy_assets(reference, tmp_path / "staging")
    assert not list((tmp_path / "staging").iterdir())


def test_a_blobs_folder_elsewhere_is_no_cache(tmp_path: Path) -> None:
    """A `blobs` that is itself a link doesn't open the rest of the disk to a snapshot."""
    snapshot = _write(tmp_path / "repository/snapshots/0", {"config.json": CONFIG})
    _write(tmp_path, {"home/secret": "secret"})
    (tmp_path / "repository/blobs").symlink_to(tmp_path / "home")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/secret")
    assert len(_refused(snapshot).findings) == 1


# Weights: names, shapes and types of the reference's own, from an index that is not trusted.


def test_weights_of_an_index(tmp_path: Path) -> None:
    """The index gives names, the headers give shapes and types; without the files there are names only."""
    tensors: dict[str, Any] = {
        "a": np.zeros((2, 3), np.float16),
        "b": np.zeros((), np.float32),
        "c": np.zeros((0, 4), np.int64),
    }
    index = {
        "metadata": {},
        "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-2.safetensors"},
    }
    folder = _write(tmp_path, {"config.json": CONFIG, INDEX: index})
    save_file({"a": tensors["a"]}, folder / "x-1.safetensors")
    reference = read_reference(folder)
    assert reference.weights == index["weight_map"]
    assert reference_specs(reference) is None
    save_file({"b": tensors["b"], "c": tensors["c"]}, folder / "x-2.safetensors")
    assert reference_specs(reference) == {
        "a": TensorSpec((2, 3), dtypes.from_torch("float16")),
        "b": TensorSpec((), dtypes.from_torch("float32")),
        "c": TensorSpec((0, 4), dtypes.from_torch("int64")),
    }
    save_file({"b": tensors["b"]}, folder / "x-2.safetensors")
    with pytest.raises(ReferenceFolderError) as error:
        reference_specs(reference)
    assert error.value.findings == ("c: not in x-2.safetensors",)


def test_weights_of_a_single_file(tmp_path: Path) -> None:
    """A single model.safetensors gives names and specs; a damaged one is refused."""
    folder = _write(tmp_path, {"config.json": CONFIG})
    save_file({"a": np.zeros((2, 3), np.float32)}, folder / "model.safetensors")
    reference = read_reference(folder)
    assert reference.weights == {"a": "model.safetensors"}
    assert reference_specs(reference) == {"a": TensorSpec((2, 3), dtypes.from_torch("float32"))}
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "can't be read" in _refused(folder).what


def test_an_element_type_that_we_do_not_know(tmp_path: Path) -> None:
    """Names are known whatever the type; specs with a type that we can't write are refused by name."""
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\0"
    reference = read_reference(_write(tmp_path, {"config.json": CONFIG, "model.safetensors": data}))
    assert list(reference.weights or ()) == ["a"]
    with pytest.raises(ReferenceFolderError) as error:
        reference_specs(reference)
    assert error.value.findings == ("a: unknown type F4",)


@pytest.mark.parametrize(
    "shard",
    [
        *("../outside.safetensors", "/outside.safetensors", "ABSOLUTE", "sub/outside.safetensors", ""),
        *("..\\outside.safetensors", "a\0.safetensors", "outside.safetensors\n", "é.safetensors"),
        *(".hidden.safetensors", "outside.bin", "../../../../../../etc/passwd"),
        *(7, None, ["outside.safetensors"], {"outside.safetensors": 1}),
    ],
)
def test_a_shard_outside_the_folder_is_refused_unopened(
    shard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index entry that isn't a plain file name stops the reading; the file it means is never opened."""
    save_file({"a": np.zeros(1)}, tmp_path / "outside.safetensors")
    shard = str(tmp_path / "outside.safetensors") if shard == "ABSOLUTE" else shard
    index = {"weight_map": {"good": "model-1.safetensors", "a": shard}}
    folder = _write(tmp_path / "source", {"config.json": CONFIG, INDEX: index, "sub/x": ""})
    by_library: list[object] = []  # the library opens files without telling Python's audit hooks
    monkeypatch.setattr(reference_folder, "safe_open", lambda path, **_: by_library.append(path))
    with _opened() as opened:
        error = _refused(folder)
    assert error.findings == (f"'a': {shard!r}",)
    assert not by_library
    assert set(opened) == {str(folder / "config.json"), str(folder / INDEX)}


@pytest.mark.parametrize("index", [{}, {"weight_map": ["a"]}, {"weight_map": None}])
def test_an_index_without_weight_map(index: Any, tmp_path: Path) -> None:
    """An index that maps nothing is no index."""
    assert "no weight_map" in _refused(_write(tmp_path, {"config.json": CONFIG, INDEX: index})).what


def test_specs_look_only_inside_the_folder(tmp_path: Path) -> None:
    """Even a reference made by hand can't make the header reader leave the folder."""
    save_file({"a": np.zeros(1)}, tmp_path / "outside.safetensors")
    reference = Reference(_write(tmp_path / "source", {"x": ""}), {}, (), (), {"a": "../outside.safetensors"})
    with pytest.raises(ReferenceFolderError, match="leads out"):
        reference_specs(reference)
