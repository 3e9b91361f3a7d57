"""Settings of the quantising methods, and a budget that the entropy coder's savings are spent within."""

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from impart_core.codec.parts import Codes, nbytes
from impart_core.config import build_config
from impart_core.errors import ConfigError
from impart_core.quantize.ladder import Ladder
from impart_core.quantize.options import LadderOptions, QuantizeOptions


class Encoder:
    """Codes of a share of the packed size that is asked for, down to whole steps, up to a limit; calls are noted."""

    def __init__(self, share: float, step: int = 1, most: int = 1 << 40) -> None:
        self.share, self.step, self.most = share, step, most
        self.asked: list[int] = []

    def __call__(self, packed: int) -> Codes:
        self.asked.append(packed)
        size = int(min(packed, self.most) // self.step * self.step * self.share)
        return {"codes": torch.empty(max(1, size), dtype=torch.uint8)}


@given(
    budget=st.integers(100, 10**6),
    share=st.floats(0.3, 1.0),
    step=st.integers(1, 5000),
    most=st.sampled_from([1 << 40, 50_000]),
)
@example(budget=1000, share=1.0, step=1, most=1 << 40)
def test_a_budget_is_kept_in_at_most_five_encodings(budget: int, share: float, step: int, most: int) -> None:
    encoder = Encoder(share, step, most)
    best = nbytes(QuantizeOptions().within(budget, encoder))
    assert best <= budget
    assert 1 <= len(encoder.asked) <= 5
    assert encoder.asked[0] == min(encoder.asked) == budget
    sizes = [nbytes(Encoder(share, step, most)(packed)) for packed in encoder.asked]
    assert best == max(size for size in sizes if size <= budget)


@given(budget=st.integers(10_000, 10**6), share=st.floats(0.3, 1.0), step=st.integers(1, 40))
def test_nearly_all_of_it_is_used_where_steps_are_small(budget: int, share: float, step: int) -> None:
    # If the second is too large by a hair, three more halve what is between it and the first. What is not worth
    # another encoding is half a percent; a step may be lost beside it.
    used = nbytes(QuantizeOptions().within(budget, Encoder(share, step)))
    assert used >= budget * (1 - (1 - share) / 8) / 1.005 - step - 2


def test_savings_that_differ_with_the_size_are_found_by_bisection() -> None:
    asked = []

    def encode(packed: int) -> Codes:
        asked.append(packed)
        share = 0.7 if packed < 1200 else 0.9
        return {"codes": torch.empty(int(packed * share), dtype=torch.uint8)}

    found = nbytes(QuantizeOptions().within(1000, encode))
    # The second takes 1,285 bytes, and what is halfway 1,092; of less, 1,107 for 774 and then 1,160 for 812.
    assert asked == [1000, 1428, 1214, 1107, 1160]
    assert found == 812


@given(budget=st.integers(100, 10**6), share=st.floats(0.1, 1.0), most=st.floats(1.0, 3.0))
def test_no_more_is_packed_than_is_at_hand(budget: int, share: float, most: float) -> None:
    encoder = Encoder(share)
    found = nbytes(QuantizeOptions().within(budget, encoder, budget * most))
    assert max(encoder.asked) <= budget * most
    # It is not asked for twice: all of it is packed at once where it fits.
    if share * most < 1:
        assert found >= int(share * budget * most / 1.005) - 1
        assert len(encoder.asked) <= 2


@pytest.mark.parametrize("options", [{"lossless": False}, {"fill": False}, {"lossless": False, "fill": False}], ids=str)
def test_where_nothing_is_saved_or_spent_there_is_one_encoding(options: dict[str, Any]) -> None:
    encoder, settings = Encoder(0.7), QuantizeOptions(**options)
    assert nbytes(settings.within(1000, encoder)) == 700
    assert encoder.asked == [1000]
    assert settings.entries_share == 1
    assert QuantizeOptions().entries_share == 0.7


def test_a_first_encoding_that_is_too_large_is_the_only_one() -> None:
    encoder = Encoder(1.2)
    assert nbytes(QuantizeOptions().within(1000, encoder)) == 1200  # `highest_cr` is what refuses such requests
    assert encoder.asked == [1000]


@pytest.mark.parametrize(("text", "fewest"), [("8x2,3x32,2", 2), ("8x2,4", 4), ("2x1,8", 2), ("16", 16), ("3", 3)])
def test_the_fewest_bits_are_those_of_any_group(text: str, fewest: int) -> None:
    options = build_config(LadderOptions, ladder=text)
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
        build_config(LadderOptions, **wrong)
