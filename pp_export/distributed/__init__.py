"""Ranks that work as one: how they agree, how bytes get from one to another, and how all end when one does.

The words: a *world* is all ranks of one export. *Control* is what they tell each other apart from tensors,
over a *store* of keys and values. *Data* is tensors, point to point over a *carrier*. *Liveness* is who still
moves; it bounds every wait. An *abort* makes one error out of the failure of one rank, which its *reporter*
finds, cleans up after and tells to the others. Control, liveness and abort belong to the main thread, which
only polls and so always hears a failure; sending and receiving block and belong to worker threads.

Modules, each built on those before it: `store`, `liveness`, `abort`, `control`, `data`, `world`, and
`process_groups`, which makes worlds and is the only one that imports `torch.distributed`. The steps of an
export, `export.py` and the doors import from this room; it imports `core` alone.
"""
