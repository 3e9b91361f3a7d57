"""Retention: each rule keeps what it says, says so, and no rule loses everything by mistake."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from impart_core.base.errors import ConfigError, CorruptArtifactError
from impart_core.store.gc import GcReport, collect
from impart_core.store.manifest import Manifest
from impart_core.store.names import set_ref
from impart_core.store.pins import pin
from impart_core.store.refs import new_move, write_move
from impart_core.store.retention import Rules
from impart_core.store.store import Store
from impart_core.zoo.file import Retention
from tests.impart_core.store.samples import evaluation_of, small_delta

AGES = (100, 50, 20, 1)  # days since each move of a name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def move_over_time(store: Store, name: str, first_seed: int) -> list[Manifest]:
    """Move a name to one delta after the other, as long ago as AGES say."""
    made = [small_delta(store, first_seed + number, blocks=1) for number in range(len(AGES))]
    for number, (delta, age) in enumerate(zip(made, AGES, strict=True), 1):
        moved = (datetime.now(UTC) - timedelta(days=age)).isoformat(timespec="seconds")
        write_move(store, name, new_move(number, delta.id, "test").model_copy(update={"moved": moved}))
    return made


def kept(report: GcReport) -> set[str]:
    return {one.id for one in report.listed}


def reasons(report: GcReport, artifact: Manifest) -> tuple[str, ...]:
    (found,) = (one.kept_by for one in report.listed if one.id == artifact.id)
    return found


@pytest.mark.parametrize(
    ("rules", "stays"),
    [
        ({}, {0, 1, 2, 3}),
        ({"history": 1}, {3}),
        ({"history": 2}, {2, 3}),
        ({"history_days": 0}, {3}),  # what a name points to now is always kept
        ({"history_days": 10}, {2, 3}),  # the third was in force until yesterday
        ({"history_days": 30}, {1, 2, 3}),
        ({"history_days": 10, "history": 3}, {1, 2, 3}),  # rules only add
        ({"history": 1, "keep": ("*@prod",)}, {0, 1, 2, 3}),
        ({"history": 1, "keep": ("b*",)}, {3}),
    ],
)
def test_a_rule_keeps_the_moves_that_it_says(store: Store, rules: dict[str, object], stays: set[int]) -> None:
    made = move_over_time(store, "a@prod", 0)
    set_ref(store, "b", small_delta(store, 9).id)
    expected = {made[number].id for number in stays}
    dry = collect(store, Rules(grace_days=0, **rules))
    assert kept(dry) & {one.id for one in made} == expected
    collect(store, Rules(grace_days=0, **rules), delete=True)
    assert {one.id for one in made if store.lookup(one.id)} == expected


def test_a_dry_run_says_what_each_rule_keeps_and_why(store: Store) -> None:
    made = move_over_time(store, "a@prod", 0)
    measured = evaluation_of(store, {"delta": made[3].id}, (made[3].id,))
    running = small_delta(store, 20)
    with pin(store, [running.id]):
        report = collect(store, Rules(grace_days=0, history=2, history_days=30))
    assert reasons(report, made[3]) == ("a@prod",)
    assert reasons(report, made[2]) == ("a@prod, move 3 (last 2 moves of each name)",)
    assert reasons(report, made[1]) == ("a@prod, move 2 (in force within 30 days)",)
    assert reasons(report, running) == ("a running flow",)
    assert reasons(report, measured) == (f"a@prod, through {made[3].id[:12]}",)
    told = {rule.rule: rule.artifacts for rule in report.kept_by}
    # A delta of one block is a delta, a block and a decomposition; the running one has two blocks.
    assert told == {
        "names, as they point now": 4,
        "last 2 moves of each name": 3,
        "in force within 30 days": 3,
        "a running flow": 5,
    }
    assert sum(told.values()) == report.kept
    stored = {path: info.size for path, info in store.objects.find("artifacts").items()}
    assert sum(rule.bytes for rule in report.kept_by) + report.bytes == sum(stored.values())


def test_the_zoo_file_has_the_same_rules_as_the_command() -> None:
    assert set(Retention.model_fields) == {*Rules.model_fields, "collect"}
    assert Retention(history=3).model_dump(exclude={"collect"}) == Rules(history=3).model_dump()


def test_a_pattern_that_fits_no_name_is_refused_and_nothing_goes(store: Store) -> None:
    made = move_over_time(store, "a@prod", 0)
    with pytest.raises(ConfigError, match=r"no name of .* fits '\*@prd', and nothing was deleted. It has a@prod"):
        collect(store, Rules(grace_days=0, history=1, keep=("*@prd",)), delete=True)
    assert all(store.lookup(one.id) for one in made)


def test_a_pattern_without_a_limit_has_no_effect_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="keep has no effect"):
        Rules(keep=("*@prod",))


def test_a_store_without_names_is_not_emptied_by_mistake(store: Store) -> None:
    made = small_delta(store)
    with pytest.raises(ConfigError, match=r"All 5 artifacts of .* would go, .* --everything"):
        collect(store, Rules(grace_days=0), delete=True)
    assert store.lookup(made.id)
    assert collect(store, Rules(grace_days=0), delete=True, everything=True).complete
    assert store.ids() == []


def test_a_damaged_move_that_may_count_stops_it(store: Store) -> None:
    move_over_time(store, "a@prod", 0)
    store.objects.replace("refs/a@prod/00000002.json", b"{}", store.objects.read("refs/a@prod/00000002.json", 1 << 16))
    with pytest.raises(CorruptArtifactError):
        collect(store, Rules(grace_days=0, history_days=30), delete=True)  # it was in force until 20 days ago
    assert collect(store, Rules(grace_days=0, history=2), delete=True).complete


@pytest.mark.parametrize("setting", ["history", "history_days", "grace_days"])
@pytest.mark.parametrize("value", [True, False, "3"])
def test_a_yes_or_no_is_no_number_of_moves_or_days(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):  # `history: yes` would keep one move
        Rules.model_validate({setting: value})
