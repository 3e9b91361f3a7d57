"""An environment of its own with mergekit, which results and speed are held against."""

from pathlib import Path

import pytest

from tests.own_environment import NotInstalledError, python_with

VERSION = "0.1.5"


def mergekit_python() -> Path:
    """Return the interpreter of an environment with mergekit, `mergekit-yaml` beside it; see `python_with`."""
    return python_with("mergekit", VERSION)


def mergekit_or_skip() -> Path:
    """Return the interpreter, or skip the test with the reason why there is none."""
    try:
        return mergekit_python()
    except NotInstalledError as error:
        pytest.skip(str(error))
