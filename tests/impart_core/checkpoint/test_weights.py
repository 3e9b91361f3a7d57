"""Which files hold the weights: the same as for transformers, case by case, and a sentence where it would find none."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.weights import SHARD_INDEX, SINGLE
from tests.architectures import ARCHITECTURES, make_model
from tests.servers import hub_server

SHARD = "model-00001-of-00002.safetensors"


class Saves:
    """Folders of one save each: `new` weights and `old` ones, in one file, in shards, and pickled."""

    def __init__(self, root: Path) -> None:
        wanted = ARCHITECTURES["llama"]
        self.root = root
        for name, seed in (("new", 0), ("old", 1)):
            model = make_model(wanted.config(), wanted.model, torch.bfloat16, seed)
            model.save_pretrained(root / name)
            model.save_pretrained(root / f"{name} shards", max_shard_size="700KB")
            torch.save(model.state_dict(), root / f"{name}.bin")
        assert (root / "new shards" / SHARD).exists()

    def copy(self, save: str, folder: Path) -> Path:
        """Add a save's files to a folder."""
        shutil.copytree(self.root / save, folder, dirs_exist_ok=True)
        return folder


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Saves:
    return Saves(tmp_path_factory.mktemp("saves"))


def configure(folder: Path, **keys: object) -> None:
    """Set keys of a folder's configuration."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def one_file(saves: Saves, folder: Path) -> None:
    saves.copy("new", folder)


def shards_and_their_index(saves: Saves, folder: Path) -> None:
    saves.copy("new shards", folder)


def one_file_beside_the_shards_of_another_save(saves: Saves, folder: Path) -> None:
    saves.copy("new", saves.copy("old shards", folder))


def one_file_beside_an_index_whose_shards_are_gone(saves: Saves, folder: Path) -> None:
    one_file_beside_the_shards_of_another_save(saves, folder)
    for shard in folder.glob("model-*"):
        shard.unlink()


def one_file_beside_an_index_that_is_broken(saves: Saves, folder: Path) -> None:
    saves.copy("new", folder)
    (folder / SHARD_INDEX).write_text("{")


def shards_beside_a_consolidated_file(saves: Saves, folder: Path) -> None:  # as in Mistral's repositories
    saves.copy("new shards", folder)
    shutil.copy(saves.root / "old" / SINGLE, folder / "consolidated.safetensors")


def one_file_beside_a_pickle(saves: Saves, folder: Path) -> None:
    saves.copy("new", folder)
    shutil.copy(saves.root / "old.bin", folder / "pytorch_model.bin")


def one_file_beside_a_variant(saves: Saves, folder: Path) -> None:
    saves.copy("new", folder)
    shutil.copy(saves.root / "old" / SINGLE, folder / "model.fp16.safetensors")


def shards_beside_a_variant_in_one_file(saves: Saves, folder: Path) -> None:
    saves.copy("new shards", folder)
    shutil.copy(saves.root / "old" / SINGLE, folder / "model.fp16.safetensors")


def one_file_above_another(saves: Saves, folder: Path) -> None:
    saves.copy("new", folder)
    saves.copy("old", folder / "original")


def a_file_that_the_configuration_names(saves: Saves, folder: Path) -> None:
    saves.copy("old", folder)
    shutil.copy(saves.root / "new" / SINGLE, folder / "chosen.safetensors")
    configure(folder, transformers_weights="chosen.safetensors")


def an_index_that_the_configuration_names(saves: Saves, folder: Path) -> None:
    saves.copy("new shards", folder)
    (folder / SHARD_INDEX).rename(folder / "chosen.safetensors.index.json")
    shutil.copy(saves.root / "old" / SINGLE, folder)
    configure(folder, transformers_weights="chosen.safetensors.index.json")


def as_in_the_hubs_cache(saves: Saves, folder: Path) -> None:
    saves.copy("old shards", saves.copy("new", folder / "whole"))
    (folder / "blobs").mkdir()
    for number, file in enumerate(sorted((folder / "whole").iterdir())):
        file.rename(folder / "blobs" / str(number))
        (folder / file.name).symlink_to(Path("blobs") / str(number))


CASES: list[Callable[[Saves, Path], None]] = [
    one_file,
    shards_and_their_index,
    one_file_beside_the_shards_of_another_save,
    one_file_beside_an_index_whose_shards_are_gone,
    one_file_beside_an_index_that_is_broken,
    shards_beside_a_consolidated_file,
    one_file_beside_a_pickle,
    one_file_beside_a_variant,
    shards_beside_a_variant_in_one_file,
    one_file_above_another,
    a_file_that_the_configuration_names,
    an_index_that_the_configuration_names,
    as_in_the_hubs_cache,
]


@pytest.fixture
def folder(saves: Saves, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder made by a case."""
    made = tmp_path / "model"
    made.mkdir()
    request.param(saves, made)
    return made


