"""Readers: which slices a checkpoint holds, which model they describe, and the values of a slice.

Geometry ends here. Stacked layers, stacked experts and stage-local numbers are resolved by the reader, which
speaks canonical names only.
"""
