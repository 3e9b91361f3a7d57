"""Errors that entries to come make up for: as in GPTQ's plain loop, and worth it where rounding is fine."""

import pytest
import torch

from impart_core.quantization.feedback import Metric

SIDE = 150  # more than two blocks


def metric_of(share: float, side: int = SIDE) -> Metric:
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(3 * side, side, generator=generator, dtype=torch.float64)
    mixed = samples @ (torch.eye(side, dtype=torch.float64) + torch.randn(side, side, generator=generator) / side**0.5)
    matrix = mixed.T @ mixed / len(mixed)
    return Metric.of(matrix, torch.linalg.inv(matrix), share)


def entries_of(rows: int = 7) -> torch.Tensor:
    return torch.randn(rows, SIDE, generator=torch.Generator().manual_seed(2))


def lost(metric: Metric, errors: torch.Tensor) -> torch.Tensor:
    return ((errors @ metric.matrix) * errors).sum(dim=1)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("step", [2.0, 0.3])
def test_it_is_what_the_plain_loop_gives(share: float, step: float) -> None:
    metric, entries = metric_of(share), entries_of()
    upper = torch.linalg.cholesky(torch.linalg.inv(metric.matrix.double()), upper=True)
    left = entries.double() / step
    found = torch.zeros_like(left)
    for j in range(SIDE):
        found[:, j] = left[:, j].round()
        errors = left[:, j] - found[:, j]
        left[:, j + 1 :] -= share * errors[:, None] * (upper[j, j + 1 :] / upper[j, j])
    assert torch.equal(metric.rounded(entries / step, 1000).double(), found)


def test_no_share_or_a_metric_of_plain_sums_is_plain_rounding() -> None:
    entries, same = entries_of(), torch.eye(SIDE, dtype=torch.float64)
    for metric in (metric_of(0.0), Metric.of(same, same, 1.0)):
        assert torch.equal(metric.rounded(entries / 0.5, 1000), (entries / 0.5).round())


def test_where_rounding_is_fine_all_of_it_loses_least_in_the_metric() -> None:
    step, entries = 0.05, entries_of(50)
    losses = []
    for share in (0.0, 0.5, 1.0):
        metric = metric_of(share)
        losses.append(float(lost(metric, entries - step * metric.rounded(entries / step, 1000)).mean()))
    assert losses[0] > 1.1 * losses[1] > 1.1 * losses[2]


def test_what_is_too_large_is_cut_off_and_made_up_for() -> None:
    metric, entries = metric_of(1.0), entries_of()
    found = metric.rounded(entries / 0.1, 5)
    assert float(found.abs().max()) == 5
    plain = (entries / 0.1).round().clamp(-5, 5)
    assert float(lost(metric, entries - 0.1 * found).mean()) < float(lost(metric, entries - 0.1 * plain).mean())
