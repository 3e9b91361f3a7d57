"""The command line inside the tests' own process: without the seconds that its imports take in one of its own."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from impart_flows.cli.app import run


def impart(*arguments: str) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = run(list(arguments))
    return code, out.getvalue(), err.getvalue()


def printed(*arguments: str) -> str:
    """Run a command that must succeed and return what it prints."""
    code, out, err = impart(*arguments)
    assert (code, err) == (0, "")
    return out


def told(*arguments: str) -> dict[str, Any]:
    """Run a command with `--json`, which must succeed, and return the one object that it prints."""
    found = json.loads(printed(*arguments, "--json"))
    assert isinstance(found, dict)
    return found
