"""ImPart-Qt: Algorithm 3's sparsity, and its defaults."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from impart_core.codec.mask import keep_probability
from impart_core.codec.parts import Codes, nbytes
from impart_core.delta.budget import kept_fraction, vector_fraction
from impart_core.delta.svd import decompose
from impart_core.methods.allocation import allocate
from impart_core.methods.base import Projection
from impart_core.methods.impart_qt import ImpartQt, ImpartQtOptions, _masks
from impart_core.quantization.cost import paper_alpha, paper_sparsity
from impart_core.quantization.ladder import Ladder
from tests.impart_core.methods.codes import calibrated, keep_of, stored_vectors, sum_of_pairs, vector_masks
from tests.impart_core.pipeline import config_of
from tests.impart_core.quantization.samples import hessian_of
from tests.support import VECTORS, decaying_delta

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
    assert encoded(torch.eye(64), 200)["keep_shared_v"].tolist() == [255]


def test_c_is_lower_than_imparts_and_all_else_is_the_same() -> None:
    found = ImpartQtOptions()
    assert (found.c, found.beta, str(found.ladder), found.group_size) == (0.5, 0.6, "8x2,3x32,2", 128)
    assert (found.solver, found.lossless, found.fill, found.allocation) == ("support", True, True, "importance")
    assert found.more_room("paper") == "lower beta"
    assert found.more_room("bytes") is None


@pytest.mark.parametrize(("of_rows", "part"), [(False, "keep_shared_v"), (True, "keep_shared_u")])
def test_the_side_that_meets_the_inputs_has_few_supports_and_each_is_factored_once(
    of_rows: bool, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    factored, cholesky = [], torch.linalg.cholesky_ex

    def counted(matrices: torch.Tensor) -> Any:
        factored.append(len(matrices) if matrices.dim() == 3 else 0)  # else the whole Hessian
        return cholesky(matrices)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    projection = calibrated(decaying_delta(160, 192), of_rows=of_rows)
    config = config_of(5, method="impart-qt", options={"ladder": "2", "fill": False, "beta": 0.0})
    codes = METHOD.encode(projection, config)
    masks = dict(zip("uv", vector_masks(codes, (160, 192)), strict=True))
    keep = codes[part].tolist()
    assert len(keep) > 128
    first, second = "uv" if of_rows else "vu"
    supports = len(masks[first].unique_consecutive(dim=0))
    assert supports <= len({(pair // 64, code) for pair, code in enumerate(keep)}) < len(keep) / 2
    assert len(masks[second].unique(dim=0)) == len(keep) - keep.count(255) + (255 in keep)
    assert sum(factored) == supports + len(masks[second].T.unique_consecutive(dim=0))
    found = sum_of_pairs(codes, stored_vectors(codes, [masks["u"], masks["v"]]))
    decoded = METHOD.decode(codes, "w", (160, 192), 0).double()
    torch.testing.assert_close(decoded, found, rtol=0, atol=1e-5 * float(found.abs().max()))


@pytest.mark.parametrize(("of_rows", "shared"), [(False, None), (False, "v"), (True, "u")])
def test_what_is_shared_adds_nothing_to_the_expected_error(of_rows: bool, shared: Any) -> None:
    """Of the outputs, over seeds; all pairs share their words here.

    With independent masks it is Σ_k σ_k²·(E‖û_k‖²·E[v̂_kᵀHv̂_k] − v_kᵀHv_k), û and v̂ being masked and rescaled by 1/q;
    where inputs meet rows u and v change places.
    """
    shape, seeds = (24, 32), 1000
    factors, hessian = decompose(decaying_delta(*shape), "w"), hessian_of("correlated", shape[not of_rows]).double()
    u, v = factors.u.double(), factors.v.double()
    keep = (np.linspace(256, 64, 24).astype(np.uint16) * 256 - 1).astype(np.uint16)
    q = torch.from_numpy(keep_probability(keep))[:, None]
    weights, found = factors.sigma.double()[:, None], []
    for seed in range(seeds):
        masks = _masks("w", shape, seed, keep, shared)
        change = (weights * (u * masks[0] / q)).T @ (v * masks[1] / q) - (weights * u).T @ v
        change = change.T if of_rows else change
        found.append(float(((change @ hessian) * change).sum()))
    met = u if of_rows else v
    whole = ((met @ hessian) * met).sum(dim=1)
    masked = whole + (1 / q[:, 0] - 1) * (met**2 @ hessian.diagonal())
    expected = float((weights[:, 0] ** 2 * (masked / q[:, 0] - whole)).sum())
    error = float(np.std(found)) / seeds**0.5
    assert error < 0.04 * expected
    assert np.mean(found) == pytest.approx(expected, abs=4 * error)


def test_codes_of_version_4_are_decoded_as_they_were() -> None:
    old = load_file(VECTORS / "impart_qt_4.safetensors")
    decoded = old.pop("decoded")
    found = METHOD.decode(old, "layer.w", (48, 80), 7)
    assert "keep" in old
    torch.testing.assert_close(found, decoded, rtol=0, atol=1e-5 * float(found.abs().max()))
