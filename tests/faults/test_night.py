"""A zoo on a schedule while each part of its installation is killed once, and one more."""

import pytest

from tests.bench.night import measure_night
from tests.faults.tally import Tally
from tests.installation import PARTS
from tests.servers import has_postgres

pytestmark = pytest.mark.faults


@pytest.mark.skipif(not has_postgres(), reason="PostgreSQL is not installed")
def test_a_zoo_comes_out_the_same_whatever_is_killed(count: Tally) -> None:
    found = measure_night(kills=len(PARTS) + 1, models=6)
    count("parts of an installation killed", found["kills"])
    assert all(found[f"kills_of_{part}"] for part in PARTS)
    assert found["stores_finished"] >= 1
    assert found["stores_as_undisturbed"] == found["stores_verified"] == found["stores_finished"]
    assert found["claims_left_in_all"] == 0
    assert (found["runs_left_open"], found["slots_held_at_end"]) == (0, 0)
    assert found["orphans_closed"] >= 1
