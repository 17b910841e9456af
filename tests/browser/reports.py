"""Real reports of a small model, each with its page."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import pp_export
from bench.gpu.model import SIZES, write_checkpoint
from pp_export.comparing import diff
from pp_export.core import file_names
from tests.fixtures.damage import flip, in_tensor
from tests.fixtures.processes import run_python, torchrun

LAYERS = 12
MARKUP = "a <img src=x onerror=alert(1)> &amp; <b>"
NASTY_TENSOR = "</script><script>document.title='ran'</script>&lt;"
NOTE = "<i>note</i> &amp;.txt".replace("/", "\u2215")


@dataclass(frozen=True)
class Reports:
    """A folder that holds a page for each kind of report."""

    root: Path

    def page(self, name: str) -> Path:
        return self.root / f"{name}.html"


def make_reports(root: Path) -> Reports:
    """A checkpoint that four ranks export, and what every other command says of it, of the export, and of
    copies that are broken or differ.
    """
    made = Reports(root)
    sizes = replace(SIZES["small"], layers=LAYERS)
    checkpoint, reference, output = root / "checkpoints" / "run", root / "reference", root / "exports" / "run"
    for iteration in (10, 20):
        write_checkpoint(checkpoint / f"iter_{iteration:07d}", sizes)
    (checkpoint / "latest_checkpointed_iteration.txt").write_text("10")
    reference.mkdir()
    (reference / file_names.CONFIG).write_text(json.dumps(sizes.config_json()))
    output.parent.mkdir()
    grid: Any = {"world_size": 8, "pipeline_parallel": 2, "leaders_per_stage": "1"}
    pp_export.plan(checkpoint, reference=reference, html=made.page("plan"), **grid)
    given = [f"--checkpoint={checkpoint}", f"--reference={reference}"]
    one = [f"--output={output}", "--pipeline-parallel=2", "--leaders-per-stage=1"]
    one += [f"--html={made.page('export')}", f"--report={root / 'export.json'}"]
    run_python(torchrun(4, "-m", "pp_export", "export", *given, *one), root / "said").checked()
    several = [
        f"--output={output.parent}/step-{{iteration}}",
        "--iteration=all",
        f"--html={made.page('many')}",
    ]
    run_python(["-m", "pp_export", "export", *given, *several], root / "said").checked()

    pp_export.inspect(checkpoint, html=made.page("inspect_metadata"))
    pp_export.inspect(checkpoint, deep=True, html=made.page("inspect"))
    assert pp_export.verify(output, html=made.page("verify_ok")).ok
    assert not pp_export.verify(_broken(output, root / "exports" / "broken"), html=made.page("verify")).ok
    assert not diff(output, _other(output, root / "exports" / "other"), html=made.page("diff")).ok
    nasty = [_nasty(root / f"{MARKUP} {side}", side) for side in (1, 2)]
    assert not diff(*nasty, html=made.page("diff_nasty")).ok
    assert not pp_export.verify(nasty[0], html=made.page("verify_nasty")).ok
    return made


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _broken(folder: Path, copy: Path) -> Path:
    """A copy with a bit flipped in one file and in every tensor of another, a third gone, and a file more."""
    shutil.copytree(folder, copy)
    files = _weights(copy)
    flip(files[1].name, lambda _: -1)(copy)
    for name in load_file(files[3]):
        flip(files[3].name, in_tensor(name))(copy)
    files[6].unlink()
    (copy / NOTE).write_text("nobody knows me")
    return copy


def _other(folder: Path, copy: Path) -> Path:
    """A copy in which errors grow over the layers, the norms stay, and some of the rest is another's."""
    shutil.copytree(folder, copy)
    generator = torch.Generator().manual_seed(1)
    for file in _weights(copy):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            layer = int(name.split(".")[2]) if ".layers." in name else None
            if layer is None or layer < 2 or "norm" in name:
                continue
            kind = 1.0 if "mlp" in name else 0.05
            noise = torch.randn(tensor.shape, generator=generator) * kind * 10 ** (layer / 4 - 4)
            tensors[name] = (tensor.float() * (1 + noise)).to(tensor.dtype)
        if "lm_head.weight" in tensors:
            tensors["lm_head.weight"] = tensors["lm_head.weight"].float()
            tensors["model.extra.weight"] = torch.randn(4, generator=generator)
        save_file(tensors, file, metadata={"format": "pt"})
    weight_map = {name: file.name for file in _weights(copy) for name in load_file(file)}
    (copy / file_names.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = json.loads((copy / file_names.CONFIG).read_text())
    (copy / file_names.CONFIG).write_text(json.dumps({**config, "rms_norm_eps": 1e-6}))
    return copy


def _nasty(folder: Path, seed: int) -> Path:
    """A folder with markup in its name, and in those of a file and of its tensors."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    names = [NASTY_TENSOR, *(f"model.layers.{n}.mlp.<b>{n}&amp;</b>.weight" for n in range(12))]
    save_file({name: torch.randn(8, generator=generator) for name in names}, folder / "model.safetensors")
    (folder / file_names.CONFIG).write_text(json.dumps({"architectures": ["<u>Qwen2</u>"]}))
    index = {"metadata": {}, "weight_map": {"<s>gone</s>": "model.safetensors"}}
    (folder / file_names.INDEX).write_text(json.dumps(index))
    return folder
