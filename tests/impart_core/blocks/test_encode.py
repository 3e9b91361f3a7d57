"""Compressing a block: each kind of tensor its own way, wrong values refused by name."""

from pathlib import Path

import pytest
import torch

from impart_core.base.errors import CheckpointError, TensorValueError
from impart_core.blocks.encode import Encoder, budgets_of
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.layout import group_blocks
from impart_core.checkpoint.pairing import pair_tensors
from impart_core.codec.format import EncodedTensor
from impart_core.delta.budget import budget_bytes
from impart_core.delta.fidelity import fidelity_of
from impart_core.methods import METHODS
from impart_core.methods.decode import decode_delta
from tests.impart_core.pipeline import config_of
from tests.support import decaying_delta, save_checkpoint

Q = "model.layers.0.q_proj.weight"
NORM = "model.layers.0.norm.weight"
BASE = {
    Q: torch.zeros(16, 24),
    NORM: torch.ones(24),
    "model.layers.0.same.weight": torch.ones(16, 16),
    "model.layers.0.ids": torch.arange(4),
    "model.layers.0.same_ids": torch.arange(4),
}


def tuned() -> dict[str, torch.Tensor]:
    return {**BASE, Q: decaying_delta(16, 24), NORM: BASE[NORM] + 0.5, "model.layers.0.ids": torch.arange(4) + 1}


def opened(root: Path, theirs: dict[str, torch.Tensor]) -> tuple[Checkpoint, Checkpoint]:
    return open_checkpoint(save_checkpoint(root / "base", BASE)), open_checkpoint(
        save_checkpoint(root / "tuned", theirs)
    )


def compressed(root: Path, theirs: dict[str, torch.Tensor], cr: float = 2) -> dict[str, EncodedTensor]:
    base, finetuned = opened(root, theirs)
    (block,) = group_blocks(finetuned.tensors)
    return Encoder(config_of(cr, seed=3)).block(pair_tensors(base, finetuned), block)


def test_each_kind_of_tensor_is_stored_its_own_way(tmp_path: Path) -> None:
    found = compressed(tmp_path, tuned())
    assert {name.removeprefix("model.layers.0."): item.header.method for name, item in found.items()} == {
        "q_proj.weight": "impart",
        "norm.weight": "keep",
        "same.weight": "omitted",
        "ids": "value",
        "same_ids": "omitted",
    }
    assert {item.nbytes for item in found.values() if item.header.method == "omitted"} == {0}
    assert found[NORM].nbytes == 2 * 24 + 1  # an exponent
    assert found["model.layers.0.ids"].codes["value"].tolist() == [1, 2, 3, 4]
    assert 2 * 16 * 24 / found[Q].nbytes >= 2


def test_headers_say_what_decoding_needs(tmp_path: Path) -> None:
    header = compressed(tmp_path, tuned())[Q].header
    assert (header.shape, header.dtype, header.seed, header.parts) == ((16, 24), "F32", 3, ("keep", "sigma", "u", "v"))


def test_codes_decode_to_what_they_were_made_of(tmp_path: Path) -> None:
    found = compressed(tmp_path, tuned(), cr=1)
    kept = decode_delta(NORM, found[NORM].header, found[NORM].codes)
    assert kept is not None
    assert torch.equal(kept, torch.full((24,), 0.5))
    decoded = decode_delta(Q, found[Q].header, found[Q].codes)
    assert decoded is not None
    assert decoded.shape == (16, 24)


@pytest.mark.usefixtures("two_threads")  # which puts the number back
def test_the_same_block_gives_the_same_codes_on_any_number_of_threads(tmp_path: Path) -> None:
    # From about 256 rows on, LAPACK splits its sums over the threads it may use, and rounds otherwise.
    tensors = {Q: torch.zeros(256, 288)}
    base = open_checkpoint(save_checkpoint(tmp_path / "base", tensors))
    finetuned = open_checkpoint(save_checkpoint(tmp_path / "tuned", {Q: decaying_delta(256, 288)}))
    (block,) = group_blocks(finetuned.tensors)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(Encoder(config_of(8)).block(pair_tensors(base, finetuned), block)[Q])
    for part, code in results[0].codes.items():
        assert torch.equal(code, results[1].codes[part])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [Q, NORM])
def test_values_that_are_no_numbers_are_refused_with_the_tensors_name(name: str, value: float, tmp_path: Path) -> None:
    broken = {key: tensor.clone() for key, tensor in tuned().items()}
    broken[name].view(-1)[5] = value
    with pytest.raises(TensorValueError, match=f"'{name}' of the fine-tuned checkpoint"):
        compressed(tmp_path, broken)


def test_new_tensors_and_rows_that_are_no_numbers_are_refused_too(tmp_path: Path) -> None:
    tokens, head = "embed_tokens.weight", "score.weight"
    base = open_checkpoint(save_checkpoint(tmp_path / "base", {tokens: torch.ones(4, 8)}))
    grown = {tokens: torch.ones(5, 8), head: torch.ones(2, 8)}
    for name in grown:
        broken = {**grown, name: grown[name].index_fill(0, torch.tensor([len(grown[name]) - 1]), float("nan"))}
        finetuned = open_checkpoint(save_checkpoint(tmp_path / name, broken))
        (block,) = group_blocks(finetuned.tensors)
        with pytest.raises(TensorValueError, match=f"'{name}' of the fine-tuned checkpoint"):
            Encoder(config_of(2)).block(pair_tensors(base, finetuned), block)


