"""Whether a checkpoint's names are those that a table is for at all, asked before any size is compared.

What holds no model of megatron-core is told by its names, so that the first error is not about a vocabulary
that some other framework spells in another way.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pp_export.architecture.rules import Architecture
from pp_export.architecture.units import HOLE
from pp_export.core.errors import AccountingError
from pp_export.core.tensors import REFERENCE

_MAX_SHOWN = 5
_EXPECTED = "Megatron's names, such as decoder.layers.0.self_attention.linear_qkv.weight"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_PREFIXED = re.compile(
    r"(?P<prefix>(?:[\w-]+\.)+?)"
    r"(?:(?:decoder|mtp)\.layers\.\d+|decoder\.final_\w*norm|embedding\.word_embeddings|output_layer)\."
)
_LAYER = re.compile(r"(?:decoder|mtp)\.layers\.\d+\.")
_HUGGING_FACE = re.compile(
    r"(?:^|\.)layers\.\d+\.(?:self_attn|cross_attn|linear_attn|block_sparse_moe|post_attention_layernorm)\."
    r"|(?:^|\.)layers\.\d+\.(?:mlp|feed_forward)\.(?:experts\.\d+\.)?(?:gate|up|down|gate_up)_proj\."
    r"|(?:^|\.)transformer\.h\.\d+\.|(?:^|\.)gpt_neox\.layers\.\d+\.|(?:^|\.)h\.\d+\.(?:attn|mlp|ln_1)\."
    r"|(?:^|\.)(?:lm_head|embed_tokens)\.weight$"
)


@dataclass(frozen=True)
class _Kind:
    """Models that a name gives away, and what to do with them."""

    pattern: re.Pattern[str]
    what: str
    advice: str


# The first that fits a name counts.
_OTHERS = (
    _Kind(
        re.compile(
            r"(?:^|\.)language_model\.(?:encoder|transformer)\."
            r"|(?:^|\.)(?:encoder|transformer)\.layers\.\d+\.\w*attention\.(?:query_key_value|dense)\."
        ),
        "the model is one of Megatron-LM before megatron-core",
        "convert it with Megatron-LM 0.12: tools/checkpoint/convert.py, loader legacy, saver core",
    ),
    _Kind(
        re.compile(r"(?:^|\.)(?:tok_embeddings\.weight$|layers\.\d+\.(?:attention|feed_forward|moe)\.\w+\.)"),
        "the tensors have the names of torchtitan or of Meta's own Llama, not Megatron's",
        "use that framework's own converter to Hugging Face",
    ),
    _Kind(
        re.compile(r"^encoder\.layers\.\d+\."),
        "the model is an encoder of megatron-core (BERT, T5), and no table is for one",
        "pp_export exports decoders; convert it with the tools of its own framework",
    ),
    _Kind(
        re.compile(r"(?:^|\.)transformer\.(?:layers|blocks)\.\d+\.|(?:^|\.)blocks\.\d+\.|^sequential\.\d+\."),
        "the tensors have the names of another framework, not Megatron's",
        "use that framework's own converter to Hugging Face",
    ),
)


def check_names(architecture: Architecture, specs: Collection[str]) -> None:
    """Raise AccountingError where the canonical names in `specs` are no decoder's that `architecture` could
    be for. Single tensors that no row takes are not looked at.
    """
    if _has_layers(architecture, specs):
        return
    where = {"architecture": architecture.name}
    names = [name for name in specs if not name.startswith(REFERENCE)]
    made = {HOLE.sub("{}", name) for rule in architecture.rules for name in rule.hf.values()}
    named = [name for name in names if _NUMBER.sub("{}", name) in made or _HUGGING_FACE.search(name)]
    if named:
        raise AccountingError(
            "the tensors already have Hugging Face names: this is a torch DCP checkpoint as torchtitan, NeMo"
            " Automodel or FSDP save it, not Megatron's",
            where=where,
            expected=_EXPECTED,
            got=f"{next(filter(_NUMBER.search, named), named[0])} ({len(named)} of {len(names)} tensors)",
            advice="`pp_export consolidate --input DIR` makes one folder of it",
            findings=_some(named),
        )
    for kind in _OTHERS:
        found = [name for name in names if kind.pattern.search(name)]
        if found:
            raise AccountingError(
                kind.what,
                where=where,
                expected=_EXPECTED,
                got=f"{found[0]} ({len(found)} of {len(names)} tensors)",
                advice=kind.advice,
                findings=_some(found),
            )
    prefixes: dict[str, str] = {}
    for name in names:
        if match := _PREFIXED.match(name):
            prefixes.setdefault(match["prefix"], name)
    if prefixes:
        told = ", ".join(repr(prefix) for prefix in sorted(prefixes))
        raise AccountingError(
            f"the tensors' names begin with something unknown, before Megatron's own names: {told}",
            where=where,
            expected=_EXPECTED,
            got=", ".join(_some(prefixes[prefix] for prefix in sorted(prefixes))),
            advice="save the inner model alone, or pass a table whose rows begin with it (--architecture"
            " FILE.yaml)",
        )
    if not any(_LAYER.match(name) for name in names):
        raise AccountingError(
            "the checkpoint has no decoder layers: it is not a language model, or only a part of one",
            where=where,
            expected=_EXPECTED,
            got=", ".join(_some(names)) or "no tensors of a model",
            advice="check the path: it may be that of an optimizer, a critic's head or an adapter",
        )


def _has_layers(architecture: Architecture, specs: Iterable[str]) -> bool:
    """Whether some name fits a row for numbered tensors, or the table has no such row to judge by."""
    if not any(rule.holes and rule.drop is None for rule in architecture.rules):
        return True
    matches = (architecture.match(name) for name in specs)
    return any(match is not None and match[0].holes and match[0].drop is None for match in matches)


def _some(names: Iterable[str]) -> list[str]:
    """A few of the names, and how many there are besides."""
    listed = list(names)
    return [
        *listed[:_MAX_SHOWN],
        *([f"and {len(listed) - _MAX_SHOWN} more"] if len(listed) > _MAX_SHOWN else []),
    ]
