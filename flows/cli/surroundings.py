"""The environment that libraries read when they are imported: what they print, send, proxy, and where they write."""

import atexit
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import MutableMapping
from pathlib import Path

SETTINGS = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    # A failed task is told once, as a sentence of ours; its traceback stays in the run's page.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NO_PROXY = ("no_proxy", "NO_PROXY")


def prepare() -> None:
    """Set what the user has not set, for this process and its children."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # What Prefect logs while it is imported, tracebacks among it, is before its own settings of the console hold.
    logging.getLogger("prefect").addHandler(logging.NullHandler())
    spare_loopback(os.environ)
    if temporary := give_prefect_a_home(os.environ):
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Keep proxies from what is on this machine, such as the embedded Prefect server; no proxy can reach that.

    Libraries read either spelling, so that both are set, each with what the user has there. Where no proxy is set
    nothing is: a system's own proxies would be ignored for it.
    """
    if not any(name.lower().endswith("_proxy") and name not in _NO_PROXY for name in environment):
        return
    given = {name: environment.get(name) for name in _NO_PROXY}
    for name, other in (_NO_PROXY, _NO_PROXY[::-1]):
        value = given[name] if given[name] is not None else given[other]
        hosts = [host.strip() for host in (value or "").split(",") if host.strip()]
        if "*" not in hosts:
            environment[name] = ",".join(dict.fromkeys([*hosts, *_LOOPBACK]))


def give_prefect_a_home(environment: MutableMapping[str, str]) -> Path | None:
    """Let Prefect keep its files in a temporary folder where the user's home is missing or cannot be written.

    Returns:
        The folder, which does not exist yet; None where Prefect has a home.
    """
    if environment.get("PREFECT_HOME") or is_writable(Path("~/.prefect").expanduser()):
        return None
    temporary = Path(tempfile.gettempdir()) / f"impart-prefect-{uuid.uuid4().hex}"
    environment["PREFECT_HOME"] = str(temporary)
    return temporary


def is_writable(folder: Path) -> bool:
    """Return whether a folder can be written, or made; nothing is made."""
    nearest = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
