"""ImPart's budget: how many pairs are taken so that no room is left, and where room is better left."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.codec.mask import mask_from_words, mask_key, mask_words
from impart_core.codec.parts import nbytes
from impart_core.delta.budget import budget_bytes, pair_bytes
from impart_core.delta.svd import numerical_rank
from impart_core.methods.base import Projection
from impart_core.methods.impart import Impart, allocate
from tests.impart_core.methods.codes import no_delta
from tests.impart_core.methods.spectra import factors_of, spectra
from tests.impart_core.pipeline import config_of

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = Impart()
sides = st.integers(2, 40)


def exponential(n: int) -> npt.NDArray[np.float64]:
    return np.asarray(np.exp(-4 * np.arange(n) / n))


def stored_bytes(keep: npt.NDArray[np.uint16], m: int, n: int) -> int:
    """Count the bytes that these keep codes of a matrix named `w` take, from the masks' words themselves."""
    kept = sum(
        int(mask_from_words(mask_words(mask_key(0, "w", role), side, len(keep)), keep).sum())
        for role, side in (("u", m), ("v", n))
    )
    return 2 * kept + 6 * len(keep)


@given(
    sigma=spectra(sides),
    longer=st.integers(0, 40),
    cr=st.floats(1, 12),
    beta=st.floats(0, 0.9),
    c=st.floats(0, 2),
    allocation=st.sampled_from(["importance", "uniform"]),
)
@settings(max_examples=150, deadline=None)
def test_no_bytes_are_left_that_could_hold_more(
    sigma: npt.NDArray[np.float64], longer: int, cr: float, beta: float, c: float, allocation: str
) -> None:
    m, n = len(sigma), len(sigma) + longer
    config = config_of(cr, options={"beta": beta, "c": c, "allocation": allocation})
    if cr > METHOD.highest_cr(m, n, config) or 2 * cr * (1 - beta) < 1:
        return
    keep = METHOD.encode(Projection("w", (m, n), no_delta, lambda: factors_of(sigma, m, n)), config)["keep"].numpy()
    budget = budget_bytes(m, n, cr)
    assert stored_bytes(keep, m, n) <= budget
    # γ is found to far less than the step of a code, so that one step more of each would not fit.
    denser = np.minimum(keep.astype(int) + 1, 65535).astype(np.uint16)
    candidates = min(METHOD.needed_rank(m, n, config), numerical_rank(sigma, m, n))
    if stored_bytes(denser, m, n) > budget or len(keep) == candidates:
        return
    assert set(keep) == {65535}
    # What γ = 1 leaves of the next pair.
    lowest = (sigma[len(keep)] / sigma[0]) ** c if allocation == "importance" else 0.0
    one_more = np.append(keep, np.rint(max(lowest * 65536, 1)) - 1).astype(np.uint16)
    assert stored_bytes(one_more, m, n) > budget


def test_one_pair_more_than_algorithm_1_keeps_uses_the_room_that_whole_pairs_leave() -> None:
    side, cr, sigma = 24, 6, exponential(24)
    assert len(allocate(sigma, side, 1 - 1 / (2 * cr), 0.6)) == 1
    assert budget_bytes(side, side, cr) - pair_bytes(side, side) == 90
    codes = METHOD.encode(Projection("w", (side, side), no_delta, lambda: factors_of(sigma, side, side)), config_of(cr))
    assert len(codes["sigma"]) == 2
    assert budget_bytes(side, side, cr) - 4 <= nbytes(codes) <= budget_bytes(side, side, cr)


def test_a_pair_that_would_be_thinned_below_its_importance_is_not_taken_to_fill_the_room() -> None:
    # At γ = 1 each pair keeps the share s of its entries; below that, rescaling adds more error than the pair is worth.
    m, n, cr, sigma = 128, 256, 32, exponential(128)
    projection = Projection("w", (m, n), no_delta, lambda: factors_of(sigma, m, n))
    assert METHOD.encode(projection, config_of(cr))["keep"].tolist() == [65535] * 2
    assert 2 * pair_bytes(m, n) < budget_bytes(m, n, cr) < sigma[:3].sum() * 2 * (m + n)


def test_the_papers_count_keeps_algorithm_1s_pairs() -> None:
    projection = Projection("w", (24, 24), no_delta, lambda: factors_of(exponential(24), 24, 24))
    assert len(METHOD.encode(projection, config_of(6, accounting="paper"))["sigma"]) == 1
