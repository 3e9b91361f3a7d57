"""The tokenizer is lossless and splits anywhere, as a tokenizer of Hugging Face."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impart_core.tinyzoo import ZOOS, models, path
from impart_core.tinyzoo.tokenizer import CHARACTERS, build_tokenizer, vocabulary
from impart_core.tinyzoo.training import encode

TEXTS = st.text(alphabet=CHARACTERS, max_size=80).filter(lambda text: "<" not in text)


@pytest.fixture(scope="module", params=ZOOS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """As it is loaded beside a model: for some kinds of models transformers puts another one in its place."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path("base", request.param))


@given(text=TEXTS)
def test_text_comes_back_exactly(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


@given(first=TEXTS, second=TEXTS)
def test_the_tokens_of_a_text_are_those_of_its_parts(tokenizer: Any, first: str, second: str) -> None:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    assert ids(first + second) == ids(first) + ids(second)


@given(text=TEXTS)
def test_training_and_tokenizer_agree(tokenizer: Any, text: str) -> None:
    assert encode(text) == tokenizer(text)["input_ids"]


def test_special_tokens_have_ids_of_their_own(tokenizer: Any) -> None:
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert special == [0, 1, 2]
    assert len(vocabulary()) == len(tokenizer) == 100
    assert tokenizer.is_fast


def test_a_character_outside_is_unknown(tokenizer: Any) -> None:
    assert tokenizer("aéb")["input_ids"] == encode("aéb")


def test_a_saved_tokenizer_loads_again(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    build_tokenizer().save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("a b\n")["input_ids"] == encode("a b\n")


def test_all_models_share_one_tokenizer() -> None:
    assert len({(path(name, zoo) / "tokenizer.json").read_bytes() for zoo in ZOOS for name in models(zoo)}) == 1
