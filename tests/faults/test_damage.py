"""Damage to a published delta: `verify` names the file, `reconstruct` refuses it, `compress` makes it anew."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from impart_core.store.pins import pin
from impart_core.store.store import Store
from tests.faults.places import Place, assert_whole
from tests.faults.tally import Tally
from tests.faults.warm import run_warm, warm_json
from tests.impart_core.store.samples import sample
from tests.support import Environment, data_files, make_pair, manifests, run_impart, run_json

pytestmark = pytest.mark.faults

Pair = tuple[Path, Path]
Find = Callable[[Path], Path]


@pytest.fixture(scope="module")
def pair_with_files(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair whose configurations differ, so that the delta carries one."""
    base, finetuned = make_pair(tmp_path_factory.mktemp("damage"))
    config = json.loads((finetuned / "config.json").read_text())
    (finetuned / "config.json").write_text(json.dumps({**config, "eos_token_id": 3}))
    return base, finetuned


@pytest.fixture(scope="module")
def published(pair_with_files: Pair, environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the delta `tiny` in it, whole."""
    store = tmp_path_factory.mktemp("published")
    run_json(*compress(pair_with_files, store), environment=environment)
    return store


@pytest.fixture
def store(published: Path, tmp_path: Path) -> Path:
    """A copy of the store to damage."""
    return shutil.copytree(published, tmp_path / "store")


def compress(pair: Pair, store: Path) -> list[str]:
    """Return the arguments of the compression that made `tiny`."""
    return ["compress", *map(str, pair), "--cr", "4", "--name", "tiny", "--store", str(store)]


def manifest_of(store: Path, kind: str, number: int = 0) -> Path:
    """Return the manifest of the delta, or of its block of this number."""
    found = manifests(store, "delta")
    (delta,) = found
    made = delta if kind == "delta" else found[delta]["content"]["blocks"][number]["id"]
    return store / "artifacts" / made / "manifest.json"


def codes_of(store: Path, number: int = 0) -> Path:
    """Return a block's codes."""
    (codes,) = manifest_of(store, "block", number).parent.glob("codes.*.safetensors")
    return codes


def config_of(store: Path) -> Path:
    """Return the fine-tune's configuration, which the delta carries."""
    (config,) = manifest_of(store, "delta").parent.glob("config.*.json")
    return config


FILES: dict[str, Find] = {
    "codes": codes_of,
    "block manifest": lambda store: manifest_of(store, "block"),
    "delta manifest": lambda store: manifest_of(store, "delta"),
    "carried configuration": config_of,
}


def flip_a_byte(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", FILES)
def test_one_flipped_byte_is_found_and_never_served(
    kind: str, store: Path, pair_with_files: Pair, tmp_path: Path
) -> None:
    path = FILES[kind](store)
    flip_a_byte(path)
    verified = run_impart("verify", "tiny", "--store", str(store), "--json")
    assert verified.returncode == 1, verified.stderr
    found = json.loads(verified.stdout)
    assert not found["ok"]
    assert str(path) in " ".join(found["faults"])
    place = ["--store", str(store), "--base", str(pair_with_files[0]), "--out", str(tmp_path / "out")]
    refused = run_impart("reconstruct", "tiny", *place)
    assert refused.returncode == 2
    assert str(path) in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()


def test_verify_tells_people_what_is_wrong(store: Path) -> None:
    flip_a_byte(codes_of(store))
    codes_of(store, 1).unlink()
    verified = run_impart("verify", "tiny", "--store", str(store))
    assert verified.returncode == 1
    assert verified.stdout.count("fault: ") == 2
    assert str(codes_of(store)) in verified.stdout
    assert "2 faults" in verified.stdout


def test_compress_makes_lost_and_shortened_blocks_anew(
    store: Path, published: Path, pair_with_files: Pair, environment: Environment
) -> None:
    cut = codes_of(store)
    cut.write_bytes(cut.read_bytes()[:-1])
    codes_of(store, 1).unlink()
    assert_repaired(store, published, pair_with_files, environment, reused=1)


def test_compress_makes_damaged_manifests_anew(
    store: Path, published: Path, pair_with_files: Pair, environment: Environment
) -> None:
    flip_a_byte(manifest_of(store, "block"))
    last = manifest_of(store, "delta").parent
    flip_a_byte(last / "manifest.json")
    next(last.glob("config.*.json")).unlink()
    assert_repaired(store, published, pair_with_files, environment, reused=2)


def test_compress_makes_a_lost_block_manifest_anew(
    store: Path, published: Path, pair_with_files: Pair, environment: Environment
) -> None:
    manifest_of(store, "block").unlink()
    assert_repaired(store, published, pair_with_files, environment, reused=2)


def assert_repaired(store: Path, published: Path, pair: Pair, environment: Environment, reused: int) -> None:
    """Check that compressing again makes just what is damaged, the same bytes, and that sizes are told as they are."""
    assert run_impart("verify", "tiny", "--store", str(store)).returncode == 1
    report = run_json(*compress(pair, store), environment=environment)
    assert (report["blocks"], report["cached_blocks"]) == (3, reused)
    assert data_files(store) == data_files(published)
    assert run_json("verify", "tiny", "--store", str(store))["ok"]
    shown = run_json("inspect", "tiny", "--store", str(store))
    folders = [store / "artifacts" / made for made in manifests(store, "delta", "block")]
    on_disk = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    assert shown["bytes"] == report["bytes"] == on_disk


def factors_of(store: Path, number: int = 0) -> Path:
    """Return the file of a layer's factors."""
    (path,) = (store / "artifacts" / list(manifests(store, "factors"))[number]).glob("factors.*.safetensors")
    return path


def damage_factors(how: str, path: Path) -> None:
    """Damage a file of factors, or their manifest."""
    if how == "one flipped byte":
        flip_a_byte(path)
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "lost":
        path.unlink()
    else:
        flip_a_byte(path.with_name("manifest.json"))


@pytest.mark.parametrize("how", ["one flipped byte", "cut short", "lost", "manifest altered"])
def test_damaged_factors_are_not_used_but_replaced(
    how: str, store: Path, published: Path, pair_with_files: Pair, environment: Environment, tmp_path: Path
) -> None:
    path = factors_of(store)
    damage_factors(how, path)
    verified = run_impart("verify", path.parent.name, "--store", str(store), "--json")
    assert verified.returncode == 1, verified.stderr
    assert str(path.parent) in " ".join(json.loads(verified.stdout)["faults"])
    others = ["--cr", "8", "--seed", "1"]
    report = run_json(*compress(pair_with_files, store), *others, environment=environment)
    assert (report["decompositions"], report["reused_factors"]) == (7, 7)
    assert data_files(store, "factors") == data_files(published, "factors")
    assert run_json("verify", path.parent.name, "--store", str(store))["ok"]
    alone = run_json(*compress(pair_with_files, tmp_path / "alone"), *others, environment=environment)
    assert alone["artifact"] == report["artifact"]
    assert data_files(tmp_path / "alone").items() <= data_files(store).items()


def one_of(pattern: str) -> Find:
    """Return a way to find a store's first file that fits."""
    return lambda store: min(store.glob(pattern))


def evaluation_of(store: Path) -> Path:
    """Return the results of an evaluation, which is put in the store first."""
    manifest, files = sample(store.parent / "sample", {"results.json": b'{"acc": 0.5}'})
    Store(store).publish(manifest, files)
    return store / "artifacts" / manifest.id / manifest.files[0].path


FOUND_BY_VERIFY: dict[str, Find] = {
    **FILES,
    "factors": factors_of,
    "factors' manifest": lambda store: factors_of(store).with_name("manifest.json"),
    "evaluation results": evaluation_of,
    "evaluation manifest": lambda store: evaluation_of(store).with_name("manifest.json"),
}


@pytest.mark.parametrize("kind", FOUND_BY_VERIFY)
def test_a_flipped_bit_anywhere_in_an_artifact_is_found_and_made_anew(
    kind: str, store: Path, published: Path, pair_with_files: Pair, environment: Environment, count: Tally
) -> None:
    path = FOUND_BY_VERIFY[kind](store)
    before = path.read_bytes()
    flip_a_byte(path)
    count(f"bit flipped: {kind}")
    own = "tiny" if kind in FILES else path.parent.name
    verified = run_warm("verify", own, "--store", str(store), "--json", environment=environment)
    assert verified.returncode == 1, verified.stderr
    assert str(path) in " ".join(json.loads(verified.stdout)["faults"])
    if "evaluation" in kind:
        return  # compressing does not make these
    done = run_warm(*compress(pair_with_files, store), "--verify-cache", "--json", environment=environment)
    assert done.returncode == 0, done.stderr
    remade = json.loads(done.stdout)["remade"]
    if "factors" in kind:  # nothing that is whole was made from these anew; the next one to need them tells
        others = [*compress(pair_with_files, store), "--cr", "8", "--name", "other", "--verify-cache", "--json"]
        done = run_warm(*others, environment=environment)
        assert done.returncode == 0, done.stderr
        remade = json.loads(done.stdout)["remade"]
    assert len(remade) == 1
    assert str(path) in remade[0]
    assert str(path) in done.stderr
    assert "factors" not in kind or path.read_bytes() == before or path.name == "manifest.json"
    assert_whole(Place(str(store), environment), data_files(published), others=True)
    assert run_warm("verify", own, "--store", str(store), environment=environment).returncode == 0


def test_a_flipped_bit_in_a_name_is_found_stops_only_the_collector_and_is_mended(
    store: Path, environment: Environment, count: Tally
) -> None:
    run_warm("tag", "tiny", "copy", "--store", str(store), environment=environment)
    path = one_of("refs/copy/00000001.json")(store)
    flip_a_byte(path)
    count("bit flipped: ref")
    verified = run_warm("verify", "copy", "--store", str(store), environment=environment)
    assert (verified.returncode, str(path) in verified.stderr) == (2, True), verified.stderr
    assert run_warm("verify", "tiny", "--store", str(store), environment=environment).returncode == 0
    everything = run_warm("verify", "--all", "--store", str(store), environment=environment)
    assert (everything.returncode, "The name 'copy' is damaged" in everything.stdout) == (1, True), everything.stdout
    swept = run_warm("gc", "--grace", "0s", "--delete", "--store", str(store), environment=environment)
    assert (swept.returncode, "`impart untag copy` removes the name" in swept.stderr) == (2, True), swept.stderr
    listed = run_warm("ls", "--store", str(store), environment=environment)
    assert (listed.returncode, str(path) in listed.stderr, "tiny" in listed.stdout) == (0, True, True), listed.stderr
    assert run_warm("history", "tiny", "--store", str(store), environment=environment).returncode == 0
    target = str(store.with_name("other"))
    exported = run_warm("export", "tiny", "--to", target, "--store", str(store), environment=environment)
    assert (exported.returncode, str(path) in exported.stderr) == (0, True), exported.stderr
    (again,) = manifests(store, "delta")
    for mend in (["tag", again, "copy"], ["untag", "copy"]):
        mended = run_warm(*mend, "--store", str(store), environment=environment)
        assert mended.returncode == 0, mended.stderr
        whole = warm_json("verify", "--all", "--store", str(store), environment=environment)
        assert (whole["ok"], whole["names"]) == (True, 2 if mend[0] == "tag" else 1)
        warm_json("gc", "--grace", "0s", "--delete", "--store", str(store), environment=environment)


@pytest.mark.parametrize("kind", ["catalog", "pins"])
def test_a_flipped_bit_in_what_serves_speed_and_upkeep_is_harmless(
    kind: str, store: Path, published: Path, pair_with_files: Pair, environment: Environment, count: Tally
) -> None:
    (made,) = manifests(store, "delta")
    pin(Store(store), [made])  # of a run that was killed
    damaged = one_of(f"{kind}/*.json")(store)
    flip_a_byte(damaged)
    count(f"bit flipped: {kind}")
    listed = warm_json("ls", "--store", str(store), environment=environment)
    assert [(entry["id"], entry["names"]) for entry in listed["artifacts"]] == [(made, ["tiny"])]
    if kind == "pins":  # it lapses within the hour
        refused = run_warm("gc", "--grace", "0s", "--delete", "--store", str(store), environment=environment)
        assert (refused.returncode, str(damaged) in refused.stderr) == (2, True), refused.stderr
        os.utime(damaged, (0, 0))
    swept = warm_json("gc", "--grace", "0s", "--delete", "--store", str(store), environment=environment)
    assert swept["artifacts"] == {}
    report = warm_json(*compress(pair_with_files, store), "--verify-cache", environment=environment)
    assert (report["artifact"], report["cached_blocks"], report["remade"]) == (made, 3, [])
    assert_whole(Place(str(store), environment), data_files(published))
