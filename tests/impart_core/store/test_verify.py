"""Verification: every file re-read, and each fault a sentence."""

import uuid
from pathlib import Path
from typing import Any, cast

import pytest

from impart_core.artifacts.block import BlockContent
from impart_core.artifacts.delta import Delta, DeltaContent
from impart_core.artifacts.factors import FactorsContent
from impart_core.base.errors import ArtifactNotFoundError, StoreUnreachableError
from impart_core.base.files import sha256_of
from impart_core.codec.format import BlockFile, EncodedTensor, write_block
from impart_core.store.manifest import Manifest
from impart_core.store.store import Store
from impart_core.store.verify import VerifyReport, verify, verify_store
from tests.impart_core.mixture import EMBEDDING, EXPERTS, HEAD, ROUTER, save_mixture
from tests.impart_core.pipeline import compress, config_of, flip, stored_path
from tests.impart_core.store.samples import sample

Pair = tuple[Path, Path]


@pytest.fixture
def delta(pair: Pair, tmp_path: Path) -> Delta:
    return compress(Store(tmp_path / "store"), *pair, config_of(4))


def faults(delta: Delta) -> tuple[str, ...]:
    return verify(delta.store, delta.manifest.id).faults


def test_a_whole_delta_has_no_faults_and_all_its_files_were_read(delta: Delta) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(delta.store, delta.manifest.id, lambda done, total: seen.append((done, total)))
    assert report.faults == ()
    assert (report.artifacts, report.files) == (4, 3)
    assert report.bytes == sum(stored_path(delta, number).stat().st_size for number in range(3))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_store_that_is_no_folder_is_verified_alike(pair: Pair) -> None:
    remote = compress(Store(f"memory://{uuid.uuid4().hex}"), *pair, config_of(4))
    assert faults(remote) == ()


@pytest.mark.parametrize("position", [0, 9, 200, -1])
def test_one_flipped_bit_anywhere_in_a_block_is_a_fault_that_names_the_file(position: int, delta: Delta) -> None:
    flip(stored_path(delta, 1), position)
    (fault,) = faults(delta)
    assert stored_path(delta, 1).name in fault
    assert "SHA-256" in fault


def test_every_damaged_file_is_reported_and_not_just_the_first(delta: Delta) -> None:
    flip(stored_path(delta, 0), -1)
    stored_path(delta, 1).unlink()
    stored_path(delta, 2).write_bytes(b"short")
    assert len(faults(delta)) == 3


@pytest.mark.parametrize("which", ["delta", "block"])
def test_a_damaged_manifest_is_a_fault(which: str, delta: Delta) -> None:
    broken = delta.manifest.id if which == "delta" else delta.blocks[0].id
    flip(Path(delta.store.url) / "artifacts" / broken / "manifest.json", 100)
    (fault,) = faults(delta)
    assert broken in fault


def test_a_missing_block_is_a_fault(delta: Delta) -> None:
    (Path(delta.store.url) / "artifacts" / delta.blocks[1].id / "manifest.json").unlink()
    (fault,) = faults(delta)
    assert delta.blocks[1].id[:12] in fault


def test_what_does_not_exist_is_not_a_fault_but_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError):
        verify(Store(tmp_path / "store"), "0" * 64)


def test_other_artifacts_are_verified_by_their_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    manifest = store.publish(*sample(tmp_path / "scratch"))
    assert verify(store, manifest.id).faults == ()
    flip(tmp_path / "store" / "artifacts" / manifest.id / manifest.files[0].path, 3)
    assert len(verify(store, manifest.id).faults) == 1


def lying(manifest: Manifest, content: BlockContent | DeltaContent, **fields: Any) -> Manifest:
    """Return a manifest sealed as it should be whose content is not what the files hold."""
    kept = {"files": manifest.files, "parents": manifest.parents, "provenance": manifest.provenance}
    return Manifest.make(manifest.recipe, content=content.model_copy(update=fields), **kept)


def overwrite(delta: Delta, manifest: Manifest) -> None:
    (Path(delta.store.url) / "artifacts" / manifest.id / "manifest.json").write_bytes(manifest.to_json())


