"""Claims of `pp_export.options.kinds`, `values` and `keywords`: options come from dataclasses by
purpose, and what is not one of them is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from pp_export.core.errors import OptionError
from pp_export.options import cluster, keywords, kinds, texts, values
from pp_export.options.comparison import SideOptions
from pp_export.options.consolidation import OF_MEGATRON, ConsolidateOptions
from pp_export.options.kinds import (
    ExportOptions,
    ResultOptions,
    RunOptions,
    SourceOptions,
    TargetOptions,
)
from pp_export.options.values import options_from

NEEDED: dict[str, Any] = {"checkpoint": "ckpt", "reference": "ref", "output": "out"}


def _options(**values: Any) -> ExportOptions:
    return options_from(NEEDED | values, "the test", ExportOptions)


def test_defaults_need_only_the_three_folders() -> None:
    """Checkpoint, reference and output are enough; text becomes paths."""
    options = _options()
    assert (options.checkpoint, options.reference, options.output) == (Path("ckpt"), Path("ref"), Path("out"))
    assert options.verify
    assert options.check_source
    assert not options.overwrite
    assert options == ExportOptions(checkpoint=Path("ckpt"), reference=Path("ref"), output=Path("out"))


def test_every_missing_option_is_listed() -> None:
    """All required options that are absent or empty are named at once, as the flags that give them."""
    with pytest.raises(OptionError, match="options are missing") as caught:
        options_from({"reference": "ref", "output": None}, "job.yaml", ExportOptions)
    assert caught.value.findings == ("--checkpoint", "--output")
    assert caught.value.where == {"given in": "job.yaml"}


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("chekpoint", "checkpoint"),
        ("tensor-parallel", "tensor_parallel"),
        ("max_shard_sizes", "max_shard_size"),
    ],
)
def test_unknown_keys_name_the_nearest(key: str, nearest: str) -> None:
    """A key that is no option is refused, and the nearest option is named."""
    with pytest.raises(OptionError, match="unknown options") as caught:
        _options(**{key: 1})
    assert caught.value.findings == (f"unknown key {key!r}; did you mean {nearest!r}?",)


def test_all_unknown_keys_are_listed_and_far_ones_get_no_guess() -> None:
    """Every unknown key is listed; where nothing is near, nothing is suggested."""
    with pytest.raises(OptionError) as caught:
        _options(zzzzzz=1, dtypes="float32")
    assert caught.value.findings == ("unknown key 'zzzzzz'", "unknown key 'dtypes'; did you mean 'dtype'?")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("iteration", "100", 100),
        ("tensor_parallel", 2, 2),
        ("iteration", None, None),
        ("stall_seconds", "2.5", 2.5),
        ("stall_seconds", 3, 3.0),
        ("leaders_per_stage", 2, "2"),
        ("max_shard_size", 1000, "1000"),
        ("verify", False, False),
        ("report", "r.json", Path("r.json")),
        ("report", None, None),
        ("architecture", "a.yaml", "a.yaml"),
        ("dtype", "bf16", "bfloat16"),
        ("dtype", "torch.float16", "float16"),
        ("dtype", "keep", "checkpoint"),
        ("dtype_of", {"*.norm.*": "fp32", "lm_head.*": "keep"}, "*.norm.*=fp32,lm_head.*=keep"),
    ],
)
def test_values_of_the_right_kind_are_taken(key: str, value: Any, expected: Any) -> None:
    """Values come as flags give them (text) or as YAML gives them (typed), and end as the field's type."""
    taken = getattr(_options(**{key: value}), key)
    assert taken == expected
    assert type(taken) is type(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("iteration", "ten"),
        ("iteration", 1.5),
        ("iteration", True),
        ("tensor_parallel", [2]),
        ("stall_seconds", "long"),
        ("stall_seconds", True),
        ("verify", "yes"),
        ("verify", 1),
        ("verify", None),
        ("check_source", None),
        ("stall_seconds", None),
        ("max_shard_size", None),
        ("output", 5),
        ("architecture", {"a": 1}),
        ("dtype", ["float32"]),
    ],
)
def test_values_of_the_wrong_kind_are_refused(key: str, value: Any) -> None:
    """A value of another type is refused, naming the flag; an empty one never turns a check off."""
    with pytest.raises(OptionError, match=f"--{kinds.flag(key)} has a value of the wrong type") as caught:
        _options(**{key: value})
    assert caught.value.got == repr(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "float64"),
        ("dtype_of", "fp32"),
        ("dtype_of", "*=float64"),
        ("dtype_of", {"*": ["fp32"]}),
        ("mtp", "keep"),
        ("backend", "mpi"),
        ("pipeline_parallel", 0),
        ("tensor_parallel", -1),
        ("expert_parallel", 0),
        ("vocab_size", 0),
        ("stall_seconds", 0),
        ("stall_seconds", float("nan")),
        ("max_shard_size", "5 parsecs"),
        ("max_shard_size", "0"),
        ("max_shard_size", "0.0001KB"),
        ("max_shard_size", "-5GB"),
        ("leaders_per_stage", "some"),
        ("leaders_per_stage", 0),
        ("leaders_per_stage", "²"),
    ],
)
def test_values_that_make_no_sense_are_refused(key: str, value: Any) -> None:
    """Values outside an option's choices or range are refused when the options are made."""
    with pytest.raises(OptionError):
        _options(**{key: value})


