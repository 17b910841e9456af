"""A script that lies with what ranks have saved and consolidates it, later and elsewhere: training saves
fast, and a CPU node does the rest.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from pp_export.checkpoint.hf_shards.source import num_ranks
from pp_export.core.errors import OptionError
from pp_export.core.version import VERSION
from pp_export.disk import files, folders
from pp_export.disk.calls import is_folder

NAME = "consolidate.sh"

_SCRIPT = """\
#!/usr/bin/env bash
# Makes a Hugging Face folder of what the ranks of a training job have saved here: ./consolidate.sh [FLAG...]
# Needs no GPU. Written by pp_export {version}. It may move with its folder. From the environment it takes:
#   OUTPUT     the folder to make (default: this folder's name with -hf, beside it)
#   REFERENCE  the model's Hugging Face folder (config.json, tokenizer)
#   DTYPE      float32, bfloat16, float16, or checkpoint: as it was saved
#   PROCESSES  processes on this machine (default: one, which uses all cores), THREADS of each
#   PYTHON     a Python that has pp_export
set -euo pipefail
here=$(cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")" && pwd)
PYTHON=${{PYTHON:-python3}}
PROCESSES=${{PROCESSES:-1}}
REFERENCE=${{REFERENCE:-{reference}}}
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=

flags=(--input "$here" --output "${{OUTPUT:-$here-hf}}" --dtype "${{DTYPE:-checkpoint}}" --resume{ranks})
if [ -n "$REFERENCE" ]; then flags+=(--reference "$REFERENCE"); fi
if [ -n "${{THREADS:-}}" ]; then flags+=(--threads "$THREADS"); fi
launch=()
if [ "$PROCESSES" -gt 1 ]; then
  launch=(-m torch.distributed.run --standalone --nproc-per-node "$PROCESSES")
fi
cd -- "$here"
exec $PYTHON "${{launch[@]}}" -m pp_export consolidate "${{flags[@]}}" "$@"
"""


def write_script(folder: Path, reference: Path | None = None, ranks: int | None = None) -> Path:
    """Write it into `folder`, or replace an older one; where it lies. `ranks` are those that have written the
    folder, or (None) what the names of its files tell now.
    """
    if not is_folder(folder):
        raise OptionError("there is no folder to put the script into", where={"folder": folder})
    found = num_ranks(folder) if ranks is None else ranks
    text = _SCRIPT.format(
        version=VERSION,
        reference="" if reference is None else _default(reference.absolute()),
        ranks="" if found is None else f" --input-ranks {found}",
    )
    path = folder / NAME
    files.write_file(path, [text.encode()], files.SCRIPT_MODE)
    folders.sync_folder(folder)
    return path


def _default(path: Path) -> str:
    """A path as the default of a variable of the shell, which may hold anything but a brace."""
    if set(str(path)) & set("{}\n\0"):
        raise OptionError("the path has characters that a script can't hold", where={"--reference": path})
    return shlex.quote(str(path))
