"""Pairs at the edge of what checkpoints hold: nothing changed, or one direction; files of nothing; no numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from impart_core.apply.dense import reconstruct
from impart_core.artifacts.block import BlockContent
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CheckpointError, TensorValueError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.weights import SHARD_INDEX
from impart_core.checkpoint.writer import write_safetensors
from impart_core.methods import METHODS
from impart_core.store.store import Store
from tests.impart_core.pipeline import compress, config_of, small_options
from tests.support import data_files, finetune, llama_shapes, random_tensors, save_checkpoint

Tensors = dict[str, torch.Tensor]
UP, EXPERTS = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.experts.gate_up_proj"
SHAPES = {**llama_shapes(layers=1), EXPERTS: (4, 32, 48), "empty": (0, 6), "scale": (), "row.weight": (1, 9)}
BASE = random_tensors(SHAPES, dtype=torch.float32)
TUNED = finetune(BASE)


def compressed(root: Path, tuned: Tensors, cr: float = 4, base: Tensors = BASE, **settings: object) -> Delta:
    folders = save_checkpoint(root / "base", base), save_checkpoint(root / "tuned", tuned)
    return compress(Store(root / "store"), *folders, config_of(cr, **settings))


def rebuilt(delta: Delta, root: Path) -> Tensors:
    reconstruct(delta, open_checkpoint(root / "base"), root / "out")
    return load_file(root / "out" / "model.safetensors")


def stored_bytes(delta: Delta) -> dict[str, int]:
    contents = [block.content for block in delta.blocks]
    return {name: e.bytes for made in contents if isinstance(made, BlockContent) for name, e in made.tensors.items()}


def rank_one(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    *stack, m, n = shape
    return torch.randn(*stack, m, 1, generator=generator) @ torch.randn(*stack, 1, n, generator=generator)


def assert_near(found: torch.Tensor, expected: torch.Tensor, base: torch.Tensor, within: float = 0.01) -> None:
    assert torch.dist(found, expected) <= within * torch.dist(base, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("policy", ["keep", "auto", "lowrank"])
def test_a_finetune_equal_to_its_base_is_an_artifact_of_nothing(method: str, policy: str, tmp_path: Path) -> None:
    delta = compressed(tmp_path, BASE, method=method, embeddings=policy, options=small_options(method))
    assert set(stored_bytes(delta).values()) == {0}
    assert delta.content.cr_projection is None
    found = rebuilt(delta, tmp_path)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "tuned/model.safetensors").read_bytes()
    assert all(torch.equal(found[name], BASE[name]) for name in BASE)


@pytest.mark.parametrize("method", METHODS)
def test_a_projection_that_did_not_change_costs_nothing_among_those_that_did(method: str, tmp_path: Path) -> None:
    delta = compressed(tmp_path, {**TUNED, UP: BASE[UP]}, method=method, options=small_options(method))
    sizes = stored_bytes(delta)
    assert sizes[UP] == 0
    assert min(sizes[name] for name in SHAPES if "_proj" in name and name != UP) > 0
    assert torch.equal(rebuilt(delta, tmp_path)[UP], BASE[UP])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("changed", [{0}, {3}, {1, 2}])
def test_experts_that_did_not_change_cost_nothing_among_those_that_did(
    method: str, changed: set[int], tmp_path: Path
) -> None:
    experts = torch.stack([(TUNED if index in changed else BASE)[EXPERTS][index] for index in range(4)])
    delta = compressed(tmp_path, {**BASE, EXPERTS: experts}, method=method, options=small_options(method))
    assert 0 < stored_bytes(delta)[EXPERTS] <= len(changed) * 2 * 32 * 48 / 4
    found = rebuilt(delta, tmp_path)[EXPERTS]
    assert {index for index in range(4) if not torch.equal(found[index], BASE[EXPERTS][index])} == changed


@pytest.mark.parametrize("method", ["impart", "lowrank"])
@pytest.mark.parametrize("cr", [1.5, 4, 8])
def test_a_delta_of_rank_one_comes_back(method: str, cr: float, tmp_path: Path) -> None:
    tuned = {name: BASE[name] + rank_one(*BASE[name].shape) for name in (UP, EXPERTS)}
    options = {"beta": 0.2} if method == "impart" else {}
    found = rebuilt(compressed(tmp_path, {**BASE, **tuned}, cr, method=method, options=options), tmp_path)
    for name, expected in tuned.items():
        assert_near(found[name], expected, BASE[name])


def test_a_delta_of_one_entry_comes_back_by_magnitude_and_by_rank(tmp_path: Path) -> None:
    tuned = BASE[UP].clone()
    tuned[7, 11] += 1
    for method in ("magnitude", "lowrank", "impart"):
        delta = compressed(tmp_path / method, {**BASE, UP: tuned}, method=method)
        assert_near(rebuilt(delta, tmp_path / method)[UP], tuned, BASE[UP])


def test_how_either_side_is_sharded_makes_no_difference(tmp_path: Path) -> None:
    stores = []
    for ours, theirs in ((10**9, 10**9), (9_000, 10**9), (10**9, 7_000), (5_000, 8_000)):
        root = tmp_path / f"{ours}-{theirs}"
        base = save_checkpoint(root / "base", BASE, max_shard_bytes=ours)
        tuned = save_checkpoint(root / "tuned", TUNED, max_shard_bytes=theirs)
        assert (len(list(base.glob("*.safetensors"))) > 1) == (ours < 10**9)
        delta = compress(Store(root / "store"), base, tuned, config_of(4))
        stores.append((delta.manifest.id, data_files(root / "store")))
        reconstruct(delta, open_checkpoint(base), root / "out")
    assert all(found == stores[0] for found in stores)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_shard_of_no_tensors_beside_others_is_nothing(indexed: bool, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "tuned", TUNED)
    one, two = (folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    (folder / "model.safetensors").rename(one)
    write_safetensors(two, [], TUNED.__getitem__, {})
    if indexed:
        (folder / SHARD_INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(TUNED, one.name)}))
    assert set(open_checkpoint(folder).tensors) == set(TUNED)
    base = save_checkpoint(tmp_path / "base", TUNED)
    delta = compress(Store(tmp_path / "store"), base, folder, config_of(4))
    assert set(stored_bytes(delta).values()) == {0}


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_shard_that_was_cut_short_is_refused_by_name(left: int, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, TUNED, max_shard_bytes=9_000)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=shard.name):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", [UP, EXPERTS, "scale", "row.weight", "model.embed_tokens.weight", "model.norm.weight"])
@pytest.mark.parametrize("side", ["base", "fine-tuned"])
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_what_is_no_number_is_refused_whatever_holds_it(name: str, side: str, value: float, tmp_path: Path) -> None:
    sides = {"base": dict(BASE), "fine-tuned": dict(TUNED)}
    broken = sides[side][name].clone()
    broken.view(-1)[-1] = value
    sides[side][name] = broken
    with pytest.raises(TensorValueError, match=f"'{name}.*of the {side} checkpoint holds NaN or infinity"):
        compressed(tmp_path, sides["fine-tuned"], base=sides["base"])
