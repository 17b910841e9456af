"""The index against the headers.

Loaders read whole files and few look a tensor up in the index, so both must name the same tensors file by
file, and no other weight file may lie beside them.
"""

from __future__ import annotations

from pp_export.core import weight_index
from pp_export.core.file_names import INDEX, MANIFEST, SINGLE_WEIGHTS, number_of
from pp_export.core.strict_json import JsonError
from pp_export.verification.findings import MalformedError, brief
from pp_export.verification.survey import Survey

HUB_INDEX_BYTES = 10 << 20


def read_index(survey: Survey) -> None:
    """Fill in the weight map and the metadata of the index."""
    sizes = survey.listing.sizes
    for name in sizes:
        if name.endswith(".index.json") and "/" not in name and name != INDEX:
            _report_second_index(survey, name)
    if INDEX not in sizes:
        _check_without_index(survey)
        return
    if sizes[INDEX] > HUB_INDEX_BYTES:
        survey.notes.append(f"{INDEX} is larger than the 10 MiB that the Hub's own loader accepts")
    try:
        index = weight_index.parse(survey.listing.read(INDEX, weight_index.MAX_BYTES))
    except (MalformedError, JsonError) as broken:
        survey.fault("bad-json", INDEX, str(broken))
        return
    survey.weight_map, survey.index_metadata = index.weight_map, index.metadata
    for entry in index.wrong:
        kind = "bad-index" if entry.tensor is None else "unsafe-name"
        survey.fault(kind, INDEX, f"{entry.what}: {brief(entry.value)}", entry.tensor)


def check_weight_map(survey: Survey) -> None:
    """Set equality of index and headers for every file; no tensor in two files; no file left out."""
    home: dict[str, str] = {}
    places: set[tuple[str, str]] = set()
    for file, header in survey.headers.items():
        for entry in header.tensors:
            places.add((entry.name, file))
            if home.setdefault(entry.name, file) != file:
                text = f"{home[entry.name]} has a tensor of this name too"
                survey.fault("duplicate-tensor", file, text, entry.name)
    if survey.weight_map is None:
        return
    named = set(survey.weight_map.values())
    for file in sorted(named - survey.listing.sizes.keys()):
        survey.fault("missing-file", file, "the index names it; it is not there")
    for file in survey.listing.weight_files():
        if file not in named:
            survey.fault("unindexed-file", file, _why_it_matters(file))
    for tensor, file in survey.weight_map.items():
        if tensor in home and (tensor, file) not in places:
            text = f"the index says {file}, the header of {home[tensor]} has it"
            survey.fault("misplaced-tensor", INDEX, text, tensor)
        elif tensor not in home and file in survey.headers:
            survey.fault("missing-tensor", file, "the index names it; no header has it", tensor)
    for tensor, file in home.items():
        if tensor not in survey.weight_map and file in named:
            survey.fault("unindexed-tensor", file, "its header has it; the index does not name it", tensor)


def check_numbering(survey: Survey) -> None:
    """Files named model-N-of-M are numbered 1 to M, each once."""
    names = set(survey.weight_map.values()) if survey.weight_map else set(survey.listing.weight_files())
    found = [numbers for numbers in map(number_of, names) if numbers]
    numbers, totals = sorted(number for number, _ in found), {total for _, total in found}
    if found and (totals != {len(found)} or numbers != list(range(1, len(found) + 1))):
        text = f"{len(found)} files model-N-of-M have N in {brief(numbers)}, M in {brief(sorted(totals))}"
        survey.fault("wrong-numbering", INDEX, text)


def check_totals(survey: Survey) -> None:
    """total_size and total_parameters, of index and manifest, are true."""
    files = survey.headers.keys() if survey.weight_map is None else set(survey.weight_map.values())
    if not files <= survey.headers.keys():
        return
    entries = [entry for file in files for entry in survey.headers[file].tensors]
    sums = {
        "total_size": sum(entry.end - entry.begin for entry in entries),
        "total_parameters": sum(entry.num_elements for entry in entries),
    }
    metadata = survey.index_metadata
    if metadata is not None:
        _check_sum(survey, INDEX, "total_size", metadata.get("total_size"), sums)
        if survey.made_by_us:  # to other writers the word means other things
            _check_sum(survey, INDEX, "total_parameters", metadata.get("total_parameters"), sums)
    if survey.manifest is not None and survey.manifest.is_readable:
        _check_sum(survey, MANIFEST, "total_size", survey.manifest.total_size, sums)
        _check_sum(survey, MANIFEST, "total_parameters", survey.manifest.total_parameters, sums)


def _check_sum(survey: Survey, file: str, key: str, claim: object, sums: dict[str, int]) -> None:
    # Older transformers wrote floats.
    is_number = type(claim) is int or (type(claim) is float and not survey.made_by_us)
    if not is_number or claim != sums[key]:
        survey.fault("wrong-total", file, f"{key} is {brief(claim)}; the headers add up to {sums[key]}")


def _report_second_index(survey: Survey, name: str) -> None:
    if survey.made_by_us:
        survey.fault("second-index", name, "accelerate refuses a folder with two indexes")
    else:
        survey.notes.append(f"a second index, {brief(name)}: accelerate refuses such a folder")


def _check_without_index(survey: Survey) -> None:
    files = survey.listing.weight_files()
    if not files:
        survey.fault("missing-file", SINGLE_WEIGHTS, "the folder has no *.safetensors at its top")
    elif len(files) > 1 or number_of(files[0]):
        survey.fault("missing-file", INDEX, f"{len(files)} weight files without an index")
    elif files != [SINGLE_WEIGHTS]:
        survey.notes.append(f"loaders look for {SINGLE_WEIGHTS}; this folder has {brief(files[0])}")


def _why_it_matters(file: str) -> str:
    if file == SINGLE_WEIGHTS:
        return "the index does not name it, and transformers loads it instead of the index"
    if file.startswith("consolidated"):
        return "the index does not name it, and vLLM takes the folder for one in Mistral's own format"
    return "the index does not name it"
