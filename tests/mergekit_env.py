"""An environment of its own with mergekit, which results and speed are held against."""

from pathlib import Path

from tests.own_env import python_or_skip, python_with

VERSION = "0.1.5"


def mergekit_python() -> Path:
    """Return the interpreter of an environment with mergekit, `mergekit-yaml` beside it; as `python_with`."""
    return python_with(f"mergekit=={VERSION}")


def mergekit_or_skip() -> Path:
    """Return the interpreter, or skip the test with the reason why there is none."""
    return python_or_skip(f"mergekit=={VERSION}")
