"""Megatron's `torch` format: a folder `mp_rank_*` and one torch.save file per model parallel rank.

`rank_files` finds the files and what all must agree on, `parts` sorts what they hold by parameter, `catalog`
puts the parts in their places in the model, `format` recognises the folders. Only `checkpoint.formats`
imports from here.
"""
