"""Numbers as people read them."""

import pytest

from impart_core.base.units import human_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "under 1 ms"),
        (0.0004, "under 1 ms"),
        (0.003, "3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (75.25, "75.2 s"),
    ],
)
def test_what_took_a_moment_is_told_in_milliseconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
