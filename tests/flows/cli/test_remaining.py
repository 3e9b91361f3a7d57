"""Progress by bytes: what is told while something is copied or read."""

import pytest

from impart_flows.cli.output import Reporter
from impart_flows.cli.remaining import by_bytes


def test_the_time_left_follows_from_the_bytes_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int, str]] = []

    class Listener(Reporter):
        def __call__(self, stage: str, done: int, total: int, what: str) -> None:
            told.append((stage, done, total, what))

    listener = Listener(bars=False, quiet=True)
    clock = iter([100.0, 104.0])
    monkeypatch.setattr("impart_flows.cli.remaining.time.monotonic", lambda: next(clock))
    listen = by_bytes(listener, "export")
    listen(0, 3, 0, 4000)
    listen(1, 3, 1000, 4000)
    listen(3, 3, 4000, 4000)
    assert told == [
        ("export", 0, 3, "0 B of 4.0 kB"),
        ("export", 1, 3, "1.0 kB of 4.0 kB, about 12 s left"),
        ("export", 3, 3, "4.0 kB of 4.0 kB"),
    ]
