"""DARE-Qt: matrices of more rows than a range of the layout can count."""

import pytest
import torch

from impart_core.codec.parts import nbytes
from impart_core.delta.budget import budget_bytes
from impart_core.methods.base import Projection
from tests.impart_core.methods.codes import entry_mask
from tests.impart_core.methods.requests import decode, encode
from tests.impart_core.pipeline import config_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("rows", [65535, 65536, 131071])
@pytest.mark.parametrize("lossless", [True, False])
def test_rows_beyond_what_a_layout_can_count_are_in_several_ranges(rows: int, lossless: bool) -> None:
    delta = torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows)) / 100
    options = {"solver": "nearest", "bits": 2, "lossless": lossless}
    request, projection = config_of(16, method="dare-qt", options=options), Projection.of(delta, "w")
    codes = encode(projection, request)
    assert codes["layout"].tolist()[3::2] == [min(65535, rows - first) for first in range(0, rows, 65535)]
    assert 0.98 * budget_bytes(rows, 4, 16) <= nbytes(codes) <= budget_bytes(rows, 4, 16)
    found = decode(codes, projection, request)
    mask = entry_mask(int(codes["keep"]), (rows, 4))
    assert torch.equal(found != 0, mask & (found != 0))
    assert torch.nn.functional.cosine_similarity(found[mask], delta[mask], dim=0) > 0.8
