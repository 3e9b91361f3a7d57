"""What differs between two artifacts: all of it, and nothing that is equal."""

import math
from pathlib import Path
from typing import Any

import pytest

from impart_core.artifacts.delta import Delta
from impart_core.artifacts.evaluation import EvaluationContent
from impart_core.base.errors import ArtifactNotFoundError
from impart_core.lineage.diff import Change, Difference, diff
from impart_core.store.manifest import Manifest
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store
from tests.impart_core.pipeline import compress, config_of

Pair = tuple[Path, Path]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def deltas(pair: Pair, store: Store) -> tuple[Delta, Delta]:
    return compress(store, *pair, config_of(4)), compress(store, *pair, config_of(6, seed=1))


def evaluated(store: Store, delta: Delta, metrics: dict[str, tuple[float, float | None]], **config: Any) -> str:
    """Publish an evaluation of a delta on one task."""
    settings = {"task": "math", "definition": "d", "split": "test", "limit": None, "seed": 0, **config}
    recipe = Recipe(operation="evaluate", version=1, config=settings, inputs={"delta": delta.manifest.id})
    content = EvaluationContent(metrics={"math": metrics}, items={"math": 50})
    parents, watch = (delta.manifest.id,), Stopwatch()
    made = Manifest.make(recipe, parents=parents, files=(), content=content, provenance=watch.provenance())
    return store.publish(made, {}).id


def whats(changes: tuple[Change, ...]) -> list[str]:
    return [change.what for change in changes]


def test_an_artifact_does_not_differ_from_itself(store: Store, deltas: tuple[Delta, Delta]) -> None:
    one = deltas[0].manifest.id
    assert diff(store, one, one) == Difference(a=one, b=one, same=True)


def test_two_deltas_of_one_pair_differ_in_settings_and_content_alone(store: Store, deltas: tuple[Delta, Delta]) -> None:
    one, two = deltas
    found = diff(store, one.manifest.id, two.manifest.id)
    assert not found.same
    assert found.config == (Change(what="cr", a=4.0, b=6.0), Change(what="seed", a=0, b=1))
    assert (found.operation, found.inputs, found.provenance, found.metrics) == ((), (), (), ())
    content = {change.what: (change.a, change.b) for change in found.content}
    assert content["cr_projection"] == (one.content.cr_projection, two.content.cr_projection)
    assert content["bytes"] == (one.bytes, two.bytes)
    assert content["cr_model"] == (one.cr_model, two.cr_model)
    assert "finetuned_bytes" not in content
    assert found.shared_blocks == 1  # what is outside of the layers depends on no ratio


def test_the_other_way_round_says_the_opposite(store: Store, deltas: tuple[Delta, Delta]) -> None:
    one, two = (delta.manifest.id for delta in deltas)
    forth, back = diff(store, one, two), diff(store, two, one)
    for section in ("operation", "config", "inputs", "content", "provenance"):
        assert {(c.what, c.a, c.b) for c in getattr(forth, section)} == {
            (c.what, c.b, c.a) for c in getattr(back, section)
        }


def test_another_fine_tune_is_another_input(store: Store, pair: Pair) -> None:
    one = compress(store, *pair, config_of(4))
    two = compress(store, pair[1], pair[0], config_of(4))
    assert {"base", "finetuned"} <= set(whats(diff(store, one.manifest.id, two.manifest.id).inputs))


def test_metrics_are_compared_where_both_were_measured_in_the_same_way(
    store: Store, deltas: tuple[Delta, Delta]
) -> None:
    one, two = deltas
    evaluated(store, one, {"match": (0.5, 0.03), "loss": (1.0, None), "same": (0.1, 0.1)})
    evaluated(store, two, {"match": (0.75, 0.04), "loss": (0.5, 0.1), "same": (0.1, 0.1)})
    evaluated(store, one, {"match": (0.9, 0.1)}, limit=10)  # the other has none with this limit,
    evaluated(store, two, {"match": (0.9, 0.1)}, split="validation")  # nor this one on that split,
    evaluated(store, one, {"match": (0.1, 0.1)}, limit=9, definition="old")  # nor are both on one task here
    evaluated(store, two, {"match": (0.2, 0.1)}, limit=9)
    loss, match = diff(store, one.manifest.id, two.manifest.id).metrics
    assert (match.task, match.split, match.metric, match.limit) == ("math", "test", "match", None)
    assert (match.a, match.b, match.difference) == ((0.5, 0.03), (0.75, 0.04), 0.25)
    assert match.stderr == pytest.approx(math.sqrt(0.03**2 + 0.04**2))
    assert (loss.metric, loss.difference, loss.stderr) == ("loss", -0.5, None)


def test_two_evaluations_are_compared_by_task_whatever_the_split(store: Store, deltas: tuple[Delta, Delta]) -> None:
    ours = evaluated(store, deltas[0], {"match": (0.5, 0.03)})
    theirs = evaluated(store, deltas[1], {"match": (0.75, 0.04)}, split="validation")
    found = diff(store, ours, theirs)
    assert [(change.metric, change.split, change.difference) for change in found.metrics] == [
        ("match", "test / validation", 0.25)
    ]
    assert whats(found.config) == ["split"]
    assert whats(found.inputs) == ["delta"]


def test_different_kinds_are_compared_on_what_they_share(store: Store, deltas: tuple[Delta, Delta]) -> None:
    delta, _ = deltas
    found = diff(store, delta.manifest.id, delta.blocks[0].id)
    assert whats(found.operation) == ["kind", "operation"]
    assert set(whats(found.content)) == {"bytes", "projection_bytes", "projection_dense_bytes"}
    assert found.shared_blocks is None


def test_other_code_is_told_though_it_is_no_part_of_the_id(store: Store, deltas: tuple[Delta, Delta]) -> None:
    one, two = deltas
    made = two.manifest.provenance.model_copy(update={"code_digest": "0" * 64, "user": "other"})
    fields = {name: getattr(two.manifest, name) for name in ("parents", "files", "content")}
    path = Path(store.url) / "artifacts" / two.manifest.id / "manifest.json"
    path.write_bytes(Manifest.make(two.manifest.recipe, provenance=made, **fields).to_json())
    found = diff(store, one.manifest.id, two.manifest.id)
    assert [(change.what, change.b) for change in found.provenance] == [("code_digest", "0" * 64)]


def test_both_must_exist(store: Store, deltas: tuple[Delta, Delta]) -> None:
    with pytest.raises(ArtifactNotFoundError):
        diff(store, deltas[0].manifest.id, "1" * 64)
