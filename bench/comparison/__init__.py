"""What tools make of damaged inputs, of an older target, and of being killed: `python -m bench.comparison`.

Nothing is fetched: what Python can't import is left out, with what to install. docs/comparison.md is what it
printed.
"""
