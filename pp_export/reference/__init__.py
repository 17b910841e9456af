"""The Hugging Face reference folder: what it says of the model, and which of its files the export copies.

Nothing of the folder is imported, rendered or trusted: config files are strict JSON, code is only parsed,
names that could become paths are checked, and links are followed only inside the folder or the Hub cache that
it belongs to. Everything here runs on rank 0.

Words: assets are the files that are copied; the weight map is that of the reference's own weights, which need
not be there; expected tensors are those that the class of the transformers library would write.

Imports `core`, `process` and `disk`; `steps`, the integrations and `export` may import this room.
"""
