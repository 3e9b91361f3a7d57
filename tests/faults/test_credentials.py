"""Credentials that are wrong, missing, or only read; and that no secret is left anywhere."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import Wanted
from tests.faults.places import QUICK, Place, assert_whole, unique
from tests.faults.tally import Tally
from tests.faults.warm import run_warm, warm_json
from tests.s3proxy import S3Proxy
from tests.servers import S3Server
from tests.support import Environment, run_impart

pytestmark = pytest.mark.faults

Pair = tuple[Path, Path]
NONE: Environment = {
    "AWS_ACCESS_KEY_ID": None,
    "AWS_SECRET_ACCESS_KEY": None,
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def published(pair: Pair, environment: Environment, s3_to_break: S3Server) -> Place:
    """A store in S3 with the delta `tiny`."""
    variables = s3_to_break.variables
    made = Place(unique(), {**environment, **variables, **QUICK}, variables)
    run = ["compress", *map(str, pair), "--cr", "4", "--name", "tiny", "--store", made.url]
    warm_json(*run, environment=made.environment)
    return made


def verbs(pair: Pair) -> dict[str, list[str]]:
    """Return commands by what they do to a store: those that write, and those that only read."""
    return {
        "write": [f"compress {pair[0]} {pair[1]} --cr 8", "tag tiny other", "gc --grace 0s --delete"],
        "read": ["ls", "verify tiny", "inspect tiny", "lineage tiny"],
    }


def assert_refused(command: str, place: Place, environment: Environment) -> None:
    """Check that a command ends with a sentence that says that the store refuses."""
    done = run_warm(*command.split(), "--store", place.url, environment=environment)
    assert done.returncode == 2, (command, done.stdout, done.stderr)
    assert f"error: The store {place.url} refuses this" in done.stderr, (command, done.stderr)
    assert "credentials" in done.stderr
    assert "Traceback" not in done.stderr
    assert "sparsify" not in done.stderr + done.stdout
    assert done.stdout == ""


def in_pairs(check: object, commands: list[str], place: Place, environment: Environment) -> None:
    """Check several commands, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: check(command, place, environment), commands))  # type: ignore[operator]


@pytest.mark.parametrize("which", ["wrong secret", "unknown key", "none"])
def test_nothing_is_done_without_right_credentials(
    which: str, pair: Pair, published: Place, wanted: Wanted, count: Tally
) -> None:
    changed: dict[str, Environment] = {
        "wrong secret": {"AWS_SECRET_ACCESS_KEY": "hunter2hunter2"},
        "unknown key": {"AWS_ACCESS_KEY_ID": "nobody"},
        "none": NONE,
    }
    commands = [command for found in verbs(pair).values() for command in found]
    before = published.objects()
    in_pairs(assert_refused, commands, published, {**published.environment, **changed[which]})
    count(f"commands with credentials: {which}", len(commands))
    assert assert_whole(published, wanted) == before


def assert_done(command: str, place: Place, environment: Environment) -> None:
    """Check that a command is carried out."""
    done = run_warm(*command.split(), "--store", place.url, environment=environment)
    assert done.returncode == 0, (command, done.stderr)
    assert done.stdout


def test_who_may_only_read_can_look_and_nothing_else(
    pair: Pair, published: Place, wanted: Wanted, s3_to_break: S3Server, count: Tally
) -> None:
    reading: Environment = {**published.environment, **s3_to_break.reader}
    before = published.objects()
    in_pairs(assert_done, verbs(pair)["read"], published, reading)
    in_pairs(assert_refused, verbs(pair)["write"], published, reading)
    count("writes with credentials that only read", len(verbs(pair)["write"]))
    assert assert_whole(published, wanted) == before


def test_no_secret_is_left_anywhere(
    pair: Pair, wanted: Wanted, published: Place, s3_to_break: S3Server, environment: Environment, count: Tally
) -> None:
    secret = s3_to_break.variables["AWS_SECRET_ACCESS_KEY"]
    options = '{{"key": "{AWS_ACCESS_KEY_ID}", "secret": "{AWS_SECRET_ACCESS_KEY}"}}'
    inside: Environment = {**NONE, "IMPART_STORE_OPTIONS": options.format(**s3_to_break.variables)}
    logged: Environment = {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG"}
    said = []
    with S3Proxy(s3_to_break.variables["AWS_ENDPOINT_URL"]) as proxy:
        proxied = {**published.environment, **logged, "AWS_ENDPOINT_URL": proxy.url}
        for number, credentials in enumerate(({}, inside)):
            there = replace(published, url=f"{published.url}-{number}")
            run = ["compress", *map(str, pair), "--cr", "4", "--store", there.url]
            begun = len(proxy.requests)
            fault = proxy.answer(
                403,
                match=lambda request, begun=begun: any(  # type: ignore[misc]
                    "/pins/" in seen.path for seen in proxy.requests[begun:]
                ),
            )
            failed = run_impart(*run, environment={**proxied, **credentials})
            assert (failed.returncode, fault.injected) == (2, 1), failed.stderr
            proxy.answer(500, times=10)
            troubled = run_warm(*run, "--json", environment={**proxied, **credentials})
            proxy.heal()
            done = run_warm(*run, "--json", environment={**proxied, **credentials})
            assert done.returncode == 0, done.stderr
            said += [text for each in (failed, troubled, done) for text in (each.stdout, each.stderr)]
            assert not [path for path, data in assert_whole(there, wanted).items() if secret.encode() in data]
    count("failures that could have told a secret", 4)
    assert not [text for text in said if secret in text]
    home = Path(str(environment["PREFECT_HOME"]))
    kept = [path for path in home.rglob("*") if path.is_file()]
    assert any(path.name.startswith("prefect.db") and path.stat().st_size for path in kept)
    assert b"compress" in b"".join(path.read_bytes() for path in kept if path.name.startswith("prefect.db"))
    cache = Path(str(environment["IMPART_CACHE"]))
    kept += [path for path in cache.rglob("*") if path.is_file()]
    assert not [path for path in kept if secret.encode() in path.read_bytes()]
    assert secret not in "".join(f"{name}={value}" for name, value in os.environ.items())
