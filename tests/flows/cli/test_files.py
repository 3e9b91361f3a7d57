"""What the command line says of files beside the weights."""

import json
import shutil
from pathlib import Path

import pytest

import impart_core as impart
from impart_core import tinyzoo
from impart_flows.cli.output import shortened
from tests.e2e.here import impart as run
from tests.e2e.here import printed

BASE = str(tinyzoo.path("base"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a delta that brings code."""
    root = tmp_path_factory.mktemp("files")
    tuned = Path(shutil.copytree(tinyzoo.path("math"), root / "tuned"))
    (tuned / "own.py").write_text("answer = 42")
    named = {"AutoTokenizer": [None, "some/where--tokens.Fast"], "AutoConfig": "own.Config"}
    file = tuned / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": named}))
    impart.compress(BASE, tuned, 16, store=root / "store", name="coded")
    return str(root / "store")


def test_code_is_told_and_written_only_when_asked_for(store: str, tmp_path: Path) -> None:
    given = ["reconstruct", "coded", "--base", BASE, "--store", store]
    code, said, _ = run(*given, "--out", str(tmp_path / "out"))
    assert code == 0
    assert "own.py: left out, as only the delta brings it; --with-code writes it" in said
    assert "of some/where on the Hub" in said
    assert not (tmp_path / "out" / "own.py").exists()
    _, said, _ = run(*given, "--out", str(tmp_path / "coded"), "--with-code")
    assert "own.py: written" in said
    assert (tmp_path / "coded" / "own.py").read_text() == "answer = 42"
    found = json.loads(run(*given, "--out", str(tmp_path / "json"), "--json")[1])
    assert (found["code"], found["code_written"]) == (["own.py"], False)
    assert "code, never run by impart" in printed("inspect", "coded", "--store", store)


def test_names_are_shortened_and_printable() -> None:
    assert shortened(["a", "b"]) == "a, b"
    assert shortened(["a\x1b[31m\n"]) == "a?[31m?"
    assert shortened([str(number) for number in range(12)], 3) == "0, 1, 2 and 9 more"
