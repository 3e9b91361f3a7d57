"""Which files make a tokenizer, and when two have the same tokens."""

import json
from pathlib import Path

import pytest

from impart_core.base.errors import ConfigError
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.tokenizer import is_of_tokenizer, open_tokenizer, tokens_digest
from tests.support import llama_shapes, random_tensors, save_checkpoint


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
        *("vocab.txt", "merges.txt", "tokenizer.model", "tokenizer.model.v3", "spiece.model", "source.spm"),
        *("chat_template.jinja", "chat_template.json", "additional_chat_templates/tools.jinja", "tekken.json"),
        *("sentencepiece.bpe.model", "qwen.tiktoken", "tokenization_qwen.py"),
    ],
)
def test_files_of_a_tokenizer_are_told_by_their_names(name: str) -> None:
    assert is_of_tokenizer(name)


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "preprocessor_config.json", "modeling_x.py", "1_Pooling/config.json"],
)
def test_other_files_are_none(name: str) -> None:
    assert not is_of_tokenizer(name)


def model(folder: Path, **files: str) -> Checkpoint:
    """Save a model with files beside it."""
    save_checkpoint(folder, random_tensors(llama_shapes(layers=1)))
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return open_checkpoint(folder)


def test_the_digest_is_of_tokens_alone(tmp_path: Path) -> None:
    def settings(content: str, **more: object) -> str:
        return json.dumps({"added_tokens_decoder": {"7": {"content": content}}, **more})

    one = model(tmp_path / "one", tokenizer="{}", tokenizer_config=settings("<x>"))
    same = model(
        tmp_path / "same", tokenizer="{}", tokenizer_config=settings("<x>", chat_template="{{ 1 }}"), vocab="1"
    )
    other = model(tmp_path / "other", tokenizer="{}", tokenizer_config=settings("<y>"))
    slow = model(tmp_path / "slow", vocab="{}")
    assert tokens_digest(one) == tokens_digest(same)
    assert len({tokens_digest(one), tokens_digest(other), tokens_digest(slow)}) == 3
    assert tokens_digest(model(tmp_path / "none", tokenizer_config="no JSON")) is None


def test_what_cannot_be_loaded_is_told_with_the_place(tmp_path: Path) -> None:
    broken = model(tmp_path / "broken", tokenizer="{}")
    with pytest.raises(ConfigError, match=r"The tokenizer of .*broken cannot be loaded: .*save_pretrained"):
        open_tokenizer(broken, ConfigError)
