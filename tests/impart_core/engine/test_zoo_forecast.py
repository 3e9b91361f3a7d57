"""The zoo with forecasts: steps that are clearly too small are passed over and named, and nothing is foretold twice."""

from pathlib import Path
from typing import Any

import pytest

from impart_core import tinyzoo
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.foretell import foretell
from impart_core.engine.preflight import open_sides
from impart_core.engine.zoo import check_zoo, run_zoo
from impart_core.engine.zoo_entry import work_on
from impart_core.engine.zoo_plan import plan_zoo
from impart_core.zoo.recipe import Step
from impart_core.zoo.record import Outcome
from impart_core.zoo.report import html_report, markdown_report
from tests.impart_core.engine.test_zoo import Zoo

pytestmark = pytest.mark.e2e

# Foretold to keep .47, .72 and 1.00 of math, each ± .08.
STEPS = [{"method": "lowrank", "cr": 64}, {"method": "lowrank", "cr": 32}, {"method": "lowrank", "cr": 2}]
FIRST, SECOND, LAST = "lowrank at CR 64", "lowrank at CR 32", "lowrank at CR 2"
LAX, STRICT = {"loses": 1e6}, {"loses": 0.0, "at_least": {"tinyzoo_math": 1e-9}}


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    """A zoo of one model."""
    made = Zoo(tmp_path)
    made.content["models"] = [made.model("math")]
    return made


def ask(zoo: Zoo, share: float | None, steps: list[dict[str, Any]] = STEPS, **gate: Any) -> None:
    """Set the recipe."""
    gate = {"tasks": {"tinyzoo_math": "answer_loss"}, "errors": 0, "limit": 4, **gate}
    zoo.content["recipes"]["default"] = {"steps": steps, "gate": gate, "foretold_at_least": share}


def run(zoo: Zoo) -> tuple[Outcome, list[str]]:
    """Run it; return what became of the model, and the layers that were coded for forecasts, by their steps."""
    told: list[str] = []

    def tick(stage: str, done: int, total: int, what: str) -> None:
        told.extend([what] if stage == "foretell" and done == total else [])

    with ThreadExecutor(1) as executor:
        found = run_zoo(zoo.request(), executor, each=lambda job, _: work_on(job, executor, tick))
    (outcome,) = found.outcomes
    return outcome, [what.split(",")[0] for what in told]


def planned(zoo: Zoo) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return the steps that the plan says would be tried and foretold, and its sentences."""
    request = zoo.request()
    found = plan_zoo(request, check_zoo(request))
    return found.entries[0].steps, found.entries[0].foretelling, "\n".join(found.lines())


def tried(outcome: Outcome) -> list[str]:
    return [attempt.step for attempt in outcome.attempts]


def test_what_is_clearly_too_small_is_passed_over_named_and_foretold_once(zoo: Zoo) -> None:
    ask(zoo, 0.8, **LAX)
    assert planned(zoo)[:2] == ((FIRST, SECOND, LAST), (FIRST, SECOND))
    outcome, foretold = run(zoo)
    assert (outcome.status, foretold) == ("promoted", [FIRST, SECOND])
    assert tried(outcome) == [SECOND]  # which is short of the share, but within the error
    assert [one.passed_over for one in outcome.forecasts] == [True, False]
    expected = foretell(*open_sides(str(zoo.base), str(zoo.math)), Step(**STEPS[0]).config)
    assert expected is not None
    assert (outcome.forecasts[0].kept, outcome.forecasts[0].error) == (expected.kept, expected.error)

    again, foretold = run(zoo)
    assert (again.status, again.forecasts, foretold) == ("unchanged", outcome.forecasts, [])
    sentence = f"{FIRST} ({expected.kept:.2f} ± {expected.error:.2f})"
    for report in (markdown_report, html_report):
        assert f"clearly less than 0.8 of the gap in answer loss: {sentence}" in report(zoo.run())

    ask(zoo, 0.8, **STRICT)
    steps, foretelling, said = planned(zoo)
    assert (steps, foretelling) == ((SECOND, LAST), ())
    assert f"math: Not tried, foretold to keep clearly less than 0.8 of the gap in answer loss: {sentence}." in said
    refused, foretold = run(zoo)
    assert (refused.status, tried(refused), foretold) == ("refused", [SECOND, LAST], [])
    assert f"The last of 3 steps, {LAST}, does not pass" in refused.why

    ask(zoo, 0.58, **LAX)  # which the first step is within the error of
    outcome, foretold = run(zoo)
    assert (outcome.status, tried(outcome), foretold) == ("promoted", [FIRST], [])
    assert not any(one.passed_over for one in outcome.forecasts)
    ask(zoo, None, **STRICT)
    assert tried(run(zoo)[0]) == [FIRST, SECOND, LAST]


def test_the_last_step_is_measured_whatever_is_foretold_and_another_model_is_foretold_anew(zoo: Zoo) -> None:
    ask(zoo, 1.0, [STEPS[0], STEPS[0] | {"cr": 60}], **LAX)
    outcome, _ = run(zoo)
    assert (outcome.status, tried(outcome)) == ("promoted", ["lowrank at CR 60"])
    assert [one.passed_over for one in outcome.forecasts] == [True]
    weights = tinyzoo.path("code") / "model.safetensors"
    (zoo.math / "model.safetensors").write_bytes(weights.read_bytes())
    other, foretold = run(zoo)
    assert foretold == [FIRST]
    assert other.forecasts[0].kept != outcome.forecasts[0].kept
