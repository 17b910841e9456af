"""Packaging. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'VERSION = "(.+)"', (HERE / "pp_export/core/version.py").read_text(encoding="utf-8"))
assert VERSION is not None

setup(
    name="pp_export",
    version=VERSION[1],
    description="Megatron-Core checkpoints to complete, verified Hugging Face folders",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["pp_export", "pp_export.*"]),
    package_data={
        "pp_export": [
            "architecture/*.json",
            "architecture/*.yaml",
            "architecture/tables/*.yaml",
            "schemas/*.json",
            "view/page/*",
            "py.typed",
        ]
    },
    install_requires=[
        "torch>=2.8",
        "safetensors>=0.6.2",
        "pyyaml>=6.0.1",
        "rich>=13",
        "argcomplete>=3.1",
        "isal>=1.6",
        "xxhash>=3.4.1",
        "numpy>=1.26",
        "transformers>=4.57",
        "accelerate>=1.0",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "jsonschema>=4",
            "megatron-core==0.16.1",
            "psutil>=5.9",
            # Quantized exports are held against it; its newer releases need this Python.
            "compressed-tensors>=0.15; python_version >= '3.11'",
            "peft>=0.18",
        ],
        "check": ["coverage>=7.10", "ruff>=0.8", "mypy>=1.13", "types-PyYAML", "types-jsonschema"],
    },
    entry_points={"console_scripts": ["pp_export = pp_export.cli:main"]},
)
