"""What an evaluation takes."""

import pytest

from impart_core.base.errors import CheckpointError
from impart_core.engine.evaluate import check_evaluate
from impart_core.engine.requests import EvaluateRequest


@pytest.mark.parametrize("model", ["s3://bucket/model", "hf://org/name", "org/name@v1"])
def test_only_folders_are_evaluated(model: str) -> None:
    request = EvaluateRequest(model=model, tasks=("tinyzoo_math",), store="unused")
    with pytest.raises(CheckpointError, match=f"^{model} is no folder of this machine, and only folders can be eval"):
        check_evaluate(request)
