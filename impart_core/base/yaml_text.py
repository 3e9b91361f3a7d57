"""YAML as people write it: several documents in a file, and no key twice."""

from pathlib import Path
from typing import Any

import yaml

from impart_core.base.errors import ConfigError


def read_yaml(text: str, called: str) -> list[Any]:
    """Return the documents of a YAML text that are not empty.

    Args:
        text: the text.
        called: what its file is called in errors.

    Raises:
        ConfigError: it is no YAML, or a key is given twice.
    """
    try:
        return [document for document in yaml.load_all(text, _Loader) if document is not None]
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:  # dates, numbers and keys that are none
        raise ConfigError(f"{called} is no YAML: {error}") from error


def read_yaml_file(place: str | Path, what: str) -> list[Any]:
    """Return the documents of a YAML file.

    Args:
        place: where it lies.
        what: what kind of file it is, for errors ("merge file").

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    path = Path(place).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"The {what} {path} cannot be read: {why}.") from error
    return read_yaml(text, str(path))


def read_settings_file(place: str | Path, what: str) -> Any:
    """Return the one document of a YAML file of settings.

    Args:
        place: where it lies.
        what: what kind of file it is, for errors ("search file").

    Raises:
        ConfigError: it cannot be read, is no YAML, or does not hold one document.
    """
    documents = read_yaml_file(place, what)
    if len(documents) != 1:
        raise ConfigError(f"{place} holds {len(documents)} documents. A {what} has one, of settings with names.")
    return documents[0]


class _Loader(yaml.SafeLoader):
    """YAML without keys that are given twice, of which the first would be lost in silence."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    pairs = [
        (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
        for key, value in node.value
    ]
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        found[key] = value
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
