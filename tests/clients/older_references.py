"""Run by release 4 of transformers, writes references as it writes them: without what only release 5 reads.

    python -m tests.clients.older_references ROOT

For each model below ROOT of which this release has the class: `older/config.json` beside its export.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import transformers

from tests.clients.known import config_of

_OF_RELEASE_5 = ("rope_parameters", "dtype")


def main() -> None:
    """Write every reference that this release can."""
    loader: Any = transformers.AutoConfig
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        if hasattr(transformers, config_of(folder / "export")["architectures"][0]):
            config = loader.from_pretrained(folder / "export")
            for key in _OF_RELEASE_5:
                if hasattr(config, key) and key in vars(config):
                    delattr(config, key)
            config.save_pretrained(folder / "older")


if __name__ == "__main__":
    main()
