"""What a compression does about what it cannot do."""

import logging
from pathlib import Path
from typing import Any

import pytest

import impart_core as impart
from impart_core import tinyzoo
from impart_core.base.errors import InfeasibleBudgetError, StoreError
from impart_core.engine import compress, stages
from impart_core.store import pins
from impart_core.store.store import Store
from impart_core.store.verify import verify


def test_activations_that_cannot_be_deleted_are_told_of_and_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise StoreError("Deleting is not allowed here.")

    monkeypatch.setattr(compress, "discard", refuse)
    with caplog.at_level(logging.WARNING):
        compress.clean_up(Store(tmp_path), ["0" * 64])
    assert "1 activations are left in the store for impart gc: Deleting is not allowed here." in caplog.text


@pytest.mark.parametrize("cleaned_up", [True, False])
def test_a_run_that_was_stopped_for_long_looks_once_more_for_what_it_made(
    cleaned_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a laptop does that sleeps while a delta is gathered, and somebody cleans up the team's store meanwhile."""
    clock, store, name = [0.0], Store(tmp_path / "store"), stages.set_ref
    monkeypatch.setattr(pins, "seconds_awake_or_asleep", lambda: clock[0])

    def name_and_sleep(store: Store, ref: str, artifact_id: str, why: str) -> Any:
        named = name(store, ref, artifact_id, why)
        clock[0] += pins.PIN_LEASE.total_seconds() + 1
        if cleaned_up:
            store.objects.delete(store.objects.find(f"artifacts/{store.manifest(artifact_id).parents[0]}"))
        return named

    pair = tinyzoo.path("base"), tinyzoo.path("math")
    with monkeypatch.context() as patched:
        patched.setattr(stages, "set_ref", name_and_sleep)
        if cleaned_up:
            with pytest.raises(StoreError, match="so long that its pin lapsed, and parts of its delta were cleaned up"):
                impart.compress(*pair, 16, store=store.url, name="math")
        else:
            impart.compress(*pair, 16, store=store.url, name="math")
    assert "stopped for so long" in caplog.text
    assert store.objects.names("pins") == []
    delta = impart.compress(*pair, 16, store=store.url, name="math")  # what is missing is made
    assert verify(store, delta.id).faults == ()


@pytest.mark.parametrize("method", ["ecsq", "dare", "impart", "lowrank"])
@pytest.mark.parametrize("cr", [8, 40])
def test_a_ratio_that_is_not_reached_is_told(
    method: str, cr: float, pair: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        made = impart.compress(*pair, cr, method=method, store=str(tmp_path))
    except InfeasibleBudgetError:
        return
    reached = made.content.cr_projection
    assert reached is not None
    assert (f"not the {cr:g} that was asked for" in caplog.text) == (reached < cr)
