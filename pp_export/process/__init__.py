"""What belongs to this process alone: its memory, its children, its signals, its log, its time.

A *ring buffer* is memory that is taken once and used again, *pinned* where a GPU copies to it; a *child* is a
process of ours that works offline and without a GPU. Imports `core`; imported by every room that plans
memory, starts a child or logs.
"""