@pytest.mark.parametrize("folder", CASES, ids=lambda case: case.__name__, indirect=True)
def test_the_weights_are_those_that_transformers_loads(folder: Path) -> None:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    expected, checkpoint = loaded.state_dict(), open_checkpoint(folder)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, info in checkpoint.tensors.items():
        assert torch.equal(read_tensor(info), expected[name]), name
    passed_over = {"model.safetensors", SHARD_INDEX} <= {file.name for file in folder.iterdir()}
    assert bool(checkpoint.notes) == (passed_over and "transformers_weights" not in checkpoint.config)
    assert all(f"{SINGLE} is taken" in note for note in checkpoint.notes)


def test_all_shards_of_a_set_are_taken_without_their_index_and_it_is_told(saves: Saves, tmp_path: Path) -> None:
    folder = saves.copy("new shards", tmp_path / "model")
    (folder / SHARD_INDEX).unlink()
    checkpoint = open_checkpoint(folder)
    assert tensor_digests(checkpoint) == tensor_digests(open_checkpoint(saves.root / "new"))
    assert "has no model.safetensors.index.json. All 2 shards are there" in checkpoint.notes[0]


def without_its_index(saves: Saves, folder: Path) -> None:
    saves.copy("new shards", folder)
    (folder / SHARD_INDEX).unlink()
    (folder / SHARD).unlink()


def with_its_index(saves: Saves, folder: Path) -> None:
    saves.copy("new shards", folder)
    (folder / SHARD).unlink()


def shards_of_two_saves(saves: Saves, folder: Path) -> None:
    without_its_index(saves, folder)
    shutil.copy(folder / "model-00002-of-00002.safetensors", folder / "model-00001-of-00003.safetensors")


def renamed(name: str) -> Callable[[Saves, Path], None]:
    def case(saves: Saves, folder: Path) -> None:
        saves.copy("new", folder)
        (folder / SINGLE).rename(folder / name)

    return case


def a_pickle_beside_other_safetensors(saves: Saves, folder: Path) -> None:
    renamed("consolidated.safetensors")(saves, folder)
    shutil.copy(saves.root / "old.bin", folder / "pytorch_model.bin")


def a_distributed_checkpoint(saves: Saves, folder: Path) -> None:
    saves.copy("new", folder)
    shutil.copy(folder / SINGLE, folder / "shard-00001-model-00001-of-00001.safetensors")


def an_adapter(saves: Saves, folder: Path) -> None:
    renamed("adapter_model.safetensors")(saves, folder)
    (folder / "adapter_config.json").write_text("{}")


def naming(name: object) -> Callable[[Saves, Path], None]:
    def case(saves: Saves, folder: Path) -> None:
        saves.copy("new", folder)
        configure(folder, transformers_weights=name)

    return case


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        (without_its_index, "holds 1 of 2 shards; model-00001-of-00002.safetensors is missing"),
        (with_its_index, "names model-00001-of-00002.safetensors, which is missing"),
        (shards_of_two_saves, r"shards of several saves \(model of 2, model of 3\)"),
        (renamed("consolidated.safetensors"), "consolidated.safetensors is not what transformers loads"),
        (renamed("model.fp16.safetensors"), "only the variant 'fp16'"),
        (a_pickle_beside_other_safetensors, "transformers loads pytorch_model.bin, which is a pickle"),
        (a_distributed_checkpoint, "holds a distributed checkpoint"),
        (an_adapter, "holds an adapter"),
        (naming("gone.safetensors"), "names 'gone.safetensors' as its weights"),
        (naming("../old/model.safetensors"), "which is not in its folder"),
        (naming("weights.bin"), "neither a file"),
        (naming(["a.safetensors"]), "neither a file"),
    ],
    indirect=["folder"],
)
def test_what_transformers_does_not_load_as_safetensors_is_refused_with_the_reason(folder: Path, why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        open_checkpoint(folder)


@pytest.fixture
def places(saves: Saves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder with one file beside another save's shards, and the id under which a Hub has it."""
    folder = tmp_path / "model"
    folder.mkdir()
    one_file_beside_the_shards_of_another_save(saves, folder)
    with hub_server({"org/name": folder}) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield folder, "org/name"


@pytest.mark.e2e
def test_a_folder_the_hub_and_s3_give_the_same_weights(
    places: tuple[Path, str], s3: dict[str, str], saves: Saves, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = places
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    fs = s3fs.S3FileSystem(endpoint_url=s3["AWS_ENDPOINT_URL"], skip_instance_cache=True)
    for file in folder.iterdir():
        fs.put_file(str(file), f"impart/weights/{file.name}")
    expected = tensor_digests(open_checkpoint(saves.root / "new"))
    for place in (str(folder), model, "s3://impart/weights"):
        checkpoint = open_checkpoint(place)
        assert tensor_digests(checkpoint) == expected
        assert f"{SINGLE} is taken" in checkpoint.notes[0]