def test_codes_beyond_float32_are_refused_with_the_tensors_name(tmp_path: Path) -> None:
    base, finetuned = opened(tmp_path, {**BASE, Q: torch.full((16, 24), 3e38)})
    (block,) = group_blocks(finetuned.tensors)
    with pytest.raises(TensorValueError, match=f"'{Q}' is up to 3e\\+38 in size: what dare makes of it is beyond"):
        Encoder(config_of(8, method="dare")).block(pair_tensors(base, finetuned), block)


def test_content_other_than_its_digest_is_refused(tmp_path: Path) -> None:
    base, finetuned = opened(tmp_path, tuned())
    (block,) = group_blocks(finetuned.tensors)
    digests = tensor_digests(base), {**tensor_digests(finetuned), NORM: "0" * 64}
    with pytest.raises(CheckpointError, match=f"changed while it was in use .tensor '{NORM}'"):
        Encoder(config_of(2), digests=digests).block(pair_tensors(base, finetuned), block)


@pytest.mark.parametrize("method", ["dare", "ecsq", "magnitude"])
def test_what_codes_keep_of_each_matrix_is_measured_where_the_delta_is_read(method: str, tmp_path: Path) -> None:
    theirs = tuned()
    base, finetuned = opened(tmp_path, theirs)
    (block,) = group_blocks(finetuned.tensors)
    found = Encoder(config_of(4, method=method)).block(pair_tensors(base, finetuned), block)
    decoded = decode_delta(Q, found[Q].header, found[Q].codes)
    assert decoded is not None
    assert found[Q].fidelity == (fidelity_of(theirs[Q] - BASE[Q], decoded),)
    assert 0 < found[Q].fidelity[0].cosine_squared <= 1
    assert not found[NORM].fidelity


def test_bytes_of_a_block_are_shared_out_by_what_a_pair_of_vectors_costs(tmp_path: Path) -> None:
    shapes = {"q_proj": (64, 64), "k_proj": (32, 64), "up_proj": (192, 64), "down_proj": (64, 192)}
    names = {kind: f"model.layers.0.{kind}.weight" for kind in shapes}
    base = {names[kind]: torch.zeros(shape) for kind, shape in shapes.items()}
    tuned = {name: decaying_delta(*value.shape) for name, value in base.items()}
    embeddings = {"model.embed_tokens.weight": torch.zeros(100, 64)}
    folders = [save_checkpoint(tmp_path / name, tensors | embeddings) for name, tensors in (("b", base), ("t", tuned))]
    sides = [open_checkpoint(folder) for folder in folders]
    pairs, blocks = pair_tensors(*sides), group_blocks(sides[1].tensors)
    layer = next(block for block in blocks if names["q_proj"] in block.tensors)
    config = config_of(16, method="ecsq", embeddings="auto")
    by_entries = config_of(16, method="ecsq", options={"share_by": "entries"})
    found, by_size = (budgets_of(pairs, layer, one).sizes for one in (config, by_entries))
    assert budgets_of(pairs, layer, config_of(16, method="ecsq", options={"domain": "entries"})).sizes == by_size
    assert sum(found.values()) == pytest.approx(sum(by_size.values()), abs=len(shapes))
    around = budgets_of(pairs, layer, config).around
    assert around > 0
    assert sum(found.values()) + around <= sum(budget_bytes(*shape, 16) for shape in shapes.values())
    tight = config_of(215, method="ecsq")  # the highest ratio of k_proj, whose budget has no room for what is around
    smallest = {
        name: budget_bytes(*base[name].shape, METHODS.get("ecsq").highest_cr(*base[name].shape, tight))
        for name in names.values()
    }
    assert (
        budgets_of(pairs, layer, tight).sizes[names["k_proj"]] >= smallest[names["k_proj"]] == budget_bytes(32, 64, 215)
    )
    assert all(size >= smallest[name] for name, size in budgets_of(pairs, layer, tight).sizes.items())
    assert all(item.codes for item in Encoder(tight).block(pairs, layer).values())
    pair_costs = {kind: found[names[kind]] / sum(shape) for kind, shape in shapes.items()}
    assert max(pair_costs.values()) == pytest.approx(min(pair_costs.values()), rel=0.01)
    entry_costs = {kind: by_size[names[kind]] / (shape[0] * shape[1]) for kind, shape in shapes.items()}
    assert max(entry_costs.values()) == pytest.approx(min(entry_costs.values()), rel=0.01)
    made = Encoder(config).block(pairs, layer)
    assert {name: item.nbytes <= found[name] for name, item in made.items()} == dict.fromkeys(found, True)
    assert budgets_of(pairs, layer, config_of(16)).sizes == {}  # every other method: each by its own ratio
    (table,) = [budgets_of(pairs, block, config).sizes for block in blocks if block != layer]
    assert list(table) == ["model.embed_tokens.weight"]
