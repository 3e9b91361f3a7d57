"""Settings of a measurement are checked before work starts, and told in its id only where they are not as usual."""

import pytest

from impart_core.base.errors import ConfigError
from impart_core.evaluation.options import MeasureOptions


def test_what_is_as_usual_is_no_part_of_an_id() -> None:
    assert MeasureOptions().of_recipe() == {}
    assert MeasureOptions(num_fewshot=5, seed=3, include_path=("tasks",)).of_recipe() == {"num_fewshot": 5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_fewshot": -1}, "num_fewshot is -1; it must be at least 0"),
        ({"batch_size": 0}, "batch_size.* at least 1, or auto"),
        ({"batch_size": "many"}, "batch_size"),
        ({"model_args": {"pretrained": "other"}}, "'pretrained' cannot be set: known are"),
        ({"model_args": {"max_len": 8}}, "did you mean 'max_length'"),
        ({"model_args": {"trust_remote_code": True}}, "'trust_remote_code' cannot be set"),
        ({"few_shot": 1}, "Unknown setting 'few_shot'"),
    ],
)
def test_wrong_settings_are_sentences(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MeasureOptions(**settings)
