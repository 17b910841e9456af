"""What describing and planning cost where models and worlds are large: `python -m bench.scale`.

Catalogs of real shapes are built directly, without any file: what a training job of that layout would have
stored. Each case runs in a process of its own, which measures its CPU seconds and its peak of anonymous
memory step by step, as rank 0 takes them, and what the rank with the largest part then does with it.
"""
