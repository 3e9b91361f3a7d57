"""Calibration that is killed, robbed or doubled: it goes on at the layer it was in, and ends with the same bytes."""

import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from impart_core import tinyzoo
from impart_core.artifacts.activations import Spill, open_activations
from impart_core.store.manifest import Manifest
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store
from tests.faults.calibrating import TEXT, run_hooked, words
from tests.faults.places import Place, assert_whole, files_in, manifests_in
from tests.faults.tally import Tally
from tests.faults.test_together import collect_all_the_time
from tests.faults.warm import beside, run_warm, warm
from tests.support import Environment, data_files, finetune, llama_shapes, manifests, random_tensors, save_checkpoint

pytestmark = pytest.mark.faults

Pair = tuple[Path, Path]
SIZES = {"layers": 3, "hidden": 64, "intermediate": 96, "key_value": 32, "vocab": 100}
CONFIG = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 100},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
}
PARTS = ("block", "calibration", "delta", "factors", "scales")  # all but activations


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base and a fine-tune of three small layers, with the zoo's tokenizer."""
    root = tmp_path_factory.mktemp("calibrated")
    base = random_tensors(llama_shapes(**SIZES))
    for name, tensors in (("base", base), ("finetuned", finetune(base))):
        save_checkpoint(root / name, tensors, CONFIG)
        for path in tinyzoo.path("base").glob("tokenizer*"):
            shutil.copy(path, root / name)
    return root / "base", root / "finetuned"


