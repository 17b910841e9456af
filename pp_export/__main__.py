"""`python -m pp_export` and `torchrun -m pp_export`."""

from __future__ import annotations

import os
import sys

from pp_export.cli import main

if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # taking torch down would cost more than half a second, and nothing is left to do
