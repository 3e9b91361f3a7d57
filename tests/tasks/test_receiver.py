"""When events are sent, and what a receiver that fails costs."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from uuid import uuid4

import pytest

from impart_core.lineage.events import Event
from impart_tasks.receiver import Receiver, is_configured

KEY = "a-secret-key"


@pytest.fixture(autouse=True)
def _nothing_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OPENLINEAGE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def root_log() -> Iterator[StringIO]:
    """What reaches the root logger. pytest's own capture would also take what we keep from it."""
    handler = logging.StreamHandler(StringIO())
    logging.getLogger().addHandler(handler)
    yield handler.stream
    logging.getLogger().removeHandler(handler)


def send(count: int) -> Receiver:
    """Send events, and return the closed receiver."""
    receiver = Receiver()
    for _ in range(count):
        receiver.send(Event("START", "TASK", uuid4(), "work"))
    receiver.close()
    return receiver


@pytest.mark.parametrize("name", ["OPENLINEAGE_URL", "OPENLINEAGE__TRANSPORT", "OPENLINEAGE__TRANSPORT__TYPE"])
def test_a_variable_configures_a_receiver_unless_all_is_disabled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_configured()
    monkeypatch.setenv(name, "http")
    assert is_configured()
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "True")
    assert not is_configured()


@pytest.mark.parametrize("place", ["openlineage.yml", ".openlineage/openlineage.yml", "named.yml"])
def test_a_file_configures_a_receiver(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_CONFIG", str(tmp_path / "named.yml"))
    assert not is_configured()
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(f"transport: {{type: file, append: true, log_file_path: {tmp_path}/events}}")
    assert is_configured()
    receiver = send(3)
    assert (receiver.sent, receiver.lost, receiver.complaint()) == (3, 0, None)
    assert len((tmp_path / "events").read_text().splitlines()) == 3


@pytest.mark.parametrize("settings", ["{}", "transport: {type: console}", "tags: {job: {team: a}}"])
def test_settings_without_a_receiver_print_and_count_nothing(
    settings: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "openlineage.yml").write_text(settings)
    receiver = send(2)
    assert (receiver.sent, receiver.lost, receiver.complaint()) == (0, 0, None)
    assert capfd.readouterr() == ("", "")


def test_a_silent_receiver_is_given_up_with_one_complaint(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        receiver = send(5)
    assert (receiver.sent, receiver.lost, receiver.failed) == (0, 5, True)
    assert "are not sent for the rest of this run" in str(receiver.complaint())
    assert receiver.complaint() is None
    assert capfd.readouterr() == ("", "")


def test_nobody_there_is_like_silence_whatever_the_library_retries_and_logs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], root_log: StringIO
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{port}")
    receiver = send(2)
    assert (receiver.sent, receiver.lost, receiver.failed) == (0, 2, True)
    assert "".join(capfd.readouterr()) + root_log.getvalue() == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"OPENLINEAGE__TRANSPORT": f'{{"type": "http", "url": "nowhere", "auth": "{KEY}"'},
        {"OPENLINEAGE__TRANSPORT__TYPE": "http", "OPENLINEAGE__TRANSPORT__APIKEY": KEY},
        {"OPENLINEAGE__TRANSPORT__TYPE": "file", "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": f"/proc/{KEY}/events"},
    ],
)
def test_settings_that_are_wrong_lose_the_events_and_tell_no_secret(
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    root_log: StringIO,
) -> None:
    monkeypatch.setenv("OPENLINEAGE_CLIENT_LOGGING", "DEBUG")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    receiver = send(2)
    assert (receiver.sent, receiver.lost) == (0, 2)
    assert KEY not in str(receiver.complaint()) + root_log.getvalue() + "".join(capfd.readouterr())


def test_the_key_is_not_left_in_the_environment_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENLINEAGE_API_KEY", KEY)
    send(0)
    assert [name for name, value in os.environ.items() if KEY in value] == ["OPENLINEAGE_API_KEY"]


def test_openlineage_is_not_loaded_where_nothing_is_configured() -> None:
    code = "import flows.compress, sys; print([name for name in sys.modules if 'openlineage' in name])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert json.loads(done.stdout) == []