@pytest.fixture(scope="module")
def undisturbed(models: Pair, environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that nothing happened to."""
    root = tmp_path_factory.mktemp("undisturbed")
    with beside(run_hooked, "", str(root / "log"), words(models, str(root / "store")), environment=environment) as run:
        report = run.result()
    assert (report["blocks"], report["cached_blocks"]) == (4, 0)
    assert (root / "log").read_text().split("\n")[:-1] == EVERYTHING
    assert manifests(root / "store", "activations") == {}
    return root / "store"


@pytest.fixture(scope="module")
def wanted(undisturbed: Path) -> dict[str, str]:
    """The files of the undisturbed run, with their SHA-256."""
    return data_files(undisturbed)


EVERYTHING = ["embed", "embed", "compress 0", "run 0", "compress 1", "run 1", "compress 2"]
# What is left to compute after a kill.
KILLS = {
    "while it embeds": EVERYTHING,
    "in the middle of layer 1": ["compress 1", "run 1", "compress 2"],
    "between layer 1 and what it gives": ["run 1", "compress 2"],
    "with what layer 1 gives in scratch": ["run 1", "compress 2"],
    "with half of what layer 1 gives uploaded": ["run 1", "compress 2"],
    "with what layer 1 gives uploaded but not its manifest": ["run 1", "compress 2"],
    "in the middle of the last layer": ["compress 2"],
}


def kill(hook: str, place: Place, arguments: list[str], log: Path) -> None:
    """Run a command that dies where a hook says."""
    with beside(run_hooked, hook, str(log), arguments, environment=place.environment) as run:
        done = run.wait()
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)


def assert_goes_on(place: Place, arguments: list[str], log: Path, left: list[str], wanted: dict[str, str]) -> Any:
    """Check that a run computes just what is left, touches nothing that was finished, and ends with the same bytes."""
    log.unlink(missing_ok=True)
    blocks, written = manifests_in(place.objects(), "block"), place.written()
    with beside(run_hooked, "", str(log), arguments, environment=place.environment) as run:
        report = run.result()
    assert (log.read_text().split("\n")[:-1] if log.exists() else []) == left
    assert (report["blocks"], report["cached_blocks"]) == (4, len(blocks))
    after = place.written()
    finished = {path: when for path, when in written.items() if path.split("/")[1] in blocks}
    assert finished.items() <= after.items()
    objects = assert_whole(place, wanted, others=True)
    parts = manifests_in(objects, *PARTS)
    assert {path: digest for path, digest in files_in(objects).items() if path.split("/")[1] in parts} == wanted
    verified = run_warm("verify", "qt", "--store", place.url, environment=place.environment)
    assert verified.returncode == 0, verified.stdout
    return report


@pytest.mark.parametrize("hook", KILLS)
def test_a_killed_calibration_goes_on_at_the_layer_it_was_in(
    hook: str, models: Pair, wanted: dict[str, str], in_folder: Place, tmp_path: Path, count: Tally
) -> None:
    assert_survives(hook, models, wanted, in_folder, tmp_path, count)


@pytest.mark.parametrize("hook", [hook for hook in KILLS if "upload" in hook])
def test_a_killed_upload_to_s3_leaves_nothing_half(
    hook: str, models: Pair, wanted: dict[str, str], in_s3: Place, tmp_path: Path, count: Tally
) -> None:
    assert_survives(hook, models, wanted, in_s3, tmp_path, count)


def assert_survives(
    hook: str, models: Pair, wanted: dict[str, str], place: Place, tmp_path: Path, count: Tally
) -> None:
    run = words(models, place.url)
    kill(hook, place, run, tmp_path / "log")
    count("calibrations killed")
    files_in(place.objects())  # whatever is published is whole
    report = assert_goes_on(place, run, tmp_path / "log", KILLS[hook], wanted)
    assert report["remade"] == []


@pytest.fixture(scope="module")
def interrupted(models: Pair, environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that a run left which was killed in its last layer, with what that is given alone."""
    root = tmp_path_factory.mktemp("interrupted")
    place = Place(str(root / "store"), environment)
    kill("in the middle of the last layer", place, words(models, place.url), root / "log")
    (given,) = manifests(root / "store", "activations").values()
    assert given["content"]["name"] == "after model.layers.1"
    return root / "store"


def flip(path: Path) -> None:
    """Flip one bit near the end of a file; that of a manifest's is in its seal."""
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


# What happens to which files of the activations.
DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "bit flipped": ("batches-00001*", flip),
    "manifest altered": ("manifest.json", flip),
    "all flipped": ("batch*", flip),
    "lost": ("*", Path.unlink),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_lost_and_damaged_activations_are_computed_again_and_no_layer_is_compressed_again(
    how: str,
    interrupted: Path,
    models: Pair,
    wanted: dict[str, str],
    environment: Environment,
    tmp_path: Path,
    count: Tally,
) -> None:
    place = Place(str(shutil.copytree(interrupted, tmp_path / "store")), environment)
    pattern, act = DAMAGE[how]
    (given,) = manifests(Path(place.url), "activations")
    for path in list((Path(place.url) / "artifacts" / given).glob(pattern)):
        act(path)
        count(f"activations: {how}")
    left = ["embed", "embed", "run 0", "run 1", "compress 2"]
    assert_goes_on(place, words(models, place.url), tmp_path / "log", left, wanted)


@pytest.mark.parametrize(
    ("state", "how"),
    [("interrupted", "bit flipped"), ("interrupted", "manifest altered"), ("undisturbed", "lost")],
)
def test_damaged_calibration_text_is_made_again_and_told_of(
    state: str,
    how: str,
    models: Pair,
    wanted: dict[str, str],
    environment: Environment,
    tmp_path: Path,
    count: Tally,
    request: pytest.FixtureRequest,
) -> None:
    store = shutil.copytree(request.getfixturevalue(state), tmp_path / "store")
    place = Place(str(store), environment)
    (text,) = manifests(store, "calibration")
    (tokens,) = (store / "artifacts" / text).glob("tokens*")
    damaged = tokens.with_name("manifest.json") if how == "manifest altered" else tokens
    damaged.unlink() if how == "lost" else flip(damaged)
    count(f"calibration text: {how}")
    left = ["compress 2"] if state == "interrupted" else []
    run = words(models, place.url)
    report = assert_goes_on(place, run, tmp_path / "log", left, wanted)
    (told,) = report["remade"]
    assert str(damaged) in told


def test_damaged_scales_are_distilled_again(
    models: Pair, environment: Environment, tmp_path: Path, count: Tally
) -> None:
    place = Place(str(tmp_path / "store"), environment)
    run = words(models, place.url, "--method", "bitdelta", "--cr", "8", "--option", "distil=true", *TEXT)
    kill("distilled", place, run, tmp_path / "log")
    count("calibrations killed")
    store = Path(place.url)
    (path,) = (store / "artifacts" / next(iter(manifests(store, "scales")))).glob("scales*")
    good = path.read_bytes()
    flip(path)
    count("scales: bit flipped")
    with warm(*run, environment=environment) as command:
        report = command.result()
    assert path.read_bytes() == good
    assert [str(path) in told for told in report["remade"]] == [True]
    assert run_warm("verify", "qt", "--store", place.url, environment=environment).returncode == 0


def test_the_same_calibration_twice_at_once_makes_one_delta(
    models: Pair, wanted: dict[str, str], in_folder: Place, tmp_path: Path, count: Tally
) -> None:
    place, run = in_folder, words(models, in_folder.url)
    logs = [str(tmp_path / name) for name in ("one", "other")]
    with (
        beside(run_hooked, "", logs[0], run, environment=place.environment) as one,
        beside(run_hooked, "", logs[1], run, environment=place.environment) as other,
    ):
        reports = one.result(), other.result()
    count("calibrations that raced for one delta", 2)
    assert reports[0]["artifact"] == reports[1]["artifact"]
    assert all(report["blocks"] == 4 and report["remade"] == [] for report in reports)
    objects = assert_whole(place, wanted)  # and no activations are left
    assert not [path for path in objects if path.startswith(("pins/", "sweeps/"))]


def test_a_run_that_ends_leaves_another_one_its_activations(
    models: Pair, wanted: dict[str, str], place: Place, tmp_path: Path, count: Tally
) -> None:
    run = words(models, place.url)
    slowly = {**place.environment, "TEST_FOLDER": str(tmp_path)}
    with beside(run_hooked, "wait in layer 1", str(tmp_path / "slow"), run, environment=slowly) as slow:
        deadline = time.monotonic() + 60
        while not (tmp_path / "waiting").exists():
            assert slow.running, slow.said()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with beside(run_hooked, "", str(tmp_path / "quick"), run, environment=place.environment) as quick:
            first = quick.result()
        assert first["cached_blocks"] == 2  # what the slow one had done
        assert (tmp_path / "quick").read_text().split("\n")[:-1] == ["compress 1", "run 1", "compress 2"]
        assert len(manifests_in(place.objects(), "activations")) == 2  # spared: the slow one pinned them
        (tmp_path / "go").touch()
        second = slow.result()
    count("runs whose calibration another one ended")
    assert (second["artifact"], second["remade"]) == (first["artifact"], [])
    assert_whole(place, wanted)  # the last one to end takes the activations away


def test_a_collector_that_never_rests_does_not_harm_a_calibration(
    models: Pair, wanted: dict[str, str], environment: Environment, tmp_path: Path, count: Tally
) -> None:
    place, until = Place(str(tmp_path / "store"), environment), tmp_path / "until"
    with beside(collect_all_the_time, place.url, str(until), environment=environment) as collector:
        with beside(run_hooked, "", str(tmp_path / "log"), words(models, place.url), environment=environment) as run:
            report = run.result()
        until.touch()
        assert collector.result()["times"] > 3
    count("runs beside a collector")
    assert (report["blocks"], report["remade"]) == (4, [])
    assert_whole(place, wanted)


def test_a_refresh_trusts_no_activations_that_are_there(
    interrupted: Path, models: Pair, wanted: dict[str, str], environment: Environment, tmp_path: Path, count: Tally
) -> None:
    folder = shutil.copytree(interrupted, tmp_path / "store")
    store, place = Store(folder), Place(str(folder), environment)
    for made in manifests(folder, "activations"):
        put_zeros(store, store.manifest(made), tmp_path / made)
        count("activations of another machine")
    log = tmp_path / "log"
    run = [*words(models, place.url), "--refresh-from", "digest"]
    with beside(run_hooked, "", str(log), run, environment=environment) as command:
        report = command.result()
    assert log.read_text().split("\n")[:-1] == EVERYTHING
    assert (report["cached_blocks"], report["changed"], report["remade"]) == (0, [], [])
    assert wanted.items() <= files_in(place.objects()).items()


def put_zeros(store: Store, manifest: Manifest, scratch: Path) -> None:
    """Put other activations, which are whole, in the place of published ones."""
    scratch.mkdir()
    spill = Spill(scratch)
    with ExitStack() as stack:
        for number, batch in enumerate(open_activations(store, manifest, stack)):
            spill.add(number, torch.zeros_like(batch.read()))
    put = spill.publish(store, manifest.recipe, manifest.content.name, Stopwatch(), replace=True)
    assert put.files != manifest.files
