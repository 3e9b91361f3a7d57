"""A team's prefix of a bucket: its own people write there and nowhere else, others look, evaluate and rebuild."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from impart_core import tinyzoo
from tests.servers import S3Server, running_s3
from tests.support import Environment, manifests, run_impart, run_json

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STORE = "s3://impart/team-a/store"
BASE, MATH = str(tinyzoo.path("base")), str(tinyzoo.path("math"))


class Team:
    """A server with a store under a team's prefix, and who may do what there.

    Attributes:
        member: variables of whoever may read, write and list under the prefix alone.
        reader: variables of whoever may only read and list.
    """

    def __init__(self, server: S3Server, own: Environment) -> None:
        """Add a member of the team to the server's identities, and compress a model as them."""
        keys = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
        server.allow("team-a", keys, [f"{right}:impart/team-a/*" for right in ("Read", "Write", "List", "Tagging")])
        names = {"AWS_ACCESS_KEY_ID": keys["accessKey"], "AWS_SECRET_ACCESS_KEY": keys["secretKey"]}
        self.member: Environment = {**own, **server.variables, **names}
        self.reader: Environment = {**own, **server.reader}
        self.admin: Environment = {**own, **server.variables}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, environment: Environment) -> Iterator[Team]:
    """The team, with `math@prod` and `math@old` in its store, made with rights on its prefix alone."""
    with running_s3(S3Server(tmp_path_factory.mktemp("s3"))) as server:
        found = Team(server, environment)
        made = ["compress", BASE, MATH, "--method", "lowrank", "--store", STORE]
        run_json(*made, "--cr", "16", "--name", "math@prod", environment=found.member)
        run_json(*made, "--cr", "32", "--name", "math@old", environment=found.member)
        yield found


@pytest.fixture
def zoo(tmp_path: Path) -> str:
    """A zoo file of one model."""
    content = {
        "store": STORE,
        "recipes": {"default": {"steps": [{"method": "lowrank", "cr": 16}]}},
        "models": [{"name": "math", "base": BASE, "finetuned": MATH}],
    }
    (tmp_path / "zoo.yaml").write_text(json.dumps(content))
    return str(tmp_path / "zoo.yaml")


def test_rights_on_the_prefix_are_all_that_a_team_needs_and_end_there(team: Team, tmp_path: Path) -> None:
    """The store was made with them; they move names, collect garbage, and cannot write beside their prefix."""
    for words in (
        ["tag", "math@prod", "math@next"],
        ["history", "math@next"],
        ["untag", "math@next"],
        ["verify", "--all"],
        ["gc", "--grace", "0s", "--delete"],
        ["du"],
    ):
        done = run_impart(*words, "--store", STORE, environment=team.member)
        assert done.returncode == 0, (words, done.stderr)
    elsewhere = "s3://impart/team-b/store"
    refused = run_impart("export", "math@prod", "--store", STORE, "--to", elsewhere, environment=team.member)
    assert_refused(refused)
    assert_refused(run_impart("ls", "--store", elsewhere, environment=team.member))


def test_whoever_may_only_read_looks_at_everything(team: Team, zoo: str, tmp_path: Path) -> None:
    looks = [
        ["ls"],
        ["inspect", "math@prod"],
        ["lineage", "math@prod"],
        ["why", "math@prod"],
        ["diff", "math@prod", "math@old"],
        ["history", "math@prod"],
        ["verify", "math@prod"],
        ["verify", "--all"],
        ["du", "--by", "model"],
        ["du", "--by", "owner"],
        ["gc"],
        ["zoo", "plan", zoo],
        ["reconstruct", "math@prod", "--base", BASE, "--out", str(tmp_path / "rebuilt")],
    ]
    for words in looks:
        done = run_impart(*words, "--store", STORE, environment=team.reader)
        assert done.returncode == 0, (words, done.stderr)
    assert (tmp_path / "rebuilt" / "config.json").is_file()
    assert run_impart("plan", BASE, MATH, "--cr", "16", environment=team.reader).returncode == 0


def test_whoever_may_only_read_evaluates_and_copies_to_a_store_of_their_own(team: Team, tmp_path: Path) -> None:
    own = tmp_path / "own"
    words = ["evaluate", "math@prod", "--base", BASE, "--tasks", "tinyzoo_math", "--limit", "2", "--store", STORE]
    run_json(*words, "--results-store", str(own), environment=team.reader)
    assert [found["content"]["kind"] for found in manifests(own).values()] == ["evaluation"]
    run_json("import", "math@prod", "--from", STORE, "--store", str(own), environment=team.reader)
    assert run_json("verify", "math@prod", "--store", str(own), environment=team.reader)["ok"]


def test_whatever_writes_is_refused_to_a_reader_in_a_sentence(team: Team, zoo: str, tmp_path: Path) -> None:
    before = run_json("ls", "--store", STORE, environment=team.admin)
    writes = [
        ["compress", BASE, MATH, "--cr", "8"],
        ["quantize", "math@prod", "--cr", "64", "--calibration", "tinyzoo:math"],
        ["evaluate", "math@prod", "--base", BASE, "--tasks", "tinyzoo_math", "--limit", "2"],
        ["tag", "math@prod", "math@mine"],
        ["untag", "math@old"],
        ["gc", "--grace", "0s", "--history", "1", "--delete"],
        ["zoo", "run", zoo],
    ]
    for words in writes:
        assert_refused(run_impart(*words, "--store", STORE, environment=team.reader))
    assert run_json("ls", "--store", STORE, environment=team.admin) == before


def assert_refused(done: CompletedProcess[str]) -> None:
    """Hold what a command without the right says: one sentence, exit code 2, no traceback."""
    assert done.returncode == 2, (done.args, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr, done.stderr
    assert "impart/team-" in done.stderr, done.stderr
