"""The arithmetic of encodings: pure functions of whole Hugging Face tensors, the same bits on every machine.

What they are, and which tensors they take and give, is in the plan (`architecture/encodings.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pp_export.architecture.encodings import CAST, Encoding

Tensors = Mapping[str, torch.Tensor]

_STEP_ELEMENTS = 1 << 20


def encode(encoding: Encoding, inputs: Tensors, outputs: Tensors) -> None:
    """Fill the tensors `outputs` (dense, by name) from the finished `inputs`; names may stand for others
    too.
    """
    _ENCODERS[encoding.kind](
        {name: inputs[name] for name in encoding.inputs}, {name: outputs[name] for name in encoding.outputs}
    )


def _cast(inputs: Tensors, outputs: Tensors) -> None:
    """Round to nearest, as torch does. All NaNs become torch's own: which bits one would get depends on
    whether the processor casts it alone or among others.
    """
    for name, values in inputs.items():
        source, target = values.reshape(-1), outputs[name].view(-1)
        for begin in range(0, source.numel(), _STEP_ELEMENTS):
            step = source[begin : begin + _STEP_ELEMENTS].to(target.dtype)
            target[begin : begin + _STEP_ELEMENTS] = step.masked_fill_(step.isnan(), torch.nan)


_ENCODERS: dict[str, Callable[[Tensors, Tensors], None]] = {CAST: _cast}
