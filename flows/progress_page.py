"""The page of a run in Prefect while it runs: how far it is, and how long it will take."""

import time
from contextvars import copy_context
from threading import Lock
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from impart_core.base.units import human_seconds
from impart_core.engine.executor import Progress
from impart_flows.run_page import never_failing, page_key

_PIECES = {"search": "trials", "warm start": "trials", "merge": "tensors", "compress": "blocks"}
SECONDS_BETWEEN_UPDATES = 2.0  # of what ends several times a second


class ProgressPage:
    """Listens to a run in any thread, and shows on its page what is done and the time left."""

    def __init__(self, key: str, name: str, listener: Progress | None, seconds_between: float = 0.0) -> None:
        """Begin, in the flow.

        Args:
            key: beginning of the page's key.
            name: the rest of it.
            listener: is told the same, and the time left.
            seconds_between: least time between two updates of the page, but for the first and the last of a stage.
        """
        self._key, self._listener, self._between = page_key(key, name), listener, seconds_between
        self._flow, self._lock = copy_context(), Lock()
        self._page: UUID | None = None
        self._stage, self._started, self._updated = "", time.monotonic(), 0.0
        self._shown, self._given_up = ("", 0), False

    def __call__(self, stage: str, done: int, total: int, what: str) -> None:
        """Show that so many of the pieces of a stage are done; a total of 0 is not known."""
        now, first = time.monotonic(), stage != self._stage
        if first:
            self._stage, self._started = stage, now
        if 0 < done < total:
            left = human_seconds((now - self._started) * (total - done) / done)
            what = ", ".join(filter(None, (what, f"about {left} left")))
        if self._listener:
            self._listener(stage, done, total, what)
        edge = first or done in (0, total)
        if not (edge or now - self._updated >= self._between):
            return
        if self._lock.acquire(blocking=edge):  # nobody waits to tell what the next one tells as well
            try:
                self._flow.run(self._show, stage, done, total, what)
            finally:
                self._lock.release()

    def _show(self, stage: str, done: int, total: int, what: str) -> None:
        overtaken = self._shown[0] == stage and done < self._shown[1]  # by another thread
        if self._given_up or overtaken:
            return
        self._shown = stage, done
        pieces = _PIECES.get(stage, "pieces")
        told = f"{stage}: {done} of {total} {pieces}" if total else f"{stage}: {done} {pieces}"
        text, percent = ", ".join(filter(None, (told, what))), 100 * done / total if total else 0.0
        self._given_up = True  # a server that does not answer is asked once
        with never_failing():
            if self._page is None:
                page = create_progress_artifact(percent, self._key, text)
                self._page = page if isinstance(page, UUID) else None
            else:
                update_progress_artifact(self._page, percent, text)
            self._given_up = False
        self._updated = time.monotonic()
