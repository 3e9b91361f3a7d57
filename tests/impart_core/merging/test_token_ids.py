"""Configurations whose tokens have other ids than before."""

from collections.abc import Mapping
from typing import Any

import pytest

from impart_core.base.errors import MismatchError
from impart_core.merging.token_ids import renumbered, require_one_vocabulary, resized

IDS = {1: 11, 2: None, 3: 13}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"bos_token_id": 1, "hidden_size": 1}, {"bos_token_id": 11, "hidden_size": 1}),
        ({"eos_token_id": [1, 2, 3]}, {"eos_token_id": [11, 13]}),
        ({"eos_token_id": 2}, {"eos_token_id": 7}),
        ({"eos_token_id": [2]}, {"eos_token_id": 7}),
        ({"pad_token_id": 2}, {"pad_token_id": None}),
        ({"pad_token_id": -1, "sep_token_id": None}, {"pad_token_id": -1, "sep_token_id": None}),
        ({"image_token_index": 3, "suppress_tokens": [1, 4]}, {"image_token_index": 13, "suppress_tokens": [11, 4]}),
        ({"bad_words_ids": [[1, 3], [3]]}, {"bad_words_ids": [[11, 13], [13]]}),
        ({"text_config": {"bos_token_id": 3}}, {"text_config": {"bos_token_id": 13}}),
        ({"use_token_id": True}, {"use_token_id": True}),
    ],
)
def test_ids_of_tokens_follow_them(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    assert renumbered(before, IDS, {"eos_token_id": 7}) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"vocab_size": 40}, {"vocab_size": 48}),
        ({"vocab_size": 40, "text_config": {"vocab_size": 40}}, {"vocab_size": 48, "text_config": {"vocab_size": 48}}),
        ({"text_config": {"vocab_size": 40}}, {"text_config": {"vocab_size": 48}}),
        ({"vocab_size": 40, "audio_config": {"vocab_size": 9}}, {"vocab_size": 48, "audio_config": {"vocab_size": 9}}),
        ({"n_layer": 40}, {"n_layer": 40, "vocab_size": 48}),
    ],
)
def test_the_size_is_changed_wherever_it_stands(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    assert resized(before, 40, 48) == after


@pytest.mark.parametrize("key", ["decoder_vocab_size", "tgt_vocab_size", "vocab_size_per_layer_input"])
def test_a_second_vocabulary_is_refused_by_name(key: str) -> None:
    require_one_vocabulary({"vocab_size": 40, key: 40, "type_vocab_size": 2}, "here")
    with pytest.raises(MismatchError, match=rf"here has a second vocabulary \({key} 30"):
        require_one_vocabulary({"text_config": {"vocab_size": 40, key: 30}}, "here")
