"""A calibrated layer: told by few tokens, it says so."""

import logging
from pathlib import Path

import pytest
import torch

from impart_core.store.store import Store
from tests.architectures import save_pair
from tests.impart_core.pipeline import compress, config_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("length", "warned"), [(4, True), (100, False)])
def test_fewer_tokens_than_columns_are_warned_of_once_a_layer(
    length: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, finetuned = save_pair(tmp_path, "llama")
    tokens = torch.randint(1, 100, (4, length), generator=torch.Generator().manual_seed(0))
    config = config_of(8, method="delta-come", options={"ladder": "2"})
    with caplog.at_level(logging.WARNING):
        compress(Store(tmp_path / "store"), base, finetuned, config, tokens=tokens)
    told = [record.getMessage() for record in caplog.records if "calibrated by fewer tokens" in record.getMessage()]
    assert len(told) == (2 if warned else 0)  # layers
    assert all("16 of" in text and "Give more text" in text for text in told)
