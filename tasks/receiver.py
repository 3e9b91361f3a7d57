"""Where OpenLineage events go: a thread of their own, so that no receiver, slow or dead, holds up a run.

OpenLineage's library is loaded in that thread, and only where a receiver is configured.
"""

import os
import threading
from pathlib import Path
from queue import SimpleQueue
from time import monotonic

from impart_core.lineage.events import Event

THREAD = "openlineage"
# At its end a run waits this long for the receiver to take one more event, and so long in all.
_PATIENCE_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 10.0


def is_configured() -> bool:
    """Return whether the user configured a receiver, in one of OpenLineage's own ways, and did not disable it."""
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    if os.environ.get("OPENLINEAGE_URL") or any(name.startswith("OPENLINEAGE__TRANSPORT") for name in os.environ):
        return True
    files = (os.environ.get("OPENLINEAGE_CONFIG"), "openlineage.yml", "~/.openlineage/openlineage.yml")
    return any(Path(file).expanduser().is_file() for file in files if file)


class Receiver:
    """Takes events and passes them on, in order, until the first that is not taken; the rest are counted as lost."""

    def __init__(self) -> None:
        """Start the thread."""
        self.sent = 0
        self._offered = 0
        self._counting = threading.Lock()
        self._failure: str | None = None
        self._told = False
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._loaded, self._idle = threading.Event(), threading.Event()
        threading.Thread(target=self._run, name=THREAD, daemon=True).start()

    @property
    def lost(self) -> int:
        """How many events have not been sent, or not yet."""
        return self._offered - self.sent

    @property
    def failed(self) -> bool:
        """Whether the receiver has been given up."""
        return self._failure is not None

    def send(self, event: Event) -> None:
        """Pass an event on; returns at once."""
        with self._counting:
            self._offered += 1
        if not self._idle.is_set():
            self._queue.put(event)

    def close(self) -> None:
        """Wait for the events to be taken, as long as the receiver takes some."""
        self._queue.put(None)
        deadline = monotonic() + _LONGEST_WAIT_SECONDS
        self._loaded.wait(_LONGEST_WAIT_SECONDS)  # that a busy machine takes long to load a library is no silence
        sent = self.sent
        while not self._idle.wait(_PATIENCE_SECONDS):
            if self.sent == sent or monotonic() > deadline:
                self._failure = self._failure or "it did not take them in time"
                return
            sent = self.sent

    def complaint(self) -> str | None:
        """Return what to tell the user about a receiver that was given up: once, then None."""
        if self._failure is None or self._told:
            return None
        self._told = True
        return (
            f"OpenLineage events are not sent for the rest of this run: {self._failure}. The run itself is not "
            "affected. Check OpenLineage's transport settings, or set OPENLINEAGE_DISABLED=true."
        )

    def _run(self) -> None:
        try:
            from impart_tasks.openlineage_client import connect, run_event

            client = connect(THREAD)
            self._loaded.set()
            while (event := self._queue.get()) is not None and not self.failed:
                if client is None:
                    with self._counting:
                        self._offered -= 1
                    continue
                client.emit(run_event(event))
                self.sent += 1
            if client and not client.close(_PATIENCE_SECONDS):
                self._failure = "it did not take the last of them in time"
        except Exception as error:
            self._failure = self._failure or _reason(error)
        finally:
            self._loaded.set()
            self._idle.set()


def _reason(error: Exception) -> str:
    """Return what went wrong in the error's type and status alone: its text may hold a URL with a key."""
    if isinstance(error, ImportError):
        return "openlineage-python is not installed"
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"the receiver answered with status {status}" if status else f"{type(error).__name__} in its transport"
