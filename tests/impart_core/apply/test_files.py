"""Files beside the weights, from a fine-tune into its rebuilt folder: it loads again, and brings no code unasked."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from impart_core import tinyzoo
from impart_core.apply.dense import reconstruct
from impart_core.apply.load import load_model
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CheckpointError
from impart_core.checkpoint.carried import stored_name
from impart_core.checkpoint.index import open_checkpoint
from impart_core.store.store import Store
from impart_core.store.verify import verify
from tests.impart_core.pipeline import compress, config_of

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
    answer = {answer}
"""
POOLING = '{"pooling_mode_mean_tokens": true}'


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and a fine-tune with code, templates, a processor and modules of its own."""
    root = tmp_path_factory.mktemp("files")
    base = Path(shutil.copytree(tinyzoo.path("base"), root / "base"))
    tuned = Path(shutil.copytree(tinyzoo.path("math"), root / "tuned"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tuned)
    tokenizer.chat_template = {"default": "plain {{ messages }}", "tools": "with tools {{ messages }}"}
    tokenizer.save_pretrained(tuned)
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(tuned)
    (tuned / "1_Pooling").mkdir()
    (tuned / "1_Pooling" / "config.json").write_text(POOLING)
    (tuned / "modules.json").write_text('[{"idx": 1, "path": "1_Pooling"}]')
    for side, answer in ((base, 1), (tuned, 42)):
        config = json.loads((side / "config.json").read_text())
        mapped = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        (side / "config.json").write_text(
            json.dumps({**config, "model_type": "own", "auto_map": mapped, "answer": answer})
        )
        (side / "own.py").write_text(CODE.format(answer=answer))
    (tuned / "optimizer.pt").write_text("not needed")
    return base, tuned


@pytest.fixture(scope="module")
def delta(sides: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Delta:
    return compress(Store(tmp_path_factory.mktemp("store") / "store"), *sides, config_of(8))


def test_all_files_come_back_as_they_were(delta: Delta, sides: tuple[Path, Path], tmp_path: Path) -> None:
    reconstruct(delta, open_checkpoint(sides[0]), tmp_path / "out", with_code=True)
    found = {str(path.relative_to(sides[1])) for path in sides[1].rglob("*") if path.is_file()}
    assert "additional_chat_templates/tools.jinja" in found
    for name in found - {"optimizer.pt", "model.safetensors"}:
        assert (tmp_path / "out" / name).read_bytes() == (sides[1] / name).read_bytes(), name
    assert not (tmp_path / "out" / "optimizer.pt").exists()
    assert verify(delta.store, delta.id).faults == ()


def test_it_loads_with_every_auto_class(delta: Delta, sides: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    reconstruct(delta, open_checkpoint(sides[0]), out, with_code=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert model.answer == 42
    tokenizer = transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    assert tokenizer.get_chat_template("tools") == "with tools {{ messages }}"
    processor = transformers.AutoProcessor.from_pretrained(out, trust_remote_code=True)
    assert processor.feature_extractor.sampling_rate == 8000


def test_code_that_only_the_delta_has_is_written_when_asked_for(
    delta: Delta, sides: tuple[Path, Path], tmp_path: Path
) -> None:
    assert delta.code == ("own.py",)
    reconstruct(delta, open_checkpoint(sides[0]), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.py"))
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == POOLING
    with pytest.raises(CheckpointError, match="cannot be made"):  # of a model type that is not transformers' own
        load_model(delta, open_checkpoint(sides[0]), torch.device("cpu"))


def test_code_of_the_base_is_not_the_deltas(sides: tuple[Path, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(sides[0], tmp_path / "base"))
    (base / "own.py").write_text(CODE.format(answer=42))
    made = compress(Store(tmp_path / "store"), base, sides[1], config_of(8))
    assert made.code == ()
    reconstruct(made, open_checkpoint(base), tmp_path / "out")
    assert (tmp_path / "out" / "own.py").read_text() == CODE.format(answer=42)
    (base / "own.py").write_text(CODE.format(answer=41))
    other = compress(Store(tmp_path / "store"), base, sides[1], config_of(8))
    assert other.code == ("own.py",) and other.id != made.id


def test_files_of_one_name_in_two_folders_stay_apart(delta: Delta) -> None:
    held = {entry.name: entry.sha256 for entry in delta.manifest.files}
    assert held["config.json"] != held[stored_name("1_Pooling/config.json")]
    assert held[stored_name("1_Pooling/config.json")] == delta.content.carried["1_Pooling/config.json"]
