"""Who made something, as far as it is to be recorded: nobody by default, the user or the CI job where one asks for it.

What is recorded lies in provenance and in moves of names. Neither is part of an id, nor of an artifact's data files.
"""

import getpass
import os
import re
from collections.abc import Mapping
from pathlib import Path

from impart_core.base.errors import ConfigError

SETTING = "IMPART_WHO"
_CHOICES = ("none", "user", "ci")
# What tells of each service that it runs a job, and how the job is written: no host, and no person.
_JOBS = (
    ("GITHUB_ACTIONS", "github:{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}"),
    ("GITLAB_CI", "gitlab:{CI_PROJECT_PATH}/-/jobs/{CI_JOB_ID}"),
    ("JENKINS_URL", "jenkins:{JOB_NAME}/{BUILD_NUMBER}"),
    ("PREFECT__FLOW_RUN_ID", "prefect:flow-run/{PREFECT__FLOW_RUN_ID}"),
)
_LONGEST = 300


def recorded_who() -> str:
    """Return who is recorded by IMPART_WHO: nobody (`none`, the default), `user`, or the job (`ci`); empty: nobody.

    Raises:
        ConfigError: the variable holds something else.
    """
    choice = os.environ.get(SETTING, "").strip() or "none"
    if choice not in _CHOICES:
        raise ConfigError(
            f"{SETTING} is {choice!r:.100}; give user (who runs it), ci (the job of GitHub, GitLab, Jenkins or "
            "Prefect), or none."
        )
    return {"none": "", "user": user_name(), "ci": job_name(os.environ)}[choice]


def job_name(variables: Mapping[str, str]) -> str:
    """Return the CI job or Prefect flow run that environment variables tell of; empty: none."""
    for sign, form in _JOBS:
        found = {name: variables.get(name, "") for name in re.findall(r"\{(\w+)\}", form)}
        if variables.get(sign) and all(found.values()):
            return form.format(**found)[:_LONGEST]
    return ""


def user_name() -> str:
    """Return the name of the user that runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def without_home(text: str) -> str:
    """Return a text in which this user's home folder is written as `~`: its path holds the user's name."""
    home = os.path.expanduser("~")  # noqa: PTH111 - raises nothing where there is none
    if len(home) < 2 or not Path(home).is_absolute():
        return text
    return re.sub(rf"(?<![\w~.-]){re.escape(home.rstrip('/'))}(?![\w.-])", "~", text)


def in_home(place: str) -> str:
    """Return a place that `without_home` wrote, as it is on this machine."""
    return os.path.expanduser(place) if place.startswith("~/") else place  # noqa: PTH111 - it may be a URL
