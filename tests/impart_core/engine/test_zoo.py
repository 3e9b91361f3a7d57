"""The zoo by the library: what changed is worked on, the gate promotes, failures stay alone, bases stay the same."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from impart_core import tinyzoo
from impart_core.artifacts.zoo_run import last_zoo_run
from impart_core.base.errors import ConfigError, ImpartError, UnknownNameError
from impart_core.engine import zoo_entry
from impart_core.engine.executor import Progress, ThreadExecutor
from impart_core.engine.zoo import Each, check_zoo, run_zoo
from impart_core.engine.zoo_entry import EntryJob, work_on
from impart_core.engine.zoo_jobs import ZooRequest
from impart_core.engine.zoo_plan import plan_zoo
from impart_core.store.gc import collect
from impart_core.store.names import get_ref, history, set_ref, untag
from impart_core.store.store import Store
from impart_core.zoo.file import parse_zoo
from impart_core.zoo.record import ZooRun
from tests.impart_core.evaluation.own_tasks import SUMS, sums, write_task

pytestmark = pytest.mark.e2e

QUICK = {"steps": [{"method": "lowrank", "cr": 32}]}


class Zoo:
    """A zoo file over copies of the tiny zoo, and a store."""

    def __init__(self, folder: Path) -> None:
        """Copy the base and two fine-tunes."""
        self.store = Store(str(folder / "store"))
        for name in ("base", "math", "code"):
            shutil.copytree(tinyzoo.path(name), folder / "models" / name)
        self.base, self.math, self.code = (folder / "models" / name for name in ("base", "math", "code"))
        self.content: dict[str, Any] = {
            "zoo": "team",
            "store": self.store.url,
            "recipes": {"default": QUICK},
            "models": [self.model("math"), self.model("code")],
        }

    def model(self, name: str, **own: Any) -> dict[str, Any]:
        """Return an entry."""
        return {"name": name, "base": str(self.base), "finetuned": str(self.base.parent / name), **own}

    def request(self, *only: str, **own: Any) -> ZooRequest:
        """Return the request to run it."""
        return ZooRequest(zoo=parse_zoo(self.content), only=only, **own)

    def run(self, *only: str, each: Each | None = None, **own: Any) -> ZooRun:
        """Run it."""
        with ThreadExecutor(2) as executor:
            return run_zoo(self.request(*only, **own), executor, each=each)


def written(zoo: Zoo) -> dict[Path, int]:
    """Return when each file of an artifact was written."""
    return {path: path.stat().st_mtime_ns for path in Path(zoo.store.url).glob("artifacts/*/*")}


def statuses(run: ZooRun) -> dict[str, str]:
    """Return what became of each entry."""
    return {outcome.name: outcome.status for outcome in run.outcomes}


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    """A zoo of two models."""
    return Zoo(tmp_path)


@pytest.fixture
def worked_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that are opened to be worked on."""
    opened: list[str] = []
    real = zoo_entry.open_sides

    def noted(base: str, finetuned: str) -> Any:
        opened.append(Path(finetuned).name)
        return real(base, finetuned)

    monkeypatch.setattr(zoo_entry, "open_sides", noted)
    return opened


def test_only_what_changed_is_worked_on(zoo: Zoo, worked_on: list[str]) -> None:
    first = zoo.run()
    assert statuses(first) == {"math": "promoted", "code": "promoted"}
    assert get_ref(zoo.store, "math@prod") == first.outcomes[0].artifact
    assert worked_on == ["math", "code"]
    again = zoo.run()
    assert statuses(again) == {"math": "unchanged", "code": "unchanged"}
    assert [one.attempts for one in again.outcomes] == [one.attempts for one in first.outcomes]
    (zoo.code / "generation_config.json").write_text('{"max_new_tokens": 7}')
    assert statuses(zoo.run()) == {"math": "unchanged", "code": "promoted"}
    assert worked_on == ["math", "code", "code"]
    zoo.content["models"][0]["owner"] = "nlp"  # which decides on nothing
    assert statuses(zoo.run()) == {"math": "unchanged", "code": "unchanged"}
    zoo.content["recipes"]["default"] = {"steps": [{"method": "lowrank", "cr": 16}]}
    assert statuses(zoo.run()) == {"math": "promoted", "code": "promoted"}
    assert [move.why for move in history(zoo.store, "math@prod")] == ["zoo: lowrank at CR 32", "zoo: lowrank at CR 16"]
    assert statuses(zoo.run(again=True)) == {"math": "promoted", "code": "promoted"}


