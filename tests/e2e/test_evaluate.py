"""A delta measured by its name: rebuilt in scratch, its metrics kept with it, and never measured twice."""

from pathlib import Path

import pytest

from impart_core import tinyzoo
from tests.support import Environment, manifests, run_impart, run_json

pytestmark = pytest.mark.e2e

ITEMS = 6


@pytest.fixture(scope="module")
def store(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a delta of the tiny zoo in it."""
    store = tmp_path_factory.mktemp("measured")
    models = [str(tinyzoo.path(name)) for name in ("base", "math")]
    run_json("compress", *models, "--cr", "4", "--name", "math", "--store", str(store), environment=environment)
    return store


def evaluate(store: Path, *model: str) -> list[str]:
    return ["evaluate", *model, "--tasks", "tinyzoo_math", "--limit", str(ITEMS), "--store", str(store)]


def test_a_delta_is_measured_as_the_model_that_it_gives(store: Path, environment: Environment, tmp_path: Path) -> None:
    base = str(tinyzoo.path("base"))
    (of_delta,) = run_json(*evaluate(store, "math", "--base", base), environment=environment)["results"]
    run_json("reconstruct", "math", "--base", base, "--out", str(tmp_path / "out"), "--store", str(store))
    (of_folder,) = run_json(*evaluate(store, str(tmp_path / "out")), environment=environment)["results"]
    assert of_delta["metrics"] == of_folder["metrics"]
    assert of_delta["items"] == {"tinyzoo_math": ITEMS}
    (delta,) = manifests(store, "delta")
    parents = {name: made["parents"] for name, made in manifests(store, "evaluation").items()}
    assert parents == {of_delta["id"]: [delta], of_folder["id"]: []}
    (again,) = run_json(*evaluate(store, "math", "--base", base), environment=environment)["results"]
    assert (again["id"], again["cached"]) == (of_delta["id"], True)
    graph = run_json("lineage", "math", "--store", str(store))
    assert [delta, of_delta["id"]] in graph["edges"]


def test_another_base_is_refused(store: Path, environment: Environment) -> None:
    done = run_impart(*evaluate(store, "math", "--base", str(tinyzoo.path("code"))), environment=environment)
    assert done.returncode == 2
    assert "made against another base" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_does_not_exist_is_refused(store: Path) -> None:
    done = run_impart(*evaluate(store, "maths", "--base", str(tinyzoo.path("base"))))
    assert done.returncode == 2
    assert "Did you mean 'math'?" in done.stderr


def test_how_it_was_measured_is_told_wherever_it_is_shown(store: Path, environment: Environment) -> None:
    base = str(tinyzoo.path("base"))
    options = ["--gen-kwargs", "max_gen_toks=3", "--batch-size", "2", "--log-samples"]
    (plain,) = run_json(*evaluate(store, "math", "--base", base), environment=environment)["results"]
    (other,) = run_json(*evaluate(store, "math", "--base", base), *options, environment=environment)["results"]
    assert other["id"] != plain["id"]
    (again,) = run_json(*evaluate(store, "math", "--base", base), *options, environment=environment)["results"]
    assert (again["id"], again["cached"]) == (other["id"], True)
    listed = {entry["id"]: entry["summary"] for entry in run_json("ls", "--store", str(store))["artifacts"]}
    assert "max_gen_toks" not in listed[plain["id"]]
    assert listed[other["id"]] == (
        "tinyzoo_math (test, batch_size 2, gen_kwargs {'max_gen_toks': 3}, log_samples True)"
    )
    changes = run_json("diff", plain["id"], other["id"], "--store", str(store))["config"]
    assert {change["what"] for change in changes} >= {"options.batch_size", "options.gen_kwargs.max_gen_toks"}
    (samples,) = (store / "artifacts" / other["id"]).glob("samples.*.jsonl")
    assert len(samples.read_text().splitlines()) == ITEMS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gen-kwargs", "max_gen_toks"], "'max_gen_toks' is not KEY=VALUE"),
        (["--model-args", "pretrained=x"], "'pretrained' cannot be set"),
        (["--batch-size", "few"], "batch_size"),
        (["--include-path", "/no/such/folder"], "There is no /no/such/folder"),
    ],
)
def test_wrong_options_are_refused_before_work_starts(options: list[str], message: str, store: Path) -> None:
    done = run_impart(*evaluate(store, str(tinyzoo.path("base"))), *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
