"""The progress page, which is told from many threads."""

from threading import Thread
from uuid import uuid4

import pytest
from prefect.logging import disable_run_logger

from impart_flows import progress_page
from impart_flows.progress_page import ProgressPage


def test_the_last_piece_is_shown_though_another_thread_is_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[float] = []
    last = Thread(target=lambda: page("merge", 3, 3, ""))

    def update(_page: object, percent: float, _text: str) -> None:
        shown.append(percent)
        if not last.ident:
            last.start()
            last.join(0.3)  # it would end now if it did not wait for this one

    monkeypatch.setattr(progress_page, "create_progress_artifact", lambda *_: uuid4())
    monkeypatch.setattr(progress_page, "update_progress_artifact", update)
    page = ProgressPage("merge-progress", "name", None)
    for done in range(3):
        page("merge", done, 3, "")
    last.join()
    assert shown == [100 / 3, 100.0] or shown == [100 / 3, 200 / 3, 100.0]


def test_a_server_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def create(_percent: float, _key: str, text: str) -> None:
        asked.append(text)
        raise OSError("no route to host")

    monkeypatch.setattr(progress_page, "create_progress_artifact", create)
    page = ProgressPage("merge-progress", "name", None)
    with disable_run_logger():
        for done in range(3):
            page("merge", done, 3, "")
    assert asked == ["merge: 0 of 3 tensors"]
