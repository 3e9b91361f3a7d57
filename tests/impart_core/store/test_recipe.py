"""Ids: a digest of content, whatever the order of keys, and of nothing else."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from impart_core.base.canonical import canonical_json, digest_of
from impart_core.base.errors import ConfigError
from impart_core.store.recipe import Recipe

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aäß\n", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcä", max_size=3), inner, max_size=4),
    max_leaves=10,
)
objects = st.dictionaries(st.text("abcä", max_size=3), values, max_size=5)


def reordered(value: Any) -> Any:
    """Return an equal value whose objects have their keys in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(item) for key, item in reversed(value.items())}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(value=objects)
def test_the_order_of_keys_is_no_part_of_an_id(value: dict[str, Any]) -> None:
    assert canonical_json(reordered(value)) == canonical_json(value)


@given(value=values)
def test_canonical_json_is_json_and_loses_nothing(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(one=values, two=values)
def test_unequal_values_have_unequal_texts(one: Any, two: Any) -> None:
    assume(json.dumps(one, sort_keys=True) != json.dumps(two, sort_keys=True))
    assert digest_of(one) != digest_of(two)


def test_an_id_is_the_sha256_of_the_text_without_spaces() -> None:
    assert canonical_json({"b": [1, None], "a": "ä"}) == '{"a":"ä","b":[1,null]}'.encode()
    assert digest_of({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_numbers_that_json_does_not_have_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(value)


RECIPE = Recipe(operation="compress", version=1, config={"cr": 32.0, "seed": 0}, inputs={"base": "a", "finetuned": "b"})


@pytest.mark.parametrize(
    "change",
    [
        {"operation": "merge"},
        {"version": 2},
        {"config": {"cr": 32.0, "seed": 1}},
        {"config": {"cr": 32.0}},
        {"inputs": {"base": "b", "finetuned": "a"}},
    ],
)
def test_every_field_of_a_recipe_changes_its_id(change: dict[str, Any]) -> None:
    assert RECIPE.model_copy(update=change).id != RECIPE.id


def test_equal_recipes_have_equal_ids_also_after_json() -> None:
    shuffled = RECIPE.model_copy(update={"config": {"seed": 0, "cr": 32.0}})
    assert shuffled.id == RECIPE.id == Recipe.model_validate_json(RECIPE.model_dump_json()).id
    assert len(RECIPE.id) == 64


def test_a_recipe_has_no_room_for_what_makes_no_artifact() -> None:
    with pytest.raises(ConfigError, match="device"):
        Recipe(operation="x", version=1, config={}, inputs={}, device="cuda")  # type: ignore[call-arg]
