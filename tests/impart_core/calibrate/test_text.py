"""Calibration text: exact tokens of every kind of source, and a sentence for everything that can be wrong with it."""

import hashlib
import json
import logging
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch

from impart_core import tinyzoo
from impart_core.base.errors import CalibrationError, ConfigError, UnknownNameError
from impart_core.calibrate import documents
from impart_core.calibrate.text import CalibrationText, check_text, read_tokens, tokens_digest
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.tinyzoo.splits import stream
from impart_core.tinyzoo.tokenizer import BOS, EOS, vocabulary
from impart_core.tinyzoo.training import encode

END = vocabulary()[EOS]


@pytest.fixture(scope="module")
def math() -> Checkpoint:
    return open_checkpoint(tinyzoo.path("math"))


def changed(folder: Path, drop: str = "", **settings: object) -> Checkpoint:
    """Return a copy of the math model with other settings, without the files whose names begin like this."""
    shutil.copytree(tinyzoo.path("math"), folder)
    for file in folder.glob(f"{drop}*") if drop else ():
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return open_checkpoint(folder)


def saved(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_text_file_is_one_document_cut_into_sequences(math: Checkpoint, tmp_path: Path) -> None:
    text = CalibrationText(source=saved(tmp_path / "notes", "12+34=46\n56+78=134\nand a rest"), sequences=3, length=6)
    tokens = read_tokens(text, math)
    assert tokens.dtype == torch.int32
    assert tokens.tolist() == [encode("12+34="), encode("46\n56+"), encode("78=134")]


def test_a_long_text_file_is_read_in_pieces_that_change_nothing_for_one_token_a_character(
    math: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_PIECE", 7)
    content = "ab cd\nefghijklmnopqrs tuv\n\nw xyz" * 3
    text = CalibrationText(source=saved(tmp_path / "a.txt", content), sequences=1, length=len(content))
    assert read_tokens(text, math)[0].tolist() == encode(content)


def test_no_more_of_a_file_is_read_than_needed(
    math: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "_PIECE", 16)
    (tmp_path / "a.txt").write_bytes(b"some lines of text\n" * 10**4 + b"\xff")  # no text at its far end
    text = CalibrationText(source=str(tmp_path / "a.txt"), sequences=2, length=20)
    assert len(read_tokens(text, math)) == 2
    with pytest.raises(CalibrationError, match=r"a\.txt cannot be read: .*utf-8"):
        read_tokens(text.model_copy(update={"sequences": 10**5}), math)


def test_json_lines_are_documents_with_the_end_token_after_each(math: Checkpoint, tmp_path: Path) -> None:
    lines = json.dumps({"text": "abc"}) + "\n\n" + json.dumps({"text": ""}) + "\n" + json.dumps({"text": "de"}) + "\n"
    text = CalibrationText(source=saved(tmp_path / "a.jsonl", lines), sequences=1, length=7)
    assert read_tokens(text, math)[0].tolist() == [*encode("abc"), END, *encode("de"), END]


def test_sequences_begin_with_the_begin_token_where_the_tokenizer_begins_every_text_with_it(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer, begin = AutoTokenizer.from_pretrained(tinyzoo.path("math")), vocabulary()[BOS]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, begin)])
    begins = changed(tmp_path / "begins")
    tokenizer.save_pretrained(begins.location)
    begins = open_checkpoint(begins.location)
    text = CalibrationText(source=saved(tmp_path / "notes", "12+34=46\n56+78=134\nand a rest"), sequences=2, length=7)
    assert read_tokens(text, begins).tolist() == [[begin, *encode("12+34=")], [begin, *encode("46\n56+")]]
    with pytest.raises(CalibrationError, match="has 29 tokens, and one sequence takes 255"):
        read_tokens(text.model_copy(update={"length": 256}), begins)


def test_the_tiny_zoos_text_is_what_its_models_were_trained_on_but_other_items(math: Checkpoint) -> None:
    tokens = read_tokens(CalibrationText(source="tinyzoo:code", sequences=4, length=50), math)
    expected = [
        token
        for item in islice(stream("code", "train", 1), 20)
        for token in [*encode(f"{item.prompt} {item.answer}\n"), END]
    ]
    assert tokens.flatten().tolist() == expected[:200]


def test_the_same_request_gives_the_same_tokens(math: Checkpoint) -> None:
    text = CalibrationText(source="tinyzoo:chat", sequences=5)
    first, second = read_tokens(text, math), read_tokens(text, math)
    assert first.shape == (5, 256)  # the model takes no longer ones
    assert tokens_digest(first) == tokens_digest(second)


