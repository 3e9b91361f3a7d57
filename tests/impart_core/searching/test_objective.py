import numpy as np
import pytest

from impart_core.base.errors import ConfigError
from impart_core.searching.objective import Aims, Constraint, Objective, value_of

VALUES = {
    "math": {"exact_match": np.array([1.0, 0, 0, 0]), "answer_loss": np.array([1.0, 2, 3, 2])},
    "code": {"exact_match": np.array([1.0, 1, 1, 0]), "answer_loss": np.array([4.0, 4, 4, 4])},
}
TASKS = {"math": "exact_match", "code": "exact_match"}


@pytest.mark.parametrize(
    ("objective", "value", "goal"),
    [
        ("mean", 0.5, "maximize"),
        ("worst", 0.25, "maximize"),
        ("code", 0.75, "maximize"),
        ("answer_loss", 3.0, "minimize"),
        ({"of": "worst", "metric": "answer_loss"}, 4.0, "minimize"),
        ({"of": "math", "metric": "answer_loss", "goal": "maximize"}, 2.0, "maximize"),
    ],
)
def test_an_objective_is_the_sum_of_the_means_of_its_contributions(objective: object, value: float, goal: str) -> None:
    aims = Aims(tasks=TASKS, objectives=[objective])
    (one,) = aims.objectives
    assert value_of(one.contributions(VALUES, TASKS)) == value
    assert [*aims.goals.values()] == [goal]


def test_a_task_of_one_metric_need_not_name_it_and_one_of_several_must() -> None:
    alone = {"math": {"acc": np.ones(3)}}
    assert value_of(Objective(of="mean").contributions(alone, {"math": None})) == 1.0
    with pytest.raises(ConfigError, match=r"several metrics: exact_match, answer_loss\. Say which"):
        Objective(of="math").contributions(VALUES, {"math": None})
    with pytest.raises(ConfigError, match="Did you mean 'exact_match'"):
        Objective(of="math").contributions(VALUES, {"math": "exact_mach"})


def test_a_constraint_says_by_which_share_it_is_broken() -> None:
    at_most, at_least = (Constraint.model_validate(text) for text in ("bytes <= 200", "mean >= 0.5"))
    assert (at_most.excess(300), at_most.excess(200)) == (0.5, 0.0)
    assert at_least.excess(0.25) == 0.5
