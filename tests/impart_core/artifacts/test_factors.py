"""Factors as artifacts: made once for every request that they serve, and never trusted when damaged."""

import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from impart_core.artifacts import factors as module
from impart_core.artifacts.delta import Delta
from impart_core.artifacts.factors import (
    FACTORS_FILE,
    FactorsContent,
    FactorsEntry,
    factors_recipe,
    publish_factors,
    stored_factors,
)
from impart_core.blocks.decompose import decompose_block
from impart_core.blocks.encode import Encoder
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.header import TensorInfo
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import group_blocks
from impart_core.checkpoint.pairing import Pair, pair_tensors
from impart_core.checkpoint.reader import read_tensor
from impart_core.delta.factors import Factors
from impart_core.store.manifest import Manifest
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import Found, Store
from impart_core.store.verify import verify
from tests.impart_core.mixture import EXPERTS, HEAD, Q, open_mixture, save_mixture
from tests.impart_core.pipeline import compress, config_of, flip
from tests.support import data_files, decaying_delta, make_pair, save_checkpoint


def examined(store: Store, artifact: str) -> Found:
    """Look for factors as a run does."""
    return store.examine(artifact, reread=True, kind=FactorsContent)


Digests = tuple[dict[str, str], dict[str, str]]
MATRICES = {Q, f"{EXPERTS}[0]", f"{EXPERTS}[2]"}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Pair], Digests]:
    base, finetuned = open_mixture(tmp_path_factory.mktemp("mixture"))
    return pair_tensors(base, finetuned), (tensor_digests(base), tensor_digests(finetuned))


def recipe_of(mixture: tuple[dict[str, Pair], Digests], cr: float = 8, block: int = 0, **settings: Any) -> Recipe:
    pairs, digests = mixture
    found = factors_recipe(pairs, group_blocks(pairs)[block], config_of(cr, **settings), digests)
    assert found is not None
    return found


def published(store: Store, mixture: tuple[dict[str, Pair], Digests], **settings: Any) -> Manifest:
    """Decompose the layer and publish its factors."""
    pairs, digests = mixture
    layer, config = group_blocks(pairs)[0], config_of(**{"cr": 8, **settings})
    made = decompose_block(pairs, layer, config, digests=digests)
    return publish_factors(store, recipe_of(mixture, **settings), layer.name, made, Stopwatch())


def path_of(store: Store, manifest: Manifest, name: str = FACTORS_FILE) -> Path:
    file = manifest.file(name).path if name == FACTORS_FILE else name
    return Path(store.url) / "artifacts" / manifest.id / file


SHARED: list[dict[str, Any]] = [
    {"cr": 4},
    {"cr": 12},
    {"seed": 3},
    {"accounting": "paper"},
    {"method": "lowrank"},
    {"options": {"beta": 0.8}},
    {"options": {"c": 0.5}},
    {"options": {"rescale": False}},
    {"embeddings": "lowrank"},
    {"factors_for": 4},
]
OTHERS: list[dict[str, Any]] = [{"cr": 3}, {"factors_for": 8}, {"options": {"beta": 0.5}}, {"options": {"c": 2.0}}]


@pytest.mark.parametrize("settings", SHARED, ids=str)
def test_requests_of_one_depth_share_their_factors(
    settings: dict[str, Any], mixture: tuple[dict[str, Pair], Digests]
) -> None:
    assert recipe_of(mixture, **settings) == recipe_of(mixture)


@pytest.mark.parametrize("settings", OTHERS, ids=str)
def test_another_depth_has_factors_of_its_own(
    settings: dict[str, Any], mixture: tuple[dict[str, Pair], Digests]
) -> None:
    assert recipe_of(mixture, **settings).id != recipe_of(mixture).id


@pytest.mark.parametrize("side", [0, 1])
def test_another_content_of_a_decomposed_tensor_has_too_and_that_of_any_other_tensor_has_not(
    side: int, mixture: tuple[dict[str, Pair], Digests]
) -> None:
    pairs, digests = mixture
    for name in pairs:
        changed: Any = [dict(digests[0]), dict(digests[1])]
        if name in changed[side]:
            changed[side][name] = "0" * 64
            same = recipe_of((pairs, tuple(changed))).id == recipe_of(mixture).id  # type: ignore[arg-type]
            assert same == (name not in (Q, EXPERTS))


