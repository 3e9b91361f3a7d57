"""Who made something is recorded by choice; by default a store tells no user, host or home folder."""

import socket
from pathlib import Path

import pytest

from impart_core.artifacts.zoo_run import publish_zoo_run, read_zoo_run
from impart_core.base.errors import ConfigError
from impart_core.engine.bases import base_of
from impart_core.lineage.draw import FORMATS
from impart_core.lineage.graph import lineage_of
from impart_core.store.names import history, set_ref
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store
from impart_core.store.who import job_name, recorded_who, user_name, without_home
from impart_core.zoo.record import Outcome, ZooRun
from tests.impart_core.pipeline import compress, config_of
from tests.support import data_files, make_pair

GITHUB = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_REPOSITORY": "team/zoo",
    "GITHUB_RUN_ID": "77",
    "GITHUB_ACTOR": "ann",
    "GITHUB_SERVER_URL": "https://git.corp.example",
}
GITLAB = {"GITLAB_CI": "true", "CI_PROJECT_PATH": "team/zoo", "CI_JOB_ID": "5", "CI_SERVER_HOST": "git.corp.example"}
JENKINS = {"JENKINS_URL": "https://ci.corp.example/", "JOB_NAME": "zoo/nightly", "BUILD_NUMBER": "12"}
PREFECT = {"PREFECT__FLOW_RUN_ID": "0b1c"}


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        (GITHUB, "github:team/zoo/actions/runs/77"),
        (GITLAB, "gitlab:team/zoo/-/jobs/5"),
        (JENKINS, "jenkins:zoo/nightly/12"),
        (PREFECT, "prefect:flow-run/0b1c"),
        ({**PREFECT, **GITLAB}, "gitlab:team/zoo/-/jobs/5"),
        ({"GITHUB_ACTIONS": "true"}, ""),
        ({}, ""),
    ],
)
def test_a_job_is_told_by_its_service_without_host_and_person(variables: dict[str, str], job: str) -> None:
    assert job_name(variables) == job


def test_another_choice_is_refused_before_a_store_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPART_WHO", "me")
    for work in (recorded_who, Stopwatch, Store(tmp_path / "store").require_writable):
        with pytest.raises(ConfigError, match=r"IMPART_WHO is 'me'; give user .*, ci .*, or none"):
            work()
    assert not (tmp_path / "store").exists()


def test_choices_move_neither_ids_nor_data_and_lineage_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(tmp_path)
    for name, value in GITHUB.items():
        monkeypatch.setenv(name, value)
    made = {}
    for choice, who in (("", ""), ("none", ""), ("user", user_name()), ("ci", "github:team/zoo/actions/runs/77")):
        monkeypatch.setenv("IMPART_WHO", choice)
        store = Store(tmp_path / f"store-{choice}")
        delta = compress(store, *pair, config_of(4))
        set_ref(store, "a", delta.id)
        assert delta.manifest.provenance.user == who
        assert [move.by for move in history(store, "a")] == [who]
        text = FORMATS.get("text")(lineage_of(store, delta.id))
        assert (f"by {who}" in text) == bool(who)
        made[choice] = (delta.id, data_files(Path(store.url)))
    assert made[""] == made["none"] == made["user"] == made["ci"]


def test_by_default_a_store_tells_no_user_no_host_and_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home-of-ann"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "ann-of-the-team")
    pair = make_pair(home / "models")
    store = Store(home / "store")
    delta = compress(store, *pair, config_of(4))
    outcome = Outcome(
        name="a", kind="model", status="failed", ref="a", base=str(pair[0]), why=f"{home}/models is wrong", artifact="1"
    )
    run = ZooRun(zoo="z", run="r", started="", seconds=1, store=f"file://{home}/store", outcomes=(outcome,))
    published = publish_zoo_run(store, run, Stopwatch({"base": str(pair[0])}))
    told = b"".join(path.read_bytes() for path in home.glob("store/**/*") if path.is_file())
    assert b"~/models" in told
    for secret in (str(home), "ann-of-the-team", socket.gethostname()):
        assert secret.encode() not in told
    # What is read back leads to the same places on this machine.
    assert read_zoo_run(store, published.id).outcomes[0].base == str(pair[0])
    assert base_of(delta).location.endswith(str(pair[0]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/ann/base", "~/base"),
        ("/home/ann", "~"),
        ("file:///home/ann/base", "file://~/base"),
        ("no such folder: /home/ann/base. Look", "no such folder: ~/base. Look"),
        ("/home/annabel/base", "/home/annabel/base"),
        ("/data/home/ann/base", "/data/home/ann/base"),
        ("s3://bucket/base", "s3://bucket/base"),
    ],
)
def test_the_home_folder_is_hidden_and_nothing_else(text: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert without_home(text) == told
