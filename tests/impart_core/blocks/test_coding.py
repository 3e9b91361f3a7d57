"""Which tensors a method codes, at which ratio, and how deep they are decomposed for it."""

from typing import Any

import pytest
import torch

from impart_core.base.settings import MethodOptions
from impart_core.blocks.coding import (
    coding_of_delta,
    coding_of_role,
    depth_of_pair,
    is_feasible,
    kept_instead,
    may_be_kept,
)
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.pairing import Pair, pair_tensors
from impart_core.codec.rows import rows_bytes
from impart_core.methods import METHODS
from impart_core.methods.depth import LOWEST_CRS, Depth
from impart_core.methods.impart import ImpartOptions
from tests.impart_core.mixture import EMBEDDING, EXPERTS, HEAD, NORM, ROUTER, Q, open_mixture
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta

POLICIES: list[dict[str, Any]] = [{}, {"embeddings": "auto"}, {"embeddings": "dare"}]
OTHERS = [role for role in Role if role not in (Role.PROJECTION, Role.EMBEDDING, Role.HEAD)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return pair_tensors(*open_mixture(tmp_path_factory.mktemp("mixture")))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_projections_are_coded_as_asked_and_norms_biases_and_routers_never(policy: dict[str, Any]) -> None:
    config = config_of(8, method="lowrank", **policy)
    assert coding_of_role(Role.PROJECTION, config) == config.projections
    assert [coding_of_role(role, config) for role in OTHERS] == [None] * len(OTHERS)


@pytest.mark.parametrize("role", [Role.EMBEDDING, Role.HEAD])
def test_embeddings_and_head_are_kept_unless_asked_for(role: Role) -> None:
    assert coding_of_role(role, config_of(8)) is None


@pytest.mark.parametrize("role", [Role.EMBEDDING, Role.HEAD])
@pytest.mark.parametrize("policy", ["auto", "impart"])
def test_embeddings_and_head_are_coded_by_the_requests_own_method_and_options(policy: str, role: Role) -> None:
    config = config_of(8, seed=3, accounting="paper", options={"c": 0.5}, embeddings=policy)
    settings = coding_of_role(role, config)
    assert settings is not None
    assert (settings.method, settings.cr, settings.seed, settings.accounting) == ("impart", 8, 3, "paper")
    assert settings.options == ImpartOptions(c=0.5)


def test_another_method_codes_them_with_its_own_default_options() -> None:
    to_dare = coding_of_role(Role.EMBEDDING, config_of(8, options={"beta": 0.8}, embeddings="dare"))
    to_impart = coding_of_role(Role.EMBEDDING, config_of(8, method="dare", embeddings="impart"))
    assert to_dare is not None
    assert to_impart is not None
    assert (to_dare.method, to_dare.options) == ("dare", MethodOptions())
    assert (to_impart.method, to_impart.options) == ("impart", ImpartOptions())


def test_they_may_have_a_ratio_of_their_own() -> None:
    config = config_of(8, embeddings="auto", embeddings_cr=32)
    assert [coding_of_role(role, config).cr for role in (Role.PROJECTION, Role.HEAD)] == [8, 32]  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
def test_a_ratio_is_feasible_up_to_the_highest_that_keeps_anything(method: str) -> None:
    highest = METHODS.get(method).highest_cr(24, 32, config_of(1, method=method))
    for shape in ((24, 32), (3, 24, 32)):
        assert is_feasible(shape, config_of(highest, method=method))
        assert not is_feasible(shape, config_of(highest * 1.001, method=method))


def test_only_automatic_embeddings_may_be_kept_instead(pairs: dict[str, Pair]) -> None:
    auto = config_of(4, embeddings="auto")
    assert [name for name, pair in pairs.items() if may_be_kept(pair, auto)] == [HEAD, EMBEDDING]
    for other in ("keep", "impart"):
        assert not any(may_be_kept(pair, config_of(4, embeddings=other)) for pair in pairs.values())


@pytest.mark.parametrize("cr", [4, 16])
def test_automatic_is_by_a_method_or_as_rows_whichever_takes_fewer_bytes(cr: float, pairs: dict[str, Pair]) -> None:
    config = config_of(cr, embeddings="auto")
    for changed in range(1, 41):
        delta = decaying_delta(40, 32)
        delta[changed:] = 0
        coded = coding_of_delta(pairs[EMBEDDING], delta, config)
        assert (coded is not None) == (2 * 40 * 32 / cr < rows_bytes(delta))
        if coded:
            assert (coded.method, coded.cr) == ("impart", cr)


def test_automatic_is_kept_where_the_ratio_leaves_nothing(pairs: dict[str, Pair]) -> None:
    config = config_of(4, embeddings="auto", embeddings_cr=1000)
    assert coding_of_delta(pairs[EMBEDDING], decaying_delta(40, 32), config) is None
    assert depth_of_pair(pairs[EMBEDDING], config) is None


def test_a_projection_is_coded_whatever_its_delta(pairs: dict[str, Pair]) -> None:
    config, delta = config_of(4, embeddings="auto"), torch.zeros(24, 32)
    delta[0] = 1
    assert coding_of_delta(pairs[EXPERTS].matrices()[0], delta, config) == config.projections
    assert coding_of_delta(pairs[NORM], torch.ones(32), config) is None


@pytest.mark.parametrize(
    ("settings", "decomposed"),
    [
        ({}, [EXPERTS, Q]),
        ({"method": "lowrank"}, [EXPERTS, Q]),
        ({"method": "dare"}, []),
        ({"embeddings": "auto"}, [EXPERTS, Q, EMBEDDING, HEAD]),
        ({"embeddings": "lowrank", "method": "dare"}, [EMBEDDING, HEAD]),
        ({"embeddings": "magnitude"}, [EXPERTS, Q]),
    ],
)
def test_what_a_method_with_factors_codes_is_decomposed(
    settings: dict[str, Any], decomposed: list[str], pairs: dict[str, Pair]
) -> None:
    found = {name: depth for name, pair in pairs.items() if (depth := depth_of_pair(pair, config_of(8, **settings)))}
    assert found == dict.fromkeys(decomposed, Depth(4.0))


def test_what_the_base_does_not_have_is_not_decomposed(pairs: dict[str, Pair]) -> None:
    alone = Pair(pairs[Q].finetuned, None, Role.PROJECTION)
    assert depth_of_pair(alone, config_of(8)) is None


def test_a_matrix_of_a_stack_is_decomposed_as_deep_as_the_stack(pairs: dict[str, Pair]) -> None:
    config = config_of(2)
    assert depth_of_pair(pairs[EXPERTS].matrices()[2], config) == depth_of_pair(pairs[EXPERTS], config) == Depth(2.0)


def test_the_depth_is_that_of_a_tensors_own_ratio(pairs: dict[str, Pair]) -> None:
    config, (high, low) = config_of(8, embeddings="impart", embeddings_cr=2), LOWEST_CRS
    assert [depth_of_pair(pairs[name], config) for name in (Q, HEAD)] == [Depth(high), Depth(low)]


def test_a_router_is_never_decomposed(pairs: dict[str, Pair]) -> None:
    assert depth_of_pair(pairs[ROUTER], config_of(1.5, embeddings="auto")) is None


def test_where_auto_keeps_them_for_want_of_room_a_note_says_the_highest_ratio(pairs: dict[str, Pair]) -> None:
    def notes(cr: float) -> tuple[str, ...]:
        return kept_instead(pairs.values(), config_of(2, method="ecsq", embeddings="auto", embeddings_cr=cr))

    (note,) = notes(1e9)
    highest = float(note.removesuffix(".").rpartition(" is ")[2])
    assert not notes(highest)
    assert notes(highest + 0.01)
    assert not kept_instead(pairs.values(), config_of(2, method="ecsq", embeddings="ecsq", embeddings_cr=1e9))
