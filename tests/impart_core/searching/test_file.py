from pathlib import Path
from typing import Any

import pytest

from impart_core.base.errors import ConfigError, UnknownNameError
from impart_core.searching.file import parse_search, read_search_file
from tests.impart_core.searching.synthetic import search
from tests.odd_values import tracebacks

TEXT = """
name: math@best
compress:
  base: base
  finetuned: math
  method: {choose: [impart, dare]}
  cr: 16
  options: {beta: {range: [1e-2, 0.8], log: true}}
tasks: {tinyzoo_math: exact_match}
objectives: [mean, bytes]
constraints: [bytes <= 5e6, mean >= 0.25]
sampler: {name: tpe, startup: 5}
items: [50, 200]
budget: {trials: 40, minutes: 30}
"""


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(TEXT)
    file = read_search_file(path)
    assert list(file.space.holes) == ["method", "options.beta"]
    assert file.space.holes["options.beta"].range == (0.01, 0.8)  # YAML 1.1 takes 1e-2 for text
    assert file.goals == {"mean": "maximize", "bytes": "minimize"}
    assert [constraint.name for constraint in file.constraints] == ["bytes <= 5e+06", "mean >= 0.25"]
    assert file.rungs(300) == ((0, 50), (50, 200))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "is no YAML"),
        ("- a", "settings with names"),
        ("", "0 documents"),
        ("a: 1\n---\nb: 2", "2 documents"),
        ("a: 1\na: 2", "'a' is given twice"),
    ],
)
def test_what_is_no_search_file_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_search_file(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "search.yaml"
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"search\.yaml cannot be read"):
        read_search_file(path)


@pytest.mark.parametrize("key", ["split", "test", "splits"])
def test_a_search_cannot_name_a_split(key: str) -> None:
    with pytest.raises(ConfigError, match="validation items only"):
        search(**{key: "test"})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"task": ["a"]}, "Unknown setting 'task'. Did you mean 'tasks'"),
        ({"budget": {"trails": 3}}, "Unknown setting 'budget.trails'. Did you mean 'trials'"),
        ({"budget": {}}, "needs an end"),
        ({"sampler": "tpee"}, "Did you mean 'tpe'"),
        ({"sampler": {"name": "gp", "population": 9}}, "population has no effect on gp"),
        ({"sampler": {"name": "cmaes", "warm_start": 9}}, "at least 10"),
        ({"sampler": {"name": "cmaes", "warm_start": 10, "warm_study": "x"}}, "Take one"),
        ({"sampler": {"name": "tpe", "warm_study": "x"}}, "warm_study has no effect on tpe"),
        ({"sampler": "grid"}, "a step for the range of x"),
        ({"sampler": "cmaes", "objectives": ["mean", "bytes"]}, "one objective"),
        ({"objectives": ["meen"]}, "Did you mean 'mean'"),
        ({"objectives": ["mean", "mean"]}, "twice"),
        ({"objectives": ["bytes"]}, "Bytes alone"),
        ({"objectives": []}, "at least 1"),
        ({"constraints": ["bytes <= 5", "bytes >= 6"]}, "contradict each other"),
        ({"constraints": ["mean <= 5", "mean >= 3", "mean >= 6", "mean <= 7"]}, "mean >= 6 and mean <= 5 contradict"),
        ({"constraints": ["bytes <= 0"]}, "No model keeps bytes <= 0: bytes is at least 1"),
        ({"tasks": {"a": "acc"}, "constraints": ["mean >= 2"]}, "No model keeps mean >= 2: mean is at most 1. Lower"),
        ({"tasks": {"a": "acc,none"}, "constraints": ["a <= -0.1"]}, "a is at least 0. Raise"),
        ({"tasks": {"a": "acc", "b": "bleu"}, "constraints": ["mean >= 51"]}, "mean is at most 50.5"),
        ({"tasks": {"a": "acc", "b": "bleu"}, "constraints": ["worst >= 2"]}, "worst is at most 1"),
        ({"constraints": ["answer_loss <= -1"]}, "answer_loss is at least 0"),
        ({"constraints": ["bytes < 5"]}, "is no constraint"),
        ({"constraints": ["bites <= 5"]}, "Did you mean 'bytes'"),
        ({"constraints": ["mean <= nan"]}, "finite"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": {"a": "answer_loss", "b": "exact_match"}}, "they have no mean"),
        ({"items": [50, 50]}, "must grow"),
        ({"items": [0]}, "at least 1"),
        ({"starts": [{"z": 1}]}, "no parameter 'z'"),
        ({"starts": [{"x": 9}]}, "cannot be 9"),
        ({"merge": {"a": {"range": [0, 1]}}}, "exactly one template"),
        ({"compress": None}, "exactly one template"),
        ({"compress": {"cr": 4}}, "no hole"),
        ({"parallel": 0}, "at least 1"),
    ],
)
def test_what_is_wrong_with_a_search_is_said_before_it_begins(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        search(**settings)


def test_an_unknown_start_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'one-hot'"):
        search(starts=["onehot"])


def test_fewer_items_than_asked_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="80 validation items are asked for, and a task has 79"):
        search().rungs(79)


@pytest.mark.parametrize(
    ("own", "least"),
    [
        ({"budget": {"items": 19}}, 20),
        ({"budget": {"items": 39}, "tasks": ["a", "b"]}, 40),
        ({"budget": {"items": 79}, "items": None}, 80),
        ({"budget": {"items": 219}, "sampler": {"name": "cmaes", "warm_start": 10}}, 220),
    ],
)
def test_a_budget_that_is_no_candidates_is_refused(own: dict[str, Any], least: int) -> None:
    with pytest.raises(ConfigError, match=f"Raise budget.items to at least {least}"):
        search(**own).rungs(80)
    assert search(**{**own, "budget": {"items": least}}).rungs(80)


def test_all_items_are_one_rung_where_none_are_named() -> None:
    assert search(items=None).rungs(300) == ((0, 300),)
    assert search(items=50).rungs(300) == ((0, 50),)


def test_the_shortest_search_is_a_template_tasks_and_an_end() -> None:
    file = parse_search({"compress": {"cr": {"choose": [4, 8]}}, "tasks": "gsm8k", "sampler": "grid"})
    assert file.goals == {"mean": "maximize"}


def test_whatever_is_written_in_a_search_file_gives_a_sentence() -> None:
    template = {"base": "b", "finetuned": "f", "cr": {"range": [4, 64]}, "options": {"beta": {"range": [0, 0.9]}}}
    document = {
        "compress": {**template, "method": {"choose": ["impart", "dare"], "default": "dare"}},
        "name": "a@b",
        "tasks": ["t"],
        "objectives": ["mean", {"of": "bytes"}],
        "constraints": ["bytes <= 5"],
        "sampler": {"name": "tpe", "startup": 3},
        "starts": ["uniform", {"cr": 16}],
        "items": [50, 200],
        "budget": {"trials": 5},
        "measuring": {"num_fewshot": 1},
    }

    def read(raw: Any) -> None:
        file = parse_search(raw)
        file.rungs(300)
        assert len(file.space.fill(file.space.defaults).digest) == 64
        assert file.goals and file.quantities

    read(document)
    assert tracebacks(document, read) == []