def test_sizes_and_leaders_are_read_as_people_write_them() -> None:
    """Sizes take decimal and binary units in any case; leaders are a number or all."""
    sizes = {"5GB": 5 * 10**9, "512MiB": 512 << 20, "1.5kb": 1500, " 7 ": 7, "2 TB": 2 * 10**12}
    assert {text: texts.parse_bytes(text) for text in sizes} == sizes
    assert texts.parse_leaders("3") == 3
    assert texts.parse_leaders("all") is None


def test_rates_are_two_positive_numbers() -> None:
    """What storage reads and writes is given as R,W."""
    assert texts.parse_rates("200,1e2") == (200, 100)
    for text in ("2", "2,", "2,1,1", "0,1", "1,-1", "nan,1", "a,b"):
        with pytest.raises(OptionError, match="can't be read"):
            cluster.ClusterOptions(storage_gbps=text)


def test_a_job_file_is_a_mapping_of_option_names(tmp_path: Path) -> None:
    """A job file gives the same values as a mapping would; any other content is refused with the file's
    name.
    """
    path = tmp_path / "job.yaml"
    path.write_text("checkpoint: /c\nverify: false\niteration: 7\n")
    assert values.read_job(path) == {"checkpoint": "/c", "verify": False, "iteration": 7}
    for text in ("", "- a\n- b\n", "1: 2\n", "a: [\n", "a: !!python/object/apply:os.getcwd []\n", "\x00"):
        path.write_text(text)
        with pytest.raises(OptionError) as caught:
            values.read_job(path)
        assert caught.value.where == {"file": str(path)}
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(OptionError, match="can't be read"):
        values.read_job(path)
    with pytest.raises(OptionError, match="can't be read"):
        values.read_job(tmp_path / "absent.yaml")


def test_a_setting_is_read_as_yaml() -> None:
    """`--set key=value` gives the typed value; dashes in the key are fine, a text without = or not YAML is
    not.
    """
    assert values.parse_setting("verify=false") == ("verify", False)
    assert values.parse_setting("tensor-parallel=2") == ("tensor_parallel", 2)
    assert values.parse_setting("output=/a=b") == ("output", "/a=b")
    for text in ("verify", "verify=[", "verify=!!python/name:os.system"):
        with pytest.raises(OptionError, match="--set"):
            values.parse_setting(text)


def test_options_become_json_and_come_back() -> None:
    """What the report keeps of the options is JSON, from which the same options can be made again."""
    options = _options(iteration=3, report="r.json", verify=False)
    value = json.loads(json.dumps(options.to_json()))
    assert value.keys() == {option.name for option in dataclasses.fields(ExportOptions)}
    assert options_from(value, "report", ExportOptions) == options


def test_every_option_has_a_help_text() -> None:
    """Every field carries the help that the command line prints."""
    for option in (*dataclasses.fields(ExportOptions), *dataclasses.fields(cluster.ClusterOptions)):
        assert len(option.metadata["help"]) > 8, option.name


# --- by purpose


def names_of(kind: type[kinds.Options]) -> set[str]:
    return {option.name for option in dataclasses.fields(kind)}


def test_every_option_has_one_purpose() -> None:
    """What, from where and how don't overlap; with the reference, and what only an export of files can do,
    they are all options. A live export takes no option of a checkpoint.
    """
    what, where_from, how = map(names_of, (ResultOptions, SourceOptions, RunOptions))
    assert len(what | where_from | how) == len(what) + len(where_from) + len(how)
    assert names_of(TargetOptions) == what | how | {"reference", "tokenizer"}
    of_files = {"resume", "pipeline_parallel", "tensor_parallel", "expert_parallel"}
    assert names_of(ExportOptions) == names_of(TargetOptions) | where_from | of_files


