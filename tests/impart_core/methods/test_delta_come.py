"""Delta-CoMe: what it gains by more vectors of fewer bits, and what codes without any stand for."""

import torch

from impart_core.methods.delta_come import DeltaCome
from tests.impart_core.methods.codes import calibrated, outputs_differ
from tests.impart_core.methods.requests import decode, encode
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta


def test_more_vectors_at_fewer_bits_differ_less_than_few_at_16_bits() -> None:
    """The idea of the method, at a ratio where it counts."""
    projection, errors = calibrated(decaying_delta(192, 192, power=0.5)), {}
    for ladder in ("8x2,3x32,2", "16"):
        request = config_of(16, method="delta-come", options={"ladder": ladder})
        errors[ladder] = outputs_differ(projection, decode(encode(projection, request), projection, request))
    assert errors["8x2,3x32,2"] < errors["16"]


def test_no_vector_at_all_is_a_delta_of_zeros() -> None:
    codes = {
        "sigma": torch.empty(0).bfloat16(),
        "layout": torch.tensor([128, 0], dtype=torch.uint16),
        "scales": torch.empty(0).half(),
        "zeros": torch.empty(0, dtype=torch.uint8),
        "codes": torch.empty(0, dtype=torch.uint8),
    }
    assert torch.equal(DeltaCome().decode(codes, "w", (4, 5), 0), torch.zeros(4, 5))
