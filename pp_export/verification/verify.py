"""The three ways to ask: a whole folder, its structure alone, one shard of an export that is under way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pp_export.core.errors import OptionError
from pp_export.core.file_names import MANIFEST, SUMS, shard_json
from pp_export.core.strict_json import JsonError
from pp_export.verification.agreement import claim_faults
from pp_export.verification.claims import MAX_SHARD_JSON_BYTES, ShardClaim, parse_shard_json
from pp_export.verification.content import Promise, Reader
from pp_export.verification.definition import Ask, Held, Pending, hold, not_held, why_not
from pp_export.verification.findings import Fault, MalformedError, Verification, once
from pp_export.verification.folder import open_regular, read_upto
from pp_export.verification.header import read_header
from pp_export.verification.structure import survey_folder
from pp_export.verification.survey import Survey
from pp_export.verification.tokens import check_tokens

_QUICK = "a quick verification looks at the structure only, and not at the tokenizer"
_NOBODY = "it was not asked for"


def verify_folder(
    folder: Path,
    *,
    quick: bool = False,
    subset: tuple[int, int] | None = None,
    load: bool = False,
    threads: int = 1,
    on_bytes: Callable[[int], None] | None = None,
    ask: Ask | None = None,
) -> Verification:
    """Prove `folder`: structure, tokenizer and token ids, every byte against the recorded digests, the
    tensors against the model's definition that `ask` finds out, and with `load` the model.

    `quick` stops after the structure: no definition, no tokenizer. `subset` (i, n) reads the i-th of n shares
    of the files; the n shares together are all files. `threads` digest at a time. `on_bytes` is told the size
    of every read, by one thread at a time; what it raises ends the verification. Raises OptionError for
    options that make no sense and VerificationError where there is no folder to look at.
    """
    folder = Path(folder)
    _check_options(quick, subset, threads)
    survey = survey_folder(folder)
    proved = ["structure"]
    num_bytes_read = 0
    why = _QUICK if quick else _NOBODY if ask is None else why_not(survey)
    pending = ask(survey.config or {}) if ask is not None and why is None else None
    try:
        if not quick:
            check_tokens(survey)
        faults = list(survey.faults)
        promises = [] if quick else _promises(survey)
        if promises:
            share = promises if subset is None else promises[subset[0] - 1 :: subset[1]]
            proved = ["full" if subset is None else f"subset {subset[0]}/{subset[1]}"]
            with Reader(folder, on_bytes, threads) as reader:
                faults += reader.check_all(share)
            num_bytes_read = reader.num_bytes_read
        held = _held(survey, pending, why)
    finally:
        if pending is not None:
            pending.close()
    faults = once([*faults, *held.faults])
    notes = [*survey.notes, *held.notes]
    proved += ["definition"] if held.class_name else []
    if load and faults:
        notes.append("not loaded, because of the faults")
    elif load:
        from pp_export.verification.loading import load_faults

        faults += load_faults(folder)
        proved.append("load")
    lacking = "digests are recorded" if MANIFEST in survey.listing.sizes else "manifest"
    without = "" if quick or promises else f"; no {lacking}, so values can't be checked"
    return Verification(
        folder=str(folder),
        faults=tuple(faults),
        num_files=len(survey.listing.sizes),
        num_tensors=sum(len(header.tensors) for header in survey.headers.values()),
        num_bytes_read=num_bytes_read,
        depth=" and ".join(filter(None, [", ".join(proved[:-1]), proved[-1]])) + without,
        made_by_us=survey.made_by_us,
        notes=tuple(notes),
        definition=held.class_name,
    )


def verify_structure(folder: Path) -> list[Fault]:
    """Everything but reading tensor bytes. Raises VerificationError where there is no folder to look at."""
    return survey_folder(Path(folder)).faults


def verify_staged_shard(
    folder: Path, file: str, on_bytes: Callable[[int], None] | None = None
) -> list[Fault]:
    """The shard `file` of the staging folder `folder` against the JSON that its writer left beside it.

    For a rank that did not write the file: every byte is read from the disk, and header and tensors, which
    are all of it, must have the XXH3-128 that was taken in memory. `on_bytes` is told the size of every read;
    what it raises is passed on.
    """
    return _check_staged(Path(folder), file, on_bytes, with_sha256=False)[1]


def digest_staged_shard(
    folder: Path, file: str, on_bytes: Callable[[int], None] | None = None
) -> tuple[str, list[Fault]]:
    """The same for a shard that several ranks wrote, so that nobody knows its SHA-256. Gives that of what was
    read too: the shard's where there are no faults.
    """
    return _check_staged(Path(folder), file, on_bytes, with_sha256=True)


def _check_staged(
    folder: Path, file: str, on_bytes: Callable[[int], None] | None, *, with_sha256: bool
) -> tuple[str, list[Fault]]:
    claim = _read_shard_claim(folder, file)
    if isinstance(claim, Fault):
        return "", [claim]
    path = folder / file
    if path.is_symlink():
        return "", [Fault("unsafe-link", file, None, "a symbolic link; it was not followed")]
    try:
        with open_regular(path) as shard:
            num_bytes = os.fstat(shard.fileno()).st_size
            found, faults = read_header(shard, file, num_bytes, ours=True)
    except FileNotFoundError:
        return "", [Fault("missing-file", file, None, "it is not there")]
    except OSError as error:
        return "", [Fault("unreadable-file", file, None, f"it cannot be read: {error.strerror}")]
    if found is not None:
        faults += claim_faults(found, claim)
    if num_bytes != claim.whole.num_bytes:
        text = f"it has {num_bytes} bytes; its JSON says {claim.whole.num_bytes}"
        faults.append(Fault("wrong-size", file, None, text))
    if not claim.is_contiguous:
        text = "its JSON: header and tensors don't follow each other without a gap, so they don't tell all"
        return "", once([*faults, Fault("bad-manifest", file, None, text)])
    promise = Promise(file, {}, claim, with_sha256=with_sha256)
    with Reader(folder, on_bytes) as reader:
        sha256, wrong = reader.digest(promise)
    return sha256, once([*faults, *wrong])


def _held(survey: Survey, pending: Pending | None, why: str | None) -> Held:
    return Held(notes=(not_held(str(why)),)) if pending is None else hold(survey, pending)


def _read_shard_claim(folder: Path, file: str) -> ShardClaim | Fault:
    path = folder / shard_json(file)
    try:
        with open_regular(path) as source:
            if os.fstat(source.fileno()).st_size > MAX_SHARD_JSON_BYTES:
                raise MalformedError(f"more than {MAX_SHARD_JSON_BYTES:,} bytes are not read")
            return parse_shard_json(read_upto(source, MAX_SHARD_JSON_BYTES), file)
    except FileNotFoundError:
        return Fault("missing-file", file, None, "its JSON is not there")
    except OSError as error:
        return Fault("unreadable-file", file, None, f"its JSON cannot be read: {error.strerror}")
    except MalformedError as broken:
        return Fault("bad-manifest", file, broken.tensor, f"its JSON: {broken.message}")
    except JsonError as broken:
        return Fault("bad-manifest", file, None, f"its JSON: {broken}")


def _check_options(quick: bool, subset: tuple[int, int] | None, threads: int) -> None:
    if subset is not None and not 1 <= subset[0] <= subset[1]:
        raise OptionError(
            "there is no such subset",
            expected=f"the I of I/N from 1 to {subset[1]}",
            got=f"{subset[0]}/{subset[1]}",
        )
    if subset is not None and quick:
        raise OptionError("a quick verification reads no tensor bytes, so it has no subsets")
    if threads < 1:
        raise OptionError("--threads must be positive", got=threads)


def _promises(survey: Survey) -> list[Promise]:
    """What is recorded of every file that is there; weight files first."""
    manifest, sums = survey.manifest, survey.sums or {}
    promises = []
    for name in dict.fromkeys([*survey.listing.weight_files(), *survey.listing.sizes]):
        claim = manifest.shards.get(name) if manifest else None
        sources = {
            MANIFEST: manifest.files[name].sha256 if manifest and name in manifest.files else None,
            "its shard record": claim.whole.sha256 if claim else None,
            SUMS: sums.get(name),
            "the cache's name for it": survey.listing.blob_digests.get(name),
        }
        digests = {source: digest for source, digest in sources.items() if digest is not None}
        if digests:
            promises.append(Promise(name, digests, claim))
    return promises
