"""The tools: what each is, what it takes, and the command that a user types."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from bench.comparison.inputs import MEGATRON, SAFETENSORS, VERL

OVERWRITE = "--overwrite"
_CONSOLIDATIONS = {
    "torch": "torch.distributed.checkpoint._consolidate_hf_safetensors",
    "automodel": "nemo_automodel.components.checkpoint._backports.consolidate_hf_safetensors",
}


@dataclass(frozen=True)
class Tool:
    """`command` has {source}, {reference} and {output}; `replaces` is what it needs to replace a folder;
    `weights_only`: config.json is left to who calls it.
    """

    name: str
    kind: str
    command: tuple[str, ...]
    replaces: tuple[str, ...] = ()
    weights_only: bool = False

    def filled(self, source: Path, reference: Path, output: Path) -> list[str]:
        """The command for these folders."""
        values = {"source": str(source), "reference": str(reference), "output": str(output)}
        return [part.format(**values) for part in self.command]


def known() -> tuple[list[Tool], list[str]]:
    """Those that can run here, and what to install for the others."""
    python, missing = (sys.executable, "-m"), []
    ours = ("pp_export", "--output", "{output}", "--reference", "{reference}")
    consolidate = (*python, ours[0], "consolidate", *ours[1:], "--input", "{source}")
    export = (*python, ours[0], "export", *ours[1:], "--checkpoint", "{source}")
    naive = (*python, "bench.naive", "{source}", "{reference}", "{output}")
    version = f"pp_export {_version('pp_export')}"
    tools = [
        Tool(f"{version} export", MEGATRON, export, (OVERWRITE,)),
        Tool(f"DCP load, rules, `save_file` (bench/naive.py, torch {_version('torch')})", MEGATRON, naive),
        Tool(f"{version} consolidate", SAFETENSORS, consolidate, (OVERWRITE,)),
        Tool(f"torch {_version('torch')}'s consolidation", SAFETENSORS, _merge("torch"), weights_only=True),
    ]
    if importlib.util.find_spec("nemo_automodel"):
        name = f"NeMo Automodel {_version('nemo-automodel')}'s consolidation"
        tools.append(Tool(name, SAFETENSORS, _merge("automodel"), weights_only=True))
    else:
        missing.append("NeMo Automodel: pip install --no-deps --target DIR nemo-automodel; PYTHONPATH=DIR")
    tools.append(Tool(f"{version} consolidate", VERL, consolidate, (OVERWRITE,)))
    if importlib.util.find_spec("verl"):
        merge = ("verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", "{source}")
        tools.append(
            Tool(f"verl {_version('verl')}'s merger", VERL, (*python, *merge, "--target_dir", "{output}"))
        )
    else:
        text = "verl: pip install --no-deps --target DIR -r tests/frameworks/requirements.txt; PYTHONPATH=DIR"
        missing.append(text)
    return tools, missing


def _merge(which: str) -> tuple[str, ...]:
    command = ("bench.comparison.tools", which, "{source}", "{reference}", "{output}")
    return (sys.executable, "-m", *command)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(of this clone)"


def consolidate(which: str, source: Path, reference: Path, output: Path) -> None:
    """What a script does that calls the library's own function: its files, by one process."""
    weight_map = json.loads((reference / "model.safetensors.index.json").read_text())["weight_map"]
    numbers = {file: number for number, file in enumerate(sorted(set(weight_map.values())), start=1)}
    output.mkdir(exist_ok=True)
    module = importlib.import_module(_CONSOLIDATIONS[which])
    files = {name: numbers[file] for name, file in weight_map.items()}
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    module.consolidate_safetensors_files_on_every_rank(str(source), str(output), files, threads)


if __name__ == "__main__":
    consolidate(sys.argv[1], *map(Path, sys.argv[2:5]))
