"""How many requests a run makes of an S3 server that holds checkpoints and store: so many a block, a few beside."""

from pathlib import Path

import pytest

from tests.bench.requests import LAYERS, Counts, measure_requests

pytestmark = pytest.mark.e2e

# Of the store: for each block, and beside them. `docs/store.md` states these.
OF_STORE = {"compress": (16, 12), "compress again": (2, 13), "reconstruct": (2, 3)}
OPENED = 3  # of each checkpoint in each run: a listing, config.json, the header of its one file


@pytest.fixture(scope="module")
def counts() -> dict[int, dict[str, Counts]]:
    """The requests of each verb, by the number of layers."""
    measured = measure_requests()
    return {layers: measured[f"{layers} layers"] for layers in LAYERS}


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("verb", OF_STORE)
def test_requests_of_the_store_grow_with_blocks_only(
    verb: str, layers: int, counts: dict[int, dict[str, Counts]]
) -> None:
    each, beside = OF_STORE[verb]
    assert counts[layers][verb]["store"] <= each * (layers + 1) + beside


@pytest.mark.parametrize("layers", LAYERS)
def test_a_checkpoint_is_opened_once_a_run_and_each_tensor_fetched_once(
    layers: int, counts: dict[int, dict[str, Counts]]
) -> None:
    tensors = 9 * layers + 3
    first, again, rebuilt = (counts[layers][verb] for verb in OF_STORE)
    for side in ("base", "finetuned"):
        assert first[side] == OPENED + tensors
        assert again[side] == OPENED
    assert OPENED <= rebuilt["base"] <= OPENED + tensors  # what came along with the header is not asked for again
    assert rebuilt["finetuned"] == 0


def test_the_page_states_these_numbers() -> None:
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
    for each, beside in OF_STORE.values():
        assert f"{each} requests a block and {beside} more" in page
