"""Registries: names in order, collisions refused, the nearest name in the error."""

import pytest

from impart_core.base.errors import UnknownNameError, unknown_name
from impart_core.base.registry import Registry


def test_an_entry_is_found_under_its_name_and_returned_when_registered() -> None:
    registry: Registry[int] = Registry("method")
    assert registry.register("impart", 1) == 1
    assert registry.get("impart") == 1


def test_names_come_in_order_of_registration() -> None:
    registry: Registry[int] = Registry("method")
    for number, name in enumerate(("b", "c", "a")):
        registry.register(name, number)
    assert list(registry) == ["b", "c", "a"]


def test_a_taken_name_is_refused_and_keeps_its_entry() -> None:
    registry: Registry[int] = Registry("method")
    registry.register("impart", 1)
    with pytest.raises(ValueError, match="'impart' is registered twice"):
        registry.register("impart", 2)
    assert registry.get("impart") == 1


def test_an_unknown_name_is_answered_with_the_nearest_and_all_that_exist() -> None:
    registry: Registry[int] = Registry("method")
    registry.register("impart", 1)
    registry.register("magnitude", 2)
    with pytest.raises(UnknownNameError) as caught:
        registry.get("magntude")
    assert str(caught.value) == "Unknown method 'magntude'. Did you mean 'magnitude'? Known: impart, magnitude."


def test_an_empty_registry_says_that_it_knows_none() -> None:
    with pytest.raises(UnknownNameError, match="Known: none"):
        Registry[int]("method").get("x")


def test_a_far_name_gets_no_guess_and_a_long_list_is_cut() -> None:
    message = str(unknown_name("task", "zzzz", [f"a{n:02d}" for n in range(25)]))
    assert "Did you mean" not in message
    assert message.endswith("a19 and 5 more.")
