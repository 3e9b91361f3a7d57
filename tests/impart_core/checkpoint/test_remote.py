"""Checkpoints behind URLs: the same as from a folder, and read by byte ranges only."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch

from impart_core.apply.dense import reconstruct
from impart_core.base.errors import CheckpointError, ConfigError, ImpartError, UnreachableError
from impart_core.checkpoint import remote
from impart_core.checkpoint.digest import cache_folder, carried_digests, tensor_digests
from impart_core.checkpoint.header import read_header
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.remote import url_folder
from impart_core.checkpoint.weights import SINGLE
from impart_core.checkpoint.writer import folder_of
from impart_core.engine.evaluate import check_evaluate
from impart_core.engine.requests import EvaluateRequest
from impart_core.storage.open import require_plain_url
from impart_core.store.store import Store
from tests.impart_core.checkpoint.remotes import CountingFileSystem, bytes_read, upload
from tests.impart_core.pipeline import compress, config_of
from tests.support import llama_shapes, random_tensors, save_checkpoint, weight_files

TENSORS = random_tensors(llama_shapes(layers=2, hidden=128, intermediate=192, key_value=64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("remote") / "model", TENSORS)


@pytest.fixture
def url(folder: Path) -> str:
    """The folder in a filesystem that counts what is read of it."""
    return upload(folder, "model")


@pytest.mark.parametrize("shards", [10**9, 100_000])
def test_a_checkpoint_behind_a_url_is_the_one_in_the_folder(shards: int, tmp_path: Path) -> None:
    local = open_checkpoint(save_checkpoint(tmp_path / "model", TENSORS, max_shard_bytes=shards))
    url = upload(tmp_path / "model", f"same-{shards}")
    found = open_checkpoint(f"{url}/")
    assert found.location == url
    assert found.config == local.config
    assert found.nbytes == local.nbytes
    assert [(i.name, i.dtype, i.shape, i.start) for i in found.tensors.values()] == [
        (i.name, i.dtype, i.shape, i.start) for i in local.tensors.values()
    ]
    assert weight_files(found) == [f"{url}/{Path(str(f)).name}" for f in weight_files(local)]
    assert tensor_digests(found) == tensor_digests(local)
    assert carried_digests(found) == carried_digests(local)


def test_an_index_takes_one_small_range_of_each_file(folder: Path, url: str) -> None:
    open_checkpoint(url)
    size = (folder / SINGLE).stat().st_size
    assert size > 5 * (64 << 10)
    assert bytes_read(SINGLE) == 64 << 10
    assert [name for name, _, _ in CountingFileSystem.ranges] == ["config.json", SINGLE]


def test_a_header_beyond_the_first_range_is_read_to_its_end_and_no_further(tmp_path: Path) -> None:
    tensors = {f"model.layers.{n}.mlp.down_proj.weight": torch.zeros(64, 16) for n in range(800)}
    file = save_checkpoint(tmp_path / "wide", tensors) / SINGLE
    length = int.from_bytes(file.read_bytes()[:8], "little")
    assert length > 64 << 10
    found = open_checkpoint(upload(tmp_path / "wide", "wide"))
    assert set(found.tensors) == set(tensors)
    assert [r[1:] for r in CountingFileSystem.ranges if r[0] == SINGLE] == [(0, 64 << 10), (64 << 10, 8 + length)]


def test_a_tensor_takes_its_own_range(url: str) -> None:
    info = open_checkpoint(url).tensors["model.layers.1.mlp.up_proj.weight"]
    CountingFileSystem.ranges.clear()
    assert torch.equal(read_tensor(info), TENSORS[info.name])
    assert CountingFileSystem.ranges == [(SINGLE, info.start, info.end)]


def test_a_large_tensor_is_fetched_in_ranges_of_limited_size(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LARGEST_RANGE", 10_000)
    info = open_checkpoint(url).tensors["lm_head.weight"]
    CountingFileSystem.ranges.clear()
    assert torch.equal(read_tensor(info), TENSORS[info.name])
    assert [end - start for _, start, end in CountingFileSystem.ranges] == [10_000, info.nbytes - 10_000]


def test_a_second_look_reads_no_weights_until_the_file_is_written_anew(folder: Path, url: str) -> None:
    first = tensor_digests(open_checkpoint(url))
    assert bytes_read(SINGLE) > (folder / SINGLE).stat().st_size
    CountingFileSystem.ranges.clear()
    assert tensor_digests(open_checkpoint(url)) == first
    assert bytes_read(SINGLE) == 64 << 10
    upload(folder, "model")
    assert tensor_digests(open_checkpoint(url)) == first
    assert bytes_read(SINGLE) > (folder / SINGLE).stat().st_size
    (record,) = (cache_folder() / "digests").iterdir()
    assert json.loads(record.read_bytes())["stamp"][0] == f"{url}/{SINGLE}"


def test_a_place_that_tells_nothing_of_changes_is_never_remembered(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_STAMPS", ())
    first = tensor_digests(open_checkpoint(url))
    assert tensor_digests(open_checkpoint(url)) == first
    assert not cache_folder().exists()


def test_a_delta_of_remote_checkpoints_is_the_one_of_folders_and_rebuilds(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    base, finetuned = pair
    (tmp_path / "tuned").mkdir()
    for file in finetuned.iterdir():
        (tmp_path / "tuned" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tuned" / "tokenizer.json").write_text('{"own": true}')
    urls = upload(base, "pair-base"), upload(tmp_path / "tuned", "pair-tuned")
    local = compress(Store(tmp_path / "local"), base, tmp_path / "tuned", config_of())
    made = compress(Store(tmp_path / "remote"), *urls, config_of())
    assert made.manifest.id == local.manifest.id
    assert made.manifest.files == local.manifest.files
    assert [entry.name for entry in made.manifest.files] == ["tokenizer.json"]
    reconstruct(made, open_checkpoint(urls[0]), tmp_path / "out")
    reconstruct(local, open_checkpoint(base), tmp_path / "expected")
    rebuilt, expected = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("out", "expected"))
    assert rebuilt == expected


def test_a_file_url_is_a_folder_of_this_machine(folder: Path) -> None:
    assert open_checkpoint(f"file://{folder}") == open_checkpoint(folder)


def test_a_file_that_was_cut_after_it_was_indexed_is_refused(folder: Path) -> None:
    info = open_checkpoint(upload(folder, "cut")).tensors["model.norm.weight"]
    fsspec.filesystem("counting").pipe_file(f"/cut/{SINGLE}", b"short")
    with pytest.raises(CheckpointError, match=r"counting://cut/model\.safetensors became shorter"):
        read_tensor(info)
    fsspec.filesystem("counting").rm_file(f"/cut/{SINGLE}")
    with pytest.raises(CheckpointError, match=r"counting://cut/model\.safetensors does not exist"):
        read_tensor(info)


def test_a_connection_that_fails_is_told_as_such(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = open_checkpoint(url).tensors["model.norm.weight"]

    def fail(*_: object, **__: object) -> bytes:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(CountingFileSystem, "cat_file", fail)
    with pytest.raises(UnreachableError, match="cannot be reached: gone"):
        read_tensor(info)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("counting://absent", "folder counting://absent does not exist"),
        ("counting://model/config.json", "folder counting://model/config.json is a file"),
        ("counting://outer", r"counting://outer has no config.json \(it holds model\)"),
        ("nope://model", "'nope://model' cannot be opened: Protocol not known"),
        ("http://[::1/model", "not a valid URL"),
    ],
)
def test_a_url_that_leads_nowhere_is_a_sentence(name: str, why: str, folder: Path, url: str) -> None:
    upload(folder, "outer/model")
    with pytest.raises(CheckpointError, match=why):
        open_checkpoint(name)


@pytest.mark.parametrize(
    "place",
    [
        "s3://key:hunter2@bucket/x",
        "https://host/x?sig=hunter2",
        "memory://x#hunter2",
        "http://hunter2@host/x",
        "simplecache::http://me:hunter2@host/x",
        "zip://model::simplecache::https://hunter2@host/x.zip",
        "zip://model::https://host/x.zip?X-Amz-Signature=hunter2",
        "abfs://container:hunter2@account/x",
        "http://[hunter2@host/x",
    ],
)
def test_a_url_that_carries_more_than_a_place_is_refused_and_not_repeated(place: str, tmp_path: Path) -> None:
    requests: tuple[Callable[[], object], ...] = (
        lambda: open_checkpoint(place),
        lambda: Store(place),
        lambda: check_evaluate(EvaluateRequest(model=place, tasks=("tinyzoo_math",), store=str(tmp_path))),
    )
    for request in requests:
        with pytest.raises(ImpartError, match=r"credentials come from the environment|is not a valid URL") as caught:
            request()
        assert "hunter2" not in str(caught.value)


def test_a_container_before_the_at_is_no_user() -> None:
    require_plain_url("abfs://container@account.dfs.core.windows.net/x", "checkpoint", CheckpointError)


def test_an_archive_that_is_not_named_is_told_and_one_that_is_named_is_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"names no archive. Write zip://FOLDER::ARCHIVE"):
        open_checkpoint("zip://model.zip/model")
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", folder.parent, folder.name)
    assert set(open_checkpoint(f"zip://{folder.name}::{archive}").tensors) == set(TENSORS)


def test_malformed_options_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPART_STORE_OPTIONS", "{")
    for opened in (open_checkpoint, Store):
        with pytest.raises(ConfigError, match="IMPART_STORE_OPTIONS is not a JSON object"):
            opened(url)


def test_a_json_file_of_absurd_size_is_not_read(folder: Path) -> None:
    place = upload(folder, "absurd")
    fsspec.filesystem("counting").pipe_file("/absurd/config.json", bytes((64 << 20) + 1))
    with pytest.raises(CheckpointError, match=r"absurd/config\.json has 67,108,865 bytes"):
        open_checkpoint(place)
    assert bytes_read("config.json") == 0


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"[" * 100_000, b"\xff"])
def test_a_remote_config_that_is_no_json_object_is_refused(text: bytes, folder: Path) -> None:
    place = upload(folder, "hostile")
    fsspec.filesystem("counting").pipe_file("/hostile/config.json", text)
    with pytest.raises(CheckpointError, match=r"hostile/config.json (cannot be read as JSON|is not a JSON object)"):
        open_checkpoint(place)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, but whole ones only."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def plain_http(folder: Path) -> Iterator[str]:
    """The folder behind a web server that knows no ranges."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_place_that_serves_whole_files_only_is_refused(plain_http: str) -> None:
    file = url_folder(plain_http).file(SINGLE)
    assert file is not None
    with pytest.raises(CheckpointError, match="cannot be read in parts: 65,536 bytes were asked for"):
        read_header(file)


def test_a_remote_checkpoint_is_copied_into_a_folder_that_is_gone_afterwards(folder: Path, url: str) -> None:
    with folder_of(open_checkpoint(url)) as copy:
        assert tensor_digests(open_checkpoint(copy)) == tensor_digests(open_checkpoint(folder))
        assert (copy / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert not copy.exists()
    with folder_of(open_checkpoint(folder)) as own:
        assert own == folder
