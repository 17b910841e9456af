"""The manifest, SHA256SUMS and the files present must list the same files and describe the same tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pp_export.core.file_names import MANIFEST, SUMS
from pp_export.verification.claims import Manifest, ShardClaim, parse_manifest, parse_sums
from pp_export.verification.findings import Fault, MalformedError, shown
from pp_export.verification.header import Header, TensorEntry
from pp_export.verification.survey import Survey

_MODEL_WEIGHTS = re.compile(r"(pytorch_)?model[^/]*\.(safetensors|bin)(\.index\.json)?")
# What people put into a folder after an export, and no loader of the model takes for a part of it.
_ADDED_LATER = re.compile(
    r"""(.*/)?(readme|licen[cs]e|notice|changelog|citation)(\.(md|txt|rst|cff))? | .*\.md
    | .*\.(png|jpe?g|gif|svg|webp|pdf)
    | [^/]*\.(sig|asc|sigstore|sigstore\.json|intoto\.jsonl)
    | onnx/[^/]*\.(onnx(_data\w*)?|json)""",
    re.VERBOSE | re.IGNORECASE,
)
MAX_MANIFEST_BYTES = 512 << 20
MAX_SUMS_BYTES = 64 << 20


def read_sums(survey: Survey) -> None:
    """Fill in the digests of SHA256SUMS."""
    if SUMS not in survey.listing.sizes:
        survey.fault("missing-file", SUMS, f"{MANIFEST} is there without it")
        return
    try:
        survey.sums, faults = parse_sums(survey.listing.read(SUMS, MAX_SUMS_BYTES))
        survey.faults += faults
    except MalformedError as broken:
        survey.fault("bad-sums", SUMS, broken.message)


def read_manifest(survey: Survey) -> None:
    """Fill in the manifest."""
    if MANIFEST not in survey.listing.sizes:
        survey.fault("missing-file", MANIFEST, f"{SUMS} is there without it")
        return
    try:
        survey.manifest = parse_manifest(survey.listing.read(MANIFEST, MAX_MANIFEST_BYTES))
        survey.faults += survey.manifest.faults
    except MalformedError as broken:
        survey.fault("bad-manifest", MANIFEST, broken.message)


def check_manifest(survey: Survey) -> None:
    """Files listed == files summed == files present, with the recorded sizes; shard records == headers."""
    sizes, sums = survey.listing.sizes, survey.sums or {}
    manifest = survey.manifest if survey.manifest is not None and survey.manifest.is_readable else None
    claims = manifest.files if manifest else {}
    present = sizes.keys() - {MANIFEST, SUMS}
    for name in sorted((claims.keys() | sums.keys()) - present):
        lister = MANIFEST if name in claims else SUMS
        survey.fault("missing-file", name, f"{lister} lists it; it is not there")
    beside = manifest is not None and manifest.contents in ("model", "weights")
    others = {
        name
        for name in present - claims.keys() - sums.keys()
        if _ADDED_LATER.fullmatch(name) or (beside and not _MODEL_WEIGHTS.fullmatch(name))
    }
    survey.notes += [f"not covered by {MANIFEST}: {', '.join(map(shown, sorted(others)))}"] if others else []
    present -= others
    for name in sorted(present):
        lacking = [
            lister
            for lister, names, is_readable in (
                (MANIFEST, claims, manifest is not None),
                (SUMS, sums, survey.sums is not None),
            )
            if is_readable and name not in names
        ]
        if lacking:
            do = "does" if len(lacking) == 1 else "do"
            survey.fault("unlisted-file", name, f"{' and '.join(lacking)} {do} not list it")
        if name in claims and sizes[name] != claims[name].num_bytes:
            text = f"it has {sizes[name]} bytes; the manifest says {claims[name].num_bytes}"
            survey.fault("wrong-size", name, text)
    for name in sorted(claims.keys() & sums.keys()):
        if claims[name].sha256 != sums[name]:
            text = f"{MANIFEST} says SHA-256 {claims[name].sha256}, {SUMS} says {sums[name]}"
            survey.fault("manifest-mismatch", name, text)
    if manifest is not None:
        _check_shard_claims(survey, manifest)


def claim_faults(header: Header, claim: ShardClaim) -> Iterator[Fault]:
    """Where a header and the record of its file disagree, tensor by tensor."""
    found = {entry.name: entry for entry in header.tensors}
    claimed = {entry.name: entry for entry, _ in claim.tensors}
    for name in dict.fromkeys([*found, *claimed]):
        if claimed.get(name) != found.get(name):
            text = f"the header says {_described(found.get(name))}; "
            text += f"the record says {_described(claimed.get(name))}"
            yield Fault("manifest-mismatch", claim.file, name, text)


def _check_shard_claims(survey: Survey, manifest: Manifest) -> None:
    for name in survey.listing.weight_files():
        if name in manifest.files and name not in manifest.shards:
            survey.fault("manifest-mismatch", name, "the manifest has no shard record of it")
    for name, claim in manifest.shards.items():
        if manifest.files.get(name) != claim.whole:
            text = "the manifest's file record and shard record disagree in size or SHA-256"
            survey.fault("manifest-mismatch", name, text)
        if name in survey.headers:
            survey.faults += claim_faults(survey.headers[name], claim)
    if list(manifest.shards) != sorted(manifest.shards):
        survey.fault("bad-manifest", MANIFEST, "its shards are not in file order")


def _described(entry: TensorEntry | None) -> str:
    if entry is None:
        return "nothing"
    return shown(f"{entry.dtype}{list(entry.shape)} at {entry.begin}..{entry.end}")
