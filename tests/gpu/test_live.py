"""Claims of live exports on a GPU: parameters stay there, and slices come to host memory as they are."""

from __future__ import annotations

import pytest
import torch

from pp_export.checkpoint import live
from pp_export.checkpoint.live import LiveReader
from tests.fixtures.parts import Part, entry

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_slices_come_from_the_gpu(dtype: torch.dtype) -> None:
    """Whole tensors, stacked ones, rows and transposed views have on the host the bytes that they have
    there.
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((6, 4096, 64), generator=generator).to(dtype)
    state = {
        "stack": entry(
            "decoder.layers.mlp.experts.experts.linear_fc2.weight",
            values.cuda(),
            global_shape=(1, 6, 4096, 64),
            global_offset=(0, 0, 0, 0),
            prepend_axis_num=1,
        ),
        "turned": entry("output_layer.weight", values[0].T.cuda().T),
    }
    local = live.look_at([Part(state)])
    catalog = live.merge([local.to_bytes()])
    before = torch.cuda.memory_allocated()
    with LiveReader(local, catalog) as reader:
        for name, slices in catalog.slices.items():
            for row in (row for slice_ in slices for row in slice_.rows(100_000)):
                data = bytearray(row.num_bytes)
                reader.read(row, memoryview(data))
                expert = int(name.split("experts.")[1].split(".")[0]) if "experts" in name else 0
                full = values[expert]
                begin, count = row.box.offset[0], row.box.shape[0]
                assert (
                    bytes(data)
                    == full[begin : begin + count].contiguous().view(torch.uint8).numpy().tobytes()
                )
    assert torch.cuda.memory_allocated() - before < 64 << 20, "only slices in flight are copied"
