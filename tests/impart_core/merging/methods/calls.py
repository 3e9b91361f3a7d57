"""Calls of merge methods on models that are given as a base and what each adds to it."""

from collections.abc import Sequence
from typing import Any

import torch

from impart_core.merging.method import Draws, MergeMethod
from impart_core.merging.methods import MERGE_METHODS

WEIGHTS = (0.5, 0.3, 0.4, 0.2)
RANDOM = [name for name in MERGE_METHODS if MERGE_METHODS.get(name).takes("draws")]


def models_of(method: MergeMethod) -> int:
    """Return how many models to give it beside its base: three, where it takes them."""
    most = method.models[1]
    return 3 if most is None else most - (method.base == "among")


def deltas_of(count: int, shape: Sequence[int], seed: int = 0, scale: float = 0.1) -> list[torch.Tensor]:
    """Return random deltas."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=generator) * scale for _ in range(count)]


def options_for(method: MergeMethod, count: int, **options: Any) -> dict[str, Any]:
    """Return values for all options that have no default, and those that are given and that it has."""
    required: dict[str, Any] = {"weight": list(WEIGHTS[:count]), "t": 0.3}
    chosen = {option.keyword: required[option.keyword] for option in method.options.values() if option.required}
    return chosen | {name: value for name, value in options.items() if method.takes(name)}


def merged(
    name: str, base: torch.Tensor, deltas: list[torch.Tensor], *, tensor: str = "w", seed: int = 0, **options: Any
) -> torch.Tensor:
    """Return what a method makes of base + ΔW_i, less the base; options that it does not have are dropped."""
    method = MERGE_METHODS.get(name)
    chosen = options_for(method, len(deltas), **options)
    if method.takes("draws"):
        chosen["draws"] = Draws(seed, tensor)
    if method.takes_deltas:
        return method.function(deltas, **chosen)
    if method.takes("base"):
        chosen["base"] = base
    tensors = [base + delta for delta in deltas]
    return method.function([base, *tensors] if method.base == "among" else tensors, **chosen) - base
