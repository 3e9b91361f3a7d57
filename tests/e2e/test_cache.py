"""Reuse through the command line: what is refreshed, what is trusted, and what a run says of what it made again."""

import json
import shutil
from pathlib import Path

import pytest

from impart_core.artifacts.block import publish_block
from impart_core.codec.format import CODES_FILE, BlockFile, EncodedTensor
from impart_core.store.manifest import parse_manifest
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse
from impart_core.store.store import Store
from tests.support import Environment, data_files, manifests, run_impart, run_json, without_notes

pytestmark = pytest.mark.e2e

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def published(pair: Pair, environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a delta in it."""
    store = tmp_path_factory.mktemp("cache")
    run_json(*words(pair, store), environment=environment)
    return store


@pytest.fixture
def store(published: Path, tmp_path: Path) -> Path:
    """A copy of the store."""
    return shutil.copytree(published, tmp_path / "store")


def words(pair: Pair, store: Path, *flags: str) -> list[str]:
    return ["compress", *map(str, pair), "--cr", "4", "--store", str(store), *flags]


@pytest.mark.parametrize(
    ("flags", "blocks_reused", "decomposed", "reused"),
    [
        ([], 3, 0, 0),
        (["--verify-cache"], 3, 0, 0),
        (["--refresh-from", "gather"], 3, 0, 0),
        (["--refresh-from", "sparsify"], 0, 0, 14),
        (["--refresh-from", "decompose"], 0, 14, 0),
        (["--refresh-from", "digest"], 0, 14, 0),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_a_refresh_computes_again_from_its_stage_on_and_comes_out_the_same(
    flags: list[str],
    blocks_reused: int,
    decomposed: int,
    reused: int,
    pair: Pair,
    store: Path,
    published: Path,
    environment: Environment,
) -> None:
    done = run_impart(*words(pair, store, *flags), "--json", environment=environment)
    assert (done.returncode, without_notes(done.stderr)) == (0, "")
    report = json.loads(done.stdout)
    assert (report["cached_blocks"], report["decompositions"], report["reused_factors"]) == (
        blocks_reused,
        decomposed,
        reused,
    )
    assert report["changed"] == report["remade"] == report["retried"] == []
    assert data_files(store) == data_files(published)
    assert manifests(store).keys() == manifests(published).keys()


def test_what_comes_out_otherwise_is_told_and_takes_its_place(
    pair: Pair, store: Path, published: Path, environment: Environment
) -> None:
    opened = Store(store)
    block = next(iter(manifests(store, "block")))
    manifest = opened.manifest(block)
    with opened.local_file(manifest, CODES_FILE) as path:
        file = BlockFile(path)
        zeroed = {
            name: EncodedTensor(header, {part: code * 0 for part, code in file.codes(name).items()})
            for name, header in file.headers.items()
        }
        name = manifest.content.summary(manifest.recipe)
        made = publish_block(opened, manifest.recipe, name, zeroed, Stopwatch(), reuse=Reuse(replace=True))
    assert made.files != manifest.files
    usual = run_json(*words(pair, store), environment=environment)
    assert usual["cached_blocks"] == 3
    done = run_impart(*words(pair, store, "--refresh-from", "sparsify"), "--json", environment=environment)
    # The delta may differ, too: it tells the bytes of its blocks, manifests included.
    assert set(json.loads(done.stdout)["changed"]) - {usual["artifact"]} == {block}
    assert f"warning: {block[:12]} came out otherwise" in done.stderr
    data = (store / "artifacts" / block / "manifest.json").read_bytes()
    assert parse_manifest(data, "").files == manifest.files
    assert run_json("verify", usual["artifact"], "--store", str(store))["ok"]


def test_a_lost_object_is_made_again_with_a_warning_that_names_it(
    pair: Pair, store: Path, published: Path, environment: Environment
) -> None:
    codes = next((store / "artifacts" / next(iter(manifests(store, "block")))).glob("codes.*"))
    whole_block = list(manifests(store, "block"))[1]
    codes.unlink()
    (store / "artifacts" / whole_block / "manifest.json").unlink()
    done = run_impart(*words(pair, store), "--json", environment=environment)
    report = json.loads(done.stdout)
    assert report["cached_blocks"] == 1
    assert len(report["remade"]) == 2
    for lost in (codes, store / "artifacts" / whole_block / "manifest.json"):
        assert f"warning: {lost} is missing" in done.stderr
    assert data_files(store) == data_files(published)


def test_a_stage_that_there_is_not_is_refused(pair: Pair, tmp_path: Path) -> None:
    done = run_impart(*words(pair, tmp_path / "store", "--refresh-from", "sparsfy"))
    assert done.returncode == 2
    assert "Did you mean 'sparsify'?" in done.stderr
    assert not (tmp_path / "store").exists()
