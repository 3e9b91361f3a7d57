"""The pretend device catches each mistake that CUDA would, takes what CUDA takes, and counts."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.pretend_device import PRETEND, counting

HERE = torch.arange(12.0).reshape(3, 4) - 5
THERE = HERE.to(PRETEND)
CPU_MASK = HERE > 0

MISTAKES: dict[str, Callable[[], object]] = {
    "a sum of both": lambda: THERE + HERE,
    "a CPU matrix and a number of the device": lambda: HERE * THERE.sum(),
    "a product of both": lambda: THERE @ HERE.T,
    "a choice between both": lambda: torch.where(THERE > 0, THERE, HERE),
    "a CPU mask": lambda: THERE.clone().masked_fill_(CPU_MASK, 0.0),
    "joined": lambda: torch.cat([THERE, HERE]),
    "written into the CPU's": lambda: HERE.clone().add_(THERE),
    "into the CPU's by out": lambda: torch.add(THERE, 1, out=HERE.clone()),
    "a CPU matrix at the device's places": lambda: HERE[THERE > 0],
    "compared": lambda: torch.equal(THERE, HERE),
    "scattered": lambda: THERE.clone().scatter_(1, torch.zeros(3, 1, dtype=torch.long), 1.0),
    "a CPU number where a matrix is meant": lambda: torch.mv(THERE, torch.ones(4)),
}
TAKEN: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]] = {
    "a CPU number": (lambda: THERE * torch.tensor(2.0), lambda: HERE * 2.0),
    "a CPU number in a choice": (
        lambda: torch.where(THERE > 0, THERE, torch.tensor(1.0)),
        lambda: torch.where(HERE > 0, HERE, 1.0),
    ),
    "a CPU number to fill in": (
        lambda: THERE.masked_fill(THERE > 0, torch.tensor(7.0)),
        lambda: HERE.masked_fill(HERE > 0, 7.0),
    ),
    "CPU indices": (lambda: THERE[torch.tensor([2, 0])], lambda: HERE[[2, 0]]),
    "a CPU mask as an index": (lambda: THERE[CPU_MASK], lambda: HERE[CPU_MASK]),
    "copied in": (lambda: torch.zeros(3, 4, device=PRETEND).copy_(HERE), lambda: HERE),
    "made there": (lambda: torch.tensor([[1.0, 2.0]], device=PRETEND), lambda: torch.tensor([[1.0, 2.0]])),
    "counted there": (lambda: torch.arange(5, device=THERE.device), lambda: torch.arange(5)),
    "like another": (lambda: torch.zeros_like(THERE), lambda: torch.zeros(3, 4)),
    "decomposed": (lambda: torch.linalg.svd(THERE)[1], lambda: torch.linalg.svd(HERE)[1]),
    "a view written into": (lambda: _written(THERE.clone()), lambda: _written(HERE.clone())),
}


def _written(matrix: torch.Tensor) -> torch.Tensor:
    matrix.T[1:].unbind()[0].mul_(3)
    return matrix


@pytest.mark.parametrize("mistake", MISTAKES)
def test_operands_on_different_devices_are_refused(mistake: str) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        MISTAKES[mistake]()


@pytest.mark.parametrize("what", TAKEN)
def test_what_cuda_takes_gives_what_the_cpu_does_and_stays_on_the_device(what: str) -> None:
    ours, plain = TAKEN[what]
    found = ours()
    assert found.device == PRETEND
    assert torch.equal(found.cpu(), plain())


def test_numpy_is_refused() -> None:
    for read in (THERE.numpy, lambda: np.asarray(THERE), lambda: torch.from_numpy(THERE)):
        with pytest.raises(TypeError, match=r"numpy|ndarray"):
            read()
    assert THERE.cpu().numpy().shape == (3, 4)


def test_a_generator_of_the_cpu_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    for make in (
        lambda: torch.randn(3, generator=generator, device=PRETEND),
        lambda: torch.randperm(3, generator=generator, device=PRETEND),
        lambda: THERE.clone().uniform_(generator=generator),
    ):
        with pytest.raises(RuntimeError, match="generator"):
            make()


def test_gradients_stay_on_the_device() -> None:
    there, here = THERE.clone().requires_grad_(), HERE.clone().requires_grad_()
    with torch.autograd.set_multithreading_enabled(False):
        ((there @ there.T).square().sum() / 3).backward()
    ((here @ here.T).square().sum() / 3).backward()
    assert there.grad is not None
    assert here.grad is not None
    assert there.grad.device == PRETEND
    assert torch.equal(there.grad.cpu(), here.grad)


def counts_of(work: Callable[[], object]) -> tuple[int, int]:
    with counting() as counts:
        work()
    return counts.launches.total(), counts.synchronisations.total()


@pytest.mark.parametrize(
    ("work", "launches", "synchronisations"),
    [
        (lambda: (THERE + 1) * 2, 2, 0),
        (lambda: THERE.T[1:].flatten(), 1, 0),  # only what copies: a view launches nothing
        (lambda: torch.empty_like(THERE), 0, 0),
        (lambda: THERE.sum().item(), 1, 1),
        (lambda: bool(THERE.any()), 1, 1),
        (THERE.tolist, 0, 1),
        (THERE.cpu, 0, 1),
        (lambda: torch.zeros(3, 4).copy_(THERE), 0, 1),
        (lambda: HERE.to(PRETEND), 1, 0),
        (THERE.nonzero, 1, 1),
        (lambda: THERE.masked_select(THERE > 0), 2, 1),
        (lambda: THERE[THERE > 0], 2, 1),
        (lambda: THERE[torch.tensor([0])], 1, 0),
        (lambda: torch.unique(THERE), 1, 1),
        (lambda: torch.equal(THERE, THERE), 1, 1),
    ],
)
def test_launches_and_synchronisations_are_counted(
    work: Callable[[], object], launches: int, synchronisations: int
) -> None:
    assert counts_of(work) == (launches, synchronisations)


def test_other_threads_are_on_the_device_and_counted_too() -> None:
    found: list[torch.Tensor] = []
    with counting() as counts:
        thread = threading.Thread(target=lambda: found.append(torch.zeros(3, device=PRETEND) + 1))
        thread.start()
        thread.join()
    assert found[0].device == PRETEND
    assert counts.launches.total() == 2


def test_libraries_that_look_for_an_accelerator_find_none() -> None:
    assert not torch.accelerator.is_available()
