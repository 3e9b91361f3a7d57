"""TIES gives the reference's results on its vectors, and what it keeps and elects is what its two forms say."""

import pytest
import torch
from safetensors.torch import load_file

from impart_core.merging.methods import MERGE_METHODS
from tests.impart_core.merging.methods.calls import deltas_of
from tests.support import VECTORS

ties = MERGE_METHODS.get("ties").function
REFERENCE = load_file(VECTORS / "merge.safetensors")
cases = pytest.mark.parametrize("case", ["two", "three"])


def deltas_in(case: str) -> list[torch.Tensor]:
    return [tensor for name, tensor in sorted(REFERENCE.items()) if name.startswith(f"{case}.delta.")]


@cases
@pytest.mark.parametrize("trimmed", ["0.2", "0.5", "0.8"])
def test_the_papers_form_gives_what_its_reference_code_gives(case: str, trimmed: str) -> None:
    result = ties(deltas_in(case), weight=1.0, density=1 - float(trimmed), form="paper")
    torch.testing.assert_close(result, REFERENCE[f"{case}.ties.trim{trimmed}"])


@cases
def test_task_arithmetic_gives_what_the_reference_code_gives(case: str) -> None:
    result = MERGE_METHODS.get("task_arithmetic").function(deltas_in(case), weight=1.0)
    torch.testing.assert_close(result, REFERENCE[f"{case}.ta"])


@pytest.mark.parametrize(
    ("form", "density", "count"),
    [
        *(("weighted", *each) for each in ((0.5, 10), (0.29, 5), (0.01, 1), (1.0, 20))),
        *(("paper", *each) for each in ((0.5, 11), (0.29, 7), (0.01, 2), (0.15, 4), (1.0, 20))),
    ],
)
def test_how_many_of_twenty_entries_a_form_keeps(form: str, density: float, count: int) -> None:
    delta = deltas_of(1, (4, 5))[0]
    assert int((ties([delta], weight=1.0, density=density, form=form) != 0).sum()) == count


@pytest.mark.parametrize(("form", "elected"), [("weighted", 1.0), ("paper", -1.0)])
def test_which_sign_wins_where_entries_cancel(form: str, elected: float) -> None:
    first, second = torch.tensor([1.0, -3.0, -2.0]), torch.tensor([-1.0, -1.0, 0.0])
    assert ties([first, second], weight=1.0, form=form).tolist() == [elected, -2.0, -2.0]


def test_the_larger_weight_elects() -> None:
    models = [torch.tensor([1.0]), torch.tensor([-2.0])]
    assert ties(models, weight=[3.0, 1.0]).tolist() == [1.0]
    assert ties(models, weight=[3.0, 1.0], normalize=False).tolist() == [3.0]
    assert ties(models, weight=1.0).tolist() == [-2.0]


def test_rescaling_keeps_the_l1_norm_of_each_model() -> None:
    delta = deltas_of(1, (30, 40))[0]
    trimmed = ties([delta], weight=1.0, density=0.3, rescale=True)
    torch.testing.assert_close(trimmed.abs().sum(), delta.abs().sum())
    assert int((trimmed != 0).sum()) == 360
