"""The format of torch.distributed.checkpoint (DCP), read without torch's loaders.

megatron-core's torch_dist, Megatron-Bridge, NeMo 2, fsdp_dtensor and torch_dcp all store this way; they
differ in keys and in where the training args are. `metadata` says what `.metadata` holds, `catalog` makes the
model of it, `format` recognises the folders. Only `checkpoint.formats` imports from here, and what reads
saves of other names (`hf_shards`).
"""
