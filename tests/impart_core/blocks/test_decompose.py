"""Decomposing a block: the factors that methods will want, as they are stored."""

from pathlib import Path
from typing import Any

import pytest
import torch

from impart_core.base.errors import CheckpointError, TensorValueError
from impart_core.blocks.coding import coding_of_delta
from impart_core.blocks.decompose import decompose_block, factors_of
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.layout import Block, group_blocks
from impart_core.checkpoint.pairing import Pair, pair_tensors
from impart_core.checkpoint.reader import read_tensor
from impart_core.delta.factors import Factors
from impart_core.delta.load import load_block
from impart_core.delta.svd import decompose
from impart_core.methods.depth import Depth
from tests.impart_core.mixture import EMBEDDING, EXPERTS, HEAD, SAME, Q, open_mixture
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta, save_checkpoint

MATRICES = {Q, f"{EXPERTS}[0]", f"{EXPERTS}[2]"}  # one of the experts was not changed


@pytest.fixture
def mixture(tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    return open_mixture(tmp_path)


@pytest.fixture
def pairs(mixture: tuple[Checkpoint, Checkpoint]) -> dict[str, Pair]:
    return pair_tensors(*mixture)


def decomposed(pairs: dict[str, Pair], cr: float = 8, **settings: Any) -> dict[str, Factors]:
    """Return the factors of all blocks."""
    config = config_of(cr, **settings)
    return {k: v for block in group_blocks(pairs) for k, v in decompose_block(pairs, block, config).items()}


def test_every_changed_matrix_that_a_method_wants_decomposed_has_factors(pairs: dict[str, Pair]) -> None:
    assert decomposed(pairs).keys() == decomposed(pairs, method="lowrank").keys() == MATRICES
    assert f"{EXPERTS}[{SAME}]" not in MATRICES
    assert decomposed(pairs, embeddings="impart").keys() == {*MATRICES, HEAD, EMBEDDING}
    assert decomposed(pairs, method="dare", embeddings="lowrank").keys() == {HEAD, EMBEDDING}


@pytest.mark.parametrize(("cr", "depth"), [(1.5, Depth(None)), (2, Depth(2.0)), (8, Depth(4.0))])
def test_they_are_those_of_the_delta_as_deep_as_the_request_needs_at_16_bits(
    cr: float, depth: Depth, pairs: dict[str, Pair]
) -> None:
    found = decomposed(pairs, cr)
    for name in (Q, EXPERTS):
        for matrix in pairs[name].matrices():
            assert matrix.base is not None
            delta = read_tensor(matrix.finetuned).float() - read_tensor(matrix.base).float()
            if not bool(delta.any()):
                continue
            expected, factors = decompose(delta, name, depth.needed(*matrix.shape)), found[matrix.name]
            assert {part.dtype for part in (factors.u, factors.v)} == {torch.float16}
            assert torch.equal(factors.u, expected.u.half())
            assert torch.equal(factors.v, expected.v.half())
            assert torch.equal(factors.sigma, expected.sigma)
            assert (len(factors.sigma) == min(matrix.shape)) == (cr < 2)


@pytest.mark.parametrize("embeddings", ["impart", "auto"])
def test_they_are_the_same_for_every_ratio_method_and_seed_that_share_a_depth(
    embeddings: str, pairs: dict[str, Pair]
) -> None:
    first = decomposed(pairs, 4, embeddings=embeddings)
    assert HEAD in first
    for settings in (
        {"cr": 10},
        {"cr": 10, "method": "lowrank"},
        {"cr": 5, "seed": 7, "options": {"beta": 0.8, "c": 0.5}},
    ):
        again = decomposed(pairs, **{"embeddings": embeddings, **settings})
        assert again.keys() == first.keys()
        for name, factors in first.items():
            assert all(torch.equal(getattr(again[name], part), getattr(factors, part)) for part in ("u", "sigma", "v"))


def test_an_embedding_that_one_ratio_keeps_and_another_codes_is_decomposed_for_both(tmp_path: Path) -> None:
    tuned = decaying_delta(40, 32)
    tuned[8:] = 0  # the changed rows take 8·68 bytes, fewer than a quarter of all and more than an eighth
    base, finetuned = (
        open_checkpoint(save_checkpoint(tmp_path / side, {EMBEDDING: tensor}))
        for side, tensor in (("b", torch.zeros(40, 32)), ("f", tuned))
    )
    pairs, block = pair_tensors(base, finetuned), Block("b", (EMBEDDING,))
    keeping, coding = (config_of(cr, embeddings="auto") for cr in (4, 8))
    (loaded,) = load_block(pairs, block, ({}, {}))
    assert coding_of_delta(loaded.pair, loaded.delta(), keeping) is None
    assert coding_of_delta(loaded.pair, loaded.delta(), coding) is not None
    one, other = (decompose_block(pairs, block, config)[EMBEDDING] for config in (keeping, coding))
    assert len(one.sigma) == 8
    assert torch.equal(one.u, other.u)


def test_nothing_is_read_for_a_method_without_factors(
    pairs: dict[str, Pair], mixture: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    (tmp_path / "finetuned" / "model.safetensors").unlink()
    assert decomposed(pairs, method="dare") == {}
    assert decompose_block(pairs, group_blocks(pairs)[1], config_of(8)) == {}  # kept: embedding and head


def test_the_signs_and_bits_are_the_same_each_time(pairs: dict[str, Pair]) -> None:
    one, two = decomposed(pairs), decomposed(pairs)
    assert all(torch.equal(one[name].u, two[name].u) and torch.equal(one[name].v, two[name].v) for name in one)


def test_a_single_matrix_is_decomposed_as_in_its_block(pairs: dict[str, Pair]) -> None:
    config = config_of(8)
    (loaded,) = load_block(pairs, Block("b", (Q,)), ({}, {}))
    alone = factors_of(loaded.delta(), loaded.pair, config)
    assert torch.equal(alone.u, decomposed(pairs)[Q].u)


def test_values_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    name = "model.layers.0.up_proj.weight"
    broken = torch.zeros(16, 16)
    broken[3, 4] = float("inf")
    folders = (("b", torch.zeros(16, 16)), ("f", broken))
    base, finetuned = (open_checkpoint(save_checkpoint(tmp_path / side, {name: t})) for side, t in folders)
    with pytest.raises(TensorValueError, match=f"'{name}' of the fine-tuned checkpoint"):
        decomposed(pair_tensors(base, finetuned), 2)


def test_content_other_than_its_digest_is_refused(
    pairs: dict[str, Pair], mixture: tuple[Checkpoint, Checkpoint]
) -> None:
    digests = tensor_digests(mixture[0]), {**tensor_digests(mixture[1]), Q: "0" * 64}
    with pytest.raises(CheckpointError, match=f"changed while it was in use .tensor '{Q}'"):
        decompose_block(pairs, group_blocks(pairs)[0], config_of(8), digests=digests)
