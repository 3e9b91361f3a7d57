"""Codes that are pinned: a change here must raise the method's version, as published blocks are found by it."""

from typing import Any

import pytest
import torch

from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from tests.impart_core.methods.codes import arithmetic, arithmetic_factors, digest
from tests.impart_core.methods.requests import encode
from tests.impart_core.pipeline import config_of

# Rounded to nearest and not compressed, as other versions of the libraries may do the rest in another way.
PLAIN = {"solver": "nearest", "lossless": False}


@pytest.mark.parametrize(
    ("method", "version", "settings_", "shape", "digests"),  # of the bytes' count and of the paper's
    [
        ("impart", 3, {"cr": 4}, (48, 80), ("029a1e7cbf58a470", "37a479abea1d05f8")),
        ("impart", 3, {"cr": 4}, (64, 64), ("7e45573dc3eb9a8a", "ad297b3851764fec")),
        ("impart", 3, {"cr": 4, "options": {"beta": 0.6}}, (48, 80), ("5224b9b8a17e5898", "37a479abea1d05f8")),
        ("impart-qt", 5, {"cr": 8, "options": PLAIN}, (48, 80), ("2f151f1080e5d0b1", "3e46df620e31dfc2")),
        ("delta-come", 4, {"cr": 8, "options": PLAIN}, (48, 80), ("473fe65cc1cb8b4e", "2a33b8109dbcce07")),
        ("dare-qt", 5, {"cr": 16, "options": PLAIN}, (48, 80), ("2c6260e296d634be", "e18b0f4ec4d11dd9")),
    ],
)
def test_golden_codes(
    method: str, version: int, settings_: dict[str, Any], shape: tuple[int, int], digests: tuple[str, str]
) -> None:
    m, n = shape
    delta = arithmetic(torch.arange(m)[:, None], n)
    projection = Projection("layer.w", shape, lambda: delta, lambda: arithmetic_factors(m, n))
    for accounting, expected in zip(("bytes", "paper"), digests, strict=True):
        request = config_of(method=method, seed=7, accounting=accounting, **settings_)
        assert digest(encode(projection, request)) == expected
    assert METHODS.get(method).version == version
