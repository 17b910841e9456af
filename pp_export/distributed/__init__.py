"""Ranks that work as one: how they agree, how bytes get from one to another, and how all end when one
does.

The words: a *world* is all ranks of one export. They come together at a *meeting*, whose *verdict* is that
the export begins, or why it doesn't; a *job* has many, one after the other. *Control* is what they tell
each other apart from tensors, over *stores* of keys and values. Members of one store are a *circle*, in
which values go up to the first of them and down from it. Up to 128 ranks are one circle. More sit in
*blocks*, each with a store that its first rank serves, and the first ranks are a circle of their own over
the world's store. *Announcements* tell verifiers which files are committed. *Data* is tensors, which the
ranks of a *group* exchange in rounds over a *wire* of their own, made by a *backend* (Gloo, NCCL).
*Liveness* is who still moves; it bounds every wait. An *abort* makes one error out of the failure of one
rank, which its *reporter* finds, cleans up after and tells to the others. Control, liveness and abort
belong to the main thread, which only polls and so always hears a failure; exchanging blocks and belongs to
one worker thread.

Modules, each built on those before it: `store`, `circle`, `tree`, `heartbeat`, `liveness`, `abort`,
`control`, `announcements`, `blocks`, `wire`, `data`, `world`; `meeting`, `job`. `shared_keys` are torch's
stores, called by a `caller`, `launcher_store` is that of a launcher, `block_servers` those of blocks, at
an `address`; `backends` chooses, `membership` brings a group together, `gloo` and `nccl` are the wires;
`process_groups` makes worlds. No other room imports `torch.distributed`. The steps of an export,
`export.py` and the doors import from this room; it imports `core` alone.
"""