def lose_the_name(zoo: Zoo) -> None:
    untag(zoo.store, "math@prod")


def move_the_name(zoo: Zoo) -> None:
    other = get_ref(zoo.store, "code@prod")
    assert other
    set_ref(zoo.store, "math@prod", other)


def lose_a_block(zoo: Zoo) -> None:
    delta = get_ref(zoo.store, "math@prod")
    assert delta
    block = zoo.store.manifest(delta).content.pointers()[0]
    shutil.rmtree(Path(zoo.store.url) / "artifacts" / block.id)


def cut_a_file_short(zoo: Zoo) -> None:
    delta = get_ref(zoo.store, "math@prod")
    assert delta
    block = zoo.store.manifest(delta).content.pointers()[0]
    next((Path(zoo.store.url) / "artifacts" / block.id).glob("codes.*")).write_bytes(b"x")


def lose_a_manifest(zoo: Zoo) -> None:
    delta = get_ref(zoo.store, "math@prod")
    assert delta
    block = zoo.store.manifest(delta).content.pointers()[0]
    (Path(zoo.store.url) / "artifacts" / block.id / "manifest.json").unlink()


@pytest.mark.parametrize("harm", [lose_the_name, move_the_name, lose_a_block, cut_a_file_short, lose_a_manifest])
def test_what_is_no_longer_in_place_is_made_good(zoo: Zoo, harm: Callable[[Zoo], None]) -> None:
    first = zoo.run()
    harm(zoo)
    again = zoo.run()
    assert again.outcomes[0].status == "promoted"
    assert get_ref(zoo.store, "math@prod") == first.outcomes[0].artifact
    assert statuses(zoo.run())["math"] == "unchanged"


def test_a_failure_stays_alone_and_the_name_where_it_was(zoo: Zoo) -> None:
    before = zoo.run().outcomes[0].artifact
    weights = zoo.math / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    zoo.content["models"].append(zoo.model("gone"))
    found = zoo.run()
    assert statuses(found) == {"math": "failed", "code": "unchanged", "gone": "failed"}
    assert get_ref(zoo.store, "math@prod") == before == found.outcomes[0].artifact
    assert "model.safetensors" in found.outcomes[0].why
    assert "does not exist" in found.outcomes[2].why
    assert statuses(zoo.run())["math"] == "failed"  # it is tried again each time
    shutil.copy(tinyzoo.path("math") / "model.safetensors", weights)
    assert statuses(zoo.run())["math"] == "promoted"


def test_a_lossless_step_passes_what_the_fine_tune_itself_does(zoo: Zoo) -> None:
    task = "tinyzoo_math"
    gate = {"tasks": {task: "answer_loss"}, "errors": 0, "loses": 0, "limit": 4}
    recipe = {"steps": [{"method": "lowrank", "cr": 32}, {"method": "lossless"}], "gate": gate}
    zoo.content["recipes"]["default"] = recipe
    (outcome,) = zoo.run("math").with_status("promoted")
    first, last = outcome.attempts
    assert (first.passed, first.why, last.step, last.passed) == (False, "", "lossless", True)
    assert last.why.startswith("Lossless: every bit is the fine-tuned model's")
    assert last.gate[0].lost == 0
    assert last.gate[0].after == last.gate[0].before == first.gate[0].before
    recipe["gate"] = {**gate, "at_least": {task: 1e-9}}  # which the fine-tuned model has not
    assert statuses(zoo.run("math"))["math"] == "refused"


