"""`python -m bench.consolidate`, from the repository's root: what ranks have saved as safetensors becomes one
folder, by pp_export, by torch's own consolidation, and by NeMo Automodel's if Python can import it.

All read the same input, written by torch's HuggingFaceStorageWriter with 4 ranks, and make the same files.
pp_export writes durably, re-reads every byte and proves the names; the others do none of it, so they are also
measured with `sync -f` behind them. A copy of the bytes that is synced and read back past the page cache is
the floor of what is verified. In every round each runs once; ratios are formed within a round.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import checkpoint, measure
from bench.measure import Run
from bench.variants import Variant, copies
from tests.fixtures.launch import ROOT

RANKS, WORLD_SIZES = 4, (1, 2)
INDEX = "model.safetensors.index.json"
HIDDEN, FFN, KV, VOCABULARY = 1536, 8960, 256, 151_936
"""Of Qwen2-1.5B; layers make up the size."""
_FILE_BYTES = 300 << 20
TOOLS = {
    "torch": ("torch's own", "torch.distributed.checkpoint._consolidate_hf_safetensors"),
    "automodel": (
        "NeMo Automodel's",
        "nemo_automodel.components.checkpoint._backports.consolidate_hf_safetensors",
    ),
}


def shapes(num_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a model in Qwen2-1.5B's shape, with so many layers and a tied head."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(num_layers):
        for name, rows in (("q", HIDDEN), ("k", KV), ("v", KV)):
            yield f"model.layers.{layer}.self_attn.{name}_proj.bias", (rows,)
            yield f"model.layers.{layer}.self_attn.{name}_proj.weight", (rows, HIDDEN)
        yield f"model.layers.{layer}.self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        for name in ("gate", "up"):
            yield f"model.layers.{layer}.mlp.{name}_proj.weight", (FFN, HIDDEN)
        yield f"model.layers.{layer}.mlp.down_proj.weight", (HIDDEN, FFN)
        for name in ("input", "post_attention"):
            yield f"model.layers.{layer}.{name}_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)


def num_bytes(shape: tuple[int, ...]) -> int:
    """Of a tensor in bfloat16."""
    size = 2
    for each in shape:
        size *= each
    return size


def layers_for(gigabytes: float) -> int:
    """As many layers as come nearest to the size."""
    without = sum(num_bytes(shape) for _, shape in shapes(0))
    of_layer = sum(num_bytes(shape) for _, shape in shapes(1)) - without
    return max(1, round((gigabytes * 1e9 - without) / of_layer))


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.consolidate", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--rounds", type=int, default=3, help="counted ones, after one that isn't")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--processes", type=int, nargs="+", default=WORLD_SIZES, choices=WORLD_SIZES)
    parser.add_argument("--cache", type=Path, default=checkpoint.default_cache())
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    layers = layers_for(options.gigabytes)
    source = options.cache.absolute() / f"ranks-{layers}-layers"
    _ensure(source, layers)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="runs-", dir=options.cache) as folder:
        variants = _variants(source, Path(folder).absolute(), options.processes)
        for number in range(options.rounds + 1):
            for variant in variants:
                measure.clean(variant)
                _warm(source)
                runs.append(measure.run(variant, number, Path(folder) / "log"))
                console.print(f"round {number}  {variant.name:20} {runs[-1].wall_seconds:7.2f} s")
                if variant.output is not None and (number or variant.name.startswith("cp-")):
                    measure.clean(variant)
            if number == 0:
                _compare(variants, console)
    counted = [run for run in runs if run.round]
    _show(counted, variants, sum(num_bytes(shape) for _, shape in shapes(layers)))
    if "automodel" not in {name.partition("-")[0] for name in (variant.name for variant in variants)}:
        console.print("NeMo Automodel is not installed here, and was not measured")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    return 0


def _ensure(source: Path, layers: int) -> None:
    """Write the input, if it is not there: what 4 ranks of FSDP hold, and config.json and index."""
    if source.exists():
        return
    source.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        new = Path(folder) / "new"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command += [str(RANKS), "-m", "bench.consolidate", "write", str(layers), str(new)]
        subprocess.run(command, cwd=ROOT, env=_environment(), check=True)
        new.rename(source)


def _write(layers: int, folder: Path) -> None:
    """One rank of the job that writes the input."""
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (RANKS,))
    generator = torch.Generator().manual_seed(0)
    files, file, filled, state = {}, 1, 0, {}
    for name, shape in shapes(layers):
        if filled and filled + num_bytes(shape) > _FILE_BYTES:
            file, filled = file + 1, 0
        files[name], filled = file, filled + num_bytes(shape)
        bits = torch.randint(-(1 << 13), 1 << 13, shape, generator=generator, dtype=torch.int16)
        state[name] = distribute_tensor(
            bits.view(torch.bfloat16), mesh, [Shard(0)], src_data_rank=None  # all ranks have the same
        )  # fmt: skip
    writer = HuggingFaceStorageWriter(str(folder / "ranks"), files, save_distributed=True)
    save(state, storage_writer=writer)
    if dist.get_rank() == 0:
        _write_reference(folder / "reference", layers, files)
    dist.barrier()
    dist.destroy_process_group()


def _write_reference(folder: Path, layers: int, files: dict[str, int]) -> None:
    folder.mkdir(parents=True)
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True,
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HIDDEN // 128,
        "num_key_value_heads": KV // 128, "num_hidden_layers": layers, "vocab_size": VOCABULARY,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    count = max(files.values())
    index = {name: f"model-{number:05d}-of-{count:05d}.safetensors" for name, number in files.items()}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _merge(tool: str, source: Path, output: Path) -> None:
    """One rank of another tool's merge."""
    import torch
    import torch.distributed as dist

    weight_map = json.loads((source / "reference" / INDEX).read_text())["weight_map"]
    files = {name: int(file.split("-")[1]) for name, file in weight_map.items()}
    size = int(os.environ.get("WORLD_SIZE", "1"))
    threads = max(1, len(os.sched_getaffinity(0)) // size)
    torch.set_num_threads(threads)
    if size > 1:
        dist.init_process_group("gloo")
    output.mkdir(exist_ok=True)
    module = importlib.import_module(TOOLS[tool][1])
    module.consolidate_safetensors_files_on_every_rank(str(source / "ranks"), str(output), files, threads)
    if size > 1:
        dist.destroy_process_group()


def _variants(source: Path, folder: Path, sizes: Sequence[int]) -> list[Variant]:
    """The tools, by so many processes each; all write below `folder`."""
    variants = list(copies("cp -r of the input", source / "ranks", folder / "cp"))
    for size in sizes:
        launcher = [sys.executable, "-m"]
        if size > 1:
            launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(size), "-m"]
        processes = f"{size} process" + "es" * (size > 1)
        for tool, (whose, _) in TOOLS.items():
            if importlib.util.find_spec(TOOLS[tool][1].partition(".")[0]) is None:
                continue
            output = folder / f"{tool}-{size}"
            command = [*launcher, "bench.consolidate", "merge", tool, str(source), str(output)]
            text = f"{whose}, {processes}; nothing verified"
            variants.append(Variant(output.name, text, tuple(command), output))
            synced = output.with_name(f"{output.name}-sync")
            line = " ".join([*command[:-1], str(synced)]) + f" && sync -f {synced}"
            variants.append(Variant(synced.name, "the same, then sync -f", ("sh", "-c", line), synced))
        output = folder / f"pp_export-{size}"
        flags = ["--input", source / "ranks", "--reference", source / "reference", "--output", output]
        for name, more, how in (
            ("", [], "verified"),
            ("-unverified", ["--no-verify"], "not verified"),
        ):
            to = output.with_name(output.name + name)
            report = folder / f"{to.name}.json"
            words = [*launcher, "pp_export", "consolidate", *map(str, [*flags[:-1], to]), *more]
            command = [*words, "--report", str(report)]
            variants.append(Variant(to.name, f"pp_export, {processes}, {how}", tuple(command), to, report))
    return variants


