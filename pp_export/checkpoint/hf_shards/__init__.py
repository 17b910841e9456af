"""Folders in which ranks have written their parts of tensors that have Hugging Face names already.

`safetensors_shards` are those of torch's HuggingFaceStorageWriter, `named_dcp` saves of DCP, `rank_files` a
torch.save of each rank's DTensors or ShardedTensors (verl), whose places `placements` knows; `saved_names`
says which keys are the model's, and `source` finds the folder. Only the doors and `steps` import from here,
and `source` alone.
"""