def test_embeddings_are_decomposed_with_their_own_depth_where_they_are_coded(
    mixture: tuple[dict[str, Pair], Digests],
) -> None:
    recipe = recipe_of(mixture, block=1, embeddings="impart", embeddings_cr=2)
    assert recipe.config["lowest_cr"] == {"lm_head.weight": 2.0, "model.embed_tokens.weight": 2.0}
    recipe = recipe_of(mixture, block=1, embeddings="impart", embeddings_cr=1.9)
    assert recipe.config["lowest_cr"] == {"lm_head.weight": None, "model.embed_tokens.weight": None}
    # The head is a delta against the embedding that the base ties it to.
    assert set(recipe.inputs["base"]) == {"model.embed_tokens.weight"}
    assert HEAD in recipe.inputs["finetuned"]


@pytest.mark.parametrize(("method", "block"), [("dare", 0), ("magnitude", 0), ("impart", 1)])
def test_where_nothing_is_decomposed_there_are_no_factors(
    method: str, block: int, mixture: tuple[dict[str, Pair], Digests]
) -> None:
    pairs, digests = mixture
    assert factors_recipe(pairs, group_blocks(pairs)[block], config_of(8, method=method), digests) is None


def test_the_manifest_lists_each_matrix_with_its_rank_its_route_and_its_fallbacks(
    mixture: tuple[dict[str, Pair], Digests], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    manifest = published(store, mixture)
    assert isinstance(manifest.content, FactorsContent)
    assert manifest.content.name == "model.layers.0"
    assert manifest.content.matrices.keys() == MATRICES
    stored = load_file(path_of(store, manifest))
    assert stored.keys() == {f"{name}:{part}" for name in MATRICES for part in ("u", "sigma", "v")}
    for name, entry in manifest.content.matrices.items():
        shape, rank = (32, 32) if name == Q else (24, 32), len(stored[f"{name}:sigma"])
        nbytes = sum(stored[f"{name}:{part}"].nbytes for part in ("u", "sigma", "v"))
        assert entry == FactorsEntry(shape=shape, rank=rank, route="exact", fallbacks=0, bytes=nbytes)
        assert 0 < rank < 24
        assert nbytes == rank * (2 * sum(shape) + 4)


def test_it_tells_how_often_a_quick_route_did_not_hold(
    mixture: tuple[dict[str, Pair], Digests], tmp_path: Path
) -> None:
    made = {"a": Factors(torch.ones(2, 3).half(), torch.ones(2), torch.ones(2, 4).half(), "gram", 1)}
    manifest = publish_factors(Store(tmp_path), recipe_of(mixture), "b", made, Stopwatch())
    assert isinstance(manifest.content, FactorsContent)
    assert (manifest.content.matrices["a"].route, manifest.content.matrices["a"].fallbacks) == ("gram", 1)


def test_factors_of_a_block_in_which_nothing_changed_are_an_empty_artifact(tmp_path: Path) -> None:
    tensors = {Q: decaying_delta(32, 32)}
    base, same = (open_checkpoint(save_checkpoint(tmp_path / side, tensors)) for side in ("base", "same"))
    mixture = pair_tensors(base, same), (tensor_digests(base), tensor_digests(same))
    manifest = published(Store(tmp_path / "store"), mixture)
    assert isinstance(manifest.content, FactorsContent)
    assert manifest.content.matrices == {}
    assert examined(Store(tmp_path / "store"), manifest.id).manifest == manifest


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_factors_come_back_bit_for_bit(place: str, mixture: tuple[dict[str, Pair], Digests], tmp_path: Path) -> None:
    store = Store(tmp_path if place == "folder" else f"memory://{uuid.uuid4().hex}")
    manifest, pairs = published(store, mixture), mixture[0]
    expected = decompose_block(pairs, group_blocks(pairs)[0], config_of(8))
    with stored_factors(store, manifest.id) as stored:
        for name, factors in expected.items():
            found = stored(name)
            assert found is not None
            assert all(torch.equal(getattr(found, part), getattr(factors, part)) for part in ("u", "sigma", "v"))
            assert (found.u.dtype, found.sigma.dtype) == (torch.float16, torch.float32)
            assert (found.route, found.fallbacks) == (factors.route, factors.fallbacks)
        assert stored("another") is None


def test_where_there_are_none_none_are_given(tmp_path: Path) -> None:
    for artifact in (None, "0" * 64):
        with stored_factors(Store(tmp_path), artifact) as stored:
            assert stored is None
    assert examined(Store(tmp_path), "0" * 64).manifest is None


def test_an_artifact_of_another_kind_is_none(pair: tuple[Path, Path], tmp_path: Path) -> None:
    delta = compress(Store(tmp_path), *pair, config_of(4))
    for artifact in (delta.manifest.id, delta.blocks[0].id):
        assert examined(delta.store, artifact).manifest is None
        with stored_factors(delta.store, artifact) as stored:
            assert stored is None


def test_they_are_published_once(mixture: tuple[dict[str, Pair], Digests], tmp_path: Path) -> None:
    first = published(Store(tmp_path), mixture)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = published(Store(tmp_path), mixture, cr=12, seed=4)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


DAMAGES = ("flipped byte", "cut short", "missing", "manifest altered", "manifest missing")


def damage(how: str, store: Store, manifest: Manifest) -> None:
    file, listed = path_of(store, manifest), path_of(store, manifest, "manifest.json")
    if how == "flipped byte":
        flip(file, file.stat().st_size // 2)
    elif how == "cut short":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "missing":
        file.unlink()
    elif how == "manifest altered":
        flip(listed, listed.stat().st_size // 2)
    else:
        listed.unlink()


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_factors_are_never_used_and_the_next_decomposition_replaces_them(
    how: str, mixture: tuple[dict[str, Pair], Digests], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    manifest = published(store, mixture)
    whole = data_files(tmp_path)
    damage(how, store, manifest)
    assert examined(store, manifest.id).manifest is None
    with stored_factors(store, manifest.id) as stored:
        assert stored is None
    repaired = published(store, mixture)
    assert examined(store, manifest.id).manifest == repaired
    assert (repaired.files, repaired.content) == (manifest.files, manifest.content)
    assert data_files(tmp_path) == whole


def test_a_repair_that_comes_out_otherwise_is_what_is_used_from_then_on(
    mixture: tuple[dict[str, Pair], Digests], tmp_path: Path
) -> None:
    store, pairs = Store(tmp_path), mixture[0]
    manifest, layer = published(store, mixture), group_blocks(pairs)[0]
    damage("flipped byte", store, manifest)
    elsewhere = decompose_block(pairs, layer, config_of(8))
    elsewhere[Q].u[0, 0] += 0.001  # as another machine's last bits may differ
    repaired = publish_factors(store, recipe_of(mixture), layer.name, elsewhere, Stopwatch())
    assert repaired.files != manifest.files
    assert examined(store, manifest.id).manifest == repaired
    with stored_factors(store, manifest.id) as stored:
        found = stored(Q)
    assert found is not None
    assert torch.equal(found.u, elsewhere[Q].u)


def test_whole_factors_stay_in_force_when_others_are_published(
    mixture: tuple[dict[str, Pair], Digests], tmp_path: Path
) -> None:
    store, pairs = Store(tmp_path), mixture[0]
    manifest, layer = published(store, mixture), group_blocks(pairs)[0]
    before = data_files(tmp_path)
    late = decompose_block(pairs, layer, config_of(8))
    late[Q].u[0, 0] += 0.001
    assert publish_factors(store, recipe_of(mixture), layer.name, late, Stopwatch()) == manifest
    assert data_files(tmp_path) == before


def lying(store: Store, manifest: Manifest, matrices: dict[str, FactorsEntry]) -> None:
    """Overwrite a manifest with one that is sealed as it should be and lists other factors than its file holds."""
    content = FactorsContent(name="model.layers.0", matrices=matrices)
    other = Manifest.make(manifest.recipe, files=manifest.files, content=content, provenance=manifest.provenance)
    path_of(store, manifest, "manifest.json").write_bytes(other.to_json())


@pytest.mark.parametrize("lie", [{"rank": 1}, {"shape": (32, 31)}, "another matrix"], ids=str)
def test_a_manifest_that_lists_what_its_file_does_not_hold_is_not_used_and_is_a_fault(
    lie: Any, mixture: tuple[dict[str, Pair], Digests], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    manifest = published(store, mixture)
    assert isinstance(manifest.content, FactorsContent)
    entries = dict(manifest.content.matrices)
    changed = {"other": entries[Q]} if lie == "another matrix" else {Q: entries[Q].model_copy(update=lie)}
    lying(store, manifest, {**entries, **changed})
    with stored_factors(store, manifest.id) as stored:
        assert stored is None
    (fault,) = verify(store, manifest.id).faults
    assert manifest.file(FACTORS_FILE).path in fault


def codes_of(delta: Delta) -> dict[str, str]:
    """Return the digest of each block's codes."""
    return {block.id: block.files[0].sha256 for block in delta.blocks}


@pytest.mark.parametrize("method", ["impart", "lowrank"])
@pytest.mark.parametrize("settings", [{}, {"embeddings": "impart", "embeddings_cr": 6}, {"cr": 2}], ids=str)
def test_compressing_from_stored_factors_gives_the_same_bytes_as_without(
    method: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folders = config_of(**{"cr": 8, "method": method, **settings}), save_mixture(tmp_path)
    without = compress(Store(tmp_path / "without"), *folders, config)
    with_them = compress(Store(tmp_path / "with"), *folders, config, keep_factors=True)
    assert with_them.manifest.id == without.manifest.id
    assert codes_of(with_them) == codes_of(without)

    def refuse(*_: object) -> Factors:
        pytest.fail("it was decomposed again")

    monkeypatch.setattr("impart_core.blocks.encode.factors_of", refuse)
    for cr in (8, 9):
        again = config.model_copy(update={"cr": cr}) if config.cr >= 4 else config
        compress(Store(tmp_path / "with"), *folders, again, keep_factors=True)


def test_projections_whose_factors_are_stored_are_not_read_again(
    mixture: tuple[dict[str, Pair], Digests], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, digests = mixture
    store, read = Store(tmp_path), []
    manifest = published(store, mixture)

    def recorded(info: TensorInfo, digest: str | None = None) -> torch.Tensor:
        read.append(info.name)
        return read_tensor(info, digest)

    monkeypatch.setattr("impart_core.delta.load.read_tensor", recorded)
    with stored_factors(store, manifest.id) as stored:
        made = Encoder(config_of(9), stored, digests=digests).block(pairs, group_blocks(pairs)[0])
    assert {name for name, item in made.items() if item.header.method == "impart"} == {Q, EXPERTS}
    assert read
    assert not [name for name in read if name == Q or name.startswith(EXPERTS)]


def test_every_setting_of_a_sweep_gets_the_bytes_that_it_gets_alone(tmp_path: Path) -> None:
    folders = make_pair(tmp_path, layers=1)
    shared = Store(tmp_path / "shared")
    for number, settings in enumerate(
        [{"cr": 4}, {"cr": 9, "options": {"beta": 0.8, "c": 0.5}}, {"cr": 6, "method": "lowrank"}, {"cr": 5, "seed": 2}]
    ):
        config = config_of(**settings)  # type: ignore[arg-type]
        alone = compress(Store(tmp_path / f"alone{number}"), *folders, config)
        assert codes_of(compress(shared, *folders, config, keep_factors=True)) == codes_of(alone)
    kinds = [shared.manifest(artifact).content.kind for artifact in shared.ids()]
    assert kinds.count("factors") == 1


def test_damaged_factors_do_not_change_what_is_compressed(tmp_path: Path) -> None:
    folders, config = make_pair(tmp_path, layers=1), config_of(4)
    alone = compress(Store(tmp_path / "alone"), *folders, config)
    store = Store(tmp_path / "store")
    compress(store, *folders, config_of(8), keep_factors=True)
    (made,) = (store.manifest(found) for found in store.ids() if store.manifest(found).content.kind == "factors")
    damage("flipped byte", store, made)
    assert codes_of(compress(store, *folders, config)) == codes_of(alone)


def test_the_factors_that_a_block_was_made_from_are_its_parent_where_they_were_kept(tmp_path: Path) -> None:
    folders, store = make_pair(tmp_path, layers=1), Store(tmp_path / "store")
    layer, outside = compress(store, *folders, config_of(4), keep_factors=True).blocks
    assert [store.manifest(parent).content.kind for parent in layer.parents] == ["factors"]
    assert outside.parents == ()
    alone = compress(Store(tmp_path / "alone"), *folders, config_of(4)).blocks[0]
    assert (alone.id, alone.parents) == (layer.id, ())


def test_the_version_is_part_of_the_recipe(
    mixture: tuple[dict[str, Pair], Digests], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = recipe_of(mixture).id
    monkeypatch.setitem(module.VERSIONS, "factors", 1000)
    assert recipe_of(mixture).id != before
