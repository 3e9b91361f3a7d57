"""Manifests: a round trip to the byte, and any altered byte noticed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from impart_core.base.canonical import canonical_json, digest_of
from impart_core.base.errors import CorruptArtifactError, NewerArtifactError
from impart_core.store.catalog import list_entries
from impart_core.store.manifest import FileEntry, Manifest, parse_manifest
from impart_core.store.store import Store
from impart_core.store.verify import verify_store
from tests.impart_core.store.samples import sample


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return sample(tmp_path_factory.mktemp("sample"))[0]


def test_a_manifest_is_read_back_as_it_was_written(manifest: Manifest) -> None:
    data = manifest.to_json()
    assert parse_manifest(data, "here") == manifest
    assert parse_manifest(data, "here").to_json() == data
    assert data == canonical_json(json.loads(data))


def test_its_id_is_its_recipes_and_its_seal_covers_the_rest(manifest: Manifest) -> None:
    plain = json.loads(manifest.to_json())
    assert plain["id"] == digest_of(plain["recipe"]) == manifest.recipe.id
    seal = plain.pop("seal")
    assert seal == digest_of(plain)


@given(data=st.data())
@settings(max_examples=300)
def test_any_changed_byte_is_noticed(manifest: Manifest, data: st.DataObject) -> None:
    text = bytearray(manifest.to_json())
    position = data.draw(st.integers(0, len(text) - 1))
    text[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptArtifactError, match="here is not a valid manifest"):
        parse_manifest(bytes(text), "here")


@given(data=st.data())
@settings(max_examples=50)
def test_a_manifest_that_was_cut_or_extended_is_noticed(manifest: Manifest, data: st.DataObject) -> None:
    text = manifest.to_json()
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    for altered in (cut, text + b" ", text + b"\n", b" " + text, text + text):
        with pytest.raises(CorruptArtifactError):
            parse_manifest(altered, "here")


@pytest.mark.parametrize(
    "data",
    [b"null", b"[]", b"{}", b'{"format":2}', b"\xff", b"NaN", b"[" * 100_000, b'{"id":"' + b"0" * 64 + b'"}'],
)
def test_what_is_no_manifest_is_a_sentence(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match=r"here is not a valid manifest: .* to make it anew"):
        parse_manifest(data, "here")


def altered(manifest: Manifest, **fields: Any) -> bytes:
    """Return the manifest with other fields and a seal that fits them: what a forger would write."""
    plain = {**json.loads(manifest.to_json()), **fields}
    plain.pop("seal")
    return canonical_json({**plain, "seal": digest_of(plain)})


def test_an_empty_one_is_said_to_be_empty() -> None:
    with pytest.raises(CorruptArtifactError, match=r"^here is empty\. Compress with the same settings"):
        parse_manifest(b"", "here")


def test_sentences_have_single_blanks(manifest: Manifest) -> None:
    for data in (b"{", b"null", altered(manifest, content=1), altered(manifest, id=1), b"{}"):
        with pytest.raises(CorruptArtifactError) as caught:
            parse_manifest(data, "here")
        assert "  " not in str(caught.value)


def newer(manifest: Manifest) -> dict[str, bytes]:
    """Return manifests that are whole by their seals, in forms of later versions."""
    content = json.loads(manifest.to_json())["content"]
    return {
        "format": altered(manifest, format=2, parents={"all": []}),
        "field": altered(manifest, licence="mit"),
        "kind": altered(manifest, content={"kind": "sketch", "of": 1}),
        "content": altered(manifest, content={**content, "tokens": 5}),
    }


@pytest.mark.parametrize("form", ["format", "field", "kind", "content"])
def test_a_newer_one_is_said_to_be_newer_and_never_replaced(form: str, manifest: Manifest, tmp_path: Path) -> None:
    data, store = newer(manifest)[form], Store(tmp_path / "store")
    ours, files = sample(tmp_path / "scratch")
    store.publish(ours, files)
    path = f"artifacts/{ours.id}/manifest.json"
    store.objects.replace(path, data, None)
    reuse: tuple[dict[str, bool], ...] = ({}, {"reread": True}, {"replace": True})
    attempts: list[Callable[[], object]] = [lambda how=how: store.publish(ours, files, **how) for how in reuse]
    for attempt in (*attempts, lambda: store.lookup(ours.id), lambda: store.manifest(ours.id)):
        with pytest.raises(NewerArtifactError, match=r"was made by a newer impart: .*\. It is left as it is"):
            attempt()
        assert store.read(path) == data
    (entry,) = list_entries(store)
    assert (entry.kind, entry.summary) == ("damaged", "made by a newer impart")
    (fault,) = verify_store(store).faults
    assert "newer impart" in fault


@pytest.mark.parametrize("form", ["format", "field", "kind", "content"])
def test_what_only_looks_newer_is_damage(form: str, manifest: Manifest) -> None:
    for data in (newer(manifest)[form].replace(b'"seal":"', b'"seal":"0'), newer(manifest)[form] + b" "):
        with pytest.raises(CorruptArtifactError):
            parse_manifest(data, "here")


def test_a_forged_recipe_does_not_keep_the_id(manifest: Manifest) -> None:
    assert parse_manifest(altered(manifest), "here") == manifest
    recipe = {**json.loads(manifest.to_json())["recipe"], "version": 2}
    with pytest.raises(CorruptArtifactError, match="not the digest of its recipe"):
        parse_manifest(altered(manifest, recipe=recipe), "here")


PATHS = ["../../other", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\n", "ä", "%2e%2e", "x" * 201]


@pytest.mark.parametrize("path", PATHS)
def test_a_file_outside_its_artifact_cannot_be_listed(path: str, manifest: Manifest) -> None:
    entry = {"name": "data.bin", "path": "data.bin", "size": 1, "sha256": "0" * 64}
    for field in ("name", "path"):
        with pytest.raises(ValidationError):
            FileEntry.model_validate({**entry, field: path})
        with pytest.raises(CorruptArtifactError):
            parse_manifest(altered(manifest, files=[{**entry, field: path}]), "here")


@pytest.mark.parametrize(
    "change", [{"size": -1}, {"sha256": "0" * 63}, {"sha256": "G" * 64}, {"sha256": "0" * 64 + "\n"}]
)
def test_a_file_entry_with_an_impossible_size_or_digest_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FileEntry.model_validate({"name": "a", "path": "a", "size": 1, "sha256": "0" * 64, **change})


def test_a_file_is_found_by_name_and_an_absent_one_is_a_sentence(manifest: Manifest) -> None:
    assert manifest.file("data.bin").size == 10
    with pytest.raises(CorruptArtifactError, match=r"has no file 'other.bin'"):
        manifest.file("other.bin")


def test_numbers_that_json_does_not_have_are_refused_in_every_place(manifest: Manifest) -> None:
    text = manifest.to_json().replace(b"0.5", b"NaN")
    assert text != manifest.to_json()
    with pytest.raises(CorruptArtifactError):
        parse_manifest(text, "here")
    config = manifest.to_json().replace(b'"seed":0', b'"seed":Infinity')
    with pytest.raises(CorruptArtifactError):
        parse_manifest(config, "here")
