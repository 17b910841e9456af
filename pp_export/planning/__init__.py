"""Who reads, sends, gathers and writes what: pure values, the same on every rank, made before a byte is read.

A *shard* is an output file, or a *range* of a large one; its *leader* gathers and writes it; a *bucket* is a
bounded part of it that is read, sent and pasted at once, a *contribution* what one rank gives to a bucket; a
*stage* are the ranks that have to do with one another, a *group* those that exchange, in *rounds*, over
*links* from rank to rank; an *assignment* says who reads and who leads. Imports `core`, `process` (page
size), `architecture`; imported by `shards`, `steps` and what is above.
"""
