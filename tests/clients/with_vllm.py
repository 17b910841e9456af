"""What vLLM is asked about: a model of each kind, too dear for every run of CI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.clients.asking import ask
from tests.clients.folders import DAMAGED, QUANTIZED, TOLERANCE, write_adapter, write_exports, write_quantized
from tests.clients.outcomes import Outcomes, outcome
from tests.fixtures.families import FAMILIES
from tests.fixtures.wide_families import WIDE

OF_8_BITS = 0.05
"""vLLM rounds to 8 bits also what goes into such layers; the truth has only their weights rounded."""
_MLA, _HYBRID = WIDE["deepseek_v3_mtp"], FAMILIES["qwen3_next"]
KINDS = {
    "dense": DAMAGED,
    "MoE": WIDE["qwen2_moe"],
    # Its latent attention on the CPU has no other sizes than the published ones.
    "MLA": replace(
        _MLA,
        config={
            **_MLA.config,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "head_dim": 64,
        },
        args={**_MLA.args, "kv_lora_rank": 512, "qk_head_dim": 128, "qk_pos_emb_head_dim": 64},
    ),
    # Its attention on the CPU has no smaller heads.
    "hybrid": replace(
        _HYBRID, config={**_HYBRID.config, "head_dim": 32}, args={**_HYBRID.args, "kv_channels": 32}
    ),
}


def of_models(root: Path) -> Outcomes:
    """What it makes of each kind, of quantized ones and of an adapter."""
    write_exports(root, KINDS, tokens=True)
    for scheme in QUANTIZED:
        write_quantized(scheme, root / scheme)
    write_adapter(root / "adapter", tokens=True)
    folders = {name: root / name / "export" for name in [*KINDS, *QUANTIZED, "adapter"]}
    answers = ask("vllm", folders, root / "answers")
    tolerances = dict.fromkeys(QUANTIZED, OF_8_BITS)
    return {
        "vllm": {
            name: outcome(said, root / name, tolerance=tolerances.get(name, TOLERANCE))
            for name, said in answers.items()
        }
    }
