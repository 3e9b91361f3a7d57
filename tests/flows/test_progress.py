"""Progress reaches who listens, and nobody else."""

import pytest

from impart_flows.progress import listening, report

Heard = list[tuple[str, int, int, str]]


def test_a_listener_hears_every_report() -> None:
    heard: Heard = []
    with listening(lambda *event: heard.append(event)):
        report("compress", 0, 2)
        report("compress", 1, 2, "model.layers.0")
    assert heard == [("compress", 0, 2, ""), ("compress", 1, 2, "model.layers.0")]


def test_without_a_listener_reports_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    report("compress", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_the_innermost_listener_hears_and_the_outer_one_is_back_afterwards() -> None:
    outer: Heard = []
    inner: Heard = []
    with listening(lambda *event: outer.append(event)):
        with pytest.raises(ValueError, match="stop"), listening(lambda *event: inner.append(event)):
            report("inside", 1, 1)
            raise ValueError("stop")
        report("outside", 1, 1)
    assert [event[0] for event in inner] == ["inside"]
    assert [event[0] for event in outer] == ["outside"]


def test_a_listener_that_left_hears_no_more() -> None:
    heard: Heard = []
    with listening(lambda *event: heard.append(event)):
        pass
    report("late", 1, 1)
    assert heard == []
