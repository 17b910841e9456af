"""pp_export: Megatron-Core checkpoints to complete, verified Hugging Face folders."""

__version__ = "0.1.0"
