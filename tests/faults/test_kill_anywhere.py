"""Runs that are killed at random moments, one after another on one store, until there were ten; and its worker."""

import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import MATRICES, Wanted
from tests.faults.places import Place, assert_whole, files_in, manifests_in
from tests.faults.tally import Tally
from tests.faults.warm import run_warm, warm, warm_json

pytestmark = pytest.mark.faults

Pair = tuple[Path, Path]
KILLS = 10
# What a warm run of the large pair takes before its first block, for each block, and after the last one.
FIRST_SECONDS, BLOCK_SECONDS, LAST_SECONDS = 0.7, 0.25, 0.7
EARLIER = 0.6  # where it was over before its moment came, on a faster machine
BLOCKS = 9


def kill_again_and_again(place: Place, arguments: list[str], wanted: Wanted, seed: int) -> int:
    """Kill runs at moments that are spread over their whole length, each on the store that the last one left.

    Where a run ends before its moment has come, the next one begins a new store beside it.

    Returns:
        How many stores were filled.
    """
    rng = random.Random(seed)
    moments = [(step + rng.random()) / KILLS for step in range(KILLS)]  # as parts of what is left to do
    rng.shuffle(moments)
    filled = 0
    while moments:
        there = replace(place, url=f"{place.url}/{filled}")
        run = [*arguments, "--store", there.url, "--name", "killed"]
        before: dict[str, object] = {}
        missing = BLOCKS
        while moments and filled == int(there.url.rpartition("/")[2]):
            with warm(*run, environment=there.environment) as command:
                moment = moments[-1] * (FIRST_SECONDS + BLOCK_SECONDS * missing + LAST_SECONDS)
                began = time.monotonic()
                while command.running and time.monotonic() - began < moment:
                    time.sleep(0.005)
                command.send(signal.SIGKILL)
                done = command.wait()
            over = done.returncode == 0
            if over:
                moments[-1] *= EARLIER
            else:
                moments.pop()
            assert done.returncode == (0 if over else -signal.SIGKILL), done.stderr
            objects = there.objects()
            files_in(objects)  # whatever is published is whole
            missing = BLOCKS - len(manifests_in(objects, "block"))
            written = there.written()
            kept = {path: when for path, when in before.items() if path.startswith("artifacts/")}
            assert kept.items() <= written.items(), "what was finished was written again"
            finished = set(manifests_in(objects))
            before = {path: written[path] for path in written if path.split("/")[1] in finished}
            filled += over
        assert_ends_well(there, run, wanted)
    return filled


def assert_ends_well(place: Place, run: list[str], wanted: Wanted) -> None:
    """Check that a last run makes just what is missing, and what an undisturbed run would have made."""
    before = place.objects()
    blocks, factors = manifests_in(before, "block"), manifests_in(before, "factors")
    report = warm_json(*run, environment=place.environment)
    assert (report["blocks"], report["cached_blocks"]) == (BLOCKS, len(blocks))
    done = {block["content"]["name"] for block in blocks.values()} - {"outside"}
    reusable = {made["content"]["name"] for made in factors.values()} - done
    assert report["reused_factors"] == 7 * len(reusable)
    assert report["decompositions"] == MATRICES - 7 * len(done | reusable)
    assert report["remade"] == []
    assert_whole(place, wanted)
    verified = run_warm("verify", "killed", "--store", place.url, environment=place.environment)
    assert verified.returncode == 0, verified.stdout


def test_runs_killed_at_twenty_moments_end_as_one_that_was_not(
    large_pair: Pair, wanted_large: Wanted, in_folder: Place, in_s3: Place, count: Tally
) -> None:
    arguments = ["compress", *map(str, large_pair), "--cr", "4"]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(kill_again_and_again, (in_folder, in_s3), [arguments] * 2, [wanted_large] * 2, (1, 2)))
    count("runs killed", 2 * KILLS)
