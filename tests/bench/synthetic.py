"""Synthetic checkpoints of Llama shapes whose deltas have real spectra: those of the tiny zoo, stretched."""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from impart_core import tinyzoo
from tests.support import llama_shapes, save_checkpoint

FloatArray = npt.NDArray[np.float64]

SIZES = {"hidden": 2048, "intermediate": 5632, "key_value": 256, "vocab": 2048}  # 32 heads of 64, 4 for keys and values
_BASE_RMS, _DELTA_RMS = 0.02, 0.001  # of the entries, as full fine-tunes of models of this size have


@cache
def zoo_spectrum(projection: str) -> FloatArray:
    """Return the relative singular values of one kind of projection's deltas, mean over the zoo's nine layers."""
    base = load_file(tinyzoo.path("base") / "model.safetensors")
    found = []
    for name in tinyzoo.FINE_TUNES:
        for tensor, weight in load_file(tinyzoo.path(name) / "model.safetensors").items():
            if f".{projection}." in tensor:
                sigma = torch.linalg.svdvals((weight.float() - base[tensor].float()).double()).numpy()
                found.append(sigma / sigma[0])
    return np.asarray(np.mean(found, axis=0))


def stretched(projection: str, rank: int) -> FloatArray:
    """Return that spectrum for a larger rank: the same curve over k/r."""
    known = zoo_spectrum(projection)
    places = (np.arange(rank) + 0.5) / rank
    return np.asarray(np.interp(places, (np.arange(len(known)) + 0.5) / len(known), known))


def power(rank: int) -> FloatArray:
    """Return the slowly falling spectrum of the conformance vectors: (k+1)^−0.6."""
    return np.asarray((np.arange(rank) + 1.0) ** -0.6)


def delta_of(sigma: FloatArray, m: int, n: int, seed: int) -> torch.Tensor:
    """Return a float32 (m, n) delta with these relative singular values and entries of the usual size."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(side, len(sigma), generator=generator))[0] for side in (m, n))
    delta = (u * torch.from_numpy(sigma).float()) @ v.T
    return delta * (_DELTA_RMS / delta.square().mean().sqrt())


def projection_shapes() -> dict[str, tuple[int, int]]:
    """Return the shapes of one layer's projections by their short names."""
    found = {}
    for name, shape in llama_shapes(layers=1, **SIZES).items():
        if "_proj." in name:
            found[name.split(".")[-2]] = (shape[0], shape[1])
    return found


def save_pairs(root: Path, layers: tuple[int, ...]) -> dict[int, tuple[Path, Path]]:
    """Save bfloat16 bases and their fine-tunes, by number of layers.

    Every layer has one layer's weights and deltas with rows and columns rolled: other tensors, the same spectra.
    """
    generator = torch.Generator().manual_seed(0)
    weights, deltas = {}, {}
    for number, (short, shape) in enumerate(projection_shapes().items()):
        weights[short] = torch.randn(shape, generator=generator) * _BASE_RMS
        deltas[short] = delta_of(stretched(short, min(shape)), *shape, seed=number)
    base, tuned = {}, {}
    for name, shape in llama_shapes(layers=max(layers), **SIZES).items():
        short, roll = name.split(".")[-2], _layer_of(name) + 1
        if short in weights:
            base[name] = weights[short].roll((roll, 3 * roll), (0, 1)).bfloat16()
            tuned[name] = (base[name].float() + deltas[short].roll((roll, 5 * roll), (0, 1))).bfloat16()
        else:
            base[name] = (torch.randn(shape, generator=generator) * _BASE_RMS).bfloat16()
            tuned[name] = (base[name].float() + _DELTA_RMS).bfloat16()
    return {
        count: (_save(root / f"{count}-base", base, count), _save(root / f"{count}-finetuned", tuned, count))
        for count in layers
    }


def _save(folder: Path, tensors: dict[str, torch.Tensor], layers: int) -> Path:
    return save_checkpoint(folder, {name: tensor for name, tensor in tensors.items() if _layer_of(name) < layers})


def _layer_of(name: str) -> int:
    """Return the number of the layer that a tensor belongs to, -1 for those outside."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1
