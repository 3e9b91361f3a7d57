"""Arguments of the library's verbs: of a kind that they can work with, or a sentence."""

from impart_core.base.errors import ConfigError


def require_kind(value: object, kinds: type | tuple[type, ...], name: str, wanted: str) -> None:
    """Check that an argument is of one of some kinds; bytes are no sequence of anything here.

    Args:
        value: the argument.
        kinds: the kinds.
        name: what it is called.
        wanted: what is expected, in words.

    Raises:
        ConfigError: it is of another.
    """
    if not isinstance(value, kinds) or isinstance(value, bytes):
        raise ConfigError(f"{name} is {value!r:.60}, a {type(value).__name__}. Give {wanted}.")
