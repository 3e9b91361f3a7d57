"""A delta as a folder for the Hub: a store in itself; uploaded to a server on this machine that speaks its protocol."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from impart_core.apply.dense import reconstruct
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.base.errors import ConfigError, CorruptArtifactError, HubError, OutputExistsError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.share.hub import measurements, prepare_folder, require_repo, upload
from impart_core.store.names import resolve, set_ref
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store
from impart_core.store.verify import verify_store
from impart_core.store.who import user_name
from tests.impart_core.pipeline import compress, config_of, flip, stored_path
from tests.impart_core.store.samples import evaluation_of
from tests.killing import count_steps, run_killed
from tests.servers import UPLOADER, Hub, hub_server

Pair = tuple[Path, Path]


@pytest.fixture
def delta(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Delta:
    monkeypatch.setenv("IMPART_WHO", "user")
    delta = compress(Store(tmp_path / "store"), *pair, config_of(4), keep_factors=True)
    set_ref(delta.store, "math@prod", delta.manifest.id)
    return delta


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty Hub, and the token that may write to it."""
    with hub_server({}) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", UPLOADER)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        yield server


@pytest.fixture
def folder(delta: Delta, tmp_path: Path) -> Path:
    prepare_folder(delta.store, delta.manifest.id, "team/math", tmp_path / "out")
    return tmp_path / "out"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_a_store_with_a_card_and_rebuilds_the_model(
    delta: Delta, pair: Pair, folder: Path, tmp_path: Path
) -> None:
    store = Store(folder)
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: impart\n")
    assert "impart verify math@prod --store delta" in (folder / "README.md").read_text()
    assert resolve(store, "math@prod") == delta.manifest.id
    report = verify_store(store)
    assert (report.artifacts, report.faults, report.leftovers) == (4, (), 0)
    reconstruct(delta, open_checkpoint(pair[0]), tmp_path / "one")
    reconstruct(open_delta(store, delta.manifest.id), open_checkpoint(pair[0]), tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_second_time_goes_on_and_changes_nothing(delta: Delta, folder: Path) -> None:
    before = files(folder)
    (folder / "README.md").unlink()
    report = prepare_folder(delta.store, delta.manifest.id, "team/math", folder)
    assert report.copied.artifacts == {}
    assert files(folder) == before


def test_evaluations_are_copied_and_shown_beside_those_of_base_and_fine_tune(delta: Delta, tmp_path: Path) -> None:
    made = delta.manifest.id
    own = evaluation_of(delta.store, {"delta": made}, (made,), {"exact_match": (0.75, 0.125)})
    base = evaluation_of(delta.store, {"checkpoint": delta.content.base}, metrics={"exact_match": (0.25, 0.5)})
    evaluation_of(delta.store, {"checkpoint": "f" * 64})
    found = measurements(delta.store, delta)
    assert (list(found.base), list(found.finetuned), list(found.delta)) == ([base], [], [own])
    prepare_folder(delta.store, made, "team/math", tmp_path / "out")
    assert own.id in Store(tmp_path / "out").ids()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `task` | `test` | 4 | `exact_match` | 0.2500 ± 0.5000 | — | 0.7500 ± 0.1250 |" in card


def test_a_folder_with_anything_else_is_refused(pair: Pair, delta: Delta, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    prepare_folder(delta.store, delta.manifest.id, "team/math", other)
    (other / "secret.txt").write_text("mine")
    (tmp_path / "readme").mkdir()
    (tmp_path / "readme" / "README.md").write_text("mine")
    more = compress(delta.store, *pair, config_of(5))
    for artifact, out in ((delta, other), (delta, tmp_path / "readme"), (delta, Path(__file__)), (more, folder)):
        before = files(out)
        with pytest.raises(OutputExistsError, match="already holds other things"):
            prepare_folder(delta.store, artifact.manifest.id, "team/math", out)
        assert files(out) == before


@pytest.mark.parametrize("part", range(18))
def test_one_that_was_killed_goes_on(part: int, delta: Delta, folder: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "killed", tmp_path / "again"

    def push(place: Path) -> None:
        prepare_folder(delta.store, delta.manifest.id, "team/math", place)

    steps = count_steps(lambda: push(again))
    assert not run_killed(lambda: push(out), 1 + part * steps // 18)
    push(out)
    seldom = ("refs/", "catalog/")  # a name may have a move more; the catalogue is what the next reader makes it
    names = {name for name in files(folder) if not name.startswith(seldom)}
    assert {name for name in files(out) if not name.startswith(seldom)} == names
    assert (out / "README.md").read_bytes() == (folder / "README.md").read_bytes()
    assert verify_store(Store(out)).faults == ()
    assert resolve(Store(out), "math@prod") == delta.manifest.id


def test_what_is_published_tells_nothing_of_the_machine(delta: Delta, pair: Pair, folder: Path, tmp_path: Path) -> None:
    told = {user_name(), str(tmp_path), str(pair[0]), str(pair[1]), str(pair[0].parent), str(Path.home())}
    source = b"".join(files(Path(delta.store.url)).values()).decode("utf-8", "ignore")
    assert user_name() in source
    assert str(pair[0]) in source
    text = json.dumps({name: data.decode("utf-8", "ignore") for name, data in files(folder).items()})
    assert not [one for one in told if f'"{one}' in text.replace("\\", "") or f"{one}/" in text]
    store = Store(folder)
    for artifact in store.ids():
        made, published = delta.store.manifest(artifact), store.manifest(artifact)
        assert (made.id, made.files, made.content) == (published.id, published.files, published.content)
        assert published.provenance == made.provenance.public()
    assert made.provenance.libraries == published.provenance.libraries


def test_a_folder_that_an_earlier_version_made_is_cleaned(delta: Delta, folder: Path) -> None:
    before = files(folder)
    for artifact in Store(folder).ids():
        place = folder / "artifacts" / artifact / "manifest.json"
        place.write_bytes(delta.store.manifest(artifact).to_json())
    assert files(folder) != before
    prepare_folder(delta.store, delta.manifest.id, "team/math", folder)
    assert files(folder) == before


def test_public_places_are_kept() -> None:
    sources = {"base": "hf://org/base@1", "finetuned": "/home/ann/x", "text": "hub:org/data", "store": "s3://b/x"}
    made = Stopwatch(sources, run="5").provenance().public()
    assert made.sources == {"base": "hf://org/base@1", "text": "hub:org/data"}
    assert (made.user, made.run) == ("", "")


def test_what_is_no_delta_or_no_repository_or_damaged_is_refused(delta: Delta, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is of kind block, not a compressed delta"):
        prepare_folder(delta.store, delta.blocks[0].id, "team/math", tmp_path / "out")
    for repo in ("math", "team/math@main", "hf://team/math", "team/ma th", "../x", ""):
        with pytest.raises(ConfigError, match="names no repository"):
            require_repo(repo)
    flip(stored_path(delta), -1)
    with pytest.raises(CorruptArtifactError, match=stored_path(delta).name):
        prepare_folder(delta.store, delta.manifest.id, "team/math", tmp_path / "out")
    assert not (tmp_path / "out" / "README.md").exists()


def test_preparing_asks_nothing_of_the_hub(hub: Hub, folder: Path) -> None:
    assert hub.requests == []


@pytest.mark.parametrize("private", [False, True])
def test_the_whole_folder_is_uploaded_and_scratch_is_not(private: bool, hub: Hub, folder: Path) -> None:
    whole = files(folder)
    (next((folder / "artifacts").iterdir()) / ".codes.0.tmp").write_bytes(b"half")
    assert upload(folder, "team/math", private=private) == f"{hub.url}/team/math"
    assert hub.uploaded == {"team/math": whole}
    assert hub.created == {"team/math": private}


def test_uploading_again_to_a_repository_that_exists_is_no_error(hub: Hub, folder: Path) -> None:
    for _ in range(2):
        upload(folder, "team/math")
    assert hub.uploaded == {"team/math": files(folder)}


def test_nothing_private_goes_to_a_public_repository(hub: Hub, folder: Path) -> None:
    hub.created["team/math"] = False
    with pytest.raises(ConfigError, match="exists and is public"):
        upload(folder, "team/math", private=True)
    assert hub.uploaded == {}


def test_a_missing_or_refused_token_and_a_broken_hub_are_sentences(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match=r"The Hub refuses to write team/math: .*401.*Log in with `hf auth login`") as no:
        upload(folder, "team/math")
    assert "hf_wrong" not in str(no.value)
    monkeypatch.setenv("HF_TOKEN", UPLOADER)
    hub.broken = 503
    with pytest.raises(HubError, match=r"The upload to the Hub's team/math failed: .*503.*run the same command again"):
        upload(folder, "team/math")
    hub.requests.clear()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="There is no token to upload to the Hub's team/math with"):
        upload(folder, "team/math")
    assert hub.requests == []


def test_an_offline_client_says_so(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is enabled"):
        upload(folder, "team/math")


def test_without_huggingface_hub_uploading_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="takes huggingface_hub"):
        upload(folder, "team/math")
