"""Models on the Hub, read from a server on this machine that speaks its protocol."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from impart_core.base.errors import CheckpointError, UnreachableError
from impart_core.checkpoint import hub as hub_module
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.hub import HubId, parse_hub_id
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from tests.servers import MAIN, OLD, Hub, hub_server
from tests.support import llama_shapes, random_tensors, save_checkpoint

TENSORS = random_tensors(llama_shapes(layers=2, hidden=128, intermediate=192, key_value=64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_checkpoint(tmp_path_factory.mktemp("hub") / "model", TENSORS)
    (made / "original").mkdir()
    return made


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with one model that may be read and one that is gated."""
    with hub_server({"org/name": folder, "org/name-gated": folder}) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield server


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name")),
        ("hf://org/name", HubId("org/name")),
        ("org/name@main", HubId("org/name", "main")),
        ("Org-1/na.me_2@refs/pr/1", HubId("Org-1/na.me_2", "refs/pr/1")),
        ("name", None),
        ("a/b/c", None),
        ("org/name/", None),
        ("org/name@", None),
        ("org/name@a@b", None),
        ("../name", None),
        ("./name", None),
        ("/org/name", None),
        ("~/name", None),
        ("org/na me", None),
        ("s3://org/name", None),
        ("", None),
    ],
)
def test_what_names_a_model_on_the_hub(text: str, expected: HubId | None) -> None:
    assert parse_hub_id(text) == expected


@pytest.mark.parametrize(
    ("location", "commit"),
    [
        ("org/name", MAIN),
        ("org/name@main", MAIN),
        ("hf://org/name@v1", OLD),
        (f"hf://org/name@{OLD}", OLD),
    ],
)
def test_a_model_is_pinned_to_the_commit_of_its_revision(location: str, commit: str, hub: Hub, folder: Path) -> None:
    checkpoint = open_checkpoint(location)
    assert checkpoint.location == f"hf://org/name@{commit}"
    assert tensor_digests(checkpoint) == tensor_digests(open_checkpoint(folder))
    assert checkpoint.nbytes == open_checkpoint(folder).nbytes
    read = [path for path, _ in hub.requests if "/resolve/" in path or "/tree/" in path]
    assert read
    assert all(f"/{commit}" in path for path in read)


def test_a_pinned_location_is_read_without_asking_what_it_stands_for(hub: Hub) -> None:
    pinned = open_checkpoint("org/name@main").location
    hub.requests.clear()
    assert open_checkpoint(pinned).location == pinned
    assert not [path for path, _ in hub.requests if "/revision/" in path]


def test_a_model_is_read_by_ranges(hub: Hub) -> None:
    info = open_checkpoint("org/name").tensors["model.layers.0.mlp.up_proj.weight"]
    read_tensor(info)
    ranges = [asked for path, asked in hub.requests if path.startswith("/elsewhere/")]
    assert ranges == ["bytes=0-65535", f"bytes={info.start}-{info.end - 1}"]


def test_a_second_look_reads_no_weights(hub: Hub) -> None:
    first = tensor_digests(open_checkpoint("org/name"))
    hub.requests.clear()
    assert tensor_digests(open_checkpoint("org/name@main")) == first
    assert [asked for path, asked in hub.requests if path.startswith("/elsewhere/")] == ["bytes=0-65535"]


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("org/name@dev", "The Hub's org/name has no revision 'dev'. Give a branch"),
        (f"hf://org/name@{'3' * 40}", "has no revision '3333"),
        (
            "org/nme",
            "There is no folder org/nme. Read as a Hub id: There is no model org/nme on the Hub, or it",
        ),
        ("hf://org/nme", "^There is no model org/nme on the Hub, or it is private"),
        ("org/name-gated", "The Hub's org/name-gated is gated. Ask for access"),
        ("hf://name", "'hf://name' names no model. Give hf://org/name"),
        ("hf://org/name/folder", "names no model"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_sentence(location: str, why: str, hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        open_checkpoint(location)
    assert not isinstance(caught.value, UnreachableError)


def test_a_hub_that_is_broken_or_dead_may_be_tried_again(hub: Hub) -> None:
    hub.broken = 503
    with pytest.raises(UnreachableError, match=r"The Hub's org/name cannot be reached: .*503"):
        open_checkpoint("org/name")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UnreachableError, match=r"There is no folder org/name\. Read as a Hub id: .*cannot be reached"):
        open_checkpoint("org/name")


def test_an_offline_client_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="offline mode is enabled"):
        open_checkpoint("org/name")


def test_a_folder_of_the_name_is_preferred(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "org" / "name", {"only.here": TENSORS["model.norm.weight"]})
    monkeypatch.chdir(tmp_path)
    assert list(open_checkpoint("org/name").tensors) == ["only.here"]
    assert hub.requests == []
    assert len(open_checkpoint("hf://org/name").tensors) == len(TENSORS)


def test_an_answer_without_a_commit_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.servers.MAIN", "main; rm -rf")
    with pytest.raises(CheckpointError, match="names no commit for hf://org/name"):
        hub_module.hub_folder(HubId("org/name"))
