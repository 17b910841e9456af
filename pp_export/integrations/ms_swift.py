"""For ms-swift, which keeps a bridge at `model.config.bridge` and gives it everything in one call."""

from __future__ import annotations

from typing import Any

from pp_export.core.errors import OptionError
from pp_export.integrations.bridge import ExportBridge, Model
from pp_export.options.keywords import Folder


class SwiftBridge(ExportBridge):
    """`save_weights` as ms-swift's GPTBridge has it."""

    def save_weights(
        self,
        models: Model,
        output_dir: Folder,
        peft_format: bool = False,
        max_shard_size: str | int = "5GB",
        args: Any = None,
        processor: Any = None,
        save_missing_weights: bool | str = False,
    ) -> None:
        """The whole folder; called by all ranks.

        config.json and the tokenizer come from the reference, whatever `args` and `processor` hold. Nothing
        can be missing that `save_missing_weights` would have to add. Adapters (`peft_format`) are refused.
        """
        if peft_format:
            raise OptionError(
                "ms-swift asks for the adapter alone (tuner_type lora)",
                where={"output": output_dir},
                advice="merge it (merge_lora) and export the merged model",
            )
        self.options = {**self.options, "max_shard_size": max_shard_size}
        self.save_hf_pretrained(models, output_dir)
