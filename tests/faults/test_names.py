"""Moves of names that are lost, and writers of names that are killed, on real stores."""

import shutil
from pathlib import Path

import pytest

from impart_core.store.names import all_refs, get_ref, set_ref, untag
from impart_core.store.refs import files_of
from impart_core.store.store import Store
from impart_core.store.verify import verify_store
from tests.faults.places import Place
from tests.faults.tally import Tally
from tests.faults.warm import run_warm, warm_json
from tests.impart_core.store.samples import small_delta
from tests.killing import count_steps, run_killed

pytestmark = pytest.mark.faults

PARTS = 12  # moments of a move at which its writer is killed


@pytest.mark.parametrize("moves", [1, 2])
def test_the_loss_of_a_names_last_move_is_found_and_mended(
    moves: int, pair: tuple[Path, Path], place: Place, count: Tally
) -> None:
    run = ["compress", *map(str, pair), "--store", place.url, "--seed"]
    made = [
        warm_json(*run, str(seed), "--cr", "4", "--name", "prod", environment=place.environment)["artifact"]
        for seed in range(moves)
    ]
    warm_json("tag", made[0], "other", "--store", place.url, environment=place.environment)

    def ask(*arguments: str) -> tuple[int, str]:
        done = run_warm(*arguments, "--store", place.url, environment=place.environment)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    place.remove(f"refs/prod/{moves:08d}.json")
    count("last move of a name lost")
    mend = f"`impart tag {made[-1][:12]} prod`"
    for command, code in {
        ("compress", *map(str, pair), "--cr", "8", "--name", "prod"): 2,
        ("inspect", "prod"): 2,
        ("history", "prod"): 2,
        ("rollback", "prod"): 2,
        ("ls",): 0,
        ("verify", "--all"): 1,
        ("gc", "--grace", "0s", "--delete"): 2,
    }.items():
        found, said = ask(*command)
        assert (found, f"{moves:08d}.json is missing" in said, mend in said) == (code, True, True), said
    assert ask("verify", "other")[0] == 0
    deltas = warm_json("ls", "--store", place.url, environment=place.environment)["artifacts"]
    assert {delta["id"] for delta in deltas} == set(made)  # it was refused before the work
    assert ask("tag", made[-1], "prod")[0] == 0
    assert ask("gc", "--grace", "0s", "--delete")[0] == 0
    found, said = ask("verify", "--all")
    assert found == 0, said
    assert made[-1][:12] in ask("history", "prod")[1]
    assert ask("untag", "prod")[0] == 0
    assert not [path for path in place.objects() if path.startswith("refs/prod/")]
    assert ask("verify", "--all")[0] == 0


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("verb", ["set_ref", "untag"])
def test_whoever_is_killed_while_moving_or_removing_a_name_leaves_it_whole(
    verb: str, part: int, tmp_path: Path, count: Tally
) -> None:
    store = Store(tmp_path / "store")
    one, two, three = (small_delta(store, seed).id for seed in range(3))
    for delta in (one, two):
        set_ref(store, "math", delta)

    def work(place: Path) -> object:
        return set_ref(Store(place), "math", three) if verb == "set_ref" else untag(Store(place), "math")

    steps = count_steps(lambda: work(shutil.copytree(tmp_path / "store", tmp_path / "copy")))
    copying = count_steps(lambda: shutil.copytree(tmp_path / "store", tmp_path / "again"))
    assert not run_killed(lambda: work(tmp_path / "store"), 1 + part * (steps - copying) // PARTS)
    count("writer of a name killed")
    assert get_ref(store, "math") in (two, three if verb == "set_ref" else None)
    assert verify_store(store).faults == ()
    set_ref(store, "math", three)
    assert get_ref(store, "math") == three
    assert verify_store(store).faults == ()
    untag(store, "math")
    assert (files_of(store, "math"), all_refs(store)) == ([], {})
