"""Shares in proportion to singular values: within the room, above the floor, and unbiased as masks are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError
from impart_core.codec.mask import keep_probability
from impart_core.codec.parts import nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods import METHODS
from impart_core.methods.allocation import fit_proportional
from impart_core.methods.base import Projection
from tests.impart_core.methods.requests import decode, delta_of, encode, request_of
from tests.support import decaying_delta


@given(
    n=st.integers(1, 200), power=st.floats(0, 2), room=st.floats(1, 100), floor=st.floats(0.01, 1), more=st.floats(1, 3)
)
@settings(max_examples=150, deadline=None)
def test_shares_are_in_proportion_above_the_floor_and_fill_the_room(
    n: int, power: float, room: float, floor: float, more: float
) -> None:
    importance = np.arange(1, n + 1) ** -power
    kept = keep_probability(fit_proportional(importance, keep_probability, room, floor))
    step = 1 / 65536
    assert kept.sum() <= room
    assert kept.min() >= floor - 2 * step
    thinned = kept < 1 - step
    shares = kept[thinned] / importance[: len(kept)][thinned]
    assert not len(shares) or shares.max() - shares.min() <= 2 * step / importance[len(kept) - 1]
    assert (np.diff(kept) <= 0).all()
    wider = keep_probability(fit_proportional(importance, keep_probability, more * room, floor))
    assert wider.sum() >= kept.sum() - n * step
    assert len(wider) >= len(kept)


@pytest.mark.parametrize("accounting", ["bytes", "paper"])
@pytest.mark.parametrize("kind", ["decaying", "flat", "rank one"])
def test_codes_are_within_their_bytes_and_decode(kind: str, accounting: str) -> None:
    projection = Projection.of(delta_of(kind, 64, 96), "w")
    for cr in (4, 16, 30):
        request = request_of("impart", cr, accounting=accounting, options={"allocation": "proportional"})
        codes = encode(projection, request)
        assert accounting == "paper" or nbytes(codes) <= budget_bytes(64, 96, cr)
        assert nbytes(codes) <= METHODS.get("impart").expected_bytes(64, 96, request)
        assert decode(codes, projection, request).any()


def test_over_seeds_what_is_kept_is_right_on_average() -> None:
    projection = Projection.of(decaying_delta(48, 64), "w")
    options = {"allocation": "proportional", "floor": 0.3}
    requests = [request_of("impart", 8, seed=seed, options=options) for seed in range(300)]
    codes = [encode(projection, request) for request in requests]
    pairs = min(len(one["sigma"]) for one in codes)
    factors = projection.factors()
    made = [decode(one, projection, request) for one, request in zip(codes, requests, strict=True)]
    mean = torch.stack(made).mean(dim=0)
    for k in range(pairs):
        own = torch.tensor([float(factors.u[k] @ one @ factors.v[k] / factors.sigma[k]) for one in made])
        error = float(own.std()) / len(made) ** 0.5
        assert abs(float(factors.u[k] @ mean @ factors.v[k] / factors.sigma[k]) - 1) <= 5 * error + 0.01


def test_the_papers_rule_has_the_recipe_that_it_had() -> None:
    usual = request_of("impart", 8).options.model_dump()
    assert usual == {"beta": None, "c": 1.0, "preprune": True, "allocation": "importance", "rescale": True}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"floor": 0.3}, "floor has no effect unless allocation is proportional"),
        ({"allocation": "proportional", "beta": 0.6}, "beta and preprune have no effect while allocation"),
        ({"allocation": "proportional", "preprune": False}, "beta and preprune have no effect while allocation"),
        ({"allocation": "proportional", "floor": 0.001}, "at least 0.01"),
    ],
)
def test_settings_without_effect_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        request_of("impart", 8, options=options)
