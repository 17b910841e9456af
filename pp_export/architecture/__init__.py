"""What is known of model families: knowledge as data, nothing that reads a tensor.

A *table* (tables/*.yaml) has a *rule* for each Megatron name pattern and declares the *units* (embedding,
layer, head) that its tensors belong to; a *transform* says as geometry where a tensor's elements go, an
*encoding* what is computed of finished Hugging Face tensors; the *account* proves that every tensor is used
once. Imports `core`.
"""
