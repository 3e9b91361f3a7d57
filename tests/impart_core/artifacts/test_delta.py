"""Deltas as artifacts: blocks on their own, one manifest over them, every ratio read from files."""

import math
import re
import uuid
from pathlib import Path

import pytest
from safetensors.torch import load_file

from impart_core.apply.reader import open_reader
from impart_core.artifacts.block import BlockContent, block_recipe
from impart_core.artifacts.delta import Delta, delta_recipe, examine_delta, open_delta
from impart_core.base.errors import ArtifactNotFoundError, ConfigError
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_core.engine.plan import check_request
from impart_core.store.store import Store
from impart_core.store.verify import verify
from tests.impart_core.pipeline import compress, config_of, stored_path
from tests.impart_core.store.samples import sample
from tests.support import finetune, llama_shapes, random_tensors, save_checkpoint

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def delta(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Delta:
    return compress(Store(tmp_path_factory.mktemp("delta") / "store"), *pair, config_of(4))


def test_a_delta_points_to_one_block_for_each_layer_and_one_for_the_rest(delta: Delta) -> None:
    names = [pointer.name for pointer in delta.content.blocks]
    assert names == ["model.layers.0", "model.layers.1", "outside"]
    assert [block.id for block in delta.blocks] == list(delta.manifest.parents)


def test_the_projection_ratio_is_that_of_the_bytes_in_the_files(delta: Delta) -> None:
    dense = stored = 0
    for number in range(2):
        for name, code in load_file(stored_path(delta, number)).items():
            if "_proj.weight:" in name:
                stored += code.numel() * code.element_size()
    for name, shape in llama_shapes().items():
        dense += 2 * math.prod(shape) if "_proj" in name else 0
    assert (delta.content.projection_bytes, delta.content.projection_dense_bytes) == (stored, dense)
    assert delta.content.cr_projection == dense / stored >= 4


def test_the_model_ratio_counts_every_byte_in_the_store_against_every_byte_of_the_checkpoint(
    delta: Delta, pair: Pair
) -> None:
    stored = sum(path.stat().st_size for path in Path(delta.store.url).rglob("*") if path.is_file())
    checkpoint = sum(path.stat().st_size for path in pair[1].iterdir())
    assert delta.bytes == stored
    assert delta.cr_model == checkpoint / stored


def test_the_same_request_gives_the_same_files_and_ids_anywhere(pair: Pair, delta: Delta, tmp_path: Path) -> None:
    again = compress(Store(tmp_path / "store"), *pair, config_of(4))
    assert again.manifest.id == delta.manifest.id
    for ours, theirs in zip((again.manifest, *again.blocks), (delta.manifest, *delta.blocks), strict=True):
        assert (ours.id, ours.files, ours.content.kind) == (theirs.id, theirs.files, theirs.content.kind)


@pytest.mark.parametrize(
    "settings",
    [
        {"cr": 5},
        {"seed": 1},
        {"accounting": "paper"},
        {"options": {"beta": 0.5}},
        {"options": {"c": 0.5}},
        {"options": {"preprune": False}},
        {"options": {"allocation": "uniform"}},
        {"options": {"rescale": False}},
    ],
)
def test_every_setting_changes_the_ids_of_layers_but_not_of_the_rest(settings: dict[str, object], pair: Pair) -> None:
    base, finetuned = map(open_checkpoint, pair)
    digests = tensor_digests(base), tensor_digests(finetuned)
    one, other = config_of(4), config_of(**{"cr": 4, **settings})  # type: ignore[arg-type]
    work = check_request(base, finetuned, one)
    changed = [
        block_recipe(work.pairs, block, one, digests).id != block_recipe(work.pairs, block, other, digests).id
        for block in work.blocks
    ]
    assert changed == [True, True, False]
    ids = {delta_recipe(base, finetuned, config, digests).id for config in (one, other)}
    assert len(ids) == 2


def test_a_changed_tensor_changes_its_own_blocks_id_only(pair: Pair) -> None:
    base, finetuned = map(open_checkpoint, pair)
    digests = tensor_digests(base), tensor_digests(finetuned)
    changed = {**digests[1], "model.layers.1.mlp.up_proj.weight": "0" * 64}

    def ids(theirs: dict[str, str]) -> list[str]:
        work = check_request(base, finetuned, config_of(4))
        return [block_recipe(work.pairs, block, config_of(4), (digests[0], theirs)).id for block in work.blocks]

    assert [one != two for one, two in zip(ids(digests[1]), ids(changed), strict=True)] == [False, True, False]


def test_a_carried_file_that_differs_is_stored_and_changes_the_deltas_id(pair: Pair, tmp_path: Path) -> None:
    base, finetuned = map(open_checkpoint, pair)
    digests = tensor_digests(base), tensor_digests(finetuned)
    tensors = load_file(pair[1] / "model.safetensors")
    other = save_checkpoint(tmp_path / "other", tensors, {"rope_theta": 5})
    delta = compress(Store(tmp_path / "store"), pair[0], other, config_of(4))
    assert [entry.name for entry in delta.manifest.files] == ["config.json"]
    assert delta.manifest.id != delta_recipe(base, finetuned, config_of(4), digests).id


def test_nothing_is_stored_of_files_that_the_base_has_too(delta: Delta) -> None:
    assert delta.manifest.files == ()
    assert set(delta.content.carried) == {"config.json"}


def test_blocks_open_by_tensor_and_say_what_their_manifests_say(delta: Delta) -> None:
    with open_reader(delta) as reader:
        files = reader.blocks
        assert set(files) == set(llama_shapes())
        for block in delta.blocks:
            assert isinstance(block.content, BlockContent)
            for name, entry in block.content.tensors.items():
                assert files[name].code_bytes([name]) == entry.bytes
                assert files[name].headers[name].shape == entry.shape == llama_shapes()[name]


def test_the_digests_of_the_base_are_those_of_all_its_tensors(delta: Delta, pair: Pair) -> None:
    assert delta.base_digests() == tensor_digests(open_checkpoint(pair[0]))


def test_an_equal_finetune_gives_a_delta_of_nothing(tmp_path: Path) -> None:
    tensors = random_tensors(llama_shapes())
    base, same = save_checkpoint(tmp_path / "base", tensors), save_checkpoint(tmp_path / "same", tensors)
    delta = compress(Store(tmp_path / "store"), base, same, config_of(4))
    assert delta.content.cr_projection is None
    assert delta.content.projection_bytes == 0
    for block in delta.blocks:
        assert isinstance(block.content, BlockContent)
        assert {(entry.method, entry.bytes) for entry in block.content.tensors.values()} == {("omitted", 0)}


def test_a_delta_works_in_a_store_that_is_no_folder(pair: Pair, delta: Delta) -> None:
    remote = compress(Store(f"memory://{uuid.uuid4().hex}"), *pair, config_of(4))
    assert remote.manifest.id == delta.manifest.id
    assert [block.files for block in remote.blocks] == [block.files for block in delta.blocks]
    with open_reader(remote) as reader:
        assert set(reader.blocks) == set(llama_shapes())


def test_a_delta_is_whole_only_while_every_block_is(pair: Pair, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = compress(store, *pair, config_of(4))
    found = examine_delta(store, made.manifest.id).delta
    assert found is not None
    assert found.blocks == made.blocks
    stored_path(made, 1).write_bytes(b"short")
    assert examine_delta(store, made.manifest.id).delta is None
    assert compress(store, *pair, config_of(4)).manifest.id == made.manifest.id
    assert examine_delta(store, made.manifest.id).delta is not None
    (tmp_path / "store" / "artifacts" / made.blocks[0].id / "manifest.json").unlink()
    assert examine_delta(store, made.manifest.id).delta is None
    short = made.manifest.id[:12]
    lacking = (
        f"{short} lacks a part: There is no artifact {made.blocks[0].id[:12]} .* Make it again with the same settings"
    )
    with pytest.raises(ArtifactNotFoundError, match=lacking):
        open_delta(store, made.manifest.id)
    (fault,) = verify(store, made.manifest.id).faults
    assert re.match(lacking, fault)


def test_only_a_delta_opens_as_one(delta: Delta, tmp_path: Path) -> None:
    evaluation = delta.store.publish(*sample(tmp_path / "scratch"))
    for artifact_id, kind in ((evaluation.id, "evaluation"), (delta.blocks[0].id, "block")):
        with pytest.raises(ConfigError, match=f"is of kind {kind}, not a compressed delta"):
            open_delta(delta.store, artifact_id)
        assert examine_delta(delta.store, artifact_id).delta is None


def test_another_finetune_of_the_same_base_shares_only_what_is_equal(pair: Pair, delta: Delta, tmp_path: Path) -> None:
    base = load_file(pair[0] / "model.safetensors")
    mixed = {
        **finetune(base, seed=2),
        **{k: v for k, v in load_file(pair[1] / "model.safetensors").items() if ".0." in k},
    }
    other = compress(Store(tmp_path / "store"), pair[0], save_checkpoint(tmp_path / "mixed", mixed), config_of(4))
    shared = [ours.id == theirs.id for ours, theirs in zip(other.blocks, delta.blocks, strict=True)]
    assert shared == [True, False, False]