def test_a_digest_depends_on_values_and_shape_but_not_on_the_integers_width() -> None:
    tokens = torch.arange(6, dtype=torch.int32)
    by_hand = b"[6]" + b"".join(number.to_bytes(4, "little") for number in range(6))
    assert tokens_digest(tokens) == tokens_digest(tokens.long()) == hashlib.sha256(by_hand).hexdigest()
    assert tokens_digest(tokens.view(2, 3)) != tokens_digest(tokens.view(3, 2))
    assert tokens_digest(tokens) != tokens_digest(tokens + 1)


def test_fewer_sequences_than_asked_for_are_taken_with_a_warning(
    math: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = CalibrationText(source=saved(tmp_path / "a.txt", "x" * 25), sequences=9, length=10)
    with caplog.at_level(logging.WARNING):
        assert read_tokens(text, math).shape == (2, 10)
    assert "text for 2 sequences of the 9 asked for" in caplog.text


def test_a_data_set_is_streamed_by_configuration_split_and_field(
    math: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "test.jsonl").write_text('{"said": "hi"}\n{"said": "you"}\n')
    text = CalibrationText(source="hub:org/name::test:said", sequences=1, length=7)
    assert read_tokens(text, math)[0].tolist() == [*encode("hi"), END, *encode("you"), END]
    with pytest.raises(CalibrationError, match=r"no text in a field 'text' \(its fields: said\)"):
        read_tokens(text.model_copy(update={"source": "hub:org/name::test"}), math)
    with pytest.raises(CalibrationError, match=r"org/name \(configuration default, split train\) cannot be read"):
        read_tokens(text.model_copy(update={"source": "hub:org/name"}), math)
    with pytest.raises(CalibrationError, match=r"org/none .* cannot be read from the Hub"):
        read_tokens(text.model_copy(update={"source": "hub:org/none"}), math)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.txt", "There is no calibration file missing.txt"),
        ("empty.txt", "is empty"),
        (".", "is no file"),
        ("ftp:somewhere", "has a form that is not known"),
        ("hub:name", "names no data set of the Hub"),
        ("hub:org/name:a:b:c:d", "names no data set of the Hub"),
    ],
)
def test_a_wrong_source_is_refused_before_anything_is_read(
    math: Checkpoint, source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(CalibrationError, match=message):
        check_text(CalibrationText(source=source), math)


def test_an_unknown_task_is_refused_with_the_nearest(math: Checkpoint) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'math'"):
        check_text(CalibrationText(source="tinyzoo:maths"), math)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("[1]\n", "Line 1 of .* is not an object"),
        ('{"text": "a"}\n{"body": 1}\n', r"Line 2 of .*a\.jsonl has no text in a field 'text' \(its fields: body\)"),
        ("{", "cannot be read: "),
    ],
)
def test_bad_lines_are_named(math: Checkpoint, tmp_path: Path, lines: str, message: str) -> None:
    text = CalibrationText(source=saved(tmp_path / "a.jsonl", lines), length=8)
    with pytest.raises(CalibrationError, match=message):
        read_tokens(text, math)


def test_a_text_shorter_than_one_sequence_is_refused_with_both_numbers(math: Checkpoint, tmp_path: Path) -> None:
    text = CalibrationText(source=saved(tmp_path / "a.txt", "x" * 25))
    with pytest.raises(CalibrationError, match="has 25 tokens, and one sequence takes 256"):
        read_tokens(text, math)


def test_sequences_longer_than_the_model_takes_are_refused(math: Checkpoint, tmp_path: Path) -> None:
    text = CalibrationText(source="tinyzoo:math", length=300)
    with pytest.raises(CalibrationError, match=r"of 300 tokens are asked for, and .* takes 256 at most"):
        check_text(text, math)
    nested = changed(tmp_path / "nested", max_position_embeddings=None, text_config={"n_positions": 290})
    with pytest.raises(CalibrationError, match="takes 290 at most"):
        check_text(text, nested)
    check_text(text, changed(tmp_path / "free", max_position_embeddings=None))


def test_a_checkpoint_without_a_tokenizer_or_with_anothers_is_refused(math: Checkpoint, tmp_path: Path) -> None:
    text = CalibrationText(source="tinyzoo:math", sequences=1)
    with pytest.raises(CalibrationError, match="has no tokenizer files"):
        check_text(text, changed(tmp_path / "none", drop="tokenizer"))
    with pytest.raises(CalibrationError, match=r"has the token id \d+, but the model has 50 tokens"):
        read_tokens(text, changed(tmp_path / "other", vocab_size=50))
    broken = changed(tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    with pytest.raises(CalibrationError, match=r"The tokenizer of .*broken cannot be loaded"):
        read_tokens(text, open_checkpoint(broken.location))


def test_settings_are_checked() -> None:
    for wrong in ({"sequences": 0}, {"length": 1}, {"lenght": 8}):
        with pytest.raises(ConfigError):
            CalibrationText(source="tinyzoo:math", **wrong)
