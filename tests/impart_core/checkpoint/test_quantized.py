"""Quantised checkpoints: FP8 and MXFP4 as transformers dequantises them, bit by bit; all other formats by name."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from impart_core.apply.dense import reconstruct
from impart_core.base.errors import CheckpointError
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint import quantized
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import CONFIG, Checkpoint, open_checkpoint
from impart_core.checkpoint.plain import plain
from impart_core.checkpoint.reader import read_tensor
from impart_core.engine.plan import check_request
from impart_core.engine.preflight import open_side, open_sides
from impart_core.store.store import Store
from tests.architectures import ARCHITECTURES, load_whole, make_model, tune_
from tests.impart_core.pipeline import compress, config_of

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] | None = None) -> Path:
    """Save tensors and a configuration that says how they are quantised."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": config} if config else {}))
    return folder


def values(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: read_tensor(info) for name, info in checkpoint.tensors.items()}


def codes(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 0.01 + 1e-4


def by_transformers(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return Fp8Dequantize(SimpleNamespace())._dequantize_one(weight, scale, torch.bfloat16)


@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((48, 32), (1, 1)),
        ((48, 32), (48, 1)),
        ((48, 32), (3, 2)),
        ((48, 32), (1, 4)),
        ((5, 48, 32), (5, 3, 2)),
        ((5, 48, 32), (5, 1, 1)),
    ],
)
def test_fp8_stands_for_what_transformers_makes_of_it(
    shape: tuple[int, ...], grid: tuple[int, ...], dtype: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    weight, scale = codes(*shape, dtype=dtype), scales(*grid)
    tensors = {"a.weight": weight, f"a.weight{suffix}": scale, "a.input_scale": scales(1), "norm.weight": scales(4)}
    found = plain(open_checkpoint(save(tmp_path / "model", tensors, FP8)))
    assert list(found.tensors) == ["a.weight", "norm.weight"]
    assert torch.equal(values(found)["a.weight"], by_transformers(weight, scale))


@pytest.mark.parametrize("grid", [(), (1,), (48,)])
def test_scales_of_fewer_dimensions_are_of_the_tensor_or_of_its_rows(grid: tuple[int, ...], tmp_path: Path) -> None:
    weight, scale = codes(48, 32), scales(*grid)
    found = plain(open_checkpoint(save(tmp_path / "model", {"w": weight, "w_scale": scale}, FP8)))
    assert torch.equal(values(found)["w"], by_transformers(weight, scale.reshape(-1, 1)))


@pytest.mark.parametrize("key", ["weight_block_size", "block_structure"])
def test_blocks_at_the_edges_may_be_smaller(key: str, tmp_path: Path) -> None:
    weight, scale = codes(40, 24), scales(3, 2)
    whole = by_transformers(torch.nn.functional.pad(weight.float(), (0, 8, 0, 8)).to(weight.dtype), scale)
    config = {**FP8, "config_groups": {"group_0": {"weights": {key: [16, 16]}}}}
    found = plain(open_checkpoint(save(tmp_path / "model", {"w": weight, "w_scale_inv": scale}, config)))
    assert torch.equal(values(found)["w"], whole[:40, :24])


def test_scales_that_are_powers_of_two_are_read(tmp_path: Path) -> None:
    weight, scale = codes(48, 32), torch.tensor([[0.25, 2.0], [1.0, 0.5], [4.0, 1.0]]).to(torch.float8_e8m0fnu)
    found = plain(open_checkpoint(save(tmp_path / "model", {"w": weight, "w_scale_inv": scale}, FP8)))
    assert torch.equal(values(found)["w"], by_transformers(weight, scale))


def test_mxfp4_stands_for_what_transformers_makes_of_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 20, 2, 16), generator=generator, dtype=torch.uint8)
    exponents = torch.randint(110, 135, (3, 20, 2), generator=generator, dtype=torch.uint8)
    tensors = {"experts.up_proj_blocks": blocks, "experts.up_proj_scales": exponents, "experts.up_proj_bias": scales(3)}
    found = plain(open_checkpoint(save(tmp_path / "model", tensors, {"quant_method": "mxfp4"})))
    assert list(found.tensors) == ["experts.up_proj", "experts.up_proj_bias"]
    expected = convert_moe_packed_tensors(blocks, exponents)
    info = found.tensors["experts.up_proj"]
    assert torch.equal(read_tensor(info), expected)
    assert all(torch.equal(read_tensor(info.part(index)), expected[index]) for index in range(3))


