"""Recipes: where steps may be passed over, a model is measured, and a forecast can do something."""

from typing import Any

import pytest

from impart_core.base.errors import ConfigError
from impart_core.zoo.file import parse_zoo
from impart_core.zoo.recipe import ZooRecipe, worth_foretelling

LOSSLESS, ECSQ, LOWRANK = {"method": "lossless"}, {"method": "ecsq", "cr": 128}, {"method": "lowrank", "cr": 4}
CALIBRATED = {"method": "impart-qt", "cr": 64, "calibration": {"source": "tinyzoo:math"}}
DISTILLED = {**ECSQ, "options": {"distil": True}, "calibration": {"source": "tinyzoo:math"}}
GATE = {"tasks": ["tinyzoo_math"]}


def recipe(*steps: dict[str, Any], **own: Any) -> ZooRecipe:
    return ZooRecipe(**{"steps": steps, "gate": GATE, "foretold_at_least": 0.9, **own})


def test_what_text_decides_and_the_last_step_are_not_foretold() -> None:
    found = recipe(CALIBRATED, ECSQ, DISTILLED, LOWRANK, LOSSLESS)
    assert [step.label for step in worth_foretelling(found.steps)] == ["ecsq at CR 128", "lowrank at CR 4"]


@pytest.mark.parametrize("steps", [[ECSQ], [CALIBRATED, LOSSLESS], [DISTILLED, ECSQ]])
def test_a_share_without_effect_is_refused(steps: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="foretold_at_least has no effect"):
        recipe(*steps)
    recipe(*steps, foretold_at_least=None)


@pytest.mark.parametrize(("share", "told"), [(0, "more than 0"), (1.1, "at most 1"), ("much", "a number")])
def test_what_is_no_share_is_refused(share: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        recipe(ECSQ, LOSSLESS, foretold_at_least=share)


@pytest.mark.parametrize("model", [{"name": "math", "finetuned": "b"}, {"find": "/models/*"}])
def test_a_forecast_alone_never_decides(model: dict[str, Any]) -> None:
    steps = {"steps": [ECSQ, LOSSLESS], "foretold_at_least": 0.9}
    zoo = {"recipes": {"default": steps}, "models": [{"base": "a", **model}]}
    with pytest.raises(ConfigError, match="without tasks nothing is measured"):
        parse_zoo(zoo)
    parse_zoo({**zoo, "models": [{"base": "a", **model, "tasks": ["tinyzoo_math"]}]})
    parse_zoo({**zoo, "recipes": {"default": {**steps, "gate": GATE}}})
