"""`lossless`: every tensor of a checkpoint comes back bit for bit, whatever its dtype, shape and values are."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from impart_core import tinyzoo
from impart_core.apply.load import load_state_dict
from impart_core.apply.reader import open_reader
from impart_core.artifacts.block import block_content
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import ConfigError, CorruptArtifactError, UnknownNameError
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.header import DTYPES
from impart_core.checkpoint.index import open_checkpoint
from impart_core.codec.exact import bits_of
from impart_core.engine.plan import make_plan
from impart_core.engine.preflight import open_sides
from impart_core.engine.quantize import quantize_request
from impart_core.engine.reconstruct import reconstruct
from impart_core.engine.requests import QuantizeRequest, ReconstructRequest
from impart_core.store.store import Store
from tests.impart_core.codec.test_exact import odd_values
from tests.impart_core.pipeline import compress
from tests.support import finetune, llama_shapes, random_tensors, save_checkpoint

LOSSLESS = CompressConfig(method="lossless")
Q, EMBEDDING, NORM = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"


def odd_pair(root: Path) -> tuple[Path, Path]:
    """Write a base and a fine-tune with all that is seldom: odd values and dtypes, a grown vocabulary, new tensors."""
    base = {name: tensor.bfloat16() for name, tensor in random_tensors(llama_shapes()).items()}
    tuned = {name: tensor.bfloat16() for name, tensor in finetune(base).items()}
    tuned[Q] = (base[Q].float() * 1.004).bfloat16()
    flat, odd = tuned[Q].reshape(-1), odd_values(torch.bfloat16)
    flat[: len(odd)] = odd
    base[Q].reshape(-1)[len(odd) : 2 * len(odd)] = odd
    tuned[EMBEDDING] = torch.cat([base[EMBEDDING], torch.randn(3, base[EMBEDDING].shape[1]).bfloat16()])
    tuned[EMBEDDING][5] += 1
    tuned[NORM] = base[NORM].float() + 1e-3  # of another dtype than the base's
    for name, dtype in DTYPES.items():
        values = odd_values(dtype) if dtype.is_floating_point else torch.arange(300).to(dtype)
        tuned[f"extra.{name}"], base[f"extra.{name}"] = values, values[torch.arange(len(values) - 1, -1, -1)]
        tuned[f"same.{name}"] = base[f"same.{name}"] = values
        tuned[f"new.{name}"] = values
    tuned["extra.none"], base["extra.none"] = torch.empty(0, 4), torch.empty(0, 4)
    tuned["extra.scalar"], base["extra.scalar"] = torch.tensor(2.0), torch.tensor(-0.0)
    save_checkpoint(root / "base", base)
    save_checkpoint(root / "finetuned", tuned)
    return root / "base", root / "finetuned"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def ways(delta: Delta) -> dict[str, str]:
    """Return how each tensor is stored."""
    return {name: entry.method for block in delta.blocks for name, entry in block_content(block).tensors.items()}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Store, Delta]:
    """The pair, a store, and the delta."""
    root = tmp_path_factory.mktemp("odd")
    base, finetuned = odd_pair(root)
    store = Store(root / "store")
    return base, finetuned, store, compress(store, base, finetuned, LOSSLESS)


def test_every_tensor_comes_back_bit_for_bit(odd: tuple[Path, Path, Store, Delta], tmp_path: Path) -> None:
    base, finetuned, store, delta = odd
    request = ReconstructRequest(ref=delta.id, base=str(base), out=tmp_path / "out", store=store.url)
    assert reconstruct(request).lossless
    found, expected = weights(tmp_path / "out"), weights(finetuned)
    loaded = load_state_dict(delta, open_checkpoint(str(base)))
    assert set(found) == set(expected) == set(loaded)
    for name, tensor in expected.items():
        for other in (found[name], loaded[name]):
            assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype), name
            assert bits_of(other).tobytes() == bits_of(tensor).tobytes(), name


def test_tensors_are_stored_in_the_ways_that_suit_them(odd: tuple[Path, Path, Store, Delta]) -> None:
    found = ways(odd[3])
    assert {way for name, way in found.items() if name.startswith("same.")} == {"omitted"}
    assert {way for name, way in found.items() if name.startswith("new.")} <= {"planes", "value"}
    assert (found[Q], found[EMBEDDING]) == ("difference", "sparse")
    assert found[NORM] in ("planes", "value")


def test_the_plan_is_an_upper_bound(odd: tuple[Path, Path, Store, Delta]) -> None:
    base, finetuned, _, delta = odd
    plan = make_plan(*open_sides(str(base), str(finetuned)), LOSSLESS)
    assert delta.bytes <= plan.bytes
    for block, manifest in zip(plan.blocks, delta.blocks, strict=True):
        assert manifest.nbytes <= block.artifact_bytes


def test_what_would_not_come_back_is_refused(odd: tuple[Path, Path, Store, Delta]) -> None:
    base, _, _, delta = odd
    opened = open_checkpoint(str(base))
    with open_reader(delta) as reader:
        assert reader.expected is not None
        wrong = replace(reader, expected={**reader.expected, Q: "0" * 64})
        wrong.rebuild(NORM, opened)
        with pytest.raises(CorruptArtifactError, match=r"q_proj.* does not come back as the fine-tune's tensor"):
            wrong.rebuild(Q, opened)
        broken = replace(opened, tensors={name: info for name, info in opened.tensors.items() if name != Q})
        with pytest.raises(CorruptArtifactError, match="do not fit the base's tensor"):
            reader.rebuild(Q, broken)


def test_its_delta_is_that_of_the_checkpoint_for_merges(tmp_path: Path) -> None:
    base, finetuned = tinyzoo.path("base"), tinyzoo.path("math")
    delta = compress(Store(tmp_path / "store"), Path(base), Path(finetuned), LOSSLESS)
    ours, theirs = weights(Path(base)), weights(Path(finetuned))
    with open_reader(delta) as reader:
        for name in reader.headers:
            found = reader.read_delta(name, open_checkpoint(str(base)))
            assert found is not None
            assert torch.equal(found, theirs[name].float() - ours[name].float())
    assert delta.content.cr_projection is not None
    assert (
        delta.content.cr_projection > 1.7
    )  # of two ways to get there, the zoo's own: `python -m tests.bench lossless`
    assert delta.content.summary(delta.manifest.recipe) == "lossless"
    request = QuantizeRequest(ref=delta.id, cr=64, options={"solver": "nearest", "ladder": "2"}, store=delta.store.url)
    assert quantize_request(request)[0].config.method == "impart-qt"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"cr": 4}, "keeps every bit, so that no ratio can be asked for. Leave cr out"),
        ({"seed": 3}, "Seed: without effect on lossless"),
        ({"accounting": "paper", "embeddings": "auto"}, "Accounting, embeddings: without effect on lossless"),
        ({"options": {"beta": 0.5}}, "lossless has no options. Leave them out"),
        ({"sed": 3}, "Unknown setting 'sed'. Did you mean 'seed'?"),
    ],
)
def test_settings_of_methods_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        CompressConfig(method="lossless", **settings)


def test_the_ratio_is_left_out_there_and_nowhere_else() -> None:
    again = CompressConfig.model_validate_json(LOSSLESS.model_dump_json())
    assert again == LOSSLESS == CompressConfig(method="lossless", cr=None)
    for settings in ({}, {"cr": None}, {"method": "dare"}):
        with pytest.raises(ConfigError, match="No compression ratio is given"):
            CompressConfig(**settings)
    with pytest.raises(UnknownNameError, match="Did you mean 'lossless'"):
        CompressConfig(method="losless", cr=4)


def test_a_fine_tune_that_left_all_alone_takes_no_codes(tmp_path: Path) -> None:
    base = Path(tinyzoo.path("base"))
    shutil.copytree(base, tmp_path / "copy")
    (tmp_path / "copy" / "generation_config.json").write_text("{}")
    delta = compress(Store(tmp_path / "store"), base, tmp_path / "copy", LOSSLESS)
    assert set(ways(delta).values()) == {"omitted"}
