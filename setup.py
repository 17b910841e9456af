"""Packaging. Tool settings live in pyproject.toml."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'VERSION = "(.+)"', (HERE / "pp_export/core/version.py").read_text(encoding="utf-8"))
assert VERSION is not None
HOME = os.environ.get("PP_EXPORT_HOME", "").rstrip("/")
"""Where the project is published (https://github.com/OWNER/pp_export): told when a release is built."""
SHIPPED = ("docs/*.md", "docs/integrations/*.md", "launch/*", "configs/*.yaml")
"""What pp_export/shipped.py shows, beside the code."""


class BuildWithShipped(build_py):
    """Also copies what lies beside the package in a clone; an editable installation finds it there."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for file in (file for pattern in SHIPPED for file in sorted(HERE.glob(pattern))):
                copy = Path(self.build_lib, "pp_export", "_shipped", file.relative_to(HERE))
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


def readme():
    """README.md; links lead to the release's own files where it is known where they are."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?!\w+:|#)", f"]({HOME}/blob/v{VERSION[1]}/", text) if HOME else text


setup(
    name="pp_export",
    version=VERSION[1],
    description="Megatron-Core checkpoints to complete, verified Hugging Face folders",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    url=HOME or None,
    project_urls={
        name: f"{HOME}/{path}"
        for name, path in {
            "Documentation": f"tree/v{VERSION[1]}/docs",
            "Changelog": f"blob/v{VERSION[1]}/CHANGELOG.md",
            "Issues": "issues",
        }.items()
        if HOME
    },
    keywords="megatron checkpoint huggingface safetensors export converter torchrun",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["pp_export", "pp_export.*"]),
    cmdclass={"build_py": BuildWithShipped},
    package_data={
        "pp_export": [
            "architecture/*.json",
            "architecture/*.yaml",
            "architecture/tables/*.yaml",
            "schemas/*.json",
            "view/pages/assets/*",
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
        "megatron": ["megatron-core>=0.8"],
        "test": [
            "pytest>=8",
            "setuptools>=70.1",  # the first that builds wheels by itself
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
        "docs": ["zensical==0.0.73"],
    },
    entry_points={
        "console_scripts": ["pp_export = pp_export.cli:main", "pp-export = pp_export.cli:main"],
    },
)
