"""One output file on its way: assembled, encoded, frozen, written, recorded, and the index over all of them.

A *shard manifest* (the shard JSON) is what is recorded of a frozen shard; its presence means that the
shard is committed. Imports `core`, `disk`, `architecture` and `planning`; imported by `steps`.
"""
