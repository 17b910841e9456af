"""What a user hears of an export whose weights are quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from pp_export.architecture.accounting import Account
from pp_export.core.errors import OptionError
from pp_export.shards.manifests import Errors

_MAX_NAMED = 3


def checked_quantization(account: Account) -> Account:
    """The account, unless a scheme is asked for that quantizes nothing of it; OptionError then."""
    quantization = account.quantization
    if quantization is not None and not quantization.tensors:
        raise OptionError(
            f"--quantize {quantization.scheme} fits no weight of this model",
            expected="linear layers, each with a matrix of its own, in shapes that the scheme can store",
            got="none" if quantization.kept else "no linear layers that the table knows as such",
            findings=[f"{name}: {reason}" for name, reason in list(quantization.kept.items())[:_MAX_NAMED]],
            advice="choose another scheme (--quantize fp8-channel takes any shape), or none",
        )
    return account


def quantization_notes(account: Account) -> list[str]:
    """How many weights of linear layers are quantized, and which are not."""
    quantization = account.quantization
    if quantization is None:
        return []
    count, kept = len(quantization.tensors), quantization.kept
    said = f"{count} of {count + len(kept)} weights of linear layers are quantized ({quantization.scheme})"
    if not kept:
        return [f"{said}."]
    (reason, _), *_ = Counter(kept.values()).most_common(1)
    first = next(name for name, why in kept.items() if why == reason)
    return [f"{said}; {len(kept)} stay as they are, such as {first}: {reason}."]


def errors_note(errors: Errors) -> list[str]:
    """The largest errors that were made of any weight."""
    if not errors:
        return []
    name, worst = max(errors.items(), key=lambda error: (error[1].relative, error[0]))
    absolute = max(error.absolute for error in errors.values())
    return [
        f"The largest error by quantization is {worst.relative:.2%} of the largest value under the same"
        f" scale ({name}), {absolute:.3g} as a number."
    ]


def errors_json(errors: Errors) -> Mapping[str, Mapping[str, float]]:
    """The largest errors of each tensor, as the report has them."""
    return {name: error._asdict() for name, error in errors.items()}


def not_quantized(account: Account) -> Mapping[str, str]:
    """The weights of linear layers that stay as they are with --quantize, and why."""
    return {} if account.quantization is None else dict(account.quantization.kept)
