"""Pairs: what each fine-tuned tensor is a delta against, and the matrices of a stack."""

from pathlib import Path

import pytest
import torch

from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.pairing import Pair, pair_tensors
from impart_core.checkpoint.reader import read_tensor
from tests.impart_core.mixture import EMBEDDING, EXPERTS, HEAD, ROUTER, Q, finetuned_tensors, open_mixture
from tests.support import save_checkpoint


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    return open_mixture(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module")
def pairs(mixture: tuple[Checkpoint, Checkpoint]) -> dict[str, Pair]:
    return pair_tensors(*mixture)


def paired(root: Path, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, str | None]:
    """Return by each fine-tuned tensor's name the base's tensor that it is paired with."""
    base, finetuned = (
        open_checkpoint(save_checkpoint(root / side, tensors)) for side, tensors in (("b", ours), ("f", theirs))
    )
    return {name: pair.base.name if pair.base else None for name, pair in pair_tensors(base, finetuned).items()}


def test_every_fine_tuned_tensor_has_a_pair_with_its_role(
    pairs: dict[str, Pair], mixture: tuple[Checkpoint, Checkpoint]
) -> None:
    assert list(pairs) == list(mixture[1].tensors)
    assert all(pair.name == name and pair.finetuned is mixture[1].tensors[name] for name, pair in pairs.items())
    assert {name: pairs[name].role for name in (EXPERTS, Q, ROUTER, EMBEDDING, HEAD)} == {
        EXPERTS: Role.PROJECTION,
        Q: Role.PROJECTION,
        ROUTER: Role.ROUTER,
        EMBEDDING: Role.EMBEDDING,
        HEAD: Role.HEAD,
    }


def test_it_is_a_delta_against_the_tensor_of_its_own_name(
    pairs: dict[str, Pair], mixture: tuple[Checkpoint, Checkpoint]
) -> None:
    for name, info in mixture[0].tensors.items():
        assert pairs[name].base is info


def test_a_head_of_its_own_is_a_delta_against_the_embedding_that_the_base_ties_it_to(pairs: dict[str, Pair]) -> None:
    assert pairs[HEAD].base is pairs[EMBEDDING].base


def test_the_shape_of_a_delta_is_that_of_the_rows_that_both_have(pairs: dict[str, Pair]) -> None:
    assert (pairs[HEAD].finetuned.shape, pairs[HEAD].shape) == ((43, 32), (40, 32))
    assert pairs[Q].shape == (32, 32)


def test_what_only_the_fine_tune_has_is_a_delta_against_nothing(tmp_path: Path) -> None:
    own = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(8)}
    assert paired(tmp_path, {"model.norm.weight": torch.zeros(8)}, own) == dict.fromkeys(own)


@pytest.mark.parametrize(
    ("ours", "against"),
    [
        ({"wte.weight": (40, 8)}, "wte.weight"),
        ({"wte.weight": (40, 8), "wpe.weight": (64, 8)}, "wte.weight"),  # more positions than the head has tokens
        ({"wte.weight": (40, 8), "wpe.weight": (20, 8)}, "wte.weight"),
        ({"wte.weight": (40, 6)}, None),
        ({"wte.weight": (50, 8)}, None),
        ({"wte.weight": (40, 8), "output_layer.weight": (40, 8)}, None),  # a head of another name
        ({"model.norm.weight": (8,)}, None),
    ],
)
def test_a_head_goes_with_the_largest_embedding_that_fits_it_where_the_base_has_no_head(
    ours: dict[str, tuple[int, ...]], against: str | None, tmp_path: Path
) -> None:
    base = {name: torch.zeros(shape) for name, shape in ours.items()}
    assert paired(tmp_path, base, {HEAD: torch.zeros(43, 8)}) == {HEAD: against}


def test_the_matrices_of_a_stack_are_its_entries_on_both_sides(pairs: dict[str, Pair]) -> None:
    assert pairs[EXPERTS].is_stack
    matrices = pairs[EXPERTS].matrices()
    assert [matrix.name for matrix in matrices] == [f"{EXPERTS}[{index}]" for index in range(3)]
    base, stack = pairs[EXPERTS].base, finetuned_tensors()[EXPERTS]
    assert base is not None
    for index, matrix in enumerate(matrices):
        assert matrix.base is not None
        assert (matrix.role, matrix.shape, matrix.is_stack) == (Role.PROJECTION, (24, 32), False)
        assert torch.equal(read_tensor(matrix.finetuned), stack[index])
        assert torch.equal(read_tensor(matrix.base), read_tensor(base)[index])


def test_any_other_tensor_is_its_own_only_matrix(pairs: dict[str, Pair]) -> None:
    for name, pair in pairs.items():
        if name != EXPERTS:
            assert pair.matrices() == (pair,)
            assert not pair.is_stack
