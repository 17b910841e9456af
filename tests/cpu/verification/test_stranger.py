"""Claims about the room: it is a stranger to what it checks, needs no torch, and only reads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pp_export.verification import content, verify_folder

NEED_TORCH = ("diff.py", "recording.py", "comparison.py", "logits.py", "running.py")
PACKAGE = Path(content.__file__).parent


def test_stranger_imports_only_words() -> None:
    """Verification shares no code with planner and writer: of pp_export it imports words and itself only.

    No module needs torch or safetensors but those of `diff` and `compare-logits`, which a full
    verification does not import.
    """
    words = ("config_keys", "digest", "dtypes", "errors", "file_names", "strict_json", "token_ids")
    allowed = {f"pp_export.core.{word}" for word in (*words, "weight_index")}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [f"{module}.{alias.name}" for alias in node.names]
                modules += names if module == "pp_export.core" else [module]
            for module in modules:
                assert (
                    not module.startswith("pp_export")
                    or module in allowed
                    or module.startswith("pp_export.verification")
                ), f"{path.name}: {module}"
                assert module.split(".")[0] not in ("transformers", "accelerate", "megatron")
                needs_torch = path.name in NEED_TORCH
                assert needs_torch or module.split(".")[0] not in ("torch", "safetensors")


def test_stranger_needs_no_torch(sealed: Path) -> None:
    """A full verification imports neither torch nor safetensors nor transformers, so it starts at once."""
    code = (
        "import sys; from pathlib import Path; from pp_export.verification import verify_folder;"
        f"assert verify_folder(Path({str(sealed)!r})).ok;"
        "assert not {'torch', 'safetensors', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent.parent, timeout=60)


def test_stranger_only_reads(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification changes nothing in the folder, not even a time of modification."""
    before = {path: path.stat().st_mtime_ns for path in sealed.rglob("*")}
    verify_folder(sealed)
    assert before == {path: path.stat().st_mtime_ns for path in sealed.rglob("*")}