@pytest.mark.parametrize("chunk", [100, 1000, 1 << 20])
def test_values_are_the_same_in_whatever_pieces_they_are_read(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"a": codes(2, 48, 32), "a_scale": scales(2, 3, 2), "b": codes(7, 9, seed=1), "b_scale": scales(1)}
    found = plain(open_checkpoint(save(tmp_path / "model", tensors, FP8)))
    file = found.tensors["a"].file
    whole = bytes(file.read(0, file.size))
    monkeypatch.setattr(quantized, "CHUNK", chunk)
    assert b"".join(bytes(piece) for piece in file.chunks(0, file.size)) == whole
    for start, end in ((0, 7), (5, 4001), (6100, 6203), (file.size - 3, file.size)):
        assert bytes(file.read(start, end)) == whole[start:end]
    file.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == whole


def test_digests_are_of_the_values_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale = codes(48, 32), scales(3, 2)
    config = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    quantised = save(tmp_path / "fp8", {"w": weight, "w_scale_inv": scale, "n": scales(5)}, config)
    dequantised = save(tmp_path / "plain", {"w": by_transformers(weight, scale), "n": scales(5)})
    expected = tensor_digests(open_checkpoint(dequantised))
    assert tensor_digests(plain(open_checkpoint(quantised))) == expected
    assert tensor_digests(open_checkpoint(quantised)).keys() == {"w", "w_scale_inv", "n"}  # as it lies, in one cache
    monkeypatch.setattr(quantized.Quantized, "read", None)
    assert tensor_digests(plain(open_checkpoint(quantised))) == expected
    save(tmp_path / "fp8", {"w": weight, "w_scale_inv": scale * 2, "n": scales(5)}, config)
    with pytest.raises(TypeError):
        tensor_digests(plain(open_checkpoint(quantised)))


U8, I32 = torch.zeros(8, 1, dtype=torch.uint8), torch.zeros(8, 2, dtype=torch.int32)
BNB = {"w.weight": U8, "w.weight.absmax": scales(4), "w.weight.quant_map": scales(16)}


@pytest.mark.parametrize(
    ("tensors", "config", "name"),
    [
        ({"w.qweight": I32, "w.qzeros": I32, "w.scales": scales(2, 8)}, {"quant_method": "gptq", "bits": 4}, "gptq, 4"),
        ({"w.qweight": I32, "w.qzeros": I32, "w.scales": scales(2, 8)}, {"quant_method": "awq"}, "awq"),
        ({"w.qweight": I32}, None, "GPTQ or AWQ"),
        (BNB, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        (BNB, None, "bitsandbytes, 4 bits"),
        ({"w.weight": U8, "w.SCB": scales(8)}, None, "bitsandbytes, 8 bits"),
        (
            {"w.weight_packed": I32, "w.weight_scale": scales(8, 1)},
            {"quant_method": "compressed-tensors"},
            "compressed-",
        ),
        ({"w.weight": U8, "w.weight_scale": scales(1)}, {"quant_method": "bitnet"}, "bitnet"),
        ({"w.W_q": U8}, {"quant_method": "hqq"}, "hqq"),
        ({"x_blocks": torch.zeros(8, 2, 16, dtype=torch.uint8), "x_scales": U8}, {"quant_method": "mxfp4"}, "mxfp4"),
        ({"w.weight": codes(8, 8), "w.weight_scale": scales(1), "v.weight_packed": I32}, None, "compressed-tensors"),
    ],
)
def test_other_formats_are_refused_by_name(
    tensors: dict[str, torch.Tensor], config: dict[str, Any] | None, name: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", tensors, config)
    open_checkpoint(folder)  # as it lies, it may be evaluated
    with pytest.raises(CheckpointError, match=rf"{folder} is quantised \({re.escape(name)}.*Give the checkpoint that"):
        plain(open_checkpoint(folder))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"w": codes(8, 8)}, "holds 'w' as F8_E4M3 without scales"),
        ({"w": codes(9, 8), "w_scale": scales(2, 2)}, "do not divide 'w'"),
        ({"w": codes(2, 8, 8), "w_scale": scales(3, 1, 1)}, "do not divide 'w'"),
    ],
)
def test_fp8_whose_scales_cannot_be_told_is_refused(tensors: dict[str, torch.Tensor], why: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=why):
        plain(open_checkpoint(save(tmp_path / "model", tensors, FP8)))


