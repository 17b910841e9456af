"""Everything about a folder that can be checked without reading tensor bytes."""

from __future__ import annotations

from pathlib import Path

from pp_export.core.file_names import CONFIG, MANIFEST, SUMS
from pp_export.core.strict_json import MAX_CONFIG_BYTES
from pp_export.verification.agreement import check_manifest, read_manifest, read_sums
from pp_export.verification.definition import entries_of
from pp_export.verification.findings import once
from pp_export.verification.folder import list_folder
from pp_export.verification.header import read_header
from pp_export.verification.index import check_numbering, check_totals, check_weight_map, read_index
from pp_export.verification.quantized import faults_of, form_of
from pp_export.verification.survey import Survey


def survey_folder(folder: Path) -> Survey:
    """Look at everything but tensor bytes. Raises VerificationError where there is no folder to look at."""
    listing = list_folder(folder)
    survey = Survey(listing, MANIFEST in listing.sizes or SUMS in listing.sizes)
    survey.faults += listing.faults
    if listing.ignored:
        survey.notes.append(f"not looked at: {', '.join(sorted(listing.ignored))}")
    _read_headers(survey)
    read_index(survey)
    check_weight_map(survey)
    check_numbering(survey)
    if survey.made_by_us:
        read_sums(survey)
        read_manifest(survey)
        check_manifest(survey)
    else:
        survey.notes.append(f"no {MANIFEST}: not made by pp_export, or stripped of its records")
    _check_config(survey)
    check_totals(survey)
    form, entries = form_of(survey.config or {}), entries_of(survey)
    if form is not None and entries is not None:
        survey.faults += faults_of(form, entries)
    survey.faults = once(survey.faults)
    return survey


def _check_config(survey: Survey) -> None:
    if CONFIG in survey.listing.sizes:
        survey.config = survey.parse(CONFIG, MAX_CONFIG_BYTES, allow_infinity=True)
    elif survey.manifest is not None and survey.manifest.contents == "weights":
        survey.notes.append(f"weights only: there is no {CONFIG} yet")
    elif "adapter_config.json" not in survey.listing.sizes:
        survey.fault("missing-file", CONFIG, "a model folder needs it")


def _read_headers(survey: Survey) -> None:
    for name in survey.listing.weight_files():
        try:
            with survey.listing.open(name) as file:
                header, faults = read_header(file, name, survey.listing.sizes[name], ours=survey.made_by_us)
        except OSError as error:
            survey.fault("unreadable-file", name, f"it cannot be read: {error.strerror}")
            continue
        survey.faults += faults
        if header is not None:
            survey.headers[name] = header
