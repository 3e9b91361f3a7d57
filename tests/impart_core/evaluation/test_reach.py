"""The Hub is asked once whether it answers; where it does not, only the cache is looked in, without a word."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets.config
import pytest
from huggingface_hub import constants

from impart_core.evaluation.reach import from_cache_alone, hub_answers

NOBODY = "http://127.0.0.1:9"
_PROGRAM = """
from impart_core.base.errors import EvaluationError
from impart_core.evaluation.harness import Evaluator
from impart_core.tinyzoo import path
try:
    Evaluator(path("math")).measure(["arc_easy"], limit=1)
except EvaluationError as error:
    print(error)
"""


class _Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Refusing) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_any_answer_is_one(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server)
    assert hub_answers()
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    assert not hub_answers()


def test_in_offline_mode_nobody_is_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server)
    with from_cache_alone(True):
        assert constants.HF_HUB_OFFLINE
        assert datasets.config.HF_HUB_OFFLINE
        assert not hub_answers()


@pytest.mark.parametrize("wanted", [True, False])
def test_settings_are_as_before_afterwards(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError), from_cache_alone(wanted):
        assert constants.HF_HUB_OFFLINE is datasets.config.HF_HUB_OFFLINE is wanted
        raise KeyError
    assert constants.HF_HUB_OFFLINE is datasets.config.HF_HUB_OFFLINE is False


@pytest.mark.slow
def test_a_task_without_its_data_is_one_sentence(tmp_path: object) -> None:
    environment = {**os.environ, "HF_ENDPOINT": NOBODY, "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("The data of arc_easy cannot be loaded: ")
    assert "The Hub cannot be reached, so that only data sets in the local cache" in done.stdout
