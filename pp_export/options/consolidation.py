"""What a user can ask of a consolidation: tensors that have Hugging Face names already, cut among ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pp_export.options.kinds import TargetOptions, option_of


@dataclass(frozen=True, kw_only=True)
class ConsolidateOptions(TargetOptions):
    """The options of `consolidate`: tensors that have Hugging Face names already, cut among ranks.

    What concerns Megatron's names and training args alone (`OF_MEGATRON`) stays as it is by default.
    """

    input: Path = option_of(
        "folder that ranks have written: safetensors of torch's HuggingFaceStorageWriter, a save of DCP, or"
        " verl's model_world_size_N_rank_R.pt"
    )
    reference: Path | None = option_of(
        "Hugging Face folder of the model; default: the one that the framework left with the input, else"
        " none, and the result has weights and index only",
        None,
    )
    input_ranks: int | None = option_of(
        "how many ranks wrote the input: their files must all be there, and no others; needed where neither"
        " the files nor a reference tell the shapes",
        None,
        positive=True,
    )
    check_source: bool = option_of(
        "check the CRC-32 that torch stored with every record while reading it; safetensors have none", True
    )
    resume: bool = option_of(
        "continue an earlier run of the same consolidation from the shards that it has committed; if this"
        " run fails, keep its own for the next",
        False,
    )

    def __post_init__(self) -> None:
        super(TargetOptions, self).__post_init__()  # without a reference no class is needed either


OF_MEGATRON = (
    *("mtp", "lora", "lora_alpha", "quantize", "take_missing_from_reference", "vocab_size"),
    *("architecture", "config_from", "tokenizer"),
)
"""Options of a result that a consolidation doesn't have."""
