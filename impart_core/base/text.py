"""Text that comes from anywhere, made fit to be printed: nothing steers a terminal, no URL in it tells a secret."""

import json
import re
import unicodedata
from collections.abc import Callable

_USER = re.compile(r"(?<![\w+.-])(?P<scheme>[\w+.-]+)://(?P<user>[^/\s]*)@")
_QUERY = re.compile(r"(://[^\s?]*)\?\S+")
_CONTAINER_BEFORE_AT = ("abfs", "wasb")  # Azure's URLs name a container where others name a user
# Control and format characters (escapes, direction marks), line separators, and halves of characters.
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    r"""Return a text on one line in which control characters are seen: an escape as `\x1b`, a newline as `\n`."""
    return _escaped(text, lambda c: c.encode("unicode_escape").decode())


def visible_json(text: str) -> str:
    """Return a JSON text that stands for the same value, its control characters escaped."""
    return _escaped(text, lambda c: json.dumps(c)[1:-1])


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(escape(c) if unicodedata.category(c) in _STEERING else c for c in text)


def without_secrets(text: str) -> str:
    """Return a text with user, password and query taken out of every URL in it."""
    return _QUERY.sub(r"\1", _USER.sub(_kept_user, text))


def _kept_user(found: re.Match[str]) -> str:
    return found[0] if names_container(found["scheme"], found["user"]) else f"{found['scheme']}://"


def names_container(scheme: str, user: str) -> bool:
    """Return whether what stands before the @ of a URL names a container of Azure's, and no user."""
    return scheme.startswith(_CONTAINER_BEFORE_AT) and ":" not in user
