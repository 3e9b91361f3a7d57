"""ImPart-Qt: Algorithm 3's sparsity, and its defaults."""

from typing import Any

import numpy as np
import pytest
import torch

from impart_core.codec.mask import keep_probability
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.budget import kept_fraction, vector_fraction
from impart_core.delta.svd import decompose
from impart_core.methods.base import Projection
from impart_core.methods.impart import allocate
from impart_core.methods.impart_qt import ImpartQt, ImpartQtOptions
from impart_core.quantization.cost import paper_alpha, paper_sparsity
from impart_core.quantization.ladder import Ladder
from tests.impart_core.methods.codes import keep_of
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = ImpartQt()


def encoded(delta: torch.Tensor, cr: float, **options: Any) -> Codes:
    config = config_of(cr, method="impart-qt", accounting="paper", options={"solver": "nearest", **options})
    return METHOD.encode(Projection.of(delta, "w"), config)


@pytest.mark.parametrize("ladder", ["8x2,3x32,2", "8x2,4", "2", "16"])
@pytest.mark.parametrize("shape", [(96, 96), (64, 160)])
@pytest.mark.parametrize("cr", [8, 32])
def test_under_the_papers_count_the_kept_fraction_is_algorithm_3s(
    ladder: str, shape: tuple[int, int], cr: float
) -> None:
    (m, n), rank = shape, min(shape)
    delta = decaying_delta(m, n)
    keep = keep_probability(keep_of(encoded(delta, cr, ladder=ladder, c=0.7)))
    sigma = decompose(delta, "w").sigma.double().numpy()
    beta = 1 - vector_fraction(m, n, 0.6)

    def drop_at(alpha: float) -> Any:
        return allocate((sigma / sigma[0]) ** 0.7, rank, alpha, beta)

    target = 1 - kept_fraction(m, n, cr)
    exact = 1 - drop_at(paper_alpha(drop_at, rank, target, beta, Ladder.parse(ladder)))
    if len(keep) == len(exact):  # else they differ by the one pair that α may move
        np.testing.assert_allclose(keep, exact, rtol=0, atol=1.5 / 256)
    assert abs(len(keep) - len(exact)) <= 1
    # Met to one pair and the 1e-4 to which α is found, or all that pre-pruning leaves is not enough to miss it.
    least = paper_sparsity(np.zeros(int(rank * (1 - beta) + 1e-9)), rank, Ladder.parse(ladder))
    found = paper_sparsity(1 - keep, rank, Ladder.parse(ladder))
    assert found == pytest.approx(max(target, least), abs=1 / rank + 1e-3)


@pytest.mark.parametrize(("ladder", "cr"), [("8", 128), ("8", 400), ("8x2,16", 500)])
def test_where_a_step_of_all_probabilities_is_too_much_the_papers_count_is_met_with_fewer_pairs(
    ladder: str, cr: float
) -> None:
    options = {"ladder": ladder, "solver": "nearest", "beta": 0.0, "allocation": "uniform", "lossless": False}
    config = config_of(cr, method="impart-qt", accounting="paper", options=options)
    delta = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    codes = METHOD.encode(Projection.of(delta, "w"), config)
    found = paper_sparsity(1 - keep_probability(keep_of(codes)), 512, Ladder.parse(ladder))
    target = 1 - kept_fraction(512, 512, cr)
    assert target <= found < target + 2 / 512
    assert nbytes(codes) <= METHOD.expected_bytes(512, 512, config)


def test_where_the_papers_count_leaves_nothing_the_first_pair_is_kept_whole() -> None:
    assert encoded(torch.eye(64), 200)["keep"].tolist() == [255]


def test_c_is_lower_than_imparts_and_all_else_is_the_same() -> None:
    found = ImpartQtOptions()
    assert (found.c, found.beta, str(found.ladder), found.group_size) == (0.5, 0.6, "8x2,3x32,2", 128)
    assert (found.solver, found.lossless, found.fill, found.allocation) == ("support", True, True, "importance")
    assert found.more_room("paper") == "lower beta"
    assert found.more_room("bytes") is None