@pytest.mark.parametrize("writing", [True, False], ids=["run", "plan"])
def test_metrics_of_gates_are_checked_before_any_work(writing: bool, zoo: Zoo, tmp_path: Path) -> None:
    def refused(gate: dict[str, Any], **own: Any) -> str:
        zoo.content["recipes"]["default"] = {**QUICK, "gate": gate}
        zoo.content["models"] = [zoo.model("math", **own)]
        with pytest.raises(ConfigError) as raised:
            check_zoo(zoo.request(), writing=writing)
        return str(raised.value)

    guess = "The task tinyzoo_math has no metric 'exact_mach'. Did you mean 'exact_match'?"
    assert guess in refused({"tasks": {"tinyzoo_math": "exact_mach"}})
    assert guess in refused({}, tasks={"tinyzoo_math": "exact_mach"})
    name, _ = write_task(tmp_path, {"test": sums(range(4))}, **SUMS)
    file = str(tmp_path / "my_sums.yaml")
    assert f"The task {file} has no metric 'acc'. It has: exact_match" in refused({"tasks": {file: "acc"}})
    several = {"measuring": {"include_path": [str(tmp_path)]}, "tasks": [name, file]}
    assert "names a task twice" in refused(several)
    listed = [{"metric": "exact_match"}, {"metric": "bleu"}]
    write_task(tmp_path, {"test": sums(range(4))}, **{**SUMS, "metric_list": listed})
    assert "has several metrics: exact_match, bleu. Say which" in refused({"tasks": file})
    (tmp_path / "group.yaml").write_text(json.dumps({"group": "mine", "task": [name]}))
    group = {"measuring": {"include_path": [str(tmp_path)]}, "tasks": ["mine"]}
    assert "mine is a group of tasks that has no score of its own" in refused(group)
    assert not list(zoo.store.ids())


