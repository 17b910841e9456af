"""Runs the model of a folder with transformers, on the CPU in float32, be it larger than memory."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pp_export.core.errors import VerificationError
from pp_export.verification.findings import brief
from pp_export.verification.loading import load_model, quiet_and_offline
from pp_export.verification.weights import tensors_of

if TYPE_CHECKING:
    import torch

_SHARE_OF_MEMORY = 0.5
"""Loading takes up to 1.7 times the size of what stays in memory: experts are packed, types are cast."""
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def run_folder(folder: Path, token_ids: torch.Tensor, max_memory: int | None) -> tuple[torch.Tensor, bool]:
    """The model's logits in float32, and whether weights stayed on disk while it ran."""
    import torch

    limit = max_memory or int(_SHARE_OF_MEMORY * _available_bytes())
    partly_on_disk = _float32_bytes(folder) > limit
    settings: dict[str, Any] = {"dtype": torch.float32}
    with ExitStack() as stack:
        if partly_on_disk:
            # Weights are read where they lie, when a layer needs them. Only what transformers packs (experts)
            # is written to this folder.
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="pp_export-"))
            settings |= {"device_map": "auto", "max_memory": {"cpu": limit}, "offload_folder": scratch}
        try:
            with quiet_and_offline(), torch.inference_mode():
                model, faults = load_model(folder, **settings)
                if not faults:
                    logits: torch.Tensor = model.eval()(input_ids=token_ids, use_cache=False).logits
        except Exception as error:
            raise VerificationError(
                "transformers can't run the model",
                where={"folder": folder},
                got=f"{type(error).__name__}: {brief(str(error))}",
                advice="`pp_export verify --load FOLDER` tells more; if memory is short, pass"
                " --max-memory SIZE, and have space in TMPDIR",
            ) from error
    if faults:
        findings = [str(fault) for fault in faults]
        text = "the folder is not what its config.json describes"
        raise VerificationError(text, where={"folder": folder}, findings=findings)
    return logits.float(), partly_on_disk


def _float32_bytes(folder: Path) -> int:
    return sum(4 * tensor.entry.num_elements for tensor in tensors_of(folder).values())


def _available_bytes() -> int:
    """Memory that this process can still take, by the machine's word and the container's."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    sizes = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    for path in map(Path, _LIMIT_FILES):
        text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
        sizes += [int(text)] if text.isdecimal() else []
    return min(sizes)