def test_the_result_says_nothing_of_where_from_and_how() -> None:
    """Exports that differ only in source, output, ranks and patience have the same result options; a change
    of what is exported changes them.
    """
    result = _options(dtype="float32", contents="model").result
    assert type(result) is ResultOptions
    other = {"checkpoint": "x", "output": "y", "verify": False, "leaders_per_stage": "all"}
    assert result == _options(dtype="float32", contents="model", **other).result
    assert result.result == result
    assert set(result.to_json()) == names_of(ResultOptions)
    for name, value in {"dtype": "float16", "mtp": "drop", "vocab_size": 9, "max_shard_size": "1KB"}.items():
        assert _options(**{name: value}).result != _options().result


# --- as keywords


NAMED = {"checkpoint", "reference", "output", "input"}  # by the functions themselves
OF_TEXTS = {"max_shard_size", "leaders_per_stage", "memory_limit"}  # texts that may be numbers


@pytest.mark.parametrize(
    ("kind", "typed"),
    [
        (ResultOptions, keywords.ResultKeywords),
        (TargetOptions, keywords.TargetKeywords),
        (ExportOptions, keywords.ExportKeywords),
        (ConsolidateOptions, keywords.ConsolidateKeywords),
        (SideOptions, keywords.SideKeywords),
    ],
)
def test_keywords_are_the_fields(kind: type[kinds.Options], typed: type) -> None:
    """Every option is a keyword of its type: choices are literals, paths may be texts, and texts of sizes and
    counts may be numbers.
    """
    without = {*NAMED, *(OF_MEGATRON if kind is ConsolidateOptions else ())}
    fields = {option.name: option for option in dataclasses.fields(kind) if option.name not in without}
    hints, wanted = get_type_hints(typed), get_type_hints(kind)
    assert hints.keys() == fields.keys()
    for name, hint in hints.items():
        if choices := fields[name].metadata["choices"]:
            assert get_origin(hint) is Literal
            short = [alias for alias in fields[name].metadata["aliases"] if "." not in alias]
            assert get_args(hint) == (*choices, *short)
            continue
        expected = set(get_args(wanted[name]) or (wanted[name],))
        expected |= {int} if name in OF_TEXTS else {str} if Path in expected else set()
        expected |= {Mapping[str, str]} if fields[name].metadata["pairs"] else set()
        assert set(get_args(hint) or (hint,)) == expected, name


@pytest.mark.parametrize(
    "value",
    ["nan", "inf", "-inf", "1e400", "9" * 500, "1e10", ".inf", 10**500],
    ids=["nan", "inf", "minus", "large", "digits", "unusable", "yaml", "number"],
)
@pytest.mark.parametrize(
    "name",
    [
        option.name
        for kind in (ExportOptions, cluster.ClusterOptions)
        for option in dataclasses.fields(kind)
        if option.type.partition(" ")[0] in ("int", "float")
        or option.name in ("max_shard_size", "memory_limit", "leaders_per_stage", "storage_gbps")
    ],
)
def test_no_number_is_too_strange(name: str, value: Any) -> None:
    """Whatever stands where a number should: an error that names the option or the value, in a line."""
    kind = cluster.ClusterOptions if name in cluster.ClusterOptions.__dataclass_fields__ else ExportOptions
    needed = NEEDED if kind is ExportOptions else {}
    if name == "storage_gbps":
        value = f"{value},1" if isinstance(value, str) else "nan,1"
    if (name, value) in (("max_shard_size", "1e10"), ("memory_limit", "1e10")):
        value = "1e10GB"
    with pytest.raises(OptionError) as refused:
        options_from(needed | {name: value}, "the test", kind)
    assert len(str(refused.value)) < 350


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "checkpoint: " + "[" * 5000, "a: &a [*a]", "stall_seconds: 2001-99-99", "\udcff", "a: \0"],
    ids=["digits", "depth", "circle", "date", "bytes", "null"],
)
def test_no_job_file_is_too_strange(text: str, tmp_path: Path) -> None:
    """Whatever a job file holds: an error that names it."""
    (tmp_path / "job.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(OptionError) as refused:
        values.read_job(tmp_path / "job.yaml")
    assert refused.value.where == {"file": str(tmp_path / "job.yaml")}
    with pytest.raises(OptionError):
        values.options_from(
            dict([values.parse_setting(f"stall-seconds={text}")]) | NEEDED, "x", ExportOptions
        )
