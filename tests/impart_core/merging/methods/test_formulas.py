"""Every method gives what its formula gives in float64, to the rounding of float32."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from impart_core.merging.methods import MERGE_METHODS
from tests.impart_core.merging.methods import formulas
from tests.impart_core.merging.methods.calls import RANDOM, deltas_of, merged
from tests.impart_core.merging.methods.formulas import Array

W = [0.5, 0.3, 0.4]
Case = tuple[str, dict[str, Any], Callable[[Array, Array], Array]]  # method, options, formula of base and deltas

FAMILY: list[Case] = [
    case
    for normalize in (False, True)
    for lambda_ in (1.0, 0.7)
    for common in [{"weight": W, "normalize": normalize, "lambda_": lambda_}]
    for density in (0.2, 0.5, 0.93)
    for rescale in (False, True)
    for some in [common | {"density": density, "rescale": rescale}]
    for case in [
        ("task_arithmetic", common, lambda _, x, o=common: formulas.weighted(x, **o)),
        ("ties", some, lambda _, x, o=some: formulas.ties(x, **o)),
        (
            "breadcrumbs",
            some | {"gamma": 0.1},
            lambda _, x, o=some: formulas.breadcrumbs(x, gamma=0.1, combine=formulas.weighted, **o),
        ),
        (
            "breadcrumbs_ties",
            some | {"gamma": 0.1},
            lambda _, x, o=some: formulas.breadcrumbs(x, gamma=0.1, combine=formulas.elected, **o),
        ),
    ]
]
OTHERS: list[Case] = [
    ("linear", {"weight": W}, lambda b, x: formulas.weighted(b + x, W, True, 1.0) - b),
    ("linear", {"weight": W, "normalize": False}, lambda b, x: formulas.weighted(b + x, W, False, 1.0) - b),
    ("passthrough", {"scale": 0.3}, lambda b, x: 0.3 * (b + x[0]) - b),
    ("slerp", {"t": 0.3}, lambda b, x: formulas.slerp(b, b + x[0], 0.3) - b),
    ("nuslerp", {"weight": W[:2]}, lambda _, x: formulas.nuslerp(x[0], x[1], W[:2], None)),
    *(
        (
            "nuslerp",
            {"weight": W[:2], "nuslerp_flatten": False, "nuslerp_row_wise": row_wise},
            lambda _, x, axis=axis: formulas.nuslerp(x[0], x[1], W[:2], axis),
        )
        for row_wise, axis in ((True, 0), (False, 1))
    ),
    ("multislerp", {"weight": W}, lambda _, x: formulas.multislerp(x, W)),
    ("karcher", {"max_iter": 50, "tol": 1e-7}, lambda b, x: formulas.karcher(b + x) - b),
    ("sce", {}, lambda _, x: formulas.sce(x, 1.0)),
    ("sce", {"select_topk": 0.3}, lambda _, x: formulas.sce(x, 0.3)),
    ("model_stock", {}, lambda _, x: formulas.model_stock(x)),
    (
        "model_stock",
        {"filter_wise": True},
        lambda _, x: np.stack([formulas.model_stock(x[:, row]) for row in range(x.shape[1])]),
    ),
    ("nearswap", {"t": 0.05}, lambda _, x: np.minimum(1, 0.05 / np.abs(x[0])) * x[0]),
    ("arcee_fusion", {}, lambda b, x: formulas.arcee_fusion(b, b + x[0])),
    ("ram", {"epsilon": 0.05}, lambda _, x: formulas.ram(x, 0.05)),
    ("ramplus_tl", {"epsilon": 0.17}, lambda _, x: formulas.ram(x, 0.17, r=0.1)),
    ("ramplus_tl", {"epsilon": 0.17, "r": 0.5, "alpha": 0.9}, lambda _, x: formulas.ram(x, 0.17, r=0.5, alpha=0.9)),
    ("tsv_merge", {}, lambda _, x: formulas.tsv_merge(x, [1, 1, 1])),
    ("tsv_merge", {"weight": W, "lambda_": 0.7}, lambda _, x: 0.7 * formulas.tsv_merge(x, W)),
    ("iso_c", {}, lambda _, x: formulas.iso_c(x, [1, 1, 1])),
    ("iso_c", {"weight": W, "lambda_": 0.7}, lambda _, x: 0.7 * formulas.iso_c(x, W)),
]
ONE, TWO = ("passthrough", "slerp", "nearswap", "arcee_fusion"), ("nuslerp",)


@pytest.mark.parametrize("case", [*FAMILY, *OTHERS], ids=lambda case: f"{case[0]} {case[1]}")
def test_a_method_gives_its_formula(case: Case) -> None:
    name, options, formula = case
    base = deltas_of(1, (21, 17), seed=9, scale=1.0)[0]
    deltas = deltas_of(1 if name in ONE else 2 if name in TWO else 3, (21, 17))
    # The formula is given what the method is: the models' weights in float32, where it takes these.
    method = MERGE_METHODS.get(name)
    x = np.stack([(delta if method.takes_deltas else (base + delta) - base).double().numpy() for delta in deltas])
    expected = formula(base.double().numpy(), x)
    result = merged(name, base, deltas, **options).double().numpy()
    # Entries of about 1, of a few operations; angles and singular vectors take some more.
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)


def test_every_method_that_draws_nothing_has_its_formula() -> None:
    assert {name for name, _, _ in (*FAMILY, *OTHERS)} == set(MERGE_METHODS) - set(RANDOM)


def test_nuslerp_and_multislerp_without_a_base_take_the_weights_themselves() -> None:
    x = deltas_of(3, (8, 6), scale=1.0)
    nuslerp, multislerp = MERGE_METHODS.get("nuslerp").function, MERGE_METHODS.get("multislerp").function
    exact = [one.double().numpy() for one in x]
    expected = formulas.nuslerp(exact[0], exact[1], W[:2], None)
    np.testing.assert_allclose(nuslerp(x[:2], weight=W[:2]).numpy(), expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(
        multislerp(x, weight=W).numpy(), formulas.multislerp(np.stack(exact), W), rtol=2e-5, atol=1e-6
    )


def test_matrices_in_a_stack_are_merged_one_by_one() -> None:
    deltas = deltas_of(3, (4, 9, 12))
    base = torch.zeros(4, 9, 12)
    for name in ("tsv_merge", "iso_c"):
        one_by_one = [merged(name, base[0], [delta[number] for delta in deltas]) for number in range(4)]
        assert torch.equal(merged(name, base, deltas), torch.stack(one_by_one))
        vectors = [delta[0, 0] for delta in deltas]
        torch.testing.assert_close(merged(name, base[0, 0], vectors), torch.stack(vectors).mean(dim=0))


@pytest.mark.parametrize("name", ["tsv_merge", "iso_c"])
def test_directions_that_no_model_has_stay_empty(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    low = [torch.randn(20, 2, generator=generator) @ torch.randn(2, 15, generator=generator) for _ in range(2)]
    result = merged(name, torch.zeros(20, 15), low)
    assert int(torch.linalg.matrix_rank(result, rtol=1e-4)) == 4
