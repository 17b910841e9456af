"""A recording of logits: what a model answered in training, in a safetensors file that is checked strictly.

Metadata `{"format": "pp_export logits 1"}`; `token_ids` int64 [batch, sequence]; and either `logits` [batch,
sequence, columns] or the largest of them: `top_values` and `top_ids` (int64) [batch, sequence, k], with
`num_columns` (int64 [1]), of how many. Values are float32, bfloat16 or float16, as the model gave them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pp_export.core.errors import ExportError, OptionError, VerificationError

if TYPE_CHECKING:
    import torch

FORMAT = "pp_export logits 1"
DTYPES = ("float32", "bfloat16", "float16")
_WHOLE = {"token_ids", "logits"}
_TOP = {"token_ids", "top_values", "top_ids", "num_columns"}
_GATHER = "record the whole logits [batch, sequence, vocabulary], gathered over tensor parallel ranks"


@dataclass(frozen=True)
class Recording:
    """`values` [batch, sequence, k] are the logits of the columns `ids`, or of all columns where `ids` is
    None. Columns may be more than the vocabulary: Megatron pads it.
    """

    token_ids: torch.Tensor
    values: torch.Tensor
    ids: torch.Tensor | None
    num_columns: int

    @property
    def dtype(self) -> str:
        """The type of the values, by torch's name."""
        return str(self.values.dtype).removeprefix("torch.")

    def to_bytes(self) -> bytes:
        """The file; the same values give the same bytes."""
        import torch
        from safetensors.torch import save

        tensors = {"token_ids": self.token_ids}
        if self.ids is None:
            tensors["logits"] = self.values
        else:
            tensors |= {"top_values": self.values, "top_ids": self.ids}
            tensors["num_columns"] = torch.tensor([self.num_columns])
        return save({name: each.contiguous() for name, each in tensors.items()}, {"format": FORMAT})


def make_recording(
    token_ids: torch.Tensor, logits: torch.Tensor, top_k: int | None, where: Mapping[str, object]
) -> Recording:
    """The recording of `logits` [batch, sequence, columns] on any device, on the CPU; OptionError at `where`
    if it can't be one.
    """
    import torch

    values, ids = logits.detach(), None
    num_columns = int(values.shape[-1]) if values.dim() else 0
    _check(token_ids, values, None, num_columns, where, OptionError)
    if top_k is not None:
        if not 1 <= top_k <= num_columns:
            raise OptionError("no such top_k", where=where, expected=f"1 to {num_columns}", got=top_k)
        values, ids = torch.topk(values, top_k)
        _check(token_ids, values, ids, num_columns, where, OptionError)
    return Recording(token_ids.cpu(), values.cpu(), None if ids is None else ids.cpu(), num_columns)


def read_recording(file: Path) -> Recording:
    """The recording in `file`, or VerificationError that says what is wrong with it."""
    from safetensors import SafetensorError, safe_open

    where = {"file": file}
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            metadata, names = opened.metadata(), set(opened.keys())
            tensors = {name: opened.get_tensor(name) for name in names & (_WHOLE | _TOP)}
    except (OSError, SafetensorError) as error:
        raise VerificationError(f"the recording can't be read: {error}", where=where) from None
    if metadata != {"format": FORMAT}:
        raise VerificationError(
            "the file is not a recording of logits",
            where=where,
            expected=f"the metadata {{'format': {FORMAT!r}}}",
            got=metadata,
            advice="write it with pp_export.record_logits",
        )
    if names not in (_WHOLE, _TOP):
        raise VerificationError(
            "the recording has other tensors than one of logits",
            where=where,
            expected=" or ".join(", ".join(sorted(each)) for each in (_WHOLE, _TOP)),
            got=", ".join(sorted(names)) or "none",
            advice="write it with pp_export.record_logits",
        )
    if names == _WHOLE:
        values, ids, num_columns = tensors["logits"], None, int(tensors["logits"].shape[-1])
    else:
        values, ids = tensors["top_values"], tensors["top_ids"]
        num_columns = _number(tensors["num_columns"], where)
    _check(tensors["token_ids"], values, ids, num_columns, where, VerificationError)
    return Recording(tensors["token_ids"], values, ids, num_columns)


def _number(tensor: torch.Tensor, where: Mapping[str, object]) -> int:
    if str(tensor.dtype) != "torch.int64" or tuple(tensor.shape) != (1,):
        got = f"{tensor.dtype} {list(tensor.shape)}"
        place = {**where, "tensor": "num_columns"}
        raise VerificationError(
            "the recording's num_columns is not a number", where=place, expected="int64 [1]", got=got
        )
    return int(tensor)


def _check(
    token_ids: torch.Tensor,
    values: torch.Tensor,
    ids: torch.Tensor | None,
    num_columns: int,
    where: Mapping[str, object],
    kind: type[ExportError],
) -> None:
    """Raise `kind` where shapes, types or values are not those of a recording."""
    name = "logits" if ids is None else "top_values"
    if token_ids.dim() != 2 or 0 in token_ids.shape:
        _fail(kind, where, "token_ids", "of another shape", "[batch, sequence]", list(token_ids.shape))
    if values.dim() != 3 or values.shape[:2] != token_ids.shape or 0 in values.shape:
        expected = f"[{token_ids.shape[0]}, {token_ids.shape[1]}, columns]"
        _fail(kind, where, name, "of another shape", expected, list(values.shape), _GATHER)
    _check_ids(token_ids, "token_ids", num_columns, where, kind)
    if str(values.dtype).removeprefix("torch.") not in DTYPES:
        _fail(kind, where, name, "of another type", ", ".join(DTYPES), values.dtype)
    _check_finite(values, name, where, kind, masked=ids is None)
    if ids is None:
        return
    if ids.shape != values.shape:
        _fail(kind, where, "top_ids", "of another shape", list(values.shape), list(ids.shape))
    _check_ids(ids, "top_ids", num_columns, where, kind)
    ordered = ids.sort(dim=-1).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        _fail(kind, where, "top_ids", "the same twice at one position", "every column once", "a column twice")


def _check_ids(
    ids: torch.Tensor, name: str, num_columns: int, where: Mapping[str, object], kind: type[ExportError]
) -> None:
    if str(ids.dtype) != "torch.int64":
        _fail(kind, where, name, "of another type", "int64", ids.dtype)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= num_columns:
        wrong = low if low < 0 else high
        _fail(kind, where, name, "beyond the columns", f"0 to {num_columns - 1}", wrong, _GATHER)


def _check_finite(
    values: torch.Tensor, name: str, where: Mapping[str, object], kind: type[ExportError], *, masked: bool
) -> None:
    """All finite; where `masked`, a column may be -inf throughout, as some jobs mark padding."""
    import torch

    bad = ~torch.isfinite(values)
    if masked and bool(bad.any()):
        bad &= ~(values == -torch.inf).flatten(0, 1).all(dim=0)
    if bool(bad.any()):
        batch, position, column = (int(each) for each in bad.nonzero()[0])
        got = f"{float(values[batch, position, column])} at [{batch}, {position}, {column}]"
        _fail(kind, where, name, f"not finite ({int(bad.sum())} of {bad.numel()})", "finite numbers", got)


def _fail(
    kind: type[ExportError],
    where: Mapping[str, object],
    tensor: str,
    what: str,
    expected: object,
    got: object,
    advice: str | None = None,
) -> None:
    raise kind(
        f"{tensor} is {what}", where={**where, "tensor": tensor}, expected=expected, got=got, advice=advice
    )
