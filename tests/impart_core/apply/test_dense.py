"""Reconstruction: bit-identical, checked before it is begun, readable by everyone."""

import json
import shutil
import uuid
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from impart_core.apply.dense import reconstruct
from impart_core.apply.reader import require_base
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CheckpointError, CorruptArtifactError, OutputExistsError, WrongBaseError
from impart_core.checkpoint.digest import checkpoint_id, tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_core.codec.format import BlockFile
from impart_core.codec.mask import keep_probability, mask_from_words, mask_key, mask_words
from impart_core.methods import METHODS
from impart_core.store.store import Store
from impart_core.store.verify import verify_store
from tests.impart_core.mixture import EMBEDDING, EXPERTS, HEAD, SAME, base_tensors, finetuned_tensors, save_mixture
from tests.impart_core.pipeline import compress, config_of, flip, small_options, stored_path
from tests.support import llama_shapes, random_tensors, save_checkpoint

Pair = tuple[Path, Path]
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def delta(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Delta:
    return compress(Store(tmp_path_factory.mktemp("dense") / "store"), *pair, config_of(2))


def rebuilt(delta: Delta, base: Path, out: Path, **options: int) -> dict[str, torch.Tensor]:
    reconstruct(delta, open_checkpoint(base), out, **options)  # type: ignore[arg-type]
    return {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_reconstruction_is_bit_for_bit_the_same_each_time(delta: Delta, pair: Pair, tmp_path: Path) -> None:
    for out in ("one", "two"):
        reconstruct(delta, open_checkpoint(pair[0]), tmp_path / out)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["config.json", "model.safetensors"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_it_has_the_finetunes_tensors_dtypes_and_shapes(delta: Delta, pair: Pair, tmp_path: Path) -> None:
    found, expected = rebuilt(delta, pair[0], tmp_path / "out"), load_file(pair[1] / "model.safetensors")
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {k: (v.dtype, v.shape) for k, v in expected.items()}


def test_what_is_kept_at_16_bits_comes_back_to_the_rounding_of_16_bits(
    delta: Delta, pair: Pair, tmp_path: Path
) -> None:
    base, expected = (load_file(folder / "model.safetensors") for folder in pair)
    for name, found in rebuilt(delta, pair[0], tmp_path / "out").items():
        if "_proj" not in name:
            # The delta is rounded to float16, 2⁻¹¹ of it, and the sum to bfloat16, 2⁻⁸ of that.
            rounding = 2**-11 * (expected[name].float() - base[name].float()).abs() + 2**-8 * found.float().abs()
            assert bool(((found.float() - expected[name].float()).abs() <= rounding).all())


def test_a_projection_is_the_base_plus_the_papers_formula_in_float64(delta: Delta, pair: Pair, tmp_path: Path) -> None:
    codes = BlockFile(stored_path(delta)).codes(UP)
    keep = codes["keep"].numpy()
    total = torch.zeros(48, 32, dtype=torch.float64)
    factors = []
    for role, rows in (("u", 48), ("v", 32)):
        mask = torch.from_numpy(mask_from_words(mask_words(mask_key(0, UP, role), rows, len(keep)), keep))
        dense = torch.zeros(len(keep), rows, dtype=torch.float64)
        dense[mask] = codes[role].double()
        factors.append(dense / torch.from_numpy(keep_probability(keep))[:, None])
    for sigma, u, v in zip(codes["sigma"].double(), *factors, strict=True):
        total += sigma * torch.outer(u, v)
    expected = load_file(pair[0] / "model.safetensors")[UP].double() + total
    found = rebuilt(delta, pair[0], tmp_path / "out")[UP]
    # One cast to bfloat16: half a unit in the last place, 2⁻⁸ relative, and float32 rounding of the sums before it.
    torch.testing.assert_close(found.double(), expected, rtol=2**-8 + 1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_projection_is_the_base_plus_what_its_method_decodes(method: str, pair: Pair, tmp_path: Path) -> None:
    made = compress(
        Store(tmp_path / "store"), *pair, config_of(4, method=method, seed=3, options=small_options(method))
    )
    decoded = METHODS.get(method).decode(BlockFile(stored_path(made)).codes(UP), UP, (48, 32), 3)
    expected = load_file(pair[0] / "model.safetensors")[UP].float() + decoded
    assert torch.equal(rebuilt(made, pair[0], tmp_path / "out")[UP], expected.bfloat16())


def test_more_bytes_bring_it_nearer_to_the_finetune(pair: Pair, tmp_path: Path) -> None:
    expected = load_file(pair[1] / "model.safetensors")
    errors = []
    for cr in (1.5, 3, 6):
        made = compress(Store(tmp_path / "store"), *pair, config_of(cr, options={"c": 0.0}))
        found = rebuilt(made, pair[0], tmp_path / f"out{cr}")
        errors.append(sum(float((found[name].float() - expected[name].float()).norm()) for name in expected))
    assert errors == sorted(errors)
    assert errors[0] < errors[2]


def test_shards_are_readable_and_equal_to_the_single_file(delta: Delta, pair: Pair, tmp_path: Path) -> None:
    single = rebuilt(delta, pair[0], tmp_path / "single")
    sharded = rebuilt(delta, pair[0], tmp_path / "sharded", max_shard_bytes=6000)
    files = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 2
    assert all(torch.equal(sharded[name], single[name]) for name in single)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in single.values())
    assert set(index["weight_map"]) == set(single) == set(open_checkpoint(tmp_path / "sharded").tensors)


def test_the_bases_sharding_and_the_stores_kind_change_no_bit(delta: Delta, pair: Pair, tmp_path: Path) -> None:
    tensors = load_file(pair[0] / "model.safetensors")
    base = save_checkpoint(tmp_path / "base", tensors, max_shard_bytes=5000)
    remote = compress(Store(f"memory://{uuid.uuid4().hex}"), *pair, config_of(2))
    one, two = rebuilt(delta, pair[0], tmp_path / "one"), rebuilt(remote, base, tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_base_is_refused_with_the_first_tensor_that_differs(delta: Delta, pair: Pair, tmp_path: Path) -> None:
    tensors = load_file(pair[0] / "model.safetensors")
    tensors[UP] = tensors[UP] + 1
    other = open_checkpoint(save_checkpoint(tmp_path / "other", tensors))
    with pytest.raises(WrongBaseError, match=f"1 of 21 tensors differ, first '{UP}'"):
        reconstruct(delta, other, tmp_path / "out")
    with pytest.raises(WrongBaseError, match="21 of 21 tensors differ"):
        require_base(delta, open_checkpoint(pair[1]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_damaged_file_is_refused_by_name_before_anything_is_written(
    position: int, pair: Pair, tmp_path: Path
) -> None:
    made = compress(Store(tmp_path / "store"), *pair, config_of(2))
    flip(stored_path(made, 2), position)
    with pytest.raises(CorruptArtifactError, match=stored_path(made, 2).name):
        reconstruct(made, open_checkpoint(pair[0]), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_folder_with_files_is_refused_and_kept(delta: Delta, pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("old", "config.json", "model.safetensors"):
        (out / name).write_text("x")
    with pytest.raises(OutputExistsError, match="already holds files"):
        reconstruct(delta, open_checkpoint(pair[0]), out)
    assert (out / "old").exists()
    reconstruct(delta, open_checkpoint(pair[0]), out, overwrite=True)
    assert not (out / "old").exists()


def test_neither_store_nor_base_is_overwritten(delta: Delta, pair: Pair, tmp_path: Path) -> None:
    store = Path(delta.store.url)
    for place in (store, store.parent, store / "artifacts"):
        for name in ("config.json", "model.safetensors"):  # as a model has them
            (place / name).write_text("{}")
    base = tmp_path / "models" / "base"
    shutil.copytree(pair[0], base)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "models" / name).write_text("{}")
    for out in (store, store.parent, store / "artifacts", store / "new", base, base.parent):
        with pytest.raises(OutputExistsError, match=r"the store|the base"):
            reconstruct(delta, open_checkpoint(base), out, overwrite=True)
    assert verify_store(delta.store).faults == ()
    assert checkpoint_id(tensor_digests(open_checkpoint(base))) == delta.content.base


def test_it_reports_every_tensor_and_the_bytes_of_the_weights(delta: Delta, pair: Pair, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    written = reconstruct(
        delta, open_checkpoint(pair[0]), tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(number, 21) for number in range(1, 22)]
    tensors = load_file(tmp_path / "out" / "model.safetensors").values()
    assert written == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def carried(pair: Pair, root: Path) -> tuple[Delta, Path]:
    """Compress a fine-tune with a config of its own and a tokenizer that it shares with its base."""
    folders = []
    for side, folder in zip(("base", "finetuned"), pair, strict=True):
        tensors = load_file(folder / "model.safetensors")
        folders.append(save_checkpoint(root / side, tensors, {"note": side}))
        (folders[-1] / "tokenizer.json").write_text("shared")
    (folders[1] / "chat_template.jinja").write_text("own")
    return compress(Store(root / "store"), *folders, config_of(2)), folders[0]


def test_configuration_and_tokenizer_files_come_back_as_they_were(pair: Pair, tmp_path: Path) -> None:
    made, base = carried(pair, tmp_path)
    reconstruct(made, open_checkpoint(base), tmp_path / "out")
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "finetuned" / name).read_bytes()


def test_a_shared_file_that_the_base_lost_or_changed_is_refused(pair: Pair, tmp_path: Path) -> None:
    made, base = carried(pair, tmp_path)
    (base / "tokenizer.json").write_text("changed")
    with pytest.raises(WrongBaseError, match=r"tokenizer\.json is not the file"):
        reconstruct(made, open_checkpoint(base), tmp_path / "out")
    (base / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        reconstruct(made, open_checkpoint(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def odd_tensors() -> dict[str, torch.Tensor]:
    """Tensors of every kind that is no ordinary projection."""
    return {
        "model.layers.0.q_proj.weight": torch.randn(12, 20, generator=torch.Generator().manual_seed(0)),
        "model.layers.0.row.weight": torch.randn(1, 8),
        "model.layers.0.column.weight": torch.randn(8, 1),
        "model.layers.0.conv.weight": torch.randn(3, 4, 2),
        "model.layers.0.scale": torch.tensor(0.5),
        "model.layers.0.empty": torch.empty(0, 6),
        "model.layers.0.positions": torch.arange(9),
        "model.layers.0.flags": torch.tensor([True, False]),
        "model.layers.0.q_proj.bias": torch.randn(12),
        "model.layers.0.wide": torch.randn(5, dtype=torch.float64),
        "counter": torch.tensor([3], dtype=torch.int32),
        "unchanged": torch.randn(4, 4),
    }


def test_tensors_of_every_kind_survive_the_round_trip(tmp_path: Path) -> None:
    base = odd_tensors()
    tuned = {name: tensor + 1 if tensor.dtype != torch.bool else ~tensor for name, tensor in base.items()}
    tuned["unchanged"] = base["unchanged"]
    folders = save_checkpoint(tmp_path / "base", base), save_checkpoint(tmp_path / "tuned", tuned)
    delta = compress(Store(tmp_path / "store"), *folders, config_of(1.5))
    found = rebuilt(delta, folders[0], tmp_path / "out")
    assert set(found) == set(tuned)
    for name, tensor in tuned.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        # A delta of 1 is exact at 16 bits; the matrix of ones has rank 1, its vectors rounded to 2⁻¹¹ each.
        tolerance = 2**-10 if name.endswith("q_proj.weight") else 1e-6
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance if tensor.is_floating_point() else 0)


def test_a_finetune_in_another_dtype_comes_back_in_its_own(tmp_path: Path) -> None:
    base = random_tensors(llama_shapes(layers=1))
    tuned = {name: tensor.float() for name, tensor in base.items()}
    tuned["model.norm.weight"] = tuned["model.norm.weight"] + 0.25
    folders = save_checkpoint(tmp_path / "base", base), save_checkpoint(tmp_path / "tuned", tuned)
    found = rebuilt(compress(Store(tmp_path / "store"), *folders, config_of(2)), folders[0], tmp_path / "out")
    assert all(torch.equal(found[name], tuned[name]) for name in tuned)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_stacks_added_rows_and_heads_against_an_embedding_are_rebuilt(method: str, tmp_path: Path) -> None:
    folders, settings = save_mixture(tmp_path), {"method": method, "embeddings": method, "embeddings_cr": 3}
    config = config_of(4, options=small_options(method), **settings)
    made = compress(Store(tmp_path / "store"), *folders, config)
    base, expected = base_tensors(), finetuned_tensors()
    found = rebuilt(made, folders[0], tmp_path / "out")
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {k: (v.dtype, v.shape) for k, v in expected.items()}
    assert torch.equal(found[EXPERTS][SAME], base[EXPERTS][SAME])
    for name in (HEAD, EMBEDDING):
        assert torch.equal(found[name][40:], expected[name][40:])
    blocks = BlockFile(stored_path(made)), BlockFile(stored_path(made, 1))
    decode = METHODS.get(method).decode
    second = decode(blocks[0].codes(EXPERTS, "2."), f"{EXPERTS}[2]", (24, 32), 0)
    assert torch.equal(found[EXPERTS][2], (base[EXPERTS][2].float() + second).bfloat16())
    head = {part: code for part, code in blocks[1].codes(HEAD).items() if part != "added"}
    assert torch.equal(found[HEAD][:40], (base[EMBEDDING].float() + decode(head, HEAD, (40, 32), 0)).bfloat16())


def test_the_embedding_of_a_fine_tune_that_changed_few_rows_comes_back_exactly(tmp_path: Path) -> None:
    folders, expected = save_mixture(tmp_path), finetuned_tensors()
    made = compress(Store(tmp_path / "store"), *folders, config_of(4))
    header = BlockFile(stored_path(made, 1)).headers[EMBEDDING]
    assert (header.method, header.parts) == ("rows", ("added", "exponent", "rows", "values"))
    assert torch.equal(rebuilt(made, folders[0], tmp_path / "out")[EMBEDDING], expected[EMBEDDING])
