"""A delta measured by its name: rebuilt in scratch, its metrics kept with it, and never measured twice."""

import shutil
import tempfile
from pathlib import Path

import pytest

from impart_core import tinyzoo
from tests.e2e.here import impart, told
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


def test_a_model_that_fails_is_called_by_its_name_and_not_by_a_folder_that_is_gone(
    store: Path, environment: Environment
) -> None:
    run = [*evaluate(store, "math", "--base", str(tinyzoo.path("base"))), "--gen-kwargs", "temperature=banana"]
    done = run_impart(*run, environment=environment)
    assert done.returncode == 2
    assert "error: The model in math failed on tinyzoo_math: " in done.stderr
    assert "--gen-kwargs" in done.stderr
    assert str(Path(tempfile.gettempdir())) not in done.stderr


def test_without_a_base_the_recorded_one_is_taken_where_it_is_still_the_same(
    environment: Environment, tmp_path: Path
) -> None:
    base, store = tmp_path / "base", tmp_path / "store"
    shutil.copytree(tinyzoo.path("base"), base)
    models = [str(base), str(tinyzoo.path("math"))]
    run_json("compress", *models, "--cr", "4", "--name", "math", "--store", str(store), environment=environment)
    (named,) = run_json(*evaluate(store, "math", "--base", str(base)), environment=environment)["results"]
    (recorded,) = run_json(*evaluate(store, "math"), environment=environment)["results"]
    assert (recorded["id"], recorded["cached"]) == (named["id"], True)
    shutil.rmtree(base)
    shutil.copytree(tinyzoo.path("code"), base)
    for words in (["made against another base", str(base), "--base"], ["does not exist", str(base), "--base"]):
        code, _, err = impart(*evaluate(store, "math"))
        assert code == 2
        assert all(word in err for word in words), err
        shutil.rmtree(base, ignore_errors=True)
    code, _, err = impart(*evaluate(store, "mth"))
    assert code == 2
    assert "mth does not exist" in err
    assert "Did you mean 'math'?" in err


def test_who_may_only_read_a_store_keeps_results_in_another(
    store: Path, environment: Environment, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    own = tmp_path / "own"
    typed = [*evaluate(store, "math"), "--results-store", str(own), "--refresh"]
    (result,) = run_json(*typed, environment=environment)["results"]
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    assert set(manifests(own)) == {result["id"]}
    (delta,) = manifests(store, "delta")
    graph = told("lineage", result["id"], "--store", str(own))
    assert {node["id"]: node["kind"] for node in graph["nodes"]} == {result["id"]: "evaluation", delta: "missing"}
    inputs = {one["role"]: one for one in told("why", result["id"], "--store", str(own))["inputs"]}
    assert (inputs["delta"]["id"], inputs["delta"]["location"]) == (delta, str(store))
    again = run_json(*typed[:-1], environment=environment)["results"][0]
    assert (again["id"], again["cached"]) == (result["id"], True)


def test_a_result_of_the_deltas_store_is_taken_from_there_unless_it_was_imported(
    store: Path, environment: Environment, tmp_path: Path
) -> None:
    own, copy = tmp_path / "own", tmp_path / "copy"
    (first,) = run_json(*evaluate(store, "math"), environment=environment)["results"]
    found = run_json(*evaluate(store, "math"), "--results-store", str(own), environment=environment)["results"][0]
    assert (found["id"], found["cached"]) == (first["id"], True)
    assert not manifests(own)
    told("import", "math", "--from", str(store), "--store", str(copy))
    made = run_json(*evaluate(copy, "math"), "--results-store", str(own), environment=environment)["results"][0]
    assert (made["id"], made["cached"]) == (first["id"], False)
    assert set(manifests(own)) == {first["id"]}


def test_a_store_that_cannot_be_written_says_where_results_can_go() -> None:
    code, _, err = impart(
        "evaluate", str(tinyzoo.path("math")), "--tasks", "tinyzoo_math", "--store", "/dev/null/store"
    )
    assert code == 2
    assert "--results-store" in err