def _warm(source: Path) -> None:
    """Read every byte of the input, so that the page cache holds what it can of it."""
    buffer = bytearray(4 << 20)
    for path in sorted(source.rglob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _compare(variants: list[Variant], console: Console) -> None:
    """All must make the same tensors: a wrong merge that is fast says nothing."""
    first, *others = [str(each.output) for each in variants if not each.name.startswith("cp-")]
    for other in others:
        command = [sys.executable, "-m", "bench.same", first, other]
        done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True,
                              check=False)  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{first} and {other} differ:\n{done.stdout}{done.stderr}")
    console.print("all made the same tensors, bit for bit")
    for variant in variants:
        measure.clean(variant)


def _environment() -> dict[str, str]:
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    return os.environ | own | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


def _show(runs: list[Run], variants: list[Variant], size: int) -> None:
    of: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        of[run.variant].append(run)
    verified = {int(v.name[-1]): of[v.name] for v in variants if v.name[:-1] == "pp_export-"}
    table = Table(title=f"{size / 1e9:.2f} GB of {RANKS} ranks, whole processes")
    for column in ("", "median", "least to most", "CPU s", "peak", "/ pp_export, verified"):
        table.add_column(column, justify="right" if column else "left")
    for variant in variants:
        mine = of[variant.name]
        seconds = [run.wall_seconds for run in mine]
        processes = 2 if "-2" in variant.name else min(verified)
        ratios = [a.wall_seconds / b.wall_seconds for a, b in zip(mine, verified[processes])]
        table.add_row(
            variant.text,
            f"{statistics.median(seconds):.1f} s",
            f"{min(seconds):.1f} to {max(seconds):.1f}",
            f"{statistics.median(run.cpu_seconds for run in mine):.1f}",
            f"{max(run.peak_anonymous_bytes for run in mine) / 1e6:.0f} MB",
            f"{statistics.median(ratios):.2f}",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        _write(int(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1:2] == ["merge"]:
        _merge(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        raise SystemExit(main())
