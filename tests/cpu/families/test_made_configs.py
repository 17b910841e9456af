"""Claims: what is made of training args is the config.json of the model that was trained, for every class.

The truth is transformers: what it understands of a published config.json and of what is made of the args of
the same function.
"""

from __future__ import annotations

from typing import Any

import pytest

from pp_export.architecture import meaning, table_files
from pp_export.core.errors import AccountingError
from pp_export.megatron import settings
from pp_export.reference.definition import define
from tests.fixtures.families import FAMILIES
from tests.fixtures.published_args import PUBLISHED
from tests.fixtures.releases import transformers_5
from tests.fixtures.without_reference import PAGE, differences, made_of, needs, row

pytestmark = transformers_5
OTHERWISE = {"llama4": ["attention_chunk_size", "layer_types", "attn_temperature_tuning"]}
"""What Megatron-LM can't do, and no sequence of the training was long enough to see."""
MADE = sorted(
    served for served, table in table_files.packaged().items() if table_files.load(table).model_type
)
LIES = [
    (name, arg)
    for name, family in FAMILIES.items()
    if family.hf_class in MADE
    for arg in family.lies
    if arg != "seq_length"  # long enough to see what config.json says, and what was made doesn't
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_model_is_made_of_its_args(name: str) -> None:
    """Names and shapes of all tensors and every key that says a function are those of the published
    config.json; the page tells of it.
    """
    found, count = differences(name)
    assert found == OTHERWISE.get(name, [])
    assert count > 20
    assert row(name) in PAGE.read_text().splitlines()


def test_every_class_is_made_and_on_the_page() -> None:
    """The page tells of each class which settings args must tell, and none is without a model, but for those
    that are refused, since transformers doesn't have them.
    """
    assert [line for line in needs() if line not in PAGE.read_text().splitlines()] == []
    assert {family.hf_class for family in PUBLISHED.values()} == set(MADE)


@pytest.mark.parametrize("served", MADE)
def test_tables_name_types_and_keys_as_the_library_does(served: str) -> None:
    """`model_type` and every key of `shown` are those of the class."""
    import transformers

    config_class: Any = getattr(transformers, served).config_class
    architecture = table_files.for_class(served)
    assert architecture.model_type == config_class.model_type
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 64}
    known = config_class(**sizes).to_dict()
    never = {
        key for key, of in architecture.shown.items() if of.rows and not architecture.defaults.get(key, True)
    }
    assert set(architecture.shown) - set(known) <= never, "written only where there is a bias"


@pytest.mark.parametrize(("name", "arg"), LIES)
def test_what_was_made_is_held_against_the_args(name: str, arg: str) -> None:
    """Nothing trusts it: with args of another function, what was made of the true ones is refused."""
    family = FAMILIES[name]
    config, true = family.whole_config(), family.whole_args()
    definition = define(config)
    assert definition is not None
    architecture = table_files.for_class(family.hf_class)
    made = meaning.spelled_out(architecture, made_of(family, definition, config, true).config)
    meaning.settle(architecture, settings.derive(true), made, None)
    with pytest.raises(AccountingError, match="not the config of this checkpoint"):
        meaning.settle(architecture, settings.derive({**true, arg: family.lies[arg]}), made, None)
