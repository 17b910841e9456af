"""What Megatron's training words mean, without a file and without Megatron.

*Training args* are the options of Megatron-LM as a checkpoint stores them: names and plain values. A *stage*
is one model object of a run: a pipeline stage, or one of its virtual stages. A *training grid* is the run's
parallel sizes. A *local name* is a parameter's name on one rank, which counts layers and experts from 0. The
rules repeat what megatron-core does with the same args, and where args contradict each other the answer is a
CheckpointError, never a guess. *Settings* are what args say of the function that the model computes.

Imports `core` only; `checkpoint` and `steps` import it.
"""
