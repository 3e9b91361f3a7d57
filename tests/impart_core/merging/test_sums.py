"""The elected sum decides by signs alone, entry by entry."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from impart_core.merging.blocks import entries_of
from impart_core.merging.sums import elected_sum, majority_sign, plain_sum

numbers = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0])
weights = st.sampled_from([-0.5, 0.0, 0.3, 1.0])


@given(st.data(), st.integers(1, 4), st.booleans(), st.sampled_from([1.0, -1.0]))
def test_entries_that_agree_with_the_elected_sign_are_summed(
    data: st.DataObject, models: int, normalize: bool, on_draw: float
) -> None:
    rows = data.draw(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=models, max_size=models))
    own = data.draw(st.lists(weights, min_size=models, max_size=models))
    tensors = [torch.tensor(row) for row in rows]
    result = elected_sum(tensors[0], [entries_of(one) for one in tensors], own, normalize=normalize, on_draw=on_draw)
    for place in range(3):
        # Rounded as the tensors are: 0.3 is not a number of float32.
        values = [float(torch.tensor(weight) * row[place]) for weight, row in zip(own, rows, strict=True)]
        total = sum(values)
        sign = on_draw if total == 0 else 1.0 if total > 0 else -1.0
        agree = [value * sign > 0 for value in values]
        expected = sum(value for value, does in zip(values, agree, strict=True) if does)
        divisor = sum(weight for weight, does in zip(own, agree, strict=True) if does)
        expected /= divisor if normalize and divisor else 1.0
        assert abs(float(result[place]) - expected) <= 1e-6 * max(1, abs(expected))


def test_opposite_entries_of_equal_weight_cancel_exactly_whatever_the_weight() -> None:
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    entries = [entries_of(x), entries_of(-x)]
    positive = elected_sum(x, entries, [0.3, 0.3], normalize=True)
    torch.testing.assert_close(positive, x.abs())
    torch.testing.assert_close(elected_sum(x, entries, [0.3, 0.3], normalize=True, on_draw=-1.0), -x.abs())


def test_the_majority_sign_is_that_of_more_sums() -> None:
    x = torch.tensor([1.0, 1.0, -5.0, 0.0])
    assert majority_sign(x, [entries_of(x)], [1.0]) == 1.0
    assert majority_sign(x, [entries_of(x)], [-1.0]) == -1.0
    assert majority_sign(x, [entries_of(x - x)], [1.0]) == -1.0


def test_a_plain_sum_is_divided_by_its_weights_unless_they_add_up_to_nought() -> None:
    x = torch.tensor([1.0, 2.0])
    entries = [entries_of(x), entries_of(2 * x)]
    assert plain_sum(x, entries, [1.0, 3.0], normalize=True, lambda_=2.0).tolist() == [3.5, 7.0]
    assert plain_sum(x, entries, [1.0, -1.0], normalize=True, lambda_=2.0).tolist() == [-2.0, -4.0]
