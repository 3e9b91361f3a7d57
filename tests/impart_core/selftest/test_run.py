"""The self-test passes on a device that computes as the CPU does, and fails on one that does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from impart_core.methods import METHODS
from impart_core.selftest import arithmetic
from impart_core.selftest.check import Check
from impart_core.selftest.speed import time_layer
from tests.pretend_device import PRETEND

SIZE = (64, 96)
CPU = torch.device("cpu")


def arithmetic_of(device: torch.device) -> dict[str, bool]:
    return {check.name: check.run(device).passed for check in arithmetic.arithmetic_checks()}


def test_every_method_and_solver_is_checked_and_holds_on_a_device() -> None:
    found = arithmetic_of(PRETEND)
    assert all(found.values()), found
    assert {name.split()[1] for name in found if name.startswith("method ")} == set(METHODS)
    assert {name for name in found if name.startswith("solver ")} == {f"solver {s}" for s in arithmetic._SOLVERS}


def rounded(work: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel whose operands have lost all but the ten bits of TF32."""

    def lossy(*args: Any, **kwargs: Any) -> Any:
        total, rows = args
        return work(total, (rows.cpu().view(torch.int32) & ~0x1FFF).view(torch.float32).to(rows.device), **kwargs)

    return lossy


def test_products_with_ten_bits_fail_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "add_product", rounded(arithmetic.add_product))
    failed = [name for name, passed in arithmetic_of(PRETEND).items() if not passed]
    assert failed == ["Hessian"]


@pytest.mark.parametrize("value", [2.0, float("nan"), None])
def test_a_figure_beyond_its_bound_or_none_at_all_fails_and_an_error_is_a_result(value: float | None) -> None:
    def work(_: torch.device) -> float:
        if value is None:
            raise RuntimeError("CUDA error: an illegal memory access\nmore lines")
        return value

    found = Check("c", "off by", 1.0, work).run(CPU)
    assert not found.passed
    assert found.error in (None, "the figure is nan", "RuntimeError: CUDA error: an illegal memory access")
    assert Check("c", "off by", 1.0, lambda _: 1.0).run(CPU).passed


def test_a_matrix_is_timed_on_the_device_and_on_the_cpu_with_the_same_launches() -> None:
    timings = {(each.work, each.device): each for each in time_layer(*SIZE, PRETEND)}
    assert {device for _, device in timings} == {"pretend:0", "cpu"}
    assert all(each.seconds > 0 and each.launches > 10 for each in timings.values())
    assert len(timings) == 6
