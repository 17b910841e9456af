"""What a child process of ours is started with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pp_export.process import launch

PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
"""`python -m` may put the working directory first on the import path; this one holds nothing unexpected."""


def environment() -> dict[str, str]:
    """Offline, without GPU, no member of a launcher's group, and with the import path of this process."""
    inherited = {key: value for key, value in os.environ.items() if key not in launch.VARIABLES}
    import_path = [os.path.abspath(entry) for entry in sys.path if entry]
    return inherited | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((*import_path, PACKAGE_PARENT)),
        "PYTHONSAFEPATH": "1",
    }
