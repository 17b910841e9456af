"""Keys of a save to names of Hugging Face: what frameworks put before them, and what is no weight at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pp_export.core.errors import CheckpointError

_OTHERS = re.compile(
    r"""(?:(?:app|state|states|trainer)\.)?
    (?P<kind>optim|optimizers?|optimizer_states?|(?:lr_)?schedulers?|lr_sched|dataloaders?|train_dataloader
    |train_state|trainer_state|rng|rng_states?|extra_state|step|global_step|epoch)(?:\.|$)""",
    re.VERBOSE,
)
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NESTS = ("app.model.", "app.", "state_dict.", "module.")
"""What no model of Hugging Face begins with."""
_MODEL, _BELOW_MODEL = "model.", ("model.model.", "model.lm_head.")
"""Many begin with `model.`; a second one, or a head, says that the first is the framework's."""
_OF_OTHER_MODELS = (
    (
        re.compile(r"(?:^|\.)(?:decoder|mtp)\.layers\.|(?:^|\.)embedding\.word_embeddings\."),
        "the tensors have Megatron's names",
        "use `export`, which knows them",
    ),
    (
        re.compile(r"(?:^|\.)(?:tok_embeddings\.weight$|layers\.\d+\.(?:attention|feed_forward)\.w\w\.)"),
        "the tensors have names of torchtitan's own models",
        "save the last checkpoint with torchtitan's last_save_in_hf, or convert it with its script",
    ),
)


@dataclass(frozen=True)
class SavedNames:
    """The name of each key of the model; the `prefix` that all of them had before."""

    name_of: Mapping[str, str]
    prefix: str

    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        return (f"The names had `{self.prefix}` before them, which is taken off.",) if self.prefix else ()


def kind_of_other(key: str, is_tensor: bool) -> str | None:
    """What an item is when it is no weight of a model; None for weights."""
    match = _OTHERS.match(key)
    if match is not None:
        kind = match["kind"]
        return "optimizer" if kind.startswith("optim") else kind
    if "_extra_state" in key:
        return "_extra_state"
    return None if is_tensor else "other objects"


def saved_names(keys: Iterable[str]) -> SavedNames:
    """The names that the `keys` of a model mean. Raises CheckpointError where two mean one, or where they are
    not Hugging Face's.
    """
    bare = {key: _WRAPPERS.sub("", key) for key in keys}
    prefix = ""
    while nest := _nest([name.removeprefix(prefix) for name in bare.values()]):
        prefix += nest
    name_of = {key: name.removeprefix(prefix) for key, name in bare.items()}
    counts = Counter(name_of.values())
    doubled = [f"{name}: {key}" for key, name in name_of.items() if counts[name] > 1]
    if doubled:
        raise CheckpointError("several stored keys name one tensor", findings=sorted(doubled))
    for pattern, what, advice in _OF_OTHER_MODELS:
        found = next((name for name in name_of.values() if pattern.search(name)), None)
        if found is not None:
            raise CheckpointError(what, expected="names of Hugging Face", got=found, advice=advice)
    return SavedNames(name_of, prefix)


def _nest(names: list[str]) -> str:
    for nest in _NESTS:
        if all(name.startswith(nest) for name in names):
            return nest if names else ""
    if names and all(name.startswith(_MODEL) for name in names):
        return _MODEL if any(name.startswith(_BELOW_MODEL) for name in names) else ""
    return ""
