"""Ctrl-C at any moment from the first line on: one sentence, exit code 130, with --json an object; never a traceback.

The moments are events: the import of a module that a verb needs, at its beginning and in its midst.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from impart_flows.cli.interrupt import SENTENCE
from tests.support import Environment

pytestmark = pytest.mark.faults

# Run before the program, in its process: sends SIGINT where a module is looked for, or where it first calls something.
_HOOK = """
import os, signal, sys
class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
        return None
sys.meta_path.insert(0, Sender())
signal.signal(signal.SIGINT, signal.default_int_handler)
from impart_flows.cli import main
main()
"""
LS = ["ls"]
PLAN = ["plan", "{base}", "{finetuned}", "--cr", "4"]
COMPRESS = ["compress", "{base}", "{finetuned}", "--cr", "4"]
# Modules that are imported before the verb, with it, and by it while it works.
MOMENTS = [
    (LS, name)
    for name in ("impart_flows.cli.surroundings", "impart_flows.cli.app", "typer", "rich.console", "pydantic")
] + [(LS, name) for name in ("fsspec", "impart_flows.cli.stored")]
MOMENTS += [(PLAN, name) for name in ("numpy", "numpy._core._multiarray_umath", "torch", "torch._C")]
MOMENTS += [(COMPRESS, name) for name in ("prefect", "httpx", "prefect.events.worker")]


def interrupted_at(module: str, arguments: list[str], environment: Environment) -> "subprocess.CompletedProcess[str]":
    merged = {**os.environ, **environment, "INTERRUPT_AT": module}
    return subprocess.run(
        [sys.executable, "-c", _HOOK, *arguments],
        env={name: value for name, value in merged.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("arguments", "module"), MOMENTS, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_an_import_can_be_interrupted(
    arguments: list[str], module: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    typed = [word.format(base=pair[0], finetuned=pair[1]) for word in [*arguments, "--json"]]
    alone = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": None}
    done = interrupted_at(module, typed, alone)
    assert (done.returncode, done.stderr) == (130, f"{SENTENCE}\n")
    assert json.loads(done.stdout) == {"error": {"type": "Interrupted", "message": SENTENCE}}
