"""Calibration as artifacts: tokens, activations and scales come back as they were, or not at all."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impart_core.artifacts.activations import ActivationsContent, Spill, activations_recipe, open_activations
from impart_core.artifacts.calibration_text import (
    CalibrationContent,
    calibration_recipe,
    publish_calibration,
    read_calibration,
)
from impart_core.artifacts.scales import (
    ScalesContent,
    publish_scales,
    publish_state,
    read_scales,
    read_state,
    scales_recipe,
    state_recipes,
)
from impart_core.base.errors import ArtifactNotFoundError, CorruptArtifactError
from impart_core.calibrate.distil import State
from impart_core.calibrate.layer import batch_size
from impart_core.store.manifest import Manifest
from impart_core.store.pins import pin, pinned_ids
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store
from impart_core.store.sweep import discard
from tests.impart_core.pipeline import config_of, flip

TOKENS = torch.arange(12, dtype=torch.int32).reshape(3, 4)
SCALES = {"b.weight": torch.tensor([0.5, 1e-30]), "a.weight": torch.tensor([3.0])}
DISTIL = config_of(16, method="bitdelta", options={"distil": True})
STATE = State(7, *(torch.arange(3) + number / 3 for number in range(4)), best_step=5, untrained=0.1, least=1 / 3)


def put_tokens(store: Store, tokens: torch.Tensor = TOKENS) -> Manifest:
    return publish_calibration(store, calibration_recipe(tokens), tokens, Stopwatch())


def put_scales(store: Store) -> Manifest:
    text = put_tokens(store)
    recipe = scales_recipe(DISTIL, text.id, ["aa"], {}, "m")
    return publish_scales(store, recipe, SCALES, STATE, 0.25, Stopwatch())


def put_activations(store: Store, folder: Path, count: int = 3, after: str = "aa", **trust: bool) -> Manifest:
    """Publish seeded activations of so many batches, the last of them shorter."""
    folder.mkdir(exist_ok=True)
    spill = Spill(folder)
    for number, hidden in enumerate(batches(count)):
        spill.add(number, hidden)
    return spill.publish(store, activations_recipe("cc", [after], "m"), "after a", Stopwatch(), **trust)


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1 if number == count - 1 else 2, 4, 8, generator=generator) for number in range(count)]


def data_file(store: Store, made: Manifest, number: int = 0) -> Path:
    return Path(store.url) / "artifacts" / made.id / made.files[number].path


@pytest.fixture
def folder_store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_tokens_come_back_as_they_were(store: Store) -> None:
    made = put_tokens(store, TOKENS.long())
    found = read_calibration(store, made.id)
    assert found.dtype == torch.int32
    assert torch.equal(found, TOKENS)
    assert made.content == CalibrationContent(sequences=3, length=4)
    assert put_tokens(store) == made  # nothing is published twice


def test_scales_come_back_bit_by_bit_and_name_their_text(store: Store) -> None:
    made = put_scales(store)
    found = read_scales(store, made.id)
    assert found.keys() == SCALES.keys()
    assert all(torch.equal(found[name], SCALES[name]) for name in SCALES)
    assert made.content == ScalesContent(matrices=2, steps=7, untrained=0.1, trained=0.25)
    assert made.parents == (put_tokens(store).id,)


def test_a_training_comes_back_bit_by_bit(store: Store) -> None:
    recipe = scales_recipe(DISTIL, "cc", [], {}, "m")
    recipes = state_recipes(recipe, 200)
    assert list(recipes) == list(range(20, 200, 20))
    assert len({recipe.id, *(one.id for one in recipes.values())}) == 10
    assert list(state_recipes(recipe, 3)) == [1, 2]
    made = publish_state(store, recipes[20], STATE, Stopwatch())
    found = read_state(store, made.id)
    assert made.parents == ()
    for name, value in vars(STATE).items():
        same = torch.equal(value, getattr(found, name)) if isinstance(value, torch.Tensor) else None
        assert getattr(found, name) == value if same is None else same


@pytest.mark.parametrize("count", [1, 12])
def test_activations_come_back_batch_by_batch_in_their_order(store: Store, tmp_path: Path, count: int) -> None:
    made = put_activations(store, tmp_path / "spill", count)
    assert made.content == ActivationsContent(name="after a", shape=(2 * count - 1, 4, 8))
    assert made.parents == ()  # nothing keeps them from being cleaned up, and they keep nothing
    with ExitStack() as stack:
        opened = open_activations(store, made, stack)
        assert len(opened) == count
        for _ in range(2):  # each may be read as often as it takes
            found = [batch.read() for batch in opened]
            assert all(torch.equal(one, other) for one, other in zip(found, batches(count), strict=True))
            assert [batch.shape for batch in opened] == [tuple(hidden.shape) for hidden in found]


@given(length=st.integers(min_value=1, max_value=100_000))
@settings(deadline=None)
def test_a_batch_has_at_least_one_sequence_and_no_more_tokens_than_sums_depend_on(length: int) -> None:
    size = batch_size(length)
    assert size == 1 or size * length <= 2048
    assert size >= 1
    assert (size + 1) * length > 2048


def test_text_is_its_tokens_and_their_shape(folder_store: Store) -> None:
    usual = calibration_recipe(TOKENS)
    assert calibration_recipe(TOKENS.long()) == usual
    assert calibration_recipe(TOKENS.T.contiguous().T) == usual
    others = (TOKENS.reshape(4, 3), TOKENS + 1, TOKENS[:2], TOKENS.flip(0))
    assert len({usual.id, *(calibration_recipe(other).id for other in others)}) == 5


OTHERS: dict[str, dict[str, Any]] = {
    "calibration": {"calibration": "dd"},
    "after": {"after": ["ab"]},
    "order": {"after": ["bb", "aa"]},
    "model": {"model": "n"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_activations_depend_on_text_blocks_and_model(what: str) -> None:
    usual: dict[str, Any] = {"calibration": "cc", "after": ["aa", "bb"], "model": "m"}
    assert activations_recipe(**usual).id == activations_recipe(**usual).id
    assert activations_recipe(**usual).id != activations_recipe(**{**usual, **OTHERS[what]}).id


def test_gains_depend_on_text_blocks_and_model_and_on_how_they_are_trained() -> None:
    usual: dict[str, Any] = {"calibration": "cc", "blocks": ["aa"], "finetuned": {"w": "2"}, "model": "m"}
    other: dict[str, Any] = {"calibration": "dd", "blocks": ["bb"], "finetuned": {"w": "3"}, "model": "n"}
    trained = [{"distil_steps": 7}, {"distil_rate": 0.5}, {"distil_norms": True}]
    configs = [config_of(16, method="bitdelta", options={"distil": True, **each}) for each in trained]
    configs.append(DISTIL.model_copy(update={"seed": 1}))
    found = {scales_recipe(DISTIL, **usual).id, *(scales_recipe(config, **usual).id for config in configs)}
    found |= {scales_recipe(DISTIL, **{**usual, name: other[name]}).id for name in usual}
    assert len(found) == 1 + len(configs) + len(usual)


@pytest.mark.parametrize("position", [0, 8, -1])
def test_damaged_tokens_and_scales_are_an_error_that_names_the_file(folder_store: Store, position: int) -> None:
    text, scales = put_tokens(folder_store), put_scales(folder_store)
    for made in (text, scales):
        flip(data_file(folder_store, made), position)
    with pytest.raises(CorruptArtifactError, match=data_file(folder_store, text).name):
        read_calibration(folder_store, text.id)
    with pytest.raises(CorruptArtifactError, match=data_file(folder_store, scales).name):
        read_scales(folder_store, scales.id)
    put_tokens(folder_store)  # publishing mends
    put_scales(folder_store)
    assert torch.equal(read_calibration(folder_store, text.id), TOKENS)
    assert read_scales(folder_store, scales.id).keys() == SCALES.keys()


def damage(path: Path, how: str) -> None:
    if how == "flipped":
        flip(path, -1)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut", "lost"])
def test_one_damaged_file_is_enough_and_is_replaced(folder_store: Store, tmp_path: Path, how: str) -> None:
    made = put_activations(folder_store, tmp_path / "spill", count=9)
    damage(data_file(folder_store, made, 1), how)
    with ExitStack() as stack, pytest.raises(CorruptArtifactError, match=data_file(folder_store, made, 1).name):
        open_activations(folder_store, made, stack)
    put_activations(folder_store, tmp_path / "again", count=9)
    with ExitStack() as stack:
        assert len(open_activations(folder_store, made, stack)) == 9


def test_activations_are_replaced_where_that_is_asked_for_and_kept_where_it_is_not(
    folder_store: Store, tmp_path: Path
) -> None:
    first = put_activations(folder_store, tmp_path / "spill")
    assert put_activations(folder_store, tmp_path / "other", count=2) == first
    other = put_activations(folder_store, tmp_path / "third", count=5, replace=True)
    assert other.id == first.id
    assert len(folder_store.manifest(first.id).files) == 2


def test_an_artifact_of_another_kind_is_refused(folder_store: Store, tmp_path: Path) -> None:
    text, scales = put_tokens(folder_store), put_scales(folder_store)
    with pytest.raises(CorruptArtifactError, match="is of kind scales, no calibration"):
        read_calibration(folder_store, scales.id)
    with pytest.raises(CorruptArtifactError, match="is of kind calibration, no scales"):
        read_scales(folder_store, text.id)
    with pytest.raises(ArtifactNotFoundError):
        read_calibration(folder_store, "0" * 64)


def test_what_is_discarded_is_gone_with_all_its_files(store: Store, tmp_path: Path) -> None:
    goes = [put_activations(store, tmp_path / after, after=after).id for after in ("aa", "ab")]
    stays = put_tokens(store)
    discard(store, goes)
    assert list(store.ids()) == [stays.id]
    assert not any(store.objects.find(f"artifacts/{made}") for made in goes)
    assert store.objects.names("sweeps") == []
    discard(store, goes)  # what is not there is no fault


def test_what_another_run_has_pinned_is_spared_until_it_lets_go(store: Store, tmp_path: Path) -> None:
    ours, shared = (put_activations(store, tmp_path / after, after=after).id for after in ("aa", "ab"))
    held = pin(store, [shared])
    discard(store, [ours, shared])
    assert list(store.ids()) == [shared]
    assert store.lookup(shared, reread=True)
    assert pinned_ids(store) == {shared}
    held.release()
    discard(store, [ours, shared])
    assert list(store.ids()) == []


def test_a_run_may_discard_what_it_holds_itself_but_not_what_another_one_does(store: Store, tmp_path: Path) -> None:
    ours, shared = (put_activations(store, tmp_path / after, after=after).id for after in ("aa", "ab"))
    held, others = pin(store, [ours, shared]), pin(store, [shared])
    discard(store, [ours, shared], held)
    assert list(store.ids()) == [shared]
    others.release()
    discard(store, [ours, shared], held)
    assert list(store.ids()) == []
    held.release()


def test_half_of_an_artifact_that_a_killed_writer_left_is_discarded_too(folder_store: Store, tmp_path: Path) -> None:
    made = put_activations(folder_store, tmp_path / "spill")
    data_file(folder_store, made).with_name("manifest.json").unlink()
    discard(folder_store, [made.id])
    assert not folder_store.objects.find("artifacts")


def test_what_is_discarded_is_announced_before_anyone_loses_it(
    folder_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = put_activations(folder_store, tmp_path / "spill")
    delete, announced = folder_store.objects.delete, list[bool]()

    def watched(paths: Any) -> None:
        if any("artifacts/" in path for path in paths):
            announced.append(bool(folder_store.objects.names("sweeps")))
        delete(paths)

    monkeypatch.setattr(folder_store.objects, "delete", watched)
    discard(folder_store, [made.id])
    assert announced
    assert all(announced)
