"""The factor codes of a small matrix, byte for byte; `python -m` with this module writes them down anew."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from impart_core.codec.entropy import decode_runs
from impart_core.delta.factors import Factors
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.quantization.ecsq import FACTORS, read_stored
from tests.impart_core.methods.requests import request_of
from tests.support import VECTORS

SHAPE, PAIRS = (48, 80), 12
PATH = VECTORS / "ecsq_factors.json"


def projection() -> Projection:
    """Return one of few exact numbers: vectors are sums of small integers, singular values powers of two."""
    words = np.random.Philox(key=11).random_raw(PAIRS * sum(SHAPE) * 4).reshape(PAIRS, sum(SHAPE), 4) >> np.uint64(60)
    vectors = torch.from_numpy(words.astype(np.int64).sum(axis=2) - 30).float() / 64
    u, v = vectors.split(SHAPE, dim=1)
    sigma = torch.tensor([2.0 ** -(pair // 2) for pair in range(PAIRS)])
    factors = Factors(u=u.contiguous(), sigma=sigma, v=v.contiguous())
    return Projection("w", SHAPE, lambda: (u * sigma[:, None]).T @ v, lambda: factors)


def found(cr: float) -> dict[str, Any]:
    """Return codes, and what they decode to before it is summed up, in numbers that are exact in JSON."""
    codes = METHODS.get("ecsq").encode(projection(), request_of("ecsq", cr, options={"domain": "factors"}))
    stored = read_stored(codes, "w", SHAPE)
    assert stored is not None
    assert stored.kind == FACTORS
    symbols = np.concatenate(list(decode_runs(stored.stream, stored.tables, "w")))
    return {
        "codes": bytes(codes["symbols"].numpy()).hex(),
        "symbols": symbols.tolist(),
        "scales": [float(scale) for scale in stored.values()],
    }


@pytest.mark.parametrize("cr", ["12", "40"])
def test_codes_and_what_they_stand_for_are_as_they_were(cr: str) -> None:
    expected = json.loads(PATH.read_text())[cr]
    assert found(float(cr)) == expected
    pairs = np.array(expected["symbols"], dtype=np.float64).reshape(len(expected["scales"]), sum(SHAPE))
    exact = (pairs[:, : SHAPE[0]] * np.array(expected["scales"])[:, None]).T @ pairs[:, SHAPE[0] :]
    data = torch.from_numpy(np.frombuffer(bytes.fromhex(expected["codes"]), dtype=np.uint8).copy())
    decoded = METHODS.get("ecsq").decode({"symbols": data}, "w", SHAPE, 0)
    assert np.abs(decoded.double().numpy() - exact).max() < 1e-6 * np.abs(exact).max()


if __name__ == "__main__":
    torch.set_num_threads(1)
    PATH.write_text(json.dumps({cr: found(float(cr)) for cr in ("12", "40")}) + "\n")
