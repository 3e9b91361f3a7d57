"""Which runs hold a slot of a limit of GPUs, and for how long without a sign of life; see e2e/test_deployments.py."""

import pytest

from impart_core.base.errors import ConfigError
from impart_flows.gpu_limit import LEASE, VARIABLE, lease_seconds, limit_name


def test_work_that_asks_for_the_cpu_holds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "gpus")
    assert [limit_name(device) for device in ("auto", "cuda", "cuda:1", "cpu")] == ["gpus", "gpus", "gpus", None]
    monkeypatch.setenv(VARIABLE, "")
    assert limit_name("cuda") is None


def test_a_lease_is_a_number_of_seconds_that_prefect_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lease_seconds() == 120
    monkeypatch.setenv(LEASE, "90.5")
    assert lease_seconds() == 90.5
    for wrong in ("59", "1e9", "nan", "two minutes"):
        monkeypatch.setenv(LEASE, wrong)
        with pytest.raises(ConfigError, match="from 60 to 86400"):
            lease_seconds()
