"""What the library warns of while a flow runs: on standard error, and in the run's log for who looks later."""

from pathlib import Path

import pytest

from impart_core import tinyzoo
from tests.e2e.prefect_api import Api
from tests.support import Environment, run_impart

pytestmark = pytest.mark.e2e

LAYERS = 3


def test_a_warning_is_on_standard_error_and_in_the_log_of_the_run(
    prefect_api: str, environment: Environment, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("few words")
    models = map(str, (tinyzoo.path("base"), tinyzoo.path("math")))
    calibration = ["--calibration", str(text), "--calibration-length", "4", "--calibration-sequences", "1"]
    options = ["--method", "impart-qt", "--cr", "32", "--device", "cpu", "--store", str(tmp_path / "store")]
    done = run_impart("compress", *models, *options, *calibration, environment=environment)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert ["calibrated by fewer tokens" in line for line in told] == [True] * LAYERS
    api = Api(prefect_api)
    wanted = {"name": {"any_": ["compress"]}}
    runs = api.post("/flow_runs/filter", flows=wanted, sort="EXPECTED_START_TIME_DESC")
    logged = api.logged(runs[0]["id"])
    assert logged.count("calibrated by fewer tokens") == LAYERS
