"""Claims about job files, tables and references that nobody foresaw: an ExportError, or a plan."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pp_export.architecture import table_files
from pp_export.architecture.rules import Architecture
from pp_export.core import strict_json
from pp_export.core.errors import ExportError, OptionError, RuleError
from pp_export.options.cluster import ClusterOptions
from pp_export.options.kinds import ExportOptions
from pp_export.options.values import check_keys, options_from, parse_setting, read_job
from pp_export.steps.plan_report import PlanReport, plan_checkpoint
from tests.fixtures import toy_qwen2
from tests.fixtures.bounds import bounded
from tests.fixtures.hf_folders import INDEX
from tests.fixtures.mutations import FUZZ, FUZZ_MORE, json_mutations, mutations
from tests.fixtures.undefined import without_definition

JOB = """\
checkpoint: /data/ckpt  # where it is
reference: &ref "ref"
output: out
dtype: bfloat16
stall_seconds: 12.5
max_shard_size: 5GB
threads: 4
overwrite: false
memory_limit: null
"""
TABLES = Path(table_files.__file__).parent / "tables"
NAMES = [option.name for option in dataclasses.fields(ExportOptions)]


@FUZZ_MORE
@given(mutations(), st.sampled_from(["!!set ", "&a ", "*ref", "<<: ", "? ", "!!timestamp ", "1e999", ": "]))
def test_jobs(tmp_path_factory: pytest.TempPathFactory, mutate: Any, word: str) -> None:
    """A damaged job file: options that are JSON, or an OptionError."""
    path = tmp_path_factory.getbasetemp() / f"job-{os.getpid()}.yaml"
    data = mutate(JOB.encode())
    for image in (data, data.replace(b": ", b": " + word.encode(), 1)):
        path.write_bytes(image)
        with bounded(), suppress(OptionError):
            values = read_job(path)
            check_keys(values, NAMES, "the test")
            json.dumps(options_from(values, "the test", ExportOptions).to_json(), allow_nan=False)
    with bounded(), suppress(OptionError):
        parse_setting(data.decode("utf-8", "surrogateescape"))


@FUZZ_MORE
@given(mutations(), st.sampled_from(["qwen2", "qwen3_moe", "megatron", "mixtral"]))
def test_tables(tmp_path_factory: pytest.TempPathFactory, mutate: Any, name: str) -> None:
    """Damaged text of a table: a table, or a RuleError."""
    _load(tmp_path_factory, mutate((TABLES / f"{name}.yaml").read_bytes()))


@FUZZ_MORE
@given(json_mutations(), st.sampled_from(["qwen2", "qwen3_moe", "megatron", "mixtral"]))
def test_values_in_tables(tmp_path_factory: pytest.TempPathFactory, mutate: Any, name: str) -> None:
    """Any value anywhere in a table."""
    value = mutate(yaml.safe_load((TABLES / f"{name}.yaml").read_text()))
    _load(tmp_path_factory, yaml.safe_dump(value).encode())


def _load(factory: pytest.TempPathFactory, data: bytes) -> None:
    path = factory.getbasetemp() / f"table-{os.getpid()}.yaml"
    path.write_bytes(data)
    with bounded(), suppress(RuleError):
        assert isinstance(table_files.load(str(path)), Architecture)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ExportOptions:
    """A checkpoint, and a reference whose files are damaged."""
    root = tmp_path_factory.mktemp("job")
    options = ExportOptions(
        checkpoint=toy_qwen2.write_checkpoint(root),
        reference=toy_qwen2.write_reference(root / "reference"),
        output=root / "out",
    )
    config = toy_qwen2.CONFIG | {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        "eos_token_id": [1, 2],
        "auto_map": {"AutoConfig": "other--a.B"},
        "text_config": {"vocab_size": 1000, "dtype": "float32"},
    }
    (reference_of(options) / "config.json").write_text(json.dumps(config))
    for name, value in (
        ("generation_config.json", {"eos_token_id": [1, 2], "temperature": 0.5}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": "<a>"}}, "chat_template": "x"}),
        (
            "tokenizer.json",
            {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "c"}]},
        ),
    ):
        (reference_of(options) / name).write_text(json.dumps(value))
    return options


def reference_of(job: ExportOptions) -> Path:
    assert job.reference is not None
    return job.reference


def plan_with(job: ExportOptions, name: str, data: bytes) -> PlanReport | None:
    """The plan with a file of the reference replaced; None where that is refused."""
    path, kept = reference_of(job) / name, reference_of(job).parent / name
    with suppress(FileNotFoundError):
        shutil.copyfile(path, kept)
    try:
        path.write_bytes(data)
        with bounded(), without_definition(), suppress(ExportError):
            report = plan_checkpoint(job, ClusterOptions(), here=False)
            json.dumps(report.to_json())
            return report
        return None
    finally:
        path.unlink()
        if kept.exists():
            shutil.copyfile(kept, path)


FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]


@FUZZ
@given(mutations(), st.sampled_from(FILES))
def test_bytes_of_references(job: ExportOptions, mutate: Any, name: str) -> None:
    """Damaged bytes in a JSON file of the reference: a plan of the same tensors, or an ExportError."""
    plan_with(job, name, mutate((reference_of(job) / name).read_bytes()))


@FUZZ
@given(json_mutations(), st.sampled_from(FILES))
def test_values_in_references(job: ExportOptions, mutate: Any, name: str) -> None:
    """Any value anywhere in them."""
    value = mutate(json.loads((reference_of(job) / name).read_bytes()))
    data = json.dumps(value).encode()
    report = plan_with(job, name, data)
    if report is not None and name == "config.json":
        strict_json.parse_object(data, allow_infinity=True)


@FUZZ
@given(json_mutations(), mutations())
def test_indexes_of_references(job: ExportOptions, change: Callable[[Any], Any], mutate: Any) -> None:
    """Any index of the reference's own weights."""
    names = {f"model.layers.{i}.a.weight": f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)}
    index = {"metadata": {"total_size": 10}, "weight_map": names}
    plan_with(job, INDEX, mutate(json.dumps(index).encode()))
    changed = change(index)
    plan_with(job, INDEX, json.dumps(index if changed is None else changed).encode())


def test_the_fuzzed_job_has_a_plan(job: ExportOptions) -> None:
    """Without damage there is a plan, so that the tests above are about more than refusals."""
    (reference_of(job) / "config.json").write_text(json.dumps(toy_qwen2.CONFIG))
    assert plan_with(job, "note.txt", b"") is not None
