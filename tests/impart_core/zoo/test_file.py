import copy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from impart_core.base.errors import ConfigError, UnknownNameError
from impart_core.zoo.file import Pattern, ZooFile, ZooModel, parse_zoo, read_zoo_file

RECIPE: dict[str, Any] = {"steps": [{"cr": 64}, {"method": "dare", "cr": 4}], "gate": {"tasks": ["tinyzoo_math"]}}
MODEL: dict[str, Any] = {"name": "math", "base": "org/base", "finetuned": "org/math"}


def zoo(**own: Any) -> dict[str, Any]:
    """Return a zoo of one model."""
    return copy.deepcopy({"recipes": {"default": RECIPE}, "models": [MODEL], **own})


def test_a_file_is_read_and_relative_places_start_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "models" / "math").mkdir(parents=True)
    path = tmp_path / "zoo.yaml"
    path.write_text(
        """
        zoo: team
        recipes: {default: {steps: [{cr: 64}, {method: dare, cr: 4}]}}
        models:
          - {name: math, base: org/base, finetuned: models/math}
          - {name: far, base: org/base, finetuned: org/far, revision: v2}
          - {find: "models/*", base: org/base, without: [old*], tags: [found]}
        schedule: {cron: "0 2 * * *", timezone: Europe/Berlin}
        """
    )
    file = read_zoo_file(path)
    math, far, found = file.models
    assert isinstance(math, ZooModel)
    assert (math.place, math.base) == (str(tmp_path / "models" / "math"), "hf://org/base")
    assert isinstance(far, ZooModel)
    assert far.place == "hf://org/far@v2"
    assert isinstance(found, Pattern)
    assert found.find == str(tmp_path / "models" / "*")
    assert found.model("a b", "/x/a b").name == "a-b"
    assert [step.label for step in file.recipes["default"].steps] == ["impart at CR 64", "dare at CR 4"]


def test_a_lossless_step_needs_no_ratio_and_is_the_last() -> None:
    steps = [{"method": "dare", "cr": 4}, {"method": "lossless"}]
    file = ZooFile(**zoo(recipes={"default": {"steps": steps}}))
    assert [step.label for step in file.recipes["default"].steps] == ["dare at CR 4", "lossless"]
    with pytest.raises(ConfigError, match="Make lossless the last"):
        ZooFile(**zoo(recipes={"default": {"steps": steps[::-1]}}))


def test_the_next_run_is_in_the_schedules_time_zone() -> None:
    file = ZooFile(**zoo(schedule={"cron": "30 2 * * *", "timezone": "Asia/Kolkata"}))
    found = file.next_run()
    assert found is not None
    assert (found.hour, found.minute) == (21, 0)  # 02:30 there, which knows no summer time
    assert timedelta() < found - datetime.now(UTC) <= timedelta(days=1)


def test_a_models_own_tasks_replace_those_of_its_recipe() -> None:
    file = ZooFile(**zoo(models=[{**MODEL, "tasks": {"tinyzoo_code": "exact_match"}}]))
    (model,) = file.models
    assert isinstance(model, ZooModel)
    assert file.gate_of(model).tasks == {"tinyzoo_code": "exact_match"}
    assert file.recipes["default"].gate.tasks == {"tinyzoo_math": None}


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"models": [MODEL, MODEL]}, "Two entries are called 'math'"),
        ({"models": [MODEL], "merges": [{"name": "math", "merge": {}}]}, "Two entries are called 'math'"),
        ({"models": [{**MODEL, "recipe": "defalt"}]}, "Unknown recipe 'defalt'. Did you mean 'default'?"),
        ({"models": [{**MODEL, "ownr": "x"}]}, "models: math: Unknown setting 'ownr'. Did you mean 'owner'?"),
        ({"models": [{**MODEL, "owner": "nlq"}], "owners": {"nlp": "nlp@example.org"}}, "owner 'nlq'. Did you mean"),
        ({"models": [{**MODEL, "name": "a/b"}]}, "cannot be a name here"),
        ({"models": [{**MODEL, "name": "abcdef12"}]}, "cannot be a name here"),
        ({"models": [{"find": "/models/*/x", "base": "b"}]}, "in its last part"),
        ({"models": [{"find": "/models/*", "base": "b", "name": "one"}]}, "gives all models one name"),
        ({"models": ["math"]}, "entry 1 is no mapping"),
        ({"models": []}, "no models, no merges and no searches"),
        ({"recipes": {"default": {"steps": []}}}, "at least 1 item"),
        ({"recipes": {"default": {"steps": [{"cr": 4, "metod": "x"}]}}}, "Did you mean 'method'"),
        ({"recipes": {"default": {"steps": [{"method": "impart-qt", "cr": 32}]}}}, "needs calibration text"),
        ({"recipes": {"default": {**RECIPE, "gate": {"tasks": {"t": "acc"}, "at_least": {"t": 1.2}}}}}, "No model has"),
        (
            {"recipes": {"default": {**RECIPE, "gate": {"tasks": ["t"], "at_least": {"u": 0.2}}}}},
            "not one of the tasks",
        ),
        ({"schedule": {"cron": "0 0 30 2 *"}}, "never fires"),
        ({"schedule": {"cron": "nightly"}}, "is not five fields"),
        ({"schedule": {"cron": "0 0 2 * * *"}}, "is not five fields"),
        ({"schedule": {"cron": "0 0 * * 5L"}}, "is not five fields"),
        ({"schedule": {"cron": "0 2 1-31/2 * */2"}}, "Name one of them"),
        ({"retention": {"grace_days": 1e12}}, "grace_days"),
        ({"store": ""}, "store"),
        ({"schedule": {"cron": "0 2 * * *", "timezone": "Berlin"}}, "IANA name"),
        ({"notify": {"webhook_env": "https://example.org/secret"}}, "webhook_env"),
        ({"concurency": 2}, "Did you mean 'concurrency'?"),
        ({"zoo": "a@b"}, "cannot be a name here"),
    ],
)
def test_what_is_wrong_is_a_sentence(own: dict[str, Any], told: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError)) as raised:
        parse_zoo(zoo(**own))
    assert told in str(raised.value)


def test_places_never_depend_on_where_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home / "base", elsewhere / "org" / "math", tmp_path / "zoo"):
        folder.mkdir(parents=True)
    (tmp_path / "zoo" / "cal.txt").write_text("text")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    content = zoo(store="there", models=[{"name": "math", "base": "~/base", "finetuned": "org/math"}])
    content["recipes"]["default"]["steps"] = [{"method": "impart-qt", "cr": 64, "calibration": {"source": "cal.txt"}}]
    file = parse_zoo(content, tmp_path / "zoo")
    (model,) = file.models
    assert isinstance(model, ZooModel)
    assert (model.base, model.finetuned) == (str(home / "base"), "hf://org/math")
    assert file.store == str(tmp_path / "zoo" / "there")
    calibration = file.recipes["default"].steps[0].calibration
    assert calibration is not None
    assert calibration.source == str(tmp_path / "zoo" / "cal.txt")


@pytest.mark.parametrize("place", ["~nobody-of-this-name/x", "x" * 6000, "a\0b"])
def test_what_no_file_system_has_is_a_sentence(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no place"):
        parse_zoo(zoo(models=[{**MODEL, "base": place}]), tmp_path)


@pytest.mark.parametrize("content", [None, [], "zoo", {1: 2}])
def test_what_is_no_zoo_is_refused(content: Any) -> None:
    with pytest.raises(ConfigError, match="settings with names"):
        parse_zoo(content)
