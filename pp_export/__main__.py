"""`python -m pp_export` and `torchrun -m pp_export`."""

from __future__ import annotations

import sys

from pp_export.cli import main

if __name__ == "__main__":
    sys.exit(main())
