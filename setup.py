"""Packaging. Tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="pp_export",
    version="0.1.0",
    description="Megatron-Core checkpoints to complete, verified Hugging Face folders",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["pp_export", "pp_export.*"]),
    package_data={"pp_export": ["architecture/tables/*.yaml", "py.typed"]},
    install_requires=[
        "torch>=2.6",
        "safetensors>=0.4.3",
        "pyyaml>=6",
        "rich>=13",
        "isal>=1.6",
        "xxhash>=3.4",
        "transformers>=4.51",
        "accelerate>=1.0",
    ],
    extras_require={
        "test": ["pytest>=8", "hypothesis>=6", "megatron-core==0.16.1", "psutil>=5.9"],
        "check": ["ruff>=0.8", "mypy>=1.13", "types-PyYAML"],
    },
    entry_points={"console_scripts": ["pp_export = pp_export.cli:main"]},
)
