"""Claims: with --overwrite only a model folder goes, whoever made it; anything else is never removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pp_export.core.errors import TargetError
from pp_export.disk.replaceable import check_replaceable

OURS = (
    "config.json",
    "export_manifest.json",
    "model-00001-of-00001.safetensors",
    "model.safetensors.index.json",
)
HUB = (
    *(
        "config.json",
        "generation_config.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
    ),
    *(
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
    ),
    *("merges.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken", "chat_template.jinja"),
    *(
        "additional_chat_templates/tools.jinja",
        "preprocessor_config.json",
        "modeling_x.py",
        "configuration_x.py",
    ),
    *(
        "README.md",
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        ".gitattributes",
        ".cache/huggingface/download/x.lock",
    ),
)


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("something")
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("names", [(), OURS, HUB, (*OURS, "SHA256SUMS", "model.sig"), OURS[:2]])
def test_a_model_folder_goes(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Ours, one from the hub with all that such folders have, and an empty one."""
    check_replaceable(filled(tmp_path / "target", *names))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "photo.jpg",
            "notes/paper.md",
            ".git/config",
            "job.yaml",
            "table.yml",
            "results.json",
            "train.py",
            "model.onnx",
        ),
        *(
            "run/iter_0000010/__0_0.distcp",
            "run/latest_checkpointed_iteration.txt",
            "a/b/c/mp_rank_00/model_optim_rng.pt",
        ),
        *(
            "older/config.json",
            "older/model.safetensors",
            ".cache/other/x",
            "optimizer.pt",
            "hidden/.metadata",
        ),
    ],
)
def test_what_no_model_has_is_never_removed(tmp_path: Path, name: str) -> None:
    """Somebody's file beside a model, at any depth, is named, and the folder stays."""
    folder = filled(tmp_path / "target", *OURS, name)
    with pytest.raises(TargetError, match="files that are no part of a model") as caught:
        check_replaceable(folder)
    assert caught.value.findings == (name,)


@pytest.mark.parametrize("names", [("config.json",), ("weights.safetensors",), ("README.md", "LICENSE")])
def test_what_may_be_anybody_s_stays(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Neither a manifest nor config.json beside weights: it isn't proved to be a model."""
    with pytest.raises(TargetError, match="no model folder"):
        check_replaceable(filled(tmp_path / "target", *names))


def test_a_link_to_a_folder_is_somebody_s(tmp_path: Path) -> None:
    """It isn't followed, and it isn't a model's."""
    folder = filled(tmp_path / "target", *OURS)
    (folder / "data").symlink_to(filled(tmp_path / "elsewhere", "x"))
    with pytest.raises(TargetError) as caught:
        check_replaceable(folder)
    assert caught.value.findings == ("data",)
