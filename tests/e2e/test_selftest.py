"""`impart selftest` checks this machine: a table for people, an object for programs, exit code 0 when all is well."""

import json

import pytest

from impart_core.selftest.check import CheckResult
from tests.e2e.here import impart

pytestmark = pytest.mark.e2e


def test_the_cpu_passes_every_check_and_a_matrix_is_timed() -> None:
    code, out, err = impart("selftest", "--device", "cpu", "--size", "64x96", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["passed"]
    assert report["shape"] == [64, 96]
    checks = [CheckResult.model_validate(check) for check in report["checks"]]
    assert all(check.passed for check in checks)
    # Memory that runs out belongs to a GPU: it does not apply here.
    assert [check.name for check in checks if check.value is None] == ["out of memory, tried again"]
    assert {each["work"] for each in report["timings"]} == {"decompose", "impart-qt support", "impart-qt masked"}


@pytest.mark.parametrize(("flags", "words"), [(["--size", "64"], "rows x columns"), (["--device", "tpu"], "tpu")])
def test_a_wrong_request_is_refused_before_any_work(flags: list[str], words: str) -> None:
    code, out, err = impart("selftest", *flags)
    assert (code, out) == (2, "")
    assert words in err