@pytest.mark.parametrize("change", [{"bytes": 1}, {"method": "impart"}, {"shape": (1, 2)}, {"dtype": "F32"}])
def test_a_block_whose_manifest_describes_other_codes_is_a_fault(change: dict[str, Any], delta: Delta) -> None:
    block = delta.blocks[0]
    assert isinstance(block.content, BlockContent)
    name, entry = next(iter(block.content.tensors.items()))
    tensors = {**block.content.tensors, name: entry.model_copy(update=change)}
    overwrite(delta, lying(block, block.content, tensors=tensors))
    (fault,) = faults(delta)
    assert name in fault


def test_a_delta_whose_total_is_not_that_of_its_blocks_is_a_fault(delta: Delta) -> None:
    overwrite(delta, lying(delta.manifest, delta.content, projection_bytes=delta.content.projection_bytes - 1))
    (fault,) = faults(delta)
    assert f"its blocks hold {delta.content.projection_bytes:,}" in fault


@pytest.fixture
def mixture(tmp_path: Path) -> Delta:
    """A delta with a stack of experts, a router, changed and added rows, a head against an embedding, and factors."""
    folders, settings = save_mixture(tmp_path), {"embeddings": "auto", "embeddings_cr": 6}
    return compress(Store(tmp_path / "store"), *folders, config_of(4, **settings), keep_factors=True)


def test_a_delta_with_a_stack_and_a_grown_vocabulary_is_whole(mixture: Delta) -> None:
    methods = {
        name: entry.method
        for block in mixture.blocks
        for name, entry in cast(BlockContent, block.content).tensors.items()
    }
    assert [methods[name] for name in (EXPERTS, ROUTER, EMBEDDING, HEAD)] == ["impart", "keep", "rows", "impart"]
    assert faults(mixture) == ()


def test_a_bit_flipped_in_a_stack_is_a_fault(mixture: Delta) -> None:
    path = stored_path(mixture)
    flip(path, BlockFile(path).infos(EXPERTS)["2.u"].start)
    (fault,) = faults(mixture)
    assert path.name in fault


def test_a_stack_that_does_not_decode_is_a_fault_whatever_its_digest_says(mixture: Delta) -> None:
    file, block = BlockFile(stored_path(mixture)), mixture.blocks[0]
    tensors = {name: EncodedTensor(header, file.codes(name)) for name, header in file.headers.items()}
    keep = tensors[EXPERTS].codes["2.keep"]
    keep[-1] = int(keep[-1]) // 2  # a keep probability that the stored values do not go with
    write_block(file.path, tensors)
    entry = block.files[0].model_copy(update={"sha256": sha256_of(file.path)})
    changed = Manifest.make(
        block.recipe, files=(entry,), content=block.content, parents=block.parents, provenance=block.provenance
    )
    overwrite(mixture, changed)
    (fault,) = faults(mixture)
    assert f"'{EXPERTS}[2]' hold" in fault


def factors_in(store: Store) -> list[Manifest]:
    return [made for made in map(store.manifest, store.ids()) if isinstance(made.content, FactorsContent)]


def test_factors_are_verified_by_their_digest_and_by_what_they_hold(mixture: Delta) -> None:
    layer, outside = sorted(factors_in(mixture.store), key=lambda made: cast(FactorsContent, made.content).name)
    for made in (layer, outside):
        report = verify(mixture.store, made.id)
        assert (report.faults, report.artifacts, report.files, report.bytes) == ((), 1, 1, made.files[0].size)
    path = Path(mixture.store.url) / "artifacts" / layer.id / layer.files[0].path
    flip(path, -1)
    (fault,) = verify(mixture.store, layer.id).faults
    assert path.name in fault
    assert faults(mixture) == ()  # factors are a means: the delta is whole without them


def test_a_block_that_holds_more_than_its_manifest_lists_is_a_fault(delta: Delta) -> None:
    block = delta.blocks[0]
    assert isinstance(block.content, BlockContent)
    overwrite(delta, lying(block, block.content, tensors=dict(list(block.content.tensors.items())[1:])))
    (fault,) = faults(delta)
    assert "does not hold the tensors that its manifest lists" in fault


