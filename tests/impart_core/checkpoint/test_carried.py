"""Files beside the weights: which belong to a model, which are left behind, and links that lead elsewhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from impart_core.base.errors import CheckpointError
from impart_core.checkpoint import carried as carried_module
from impart_core.checkpoint.carried import is_code, may_be_carried, stored_name
from impart_core.checkpoint.digest import carried_digests
from impart_core.checkpoint.index import open_checkpoint
from tests.impart_core.checkpoint.remotes import upload
from tests.servers import hub_server
from tests.support import save_checkpoint

_CARRIED = """
    config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json
    added_tokens.json vocab.json vocab.txt merges.txt chat_template.jinja chat_template.json
    preprocessor_config.json processor_config.json image_processor_config.json video_preprocessor_config.json
    tokenizer.model spiece.model sentencepiece.bpe.model source.spm target.spm tokenizer.model.v3 tekken.json
    qwen.tiktoken vocab.bpe bpe.codes modules.json sentence_bert_config.json config_sentence_transformers.json
    1_Pooling/config.json 2_Dense/config.json 2_Dense/model.safetensors
    additional_chat_templates/tool_use.jinja qformer_tokenizer/tokenizer.json modeling_own.py
    configuration_own.py tokenization_own.py custom_generate/generate.py LICENSE.txt
"""
CARRIED = _CARRIED.split()
_LEFT = """
    README.md pytorch_model.bin pytorch_model.bin.index.json model.gguf optimizer.pt rng_state.pth
    training_args.bin trainer_state.json train_results.json all_results.json tf_model.h5
    consolidated.safetensors weights.pkl 2_Dense/pytorch_model.bin run.sh image.png a--b.json
"""
LEFT = _LEFT.split()
FOLDERS_LEFT = ("checkpoint-500", "runs", "onnx", "original")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = save_checkpoint(tmp_path_factory.mktemp("carried") / "model", {"a.weight": torch.ones(4, 4)})
    for name in {*CARRIED, *LEFT} - {"config.json"}:
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text(name)
    for name in FOLDERS_LEFT:
        (made / name).mkdir()
        (made / name / "config.json").write_text("{}")
    (made / "deep" / "deeper").mkdir(parents=True)
    (made / "deep" / "deeper" / "config.json").write_text("{}")
    (made / ".gitattributes").write_text("not worth a word")
    return made


@pytest.fixture(params=["folder", "url", "hub"])
def place(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same checkpoint wherever it may lie."""
    if request.param != "hub":
        yield str(folder) if request.param == "folder" else upload(folder, "carried")
        return
    with hub_server({"org/carried": folder}) as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield "org/carried"


def test_what_a_model_needs_is_carried_and_the_rest_is_named(place: str, folder: Path) -> None:
    found = open_checkpoint(place).with_files_at_hand()
    assert set(found.carried) == set(CARRIED)
    left = {*LEFT, *(f"{name}/" for name in FOLDERS_LEFT), "deep/deeper/"}
    assert set(found.left) == left
    assert carried_digests(found) == carried_digests(open_checkpoint(folder))
    for name, file in found.carried.items():
        assert bytes(file.read(0, file.size)) == (folder / name).read_bytes()


@pytest.mark.parametrize("name", CARRIED)
def test_a_stored_name_is_one_that_a_store_takes_and_no_other_file_has(name: str) -> None:
    assert may_be_carried(name)
    assert "/" not in stored_name(name)
    assert is_code(name) is name.endswith(".py")
    assert len({stored_name(other) for other in CARRIED}) == len(CARRIED)


@pytest.mark.parametrize(
    "name",
    [
        *LEFT,
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "../config.json",
        "/config.json",
        "a/../config.json",
        "a/b/config.json",
        "a//config.json",
        "..",
        "",
        "config.json\n",
        ".config.json",
        "a/.config.json",
        "config.json/",
        "x" * 90 + ".json",
        "1_Pooling/../model.safetensors",
        "sub/model.safetensors",
        "ｃonfig.json",
        "1_Dense/model.safetensors.index.json",
    ],
)
def test_what_no_delta_brings(name: str) -> None:
    assert not may_be_carried(name)


def test_a_file_that_is_too_large_is_left_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried_module, "LARGEST_CARRIED", 15)
    found = open_checkpoint(folder)
    assert "tokenizer.model" in found.carried  # as its text here is its name, of 15 bytes
    assert "preprocessor_config.json" in found.left


def test_a_folder_full_of_data_is_no_part_of_a_model(model: Path) -> None:
    (model / "results").mkdir()
    for number in range(65):
        (model / "results" / f"{number}.json").write_text("{}")
    found = open_checkpoint(model)
    assert (set(found.carried), found.left) == ({"config.json"}, ("results/",))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model", {"a.weight": torch.ones(4, 4)})


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "modeling.py"])
def test_a_link_to_a_file_of_somebody_else_is_refused(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "id_ed25519").write_text("a key")
    (model / name).symlink_to(tmp_path / "id_ed25519")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to .*id_ed25519, outside of its checkpoint"):
        open_checkpoint(model)


def test_links_in_links_and_linked_folders_are_followed_to_their_end(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token.json").write_text("{}")
    (model / "sub").symlink_to(tmp_path / "secrets")
    with pytest.raises(CheckpointError, match=r"token\.json, outside"):
        open_checkpoint(model)
    (model / "sub").unlink()
    (model / "inner.txt").symlink_to(tmp_path / "secrets" / "token.json")
    (model / "vocab.txt").symlink_to(model / "inner.txt")
    with pytest.raises(CheckpointError, match=r"token\.json, outside"):
        open_checkpoint(model)


def test_links_that_stay_inside_lead_nowhere_or_are_not_carried_are_no_trouble(model: Path, tmp_path: Path) -> None:
    (model / "spiece.model").write_text("vocabulary")
    (model / "tokenizer.model").symlink_to("spiece.model")
    (model / "vocab.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.md").write_text("")
    (model / "README.md").symlink_to(tmp_path / "notes.md")
    linked = tmp_path / "linked"
    linked.symlink_to(model)
    for place in (model, linked):
        found = open_checkpoint(place)
        assert set(found.carried) == {"config.json", "spiece.model", "tokenizer.model"}
        assert "README.md" in found.left


def test_the_hubs_own_cache_is_links_throughout(model: Path, tmp_path: Path) -> None:
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text("{}")
    blobs = tmp_path / "hub" / "models--org--name" / "blobs"
    snapshot = blobs.parent / "snapshots" / ("c" * 40)
    blobs.mkdir(parents=True)
    for number, file in enumerate(path for path in model.rglob("*") if path.is_file()):
        target = snapshot / file.relative_to(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blobs / f"{number:040x}")
        target.symlink_to(blobs / f"{number:040x}")
    assert set(open_checkpoint(snapshot).carried) == {"config.json", "1_Pooling/config.json"}
