"""An adapter in the place of a fine-tune: every verb takes it, and nothing shows that it was none."""

from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import impart_core as impart
from impart_core import tinyzoo
from impart_core.base.errors import CheckpointError, ConfigError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.writer import folder_of

BASE = tinyzoo.path("base")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an adapter on the tiny zoo's base that changes what it answers."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE)
    torch.manual_seed(0)
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"])
    )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def merged(adapter: Path) -> Iterator[Path]:
    """Return the folder of the two merged."""
    with folder_of(open_checkpoint(adapter, open_checkpoint(BASE))) as folder:
        yield folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("adapted") / "store")


@pytest.fixture(scope="module")
def delta(adapter: Path, store: str) -> impart.Delta:
    return impart.compress(BASE, adapter, 4, store=store, name="lora", workers=1)


def test_its_artifact_is_that_of_the_merged_model(delta: impart.Delta, adapter: Path, merged: Path) -> None:
    assert impart.compress(BASE, merged, 4, store=delta.store).id == delta.id
    assert delta.manifest.provenance.sources["finetuned"] == str(adapter)
    assert delta.cr_model > 4  # of the merged model's bytes, which are many times the adapter's


def test_it_is_rebuilt_as_a_whole_model(delta: impart.Delta, merged: Path, tmp_path: Path) -> None:
    out = impart.reconstruct(delta, BASE, tmp_path / "out")
    assert {path.name for path in out.iterdir()} == {path.name for path in merged.iterdir()}
    found, expected = (load_file(folder / "model.safetensors") for folder in (out, merged))
    name = "model.layers.1.self_attn.q_proj.weight"  # of rank 4, which CR 4 has room for
    change = expected[name].float() - load_file(BASE / "model.safetensors")[name].float()
    assert float((found[name].float() - expected[name].float()).norm() / change.norm()) < 0.75


def test_it_is_quantised_from_where_it_lay(delta: impart.Delta) -> None:
    smaller = impart.quantize(delta, 16, options={"solver": "nearest"}, store=delta.store)
    assert smaller.content.finetuned == delta.content.finetuned
    assert smaller.bytes < delta.bytes


def test_scales_are_distilled_from_the_merged_model(adapter: Path, merged: Path, store: str) -> None:
    tokens = torch.arange(64).reshape(4, 16)
    made = [
        impart.compress(BASE, side, 16, method="bitdelta", options={"distil": True}, calibration=tokens, store=store)
        for side in (adapter, merged)
    ]
    assert made[0].id == made[1].id


def test_it_is_measured_on_its_base(adapter: Path, merged: Path, store: str) -> None:
    found, expected, base = (
        impart.evaluate(model, "tinyzoo_math", base=beside, limit=4, store=store)["tinyzoo_math"]
        for model, beside in ((adapter, BASE), (merged, None), (BASE, None))
    )
    assert found.metrics == expected.metrics != base.metrics
    assert found.id == expected.id
    with pytest.raises(CheckpointError, match="is a PEFT adapter, not a whole model"):
        impart.evaluate(adapter, "tinyzoo_math", store=store)
    with pytest.raises(ConfigError, match="is a whole model, which needs no base"):
        impart.evaluate(tinyzoo.path("math"), "tinyzoo_math", base=BASE, store=store)


def test_one_adapter_under_two_names_is_merged_once(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(adapter)
    (tmp_path / "base").symlink_to(BASE)
    for other in (f"{BASE}+{tmp_path / 'link'}", f"{tmp_path / 'base'}+{adapter}"):
        with pytest.raises(ConfigError, match="are one model under two names"):
            impart.merge([f"{BASE}+{adapter}", other], base=BASE, out=tmp_path / "out", store=tmp_path / "store")
