"""One output file, or a range of it, on its way: assembled, encoded, frozen, written, recorded; ranges joined
to files; and the index over all of them.

A *shard manifest* (the shard JSON) is what is recorded of a frozen shard, a *range manifest* of a frozen
range; its presence means that this is committed. Imports `core`, `disk`, `architecture` and `planning`;
imported by `steps`.
"""
