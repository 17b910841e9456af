"""Readers of checkpoints and of live models: which slices there are, of which model, and their values.

- A *stored key* is the name under which a checkpoint keeps a tensor, perhaps with layers or experts stacked.
- A *canonical name* is Megatron's own name of a parameter, with its layer's and expert's numbers in the
  model.
- An *item* is what was stored at once, with one checksum; in a live model, one box on the ranks that hold it.
- A *box* is a rectangular part of a tensor; a *slice* is a box of a canonical tensor and its place in an
  item.
- A *holder* is a rank that can give an item's values; a file that all can read has no holders.

Geometry of training ends here: whatever is stacked, cut, interleaved or counted from 0 on each stage is
settled, and everything above speaks canonical names. `source` is the page that a new input follows, `formats`
the list of those there are, `hf_shards` what a consolidation reads.

Imports `core`, `megatron` and `torch_file`; imported by `planning` and everything above it.
"""
