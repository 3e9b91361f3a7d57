"""Settings of the quantising methods, and a budget that the entropy coder's savings are spent within."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError
from impart_core.codec.parts import Codes, nbytes
from impart_core.quantization.ladder import Ladder
from impart_core.quantization.options import LadderOptions, QuantizeOptions


class Encoder:
    """Codes of a share of the packed size that is asked for, down to whole steps, up to a limit; calls are noted.

    Codes of the solver `support` take `wider` times the bytes of those that are rounded to nearest.
    """

    def __init__(self, share: float, step: int = 1, most: int = 1 << 40, wider: float = 1.0) -> None:
        self.share, self.step, self.most, self.wider = share, step, most, wider
        self.asked: list[int] = []  # of the solver itself
        self.guessed: list[int] = []  # of rounding to nearest

    def __call__(self, packed: int, by: QuantizeOptions) -> Codes:
        (self.guessed if by.solver == "nearest" else self.asked).append(packed)
        return {"codes": torch.empty(self.size(packed, by.solver), dtype=torch.uint8)}

    def size(self, packed: int, solver: str = "support") -> int:
        """Return the bytes of what is made for a packed size; no more than that."""
        share = self.share if solver == "nearest" else min(self.share * self.wider, 1.0)
        return max(1, int(min(packed, self.most) // self.step * self.step * share))


@given(
    budget=st.integers(100, 10**6),
    share=st.floats(0.3, 1.0),
    step=st.integers(1, 5000),
    most=st.sampled_from([1 << 40, 50_000]),
    wider=st.floats(0.9, 1.5),
)
@example(budget=1000, share=1.0, step=1, most=1 << 40, wider=1.0)
@example(budget=1000, share=0.5, step=700, most=1 << 40, wider=1.5)
@settings(deadline=None)
def test_a_budget_is_kept_in_at_most_four_encodings(
    budget: int, share: float, step: int, most: int, wider: float
) -> None:
    encoder = Encoder(share, step, most, wider)
    best = nbytes(QuantizeOptions().within(budget, encoder))
    assert best <= budget
    assert 1 <= len(encoder.asked) <= 4
    assert 1 <= len(encoder.guessed) <= 4
    assert encoder.guessed[0] == budget <= min(encoder.asked)
    assert best == max(size for size in map(encoder.size, encoder.asked) if size <= budget)


@given(
    budget=st.integers(10_000, 10**6),
    share=st.floats(0.3, 0.9),
    step=st.integers(1, 40),
    wider=st.floats(0.95, 1.05),
)
@settings(deadline=None)
def test_nearly_all_of_it_is_used_in_two_encodings_where_steps_are_small(
    budget: int, share: float, step: int, wider: float
) -> None:
    encoder = Encoder(share, step, wider=wider)
    used = nbytes(QuantizeOptions().within(budget, encoder))
    assert used >= 0.985 * budget - step - 2
    assert len(encoder.asked) <= 2 + (step > 1)


def test_rounding_to_nearest_is_its_own_guess() -> None:
    encoder = Encoder(0.7)
    assert nbytes(QuantizeOptions(solver="nearest").within(1000, encoder)) == 992  # 0.7·⌊993/0.7⌋
    assert encoder.guessed == [1000, 1418]
    assert not encoder.asked


def test_savings_that_differ_with_the_size_are_found_between_what_fits_and_what_does_not() -> None:
    asked = []

    def encode(packed: int, by: QuantizeOptions) -> Codes:
        asked.append(packed)
        return {"codes": torch.empty(int(packed * (0.7 if packed < 1200 else 0.9)), dtype=torch.uint8)}

    found = nbytes(QuantizeOptions(solver="nearest").within(1000, encode))
    # The second takes 1,276 bytes, of which 1,103 would fit by that share; from 772 on 1,418 is aimed at again, and
    # what is halfway to it is 1,260: 1,134.
    assert asked == [1000, 1418, 1103, 1260]
    assert found == 772


@given(budget=st.integers(100, 10**6), share=st.floats(0.1, 1.0), most=st.floats(1.0, 3.0))
@settings(deadline=None)
def test_no_more_is_packed_than_is_at_hand(budget: int, share: float, most: float) -> None:
    encoder = Encoder(share)
    found = nbytes(QuantizeOptions().within(budget, encoder, budget * most))
    assert max(encoder.guessed + encoder.asked) <= budget * most
    # It is not asked for twice: all of it is packed at once where it fits.
    if share * most < 0.98:
        assert found >= int(share * int(budget * most)) - 1
        assert len(encoder.asked) <= 2


@pytest.mark.parametrize("options", [{"lossless": False}, {"fill": False}, {"lossless": False, "fill": False}], ids=str)
def test_where_nothing_is_saved_or_spent_there_is_one_encoding(options: dict[str, Any]) -> None:
    encoder, settings = Encoder(0.7), QuantizeOptions(**options)
    assert nbytes(settings.within(1000, encoder)) == 700
    assert encoder.asked == [1000]
    assert not encoder.guessed
    assert settings.entries_share == 1
    assert QuantizeOptions().entries_share == 0.7


def test_a_first_encoding_that_is_too_large_is_the_only_one() -> None:
    asked = []

    def encode(packed: int, by: QuantizeOptions) -> Codes:
        asked.append(packed)
        return {"codes": torch.empty(1200, dtype=torch.uint8)}

    # `highest_cr` is what refuses such requests.
    assert nbytes(QuantizeOptions(solver="nearest").within(1000, encode)) == 1200
    assert asked == [1000]


@pytest.mark.parametrize(("text", "fewest"), [("8x2,3x32,2", 2), ("8x2,4", 4), ("2x1,8", 2), ("16", 16), ("3", 3)])
def test_the_fewest_bits_are_those_of_any_group(text: str, fewest: int) -> None:
    options = LadderOptions(ladder=text)
    assert options.fewest_bits == fewest
    assert options.ladder == Ladder.parse(text)
    assert options.model_dump()["ladder"] == text
    assert LadderOptions.model_validate(options.model_dump()) == options
    assert LadderOptions.model_validate_json(options.model_dump_json()) == options


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": 65536}, "group_size is 65536"),
        ({"solver": "suport"}, "solver is 'suport'; it must be .* Did you mean 'support'?"),
        ({"bits": 4}, "Unknown setting 'bits'"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_a_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        LadderOptions(**wrong)