def test_a_block_whose_projections_are_not_as_long_as_it_says_is_a_fault(delta: Delta) -> None:
    block = delta.blocks[0]
    assert isinstance(block.content, BlockContent)
    overwrite(delta, lying(block, block.content, projection_bytes=block.content.projection_bytes + 1))
    (fault,) = faults(delta)
    assert "bytes of projections" in fault


def test_a_disk_that_does_not_give_a_file_back_is_a_fault(delta: Delta, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("impart_core.store.store.sha256_of", broken)
    found = faults(delta)
    assert len(found) == 3
    assert all("cannot be read: Input/output error" in fault for fault in found)


def test_a_store_that_does_not_answer_is_an_error_and_no_fault(delta: Delta, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise StoreUnreachableError("silence")

    monkeypatch.setattr(Store, "local_file", silent)
    for check in (lambda: verify(delta.store, delta.manifest.id), lambda: verify_store(delta.store)):
        with pytest.raises(StoreUnreachableError):
            check()


@pytest.fixture
def two(pair: Pair, delta: Delta) -> Delta:
    """A delta in a store with another that shares its block of what is in no layer."""
    other = compress(delta.store, *pair, config_of(5))
    assert delta.content.blocks[-1].id == other.content.blocks[-1].id
    return delta


def test_a_whole_store_has_no_faults_and_a_shared_block_is_read_once(
    two: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    local_file = Store.local_file

    def watched(self: Store, manifest: Manifest, name: str, **options: bool) -> Any:
        read.append(f"{manifest.id}/{name}")
        return local_file(self, manifest, name, **options)

    monkeypatch.setattr(Store, "local_file", watched)
    seen: list[tuple[int, int, int, int]] = []
    report = verify_store(two.store, lambda *done: seen.append(done))
    paths = [path for path in Path(two.store.url).glob("artifacts/*/*") if path.name != "manifest.json"]
    assert report == VerifyReport(
        store=two.store.url,
        artifacts=7,
        files=5,
        bytes=sum(path.stat().st_size for path in paths),
        leftovers=0,
        leftover_bytes=0,
        faults=(),
    )
    assert len(read) == len(set(read)) == 5
    assert [done[0] for done in seen] == list(range(1, 8))
    assert seen[-1][2] == seen[-1][3] == sum(path.stat().st_size for path in Path(two.store.url).glob("artifacts/*/*"))


def test_every_fault_of_a_store_is_a_sentence_that_names_the_file(two: Delta) -> None:
    flip(stored_path(two, 0), -1)
    (Path(two.store.url) / "artifacts" / two.blocks[1].id / "manifest.json").unlink()
    flip(Path(two.store.url) / "artifacts" / two.blocks[2].id / "manifest.json", 100)
    found = verify_store(two.store).faults
    assert len(found) == 3
    for name in (stored_path(two, 0).name, two.blocks[1].id, two.blocks[2].id):
        assert len([fault for fault in found if name in fault]) == 1


def test_totals_are_held_against_the_blocks_of_every_delta(two: Delta) -> None:
    overwrite(two, lying(two.manifest, two.content, projection_bytes=two.content.projection_bytes - 1))
    (fault,) = verify_store(two.store).faults
    assert f"its blocks hold {two.content.projection_bytes:,}" in fault


def test_leftovers_are_counted_and_no_fault(two: Delta) -> None:
    artifacts = Path(two.store.url) / "artifacts"
    (artifacts / ("0" * 64)).mkdir()
    (artifacts / ("0" * 64) / "codes.bin").write_bytes(b"12345")
    (artifacts / two.blocks[0].id / ".codes.tmp").write_bytes(b"123")
    (artifacts / "stray").mkdir()
    (artifacts / "stray" / "manifest.json").write_bytes(b"{}")
    report = verify_store(two.store)
    assert (report.leftovers, report.leftover_bytes, report.faults, report.artifacts) == (3, 10, (), 7)


def test_an_empty_store_and_one_that_is_no_folder_are_verified_alike(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert verify_store(Store(tmp_path / "none")).artifacts == 0
    remote = Store(f"memory://{uuid.uuid4().hex}")
    compress(remote, *pair, config_of(4), keep_factors=True)
    report = verify_store(remote)
    assert (report.artifacts, report.files, report.faults) == (6, 5, ())