def test_a_metric_that_only_a_result_tells_is_missed_before_anything_is_compressed(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def scored(doc, results):\n    return {'mine': 1.0}\n")
    file = tmp_path / "my_sums.yaml"
    items = {"validation": sums(range(4)), "test": sums(range(4, 8))}
    write_task(tmp_path, items, **{**SUMS, "metric_list": [{"metric": "mine", "aggregation": "mean"}]})
    file.write_text(f"{file.read_text()[:-1]}, process_results: !function own.scored}}")
    zoo.content["recipes"]["default"] = {**QUICK, "gate": {"tasks": {str(file): "exact_match"}}}
    (failed,) = zoo.run("math").with_status("failed")
    assert "has no metric 'exact_match'. It has: mine" in failed.why
    kinds = {zoo.store.manifest(made).content.kind for made in zoo.store.ids()}
    assert not kinds & {"block", "delta"}


def test_the_gate_goes_down_the_steps_and_leaves_the_name_where_none_passes(zoo: Zoo) -> None:
    task = "tinyzoo_math"
    steps = [{"method": "lowrank", "cr": 64}, {"method": "lowrank", "cr": 2}]
    gate = {"tasks": {task: "answer_loss"}, "errors": 0, "limit": 8}
    zoo.content["models"] = [zoo.model("math")]
    zoo.content["recipes"]["default"] = {"steps": steps, "gate": {**gate, "loses": 1e6}}
    (lax,) = zoo.run().outcomes
    (attempt,) = lax.attempts
    (measured,) = attempt.gate
    assert measured.lost is not None
    zoo.content["recipes"]["default"] = {"steps": steps, "gate": {**gate, "loses": measured.lost / 2}}
    (stricter,) = zoo.run().outcomes
    assert [one.passed for one in stricter.attempts] == [False, True]
    assert stricter.artifact == stricter.attempts[1].artifact == get_ref(zoo.store, "math@prod")
    zoo.content["recipes"]["default"] = {"steps": steps, "gate": {**gate, "at_least": {task: 1e-9}}}
    for _ in range(2):  # and nothing is tried again until something changes
        (refused,) = zoo.run().outcomes
        assert refused.status == "refused"
        assert "does not pass the gate" in refused.why
        assert refused.artifact == stricter.artifact == get_ref(zoo.store, "math@prod")
    (unmoved,) = zoo.run("math").outcomes
    assert unmoved.seconds == refused.seconds


def test_entries_are_chosen_by_name_pattern_tag_and_owner(zoo: Zoo) -> None:
    zoo.content["models"] = [zoo.model("math", tags=["small"], owner="nlp"), zoo.model("code")]
    for only in ("math", "ma*", "tag:small", "owner:nlp"):
        assert [job.name for job in check_zoo(zoo.request(only)).work] == ["math"]
    with pytest.raises(UnknownNameError, match="Did you mean 'math'"):
        check_zoo(zoo.request("mth"))
    run = zoo.run("tag:small")
    assert statuses(run) == {"math": "promoted", "code": "left out"}
    assert statuses(zoo.run("code")) == {"math": "left out", "code": "promoted"}
    assert statuses(zoo.run()) == {"math": "unchanged", "code": "unchanged"}


def test_another_base_under_the_same_name_is_refused_before_any_work(zoo: Zoo, worked_on: list[str]) -> None:
    zoo.run()
    opened = list(worked_on)
    shutil.copy(tinyzoo.path("math") / "model.safetensors", zoo.base / "model.safetensors")
    with pytest.raises(ConfigError, match="is not what it was when math, code"):
        zoo.run()
    assert worked_on == opened
    shutil.copy(tinyzoo.path("base") / "model.safetensors", zoo.base / "model.safetensors")
    assert statuses(zoo.run()) == {"math": "promoted", "code": "promoted"}  # found in the store, as the content is


def test_another_base_is_refused_after_a_failed_run_and_for_merges(zoo: Zoo, tmp_path: Path) -> None:
    own = {"compress": {"method": "lowrank", "cr": 16}}
    file = {"merge_method": "linear", "base_model": str(zoo.base), "models": [{"model": str(zoo.math)}]}
    merge = {**file, "parameters": {"weight": 1.0}, "impart": own}
    zoo.content["merges"] = [{"name": "both", "merge": merge}]
    before = zoo.run()
    assert before.outcomes[2].base_id == before.outcomes[0].base_id
    (tmp_path / "away").mkdir()
    zoo.math.rename(tmp_path / "away" / "math")
    failed = zoo.run()
    assert statuses(failed) == {"math": "failed", "code": "unchanged", "both": "failed"}
    assert [one.bytes_after for one in failed.outcomes] == [one.bytes_after for one in before.outcomes]
    (tmp_path / "away" / "math").rename(zoo.math)
    shutil.copy(zoo.code / "model.safetensors", zoo.base / "model.safetensors")
    for models in (zoo.content["models"], []):
        zoo.content["models"] = models
        with pytest.raises(ConfigError, match="is not what it was when"):
            zoo.run()


def test_a_record_tells_where_names_point_whoever_moved_them(zoo: Zoo) -> None:
    math, code = zoo.run().outcomes
    assert math.artifact
    assert code.artifact
    set_ref(zoo.store, "code@prod", math.artifact)
    left = zoo.run("math").outcomes[1]
    assert (left.status, left.artifact, left.bytes_after) == ("left out", math.artifact, math.bytes_after)
    assert statuses(zoo.run()) == {"math": "unchanged", "code": "promoted"}


def test_a_run_of_some_entries_keeps_what_another_run_did_meanwhile(zoo: Zoo) -> None:
    zoo.run()
    request = zoo.request("math", again=True)
    checked = check_zoo(request)
    zoo.content["recipes"]["default"] = {"steps": [{"method": "lowrank", "cr": 8}]}
    other = zoo.run("code").outcomes[1]
    with ThreadExecutor(1) as executor:
        mine = run_zoo(request, executor, checked=checked)
    assert mine.outcomes[1].artifact == other.artifact == get_ref(zoo.store, "code@prod")


def test_secrets_in_places_are_refused_before_anything_is_written(zoo: Zoo) -> None:
    zoo.content["models"] = [zoo.model("math") | {"base": "http://user:SECRET@example.org/base"}]
    with pytest.raises(ImpartError) as raised:
        check_zoo(zoo.request())
    assert "SECRET" not in str(raised.value)


def test_what_a_search_depends_on_counts(zoo: Zoo, tmp_path: Path) -> None:
    write_task(tmp_path, {"validation": sums(range(10, 18)), "test": sums(range(30, 38))}, **SUMS)
    template = {
        "base": str(zoo.base),
        "finetuned": str(zoo.math),
        "cr": 16,
        "method": {"choose": ["impart", "lowrank"]},
    }
    aims = {"tasks": {str(tmp_path / "my_sums.yaml"): "answer_loss"}, "sampler": "grid", "items": 4}
    zoo.content["searches"] = [{"name": "best", "search": {"compress": template, **aims}}]

    def fingerprint() -> str | None:
        return check_zoo(zoo.request()).jobs[2].fingerprint

    before = fingerprint()
    assert before == fingerprint() is not None
    write_task(tmp_path, {"validation": sums(range(20, 28)), "test": sums(range(30, 38))}, **SUMS)
    assert fingerprint() != before


def test_patterns_find_models_and_new_ones_later(zoo: Zoo, tmp_path: Path) -> None:
    pattern = {"find": f"{tmp_path}/models/*", "base": str(zoo.base), "without": ["code*"], "name": "sft-{folder}"}
    zoo.content["models"] = [pattern]
    assert statuses(zoo.run()) == {"sft-math": "promoted"}
    shutil.copytree(zoo.math, tmp_path / "models" / "new")
    assert statuses(zoo.run()) == {"sft-math": "unchanged", "sft-new": "promoted"}
    (tmp_path / "models" / "again").symlink_to(zoo.base)  # the base under another name is no fine-tune
    assert statuses(zoo.run()) == {"sft-math": "unchanged", "sft-new": "unchanged"}
    zoo.content["models"].append(zoo.model("sft-new"))
    with pytest.raises(ConfigError, match="Two entries are called 'sft-new'"):
        check_zoo(zoo.request())


def test_what_patterns_do_not_find_is_told_and_stops_nothing(zoo: Zoo, tmp_path: Path) -> None:
    zoo.content["models"] = [
        {"find": f"{tmp_path}/models/*", "base": str(zoo.base), "without": ["code*"]},
        {"find": f"{tmp_path}/models/none*", "base": str(zoo.base)},
    ]
    shutil.copytree(zoo.math, tmp_path / "models" / "deadbeef")
    request = zoo.request()
    planned = plan_zoo(request, check_zoo(request))
    run = zoo.run()
    assert statuses(run) == {"math": "promoted"}
    assert planned.trouble == run.trouble
    assert "the folder 'deadbeef' is no entry" in run.trouble[0]
    assert run.trouble[1].endswith("models/none* finds no model.")


def test_a_merge_follows_the_models_that_it_names(zoo: Zoo) -> None:
    models = [{"model": f"{name}@prod", "parameters": {"weight": 0.5}} for name in ("math", "code")]
    file = {"merge_method": "task_arithmetic", "base_model": str(zoo.base), "models": models}
    zoo.content["merges"] = [
        {"name": "both", "merge": {**file, "impart": {"compress": {"method": "lowrank", "cr": 16}}}}
    ]
    first = zoo.run()
    assert statuses(first) == {"math": "promoted", "code": "promoted", "both": "promoted"}
    assert statuses(zoo.run()) == {"math": "unchanged", "code": "unchanged", "both": "unchanged"}
    zoo.content["models"][0]["recipe"] = "other"
    zoo.content["recipes"]["other"] = {"steps": [{"method": "lowrank", "cr": 8}]}
    again = zoo.run()
    assert statuses(again) == {"math": "promoted", "code": "unchanged", "both": "promoted"}
    assert again.outcomes[2].artifact != first.outcomes[2].artifact
    zoo.content["merges"][0]["merge"] = file
    with pytest.raises(ConfigError, match="would be lost"):
        check_zoo(zoo.request())


def test_a_run_that_dies_goes_on_where_it_was(zoo: Zoo, worked_on: list[str]) -> None:
    def dies(job: EntryJob, progress: Progress) -> Any:
        if job.name == "code":
            raise KeyboardInterrupt
        with ThreadExecutor(1) as executor:
            return work_on(job, executor, progress)

    with pytest.raises(KeyboardInterrupt):
        zoo.run(each=dies)
    assert last_zoo_run(zoo.store, "team") is None
    before = {path: path.stat().st_mtime_ns for path in Path(zoo.store.url).glob("artifacts/*/*")}
    assert statuses(zoo.run()) == {"math": "promoted", "code": "promoted"}
    assert (
        before.items() <= {path: path.stat().st_mtime_ns for path in Path(zoo.store.url).glob("artifacts/*/*")}.items()
    )


def test_an_interrupt_stops_what_is_under_way_at_its_next_block(zoo: Zoo) -> None:
    begun, stopped = Event(), Event()

    def each(job: EntryJob, progress: Progress) -> Any:
        if job.name == "math":
            assert begun.wait(60)
            raise KeyboardInterrupt
        begun.set()
        try:
            while True:
                progress("compress", 0, 1, "a block")
                time.sleep(0.01)
        except KeyboardInterrupt:
            stopped.set()
            raise

    zoo.content["concurrency"] = 2
    with pytest.raises(KeyboardInterrupt):
        zoo.run(each=each)
    assert stopped.is_set()


def test_transformers_is_loaded_before_entries_are_worked_on_side_by_side(zoo: Zoo, tmp_path: Path) -> None:
    """Two threads that import it at once: one is left with a module that lacks its classes."""
    file = tmp_path / "zoo.yaml"
    file.write_text(json.dumps({**zoo.content, "concurrency": 2}))
    program = f"""
import sys
from pathlib import Path
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.zoo import run_zoo
from impart_core.engine.zoo_jobs import ZooRequest
from impart_core.zoo.file import read_zoo_file
there = []
def each(job, progress):
    there.append("transformers" in sys.modules)
    return job.outcome(status="failed", why="")
with ThreadExecutor(1) as executor:
    run_zoo(ZooRequest(zoo=read_zoo_file(Path({str(file)!r})), store={zoo.store.url!r}), executor, each=each)
print(there)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[True, True]", done.stderr


def test_the_plan_tells_what_would_be_done_and_how_long_it_took(zoo: Zoo) -> None:
    zoo.content["models"].append(zoo.model("gone"))
    request = zoo.request()
    planned = plan_zoo(request, check_zoo(request))
    math, _, gone = planned.entries
    assert (math.work, math.steps, math.seconds) == (True, ("lowrank at CR 32",), None)
    assert "does not exist" in gone.why
    run = zoo.run()
    made = run.outcomes[0]
    assert made.bytes_after <= (math.bytes_at_most or 0)
    assert made.bytes_before == math.bytes_before
    zoo.content["models"].append(zoo.model("math") | {"name": "copy"})
    request = zoo.request()
    after = plan_zoo(request, check_zoo(request))
    assert [one.work for one in after.entries] == [False, False, True, True]
    assert after.next_run is None
    zoo.content["schedule"] = {"cron": "0 2 * * *"}
    request = zoo.request()
    scheduled = plan_zoo(request, check_zoo(request))
    assert str(scheduled.next_run).endswith("T02:00+00:00")
    assert str(scheduled.next_run) in scheduled.lines()[-1]
    assert after.entries[3].seconds == pytest.approx(
        sum(one.seconds / one.bytes_before for one in run.outcomes[:2]) / 2 * made.bytes_before
    )


def test_what_is_cleaned_up_is_what_no_name_reaches(zoo: Zoo) -> None:
    zoo.content["retention"] = {"collect": True, "grace_days": 0, "history": 1}
    zoo.run()
    zoo.content["recipes"]["default"] = {"steps": [{"method": "lowrank", "cr": 16}]}
    run = zoo.run()
    assert run.collected > 0
    assert run.trouble == ()
    assert statuses(zoo.run()) == {"math": "unchanged", "code": "unchanged"}
    assert collect(zoo.store).artifacts == {}


def test_a_store_that_cannot_be_written_is_told_before_any_work(zoo: Zoo, worked_on: list[str]) -> None:
    Path(zoo.store.url).write_text("")
    with pytest.raises(ImpartError):
        zoo.run()
    assert worked_on == []
