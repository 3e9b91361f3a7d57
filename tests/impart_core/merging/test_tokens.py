"""Tokens added to tokenizers of transformers' own classes, which build their rules anew from a vocabulary."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, pre_tokenizers
from transformers import AutoTokenizer

from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.local import local_file
from impart_core.merging.tokens import counted_tokens, extended, tokens_of

TEXT = "the cat sat on the mat"
TOOL = AddedToken("<tool>", special=True, lstrip=True)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def ids(*tokens: str) -> dict[str, int]:
    """Return a vocabulary, ids in the order of its tokens."""
    return {token: at for at, token in enumerate(tokens)}


_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLASSES: dict[str, dict[str, Any]] = {
    "BertTokenizer": {"vocab": ids(*_SPECIAL, *_LETTERS, *(f"##{letter}" for letter in _LETTERS))},
    "Qwen2Tokenizer": {"vocab": ids(*_BYTES, "th", "<|endoftext|>"), "merges": [("t", "h")]},
    "GPT2Tokenizer": {"vocab": ids(*_BYTES, "th", "<|endoftext|>"), "merges": [("t", "h")]},
    "LlamaTokenizer": {"vocab": ids("<unk>", "<s>", "</s>", "▁", *_LETTERS, "th"), "merges": [("t", "h")]},
}


@pytest.mark.parametrize("name", CLASSES)
def test_added_tokens_survive_every_class(name: str, tmp_path: Path) -> None:
    before = getattr(transformers, name)(**CLASSES[name])
    before.save_pretrained(tmp_path / "before")
    files = {path.name: local_file(path) for path in sorted((tmp_path / "before").iterdir())}
    checkpoint = Checkpoint("here", {}, {}, files, 0)
    assert counted_tokens(checkpoint) == tokens_of(before).size
    made, changed = extended(checkpoint, ["word", TOOL])
    (tmp_path / "after").mkdir()
    for called, file in changed.items():
        file.copy_to(tmp_path / "after" / called)
    after = AutoTokenizer.from_pretrained(tmp_path / "after")
    assert type(after) is type(before)
    assert dict(made.ids) == after.get_vocab()
    assert made.size == tokens_of(before).size + 2
    assert str(after.added_tokens_decoder[made.ids["<tool>"]]) == str(TOOL)
    assert after(TEXT)["input_ids"] == before(TEXT)["input_ids"]
    assert not json.loads((tmp_path / "after" / "tokenizer_config.json").read_text()).keys() & {
        "is_local",
        "name_or_path",
    }
