"""mergekit's own functions give the same, to the rounding of float32, or the same statistics where they draw."""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from impart_core.merging.methods import MERGE_METHODS
from tests.impart_core.merging.methods.calls import deltas_of, merged
from tests.mergekit_env import mergekit_or_skip

pytestmark = pytest.mark.slow

SEEDS = 300
SHAPES = {"matrix": (48, 64), "vector": (97,)}
WEIGHTS = [0.5, 0.3, 0.4]


@dataclass(frozen=True)
class Call:
    """A method with its parameters, as files of mergekit write them, on a base and some models."""

    method: str
    models: int
    parameters: dict[str, Any] = field(default_factory=dict)
    shape: str = "matrix"
    base: bool = True
    seeds: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.shape} {self.parameters}"


FAMILY = ("task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties")
EXACT = [
    *(
        Call(method, 3, {"weight": WEIGHTS, "density": density, "normalize": normalize, "lambda": 0.7}, shape)
        for method in FAMILY
        for density in (0.2, 0.5, 1.0)
        for normalize in (False, True)
        for shape in SHAPES
    ),
    *(Call(method, 3, {"weight": WEIGHTS, "density": 0.3, "rescale": True}) for method in FAMILY),
    Call("ties", 3, {"weight": [0.5, -0.3, 0.4], "density": 0.6, "int8_mask": True}),
    Call("breadcrumbs", 3, {"weight": 1.0, "density": 0.95, "gamma": 0.1}),
    *(
        Call(method, 3, {"weight": WEIGHTS, "density": 1.0, "lambda": 0.7})
        for method in ("dare_linear", "dare_ties", "della", "della_linear")
    ),
    *(Call("linear", 3, {"weight": WEIGHTS, "normalize": on}, base=False) for on in (False, True)),
    *(Call("slerp", 1, {"t": t}, shape) for t in (0.0, 0.3, 1.0) for shape in SHAPES),
    *(
        Call("nuslerp", 2, {"weight": WEIGHTS[:2], "nuslerp_flatten": flat, "nuslerp_row_wise": rows}, base=base)
        for flat in (False, True)
        for rows in (False, True)
        for base in (False, True)
    ),
    *(
        Call("multislerp", 3, {"weight": WEIGHTS, "normalize_weights": on}, base=base)
        for on in (False, True)
        for base in (False, True)
    ),
    *(Call("karcher", 3, {}, shape, base=False) for shape in SHAPES),
    Call("karcher", 3, {"max_iter": 1}, base=False),
    *(Call("sce", 3, {"select_topk": share}, shape) for share in (0.1, 0.5, 1.0) for shape in SHAPES),
    *(Call("model_stock", 3, {"filter_wise": on}, shape) for on in (False, True) for shape in SHAPES),
    *(Call("ram", 3, {"epsilon": epsilon}) for epsilon in (1e-5, 0.1)),
    *(Call("ramplus_tl", 3, {"epsilon": epsilon, "r": 0.5, "alpha": 0.9}) for epsilon in (1e-5, 0.1, 0.2)),
    Call("arcee_fusion", 1),
    *(Call("nearswap", 1, {"t": t}, shape) for t in (0.0, 0.05) for shape in SHAPES),
    Call("passthrough", 1, {"scale": 0.3}, base=False),
]
DRAWN = [
    Call(method, 2, {"weight": [0.5, 0.3], "density": 0.4, **more}, seeds=SEEDS)
    for method in ("dare_linear", "dare_ties", "della_linear", "della")
    for more in ({}, {"rescale": False, "normalize": True}, *([{"epsilon": 0.3}] if "della" in method else []))
]
CALLS = [*EXACT, *DRAWN]


def inputs(call: Call) -> tuple[torch.Tensor, list[torch.Tensor]]:
    shape = (6, 9) if call.seeds else SHAPES[call.shape]
    return deltas_of(1, shape, seed=9, scale=1.0)[0], deltas_of(call.models, shape)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What mergekit makes of all calls, less the base."""
    python, folder = mergekit_or_skip(), tmp_path_factory.mktemp("mergekit")
    tensors: dict[str, torch.Tensor] = {}
    calls = []
    for number, call in enumerate(CALLS):
        base, deltas = inputs(call)
        models = [*([base] if call.base else []), *(base + delta for delta in deltas)]
        names = [f"{number}.{model}" for model in range(len(models))]
        tensors |= dict(zip(names, models, strict=True))
        calls.append(
            {
                **{"result": str(number), "method": call.method, "tensors": names, "seeds": call.seeds},
                **{"base_index": 0 if call.base else None, "parameters": call.parameters},
            }
        )
    save_file(tensors, folder / "cases.safetensors", {"calls": json.dumps(calls)})
    script = Path(__file__).with_name("mergekit_calls.py")
    done = subprocess.run(
        [python, script, folder / "cases.safetensors", folder / "results.safetensors"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return load_file(folder / "results.safetensors")


def ours(call: Call, seed: int = 0) -> torch.Tensor:
    """Return what the method here makes of a call's models."""
    base, deltas = inputs(call)
    parameters = {"lambda_" if name == "lambda" else name: value for name, value in call.parameters.items()}
    if call.base:
        # What mergekit sees of a delta: the model, rounded to float32, less the base.
        return base + merged(call.method, base, [(base + delta) - base for delta in deltas], seed=seed, **parameters)
    method = MERGE_METHODS.get(call.method)
    return method.function([base + delta for delta in deltas], **parameters)


@pytest.mark.parametrize("call", EXACT, ids=str)
def test_results_are_those_of_mergekit(call: Call, theirs: dict[str, torch.Tensor]) -> None:
    expected = theirs[str(CALLS.index(call))]
    if call.method == "arcee_fusion":
        _same_but_at_the_threshold(ours(call), expected)
        return
    # Weights of about 1, of a few operations of float32 each.
    torch.testing.assert_close(ours(call), expected, rtol=2e-6, atol=2e-6)


def _same_but_at_the_threshold(result: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare where importance is a difference of nearly equal numbers: rounding may carry one entry across."""
    assert int(((result - expected).abs() > 2e-6).sum()) <= 1


@pytest.mark.parametrize("call", DRAWN, ids=str)
def test_statistics_are_those_of_mergekit(call: Call, theirs: dict[str, torch.Tensor]) -> None:
    number = CALLS.index(call)
    mean, variance = theirs[f"{number}.mean"], theirs[f"{number}.var"]
    sampled = torch.stack([ours(call, seed).double() for seed in range(SEEDS)])
    error = ((variance + sampled.var(dim=0)) / SEEDS).sqrt()
    scores = (sampled.mean(dim=0) - mean) / error.clamp(min=1e-9)
    assert float(scores.abs().max()) < 5  # of 54 entries
    # The variances, over all entries: each is uncertain by √(2/SEEDS) and some, their mean by far less.
    assert abs(float(sampled.var(dim=0).mean() / variance.mean()) - 1) < 0.1
