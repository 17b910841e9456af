"""Files that torch.save wrote, read as data: their pickle, which tensors they hold, where the bytes lie.

Words: an archive is such a file (a zip of stored members); an InertObject is what a pickle says of an object
that is never made; a member is one storage in the archive. Nothing here runs what a pickle names: the only
`pickle` of the project is in `unpickler`.

Imports `core` alone; `checkpoint` and what stands above it may import this room.
"""
