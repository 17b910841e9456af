"""Proves a Hugging Face folder, whoever made it; it trusts nothing that wrote the folder, and only reads.

Words: a `Fault` is one finding, of a kind in `KINDS`; a claim is what a manifest or a shard's JSON says of a
file; a `Survey` is all that a folder says of itself; `structure` is what can be checked without tensor bytes.

Of pp_export this room imports only `core`, so a wrong assumption of planner or writer is not repeated here;
any room above `core` may import it. Who calls `verify_folder` may bring someone who knows the model's
definition (`definition.Ask`). It needs no torch (`diff` and `logits` alone compare with it, `load` and
`logits` alone need transformers), so a folder can be proved where it was copied to.
"""

from pp_export.verification.findings import KINDS, Fault, Verification
from pp_export.verification.verify import (
    digest_staged_shard,
    verify_folder,
    verify_staged_shard,
    verify_structure,
)

__all__ = [
    "KINDS",
    "Fault",
    "Verification",
    "digest_staged_shard",
    "verify_folder",
    "verify_staged_shard",
    "verify_structure",
]