def test_settings_left_behind_beside_plain_weights_are_told_and_no_reason_to_refuse(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", {"w": scales(8, 8)}, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    checkpoint = open_checkpoint(folder)
    read = plain(checkpoint)
    assert replace(read, notes=()) == checkpoint
    assert "holds plain weights" in read.notes[0]
    assert "bitsandbytes, 4 bits" in read.notes[0]


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_an_fp8_checkpoint_is_a_base_and_a_fine_tune(side: str, tmp_path: Path) -> None:
    """The rebuilt model is that of a pair whose FP8 side was dequantised before, and says nothing of FP8."""
    base, finetuned = pair_with_fp8(side, tmp_path)
    assert any("is quantised (fp8)" in note for note in (base if side == "base" else finetuned).notes)
    delta = compress(Store(tmp_path / "store"), tmp_path / "base", tmp_path / "finetuned", config_of(4))
    reconstruct(delta, open_side(str(tmp_path / "base")), tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / CONFIG).read_text())
    rebuilt, expected = load_whole(tmp_path / "out", ARCHITECTURES["llama"].model).state_dict(), values(finetuned)
    assert rebuilt.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.nn.functional.cosine_similarity(rebuilt[name].flatten(), tensor.float().flatten(), dim=0) > 0.99


def pair_with_fp8(side: str, folder: Path) -> tuple[Checkpoint, Checkpoint]:
    """Make a base and a fine-tune in a folder, one side of which is in FP8, and open both."""
    wanted = ARCHITECTURES["llama"]
    model = make_model(wanted.config(), wanted.model, torch.bfloat16)
    for name in ("base", "finetuned"):
        model.save_pretrained(folder / name)
        tune_(model)
    quantise(folder / side)
    return open_sides(str(folder / "base"), str(folder / "finetuned"))


def quantise(folder: Path) -> None:
    """Turn a folder's projections into FP8 codes with a scale for each block of 32 × 32."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "proj" in name]:
        blocks = tensors[name].float().unflatten(1, (-1, 32)).unflatten(0, (-1, 32))
        scale = blocks.abs().amax((1, 3), keepdim=True) / 448
        tensors[name] = (blocks / scale).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale[:, 0, :, 0]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / CONFIG).read_text())
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    (folder / CONFIG).write_text(json.dumps({**config, "quantization_config": settings}))


@pytest.mark.parametrize("side", ["base", "finetuned"])
def test_bit_for_bit_takes_an_fp8_base_and_refuses_an_fp8_fine_tune(side: str, tmp_path: Path) -> None:
    base, finetuned = pair_with_fp8(side, tmp_path)
    config = CompressConfig(method="lossless")
    if side == "finetuned":
        with pytest.raises(CheckpointError, match=r"finetuned is quantised: 14 of .* Store the checkpoint as it is"):
            check_request(base, finetuned, config)
    else:
        assert check_request(base, finetuned, config).pairs
