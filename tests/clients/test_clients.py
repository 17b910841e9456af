"""Claims: what other people wrote loads what we write, and answers as transformers does; and docs/clients.md
tells what each says to damaged folders.

`make test-clients` installs the clients and runs this; see `requirements.txt` and `transformers-4.txt`.
"""

from __future__ import annotations

import pytest

from tests.clients import outcomes
from tests.clients.asking import is_installed, versions
from tests.clients.explained import EXPLAINED
from tests.clients.outcomes import RIGHT, UNKNOWN, Outcomes
from tests.fixtures.releases import transformers_5

pytestmark = [pytest.mark.skipif(not is_installed(), reason="clients are not installed"), transformers_5]
NUM_KNOWN = {"transformers-4": 40, "mlx-lm": 50, "ctranslate2": 10, "accelerate": 25, "mergekit": 60}
"""A client that knows no class any longer would prove nothing."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What each client makes of the models."""
    return outcomes.of_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What each client makes of the faults."""
    return outcomes.of_faults(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("client", outcomes.OF_MODELS)
def test_it_answers_as_transformers(client: str, models: Outcomes) -> None:
    """Of every model whose class it knows: the same logits, or the same bits of every tensor; but for those
    that are explained, one by one.
    """
    known = {name: each for name, each in models[client].items() if each[0] != UNKNOWN}
    assert len(known) >= NUM_KNOWN.get(client, 1)
    otherwise = {name: each for name, each in known.items() if each[0] != RIGHT}
    assert otherwise.keys() == EXPLAINED.get(client, {}).keys(), otherwise


@pytest.mark.parametrize("client", outcomes.WITH_FAULTS)
def test_the_page_tells_what_it_says_to_faults(client: str, faults: Outcomes) -> None:
    """Each cell of the table is what happens; of another version it isn't claimed."""
    recorded = outcomes.recorded()
    now = versions([client])[client]
    if now != recorded["versions"][client]:
        pytest.skip(f"the page tells of {recorded['versions'][client]}, this is {now}")
    told = {client: recorded["faults"][client]}
    assert outcomes.kinds({client: faults[client]}) == outcomes.kinds(told)
