"""config.json of the export differs from the reference's only where the export changed the truth."""

import json
from typing import Any

import pytest

from pp_export.reference.config_json import corrected, to_bytes

LLAMA: dict[str, Any] = {
    "vocab_size": 256,
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "float32",
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
}


def test_nothing_changes_where_the_reference_is_right() -> None:
    """A reference that already tells the truth is copied, key for key in its order; nothing is reported."""
    config, corrections = corrected(LLAMA, dtype="float32", vocab_size=256, num_mtp_layers=0)
    assert list(config.items()) == list(LLAMA.items())
    assert corrections == []
    assert corrected(LLAMA) == (LLAMA, [])


def test_corrections_keep_the_place_and_are_told() -> None:
    """A wrong value is replaced where it stands, and each correction is one sentence with both values."""
    config, corrections = corrected(LLAMA, dtype="bfloat16", vocab_size=250)
    assert list(config) == list(LLAMA)
    assert config == LLAMA | {"torch_dtype": "bfloat16", "vocab_size": 250}
    assert corrections == [
        'config.json: torch_dtype is bfloat16; the reference has "float32".',
        "config.json: vocab_size is 250; the reference has 256.",
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32", "torch_dtype": "float16"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        ({"dtype": None}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "torch.bfloat16"}, {"torch_dtype": "torch.bfloat16"}),
        ({}, {"torch_dtype": "bfloat16"}),
    ],
)
def test_dtype_key(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    """The dtype keys of the reference are corrected; where there is none, one that all loaders read comes."""
    assert corrected(keys, dtype="bfloat16")[0] == expected


def test_nested_configs() -> None:
    """Composite models: the dtype is corrected in every part, the vocabulary in the language model's only."""
    config: dict[str, Any] = {
        "dtype": "float32",
        "text_config": {"dtype": "float32", "vocab_size": 256},
        "audio_config": {"dtype": "float32", "vocab_size": 12},
    }
    before = json.dumps(config)
    result, corrections = corrected(config, dtype="bfloat16", vocab_size=250)
    assert json.dumps(config) == before
    assert result == {
        "dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "vocab_size": 250},
        "audio_config": {"dtype": "bfloat16", "vocab_size": 12},
    }
    assert len(corrections) == 4


def test_vocab_size_is_added_beside_the_language_models_sizes() -> None:
    """A config without vocab_size gets one, in text_config if the language model's sizes stand there."""
    assert corrected({}, vocab_size=7)[0] == {"vocab_size": 7}
    assert corrected({"text_config": {}}, vocab_size=7)[0] == {"text_config": {"vocab_size": 7}}


def test_mtp_count() -> None:
    """The number of MTP layers is corrected under whichever name the family gives it, and never added."""
    assert corrected({"num_nextn_predict_layers": 1}, num_mtp_layers=0)[0] == {"num_nextn_predict_layers": 0}
    assert corrected({"mtp_num_hidden_layers": 1}, num_mtp_layers=2)[0] == {"mtp_num_hidden_layers": 2}
    assert corrected({}, num_mtp_layers=1) == ({}, [])


def test_quantization_goes() -> None:
    """A quantization config is removed wherever it stands: a loader would dequantize plain weights."""
    config = {
        "a": 1,
        "quantization_config": {"quant_method": "fp8"},
        "text_config": {"compression_config": {}},
    }
    result, corrections = corrected(config)
    assert result == {"a": 1, "text_config": {}}
    assert [sentence.split(" is removed")[0] for sentence in corrections] == [
        "config.json: quantization_config (fp8)",
        "config.json: text_config.compression_config",
    ]


@pytest.mark.parametrize("key", ["_name_or_path", "name_or_path"])
@pytest.mark.parametrize("path", ["/home/someone/run", "../run", "C:\\run", "~/run", "a/b/c"])
def test_paths_go(key: str, path: str) -> None:
    """Where a config was loaded from is nobody's to know, however deep it stands; names of the Hub stay."""
    config, corrections = corrected({**LLAMA, key: path, "text_config": {key: path, "x": {key: path}}})
    assert config == {**LLAMA, "text_config": {"x": {}}}
    assert len(corrections) == 3
    named = {**LLAMA, key: "Qwen/Qwen3-8B"}
    assert corrected(named) == (named, [])


def test_names_of_other_files_go() -> None:
    """A config.json that sends loaders to another config, or to another file of weights, would be the word of
    files that the export doesn't have: transformers takes `config.4.0.0.json` if config.json lists it.
    """
    named = {
        "configuration_files": ["config.json", "config.4.0.0.json"],
        "transformers_weights": "x.safetensors",
    }
    config, corrections = corrected({**LLAMA, **named})
    assert config == LLAMA
    assert [sentence.split()[1] for sentence in corrections] == list(named)


def test_bytes() -> None:
    """Two spaces, the given order, text as it is, Infinity as Python reads it, and a newline at the end."""
    config = {"b": "é 日本", "a": [0.0, float("inf")]}
    assert to_bytes(config) == '{\n  "b": "é 日本",\n  "a": [\n    0.0,\n    Infinity\n  ]\n}\n'.encode()
    assert json.loads(to_bytes(config)) == config
