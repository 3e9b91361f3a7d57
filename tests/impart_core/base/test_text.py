"""Text that comes from anywhere, made fit to be printed."""

import json
import sys
import unicodedata

import pytest

from impart_core.base.text import visible, visible_json, without_secrets
from impart_core.lineage.events import public_url

EVERY_CHARACTER = " ".join(map(chr, range(sys.maxunicode + 1)))  # apart: two halves would make one


def test_nothing_that_steers_a_terminal_is_left_and_the_rest_stays() -> None:
    shown = visible(EVERY_CHARACTER)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert shown.encode()
    assert visible("math-13b@prod × 2 für „Zoo“, 数学") == "math-13b@prod × 2 für „Zoo“, 数学"
    assert visible("\x1b[2J\r\n\u202egnp\x9b") == r"\x1b[2J\r\n\u202egnp\x9b"


def test_json_stays_the_same_value() -> None:
    text = json.dumps([EVERY_CHARACTER], ensure_ascii=False)
    shown = visible_json(text)
    assert json.loads(shown.encode()) == json.loads(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("ftp://me:secret@host/a is gone", "ftp://host/a is gone"),
        ("https://TOKEN@host/a?sig=secret is gone", "https://host/a is gone"),
        ("abfs://key:secret@host/a", "abfs://host/a"),
        ("simplecache::ftp://me:secret@host/a", "simplecache::ftp://host/a"),
        ("Is there a folder? name@home", "Is there a folder? name@home"),
    ],
)
def test_secrets_in_urls_are_left_out(text: str, clean: str) -> None:
    assert without_secrets(text) == clean
    assert "secret" not in public_url(text)
