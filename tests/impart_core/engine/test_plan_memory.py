"""What the plan says of the memory that calibration takes is an upper bound, counted while tensors live and die."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.preflight import preflight
from impart_core.delta.svd import decompose
from impart_core.engine.plan import make_plan, solving_bytes
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.quantization.curvature import Inputs
from tests.impart_core.pipeline import config_of, small_options
from tests.support import decaying_delta, random_tensors, save_checkpoint


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made under it, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size


@pytest.mark.parametrize("solver", ["support", "masked"])
@pytest.mark.parametrize("cr", [8, 32])
@pytest.mark.parametrize(("shape", "of_rows"), [((256, 256), False), ((128, 320), True), ((320, 128), True)])
@pytest.mark.parametrize("method", ["dare-qt", "delta-come", "impart-qt"])
def test_quantising_with_a_hessian_takes_no_more_than_is_planned(
    method: str, shape: tuple[int, int], of_rows: bool, cr: float, solver: str
) -> None:
    config = config_of(cr, method=method, options={**small_options(method), "solver": solver})
    delta, side = decaying_delta(*shape), shape[0 if of_rows else 1]
    factors, inputs = decompose(delta, "w"), torch.randn(4 * side, side, generator=torch.Generator().manual_seed(0))
    projection = Projection("w", shape, lambda: delta, lambda: factors, Inputs(inputs.T @ inputs, of_rows, "w"))
    with LiveBytes() as live:
        METHODS.get(method).encode(projection, config)
    planned = solving_bytes(shape, config, workers=1)
    assert 4 * 6 * side**2 < live.peak <= planned  # the curvature alone is six matrices beside the Hessian
    if (method, shape, cr, solver) == ("dare-qt", (256, 256), 8, "support"):
        assert planned < 3 * live.peak


def mixture_of_experts(folder: Any, experts: int) -> tuple[Checkpoint, Checkpoint]:
    """Return a pair whose experts are tensors of their own."""
    shapes = {"model.embed_tokens.weight": (8, 64), "model.norm.weight": (64,)}
    for expert in range(experts):
        shapes[f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight"] = (96, 64)
        shapes[f"model.layers.0.block_sparse_moe.experts.{expert}.w2.weight"] = (64, 96)
    tensors = random_tensors(shapes)
    changed = {name: tensor * 1.01 for name, tensor in tensors.items()}
    sides = (save_checkpoint(folder / "base", tensors), save_checkpoint(folder / "finetuned", changed))
    return open_checkpoint(sides[0]), open_checkpoint(sides[1])


def test_hessians_of_all_experts_are_planned_where_each_is_a_tensor_of_its_own(tmp_path: Any) -> None:
    config = config_of(16, method="dare-qt")
    sides = mixture_of_experts(tmp_path, experts=4)
    assert len(preflight(*sides)) == 2 + 2 * 4
    assert make_plan(*sides, config).calibration_bytes >= 4 * 4 * 96**2 + solving_bytes((64, 96), config, workers=1)
