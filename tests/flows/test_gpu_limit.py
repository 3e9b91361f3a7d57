"""Which runs hold a slot of a limit of GPUs, and for how long without a sign of life; see e2e/test_deployments.py."""

import logging
from contextlib import ExitStack

import httpx
import pytest

from impart_core.base.errors import ConfigError
from impart_flows import gpu_limit
from impart_flows.gpu_limit import LEASE, VARIABLE, gpu_slot, lease_seconds, limit_name


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


def test_what_was_done_is_not_lost_where_the_server_is_away_when_the_slot_is_given_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused() -> None:
        raise httpx.ConnectError("All connection attempts failed")

    def take(_: str, stack: ExitStack) -> None:
        stack.callback(refused)

    monkeypatch.setenv(VARIABLE, "gpus")
    monkeypatch.setattr(gpu_limit, "require_limit", lambda name: gpu_limit.Slots(name=name, limit=1, held=0))
    monkeypatch.setattr(gpu_limit, "_take", take)
    monkeypatch.setattr(gpu_limit, "get_run_logger", lambda: logging.getLogger("run"))
    with gpu_slot("auto"):
        pass
    assert "All connection attempts failed. It comes free by itself in 135 s at most." in caplog.text
    with pytest.raises(ValueError, match="of the work"), gpu_slot("auto"):
        raise ValueError("of the work")
