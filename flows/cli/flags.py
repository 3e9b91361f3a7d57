"""A request model's fields as a verb's flags: typed on the command line, read, and checked by the model."""

import functools
import inspect
import json
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer

from impart_core.base.errors import ConfigError
from impart_core.base.settings import Frozen
from impart_core.blocks.request import CompressConfig
from impart_core.merging.file import read_merge_file
from impart_core.store.store import default_store_url
from impart_flows.cli.options import FLAGS

RequestT = TypeVar("RequestT", bound=Frozen)


def from_flags(
    model: type[RequestT], without: Sequence[str] = (), **flags: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a function of a request into a verb: the request's fields, nested ones too, become arguments and options.

    They stand in the order of `FLAGS`, and those that it does not have at the end.

    Args:
        model: the request's model. The function's first parameter is one; its other parameters stay as they are.
        without: fields that keep their defaults.
        flags: arguments or options for fields that differ from `FLAGS` in this verb.
    """

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        _, *others = inspect.signature(verb).parameters.values()
        fields = {one.name: one for one in _parameters(model, {**FLAGS, **flags}) if one.name not in without}
        ordered = [*(fields.pop(name) for name in FLAGS if name in fields), *fields.values()]

        @functools.wraps(verb)
        def run(**typed: Any) -> None:
            own = {other.name: typed.pop(other.name) for other in others}
            verb(build_request(model, typed), **own)

        signature = inspect.Signature([*ordered, *(one.replace(kind=one.KEYWORD_ONLY) for one in others)])
        run.__signature__ = signature  # type: ignore[attr-defined]
        return run

    return decorate


def build_request(model: type[RequestT], typed: dict[str, Any]) -> RequestT:
    """Return the request that was typed.

    Args:
        model: the request's model.
        typed: what was typed, by field, those of nested models included; a field that is not there keeps its default.

    Raises:
        ConfigError: a value is wrong.
        UnknownNameError: a name is wrong; the message gives the nearest valid one.
    """
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        nested = _nested(name, field.annotation)
        if nested and field.default is None:
            values[name] = _optional(nested, typed)
        elif nested:
            values[name] = build_request(nested, typed)
        elif name in typed:
            values[name] = _READERS[name][1](typed[name]) if name in _READERS else typed[name]
    return model(**values)


def read_options(typed: Sequence[str] | None) -> dict[str, Any]:
    """Return a method's options by name, from KEY=VALUE each; a value is JSON, or else text.

    Raises:
        ConfigError: one is not KEY=VALUE, or is given twice.
    """
    given: dict[str, Any] = {}
    for text in typed or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"{text!r} is not KEY=VALUE, such as rescale=false.")
        if key in given:
            raise ConfigError(f"Option {key!r} is given twice; give it once.")
        try:
            given[key] = json.loads(value)
        except (ValueError, RecursionError):
            given[key] = value
    return given


def read_pairs(typed: str | None) -> dict[str, Any]:
    """Return values by name, from lm-eval's KEY=VALUE,KEY=VALUE or a JSON object; a value is JSON, or else text.

    Raises:
        ConfigError: it is neither.
    """
    if typed and typed.lstrip().startswith("{"):
        try:
            return dict(json.loads(typed))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{typed!r} is not a JSON object: {error}.") from error
    return read_options([pair for pair in (typed or "").split(",") if pair])


def _read_search(path: Path) -> Any:
    from impart_core.searching.file import read_search_file

    return read_search_file(path)


# Fields that are typed otherwise than their models have them: type on the command line, and what makes a value of it.
_READERS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "options": (list[str] | None, read_options),
    "store": (str | None, lambda url: url or default_store_url()),
    "refs": (list[str], tuple),
    "tasks": (str, lambda text: tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))),
    "include_path": (list[str] | None, lambda folders: tuple(folders or ())),
    "batch_size": (str, lambda text: int(text) if text.isdecimal() else text),
    **dict.fromkeys(("metadata", "gen_kwargs", "model_args"), (str | None, read_pairs)),
    "out": (Path, lambda folder: folder and folder.absolute()),
    "stages": (Path, read_merge_file),
    "file": (Path, _read_search),
}


# Required fields that their model fills in, or refuses to do without, by what else is typed.
_NOT_ALWAYS = {(CompressConfig, "cr")}


def _parameters(model: type[Frozen], flags: dict[str, Any], optional: bool = False) -> Iterator[inspect.Parameter]:
    for name, field in model.model_fields.items():
        if nested := _nested(name, field.annotation):
            yield from _parameters(nested, flags, optional=field.default is None)
            continue
        kind = _READERS[name][0] if name in _READERS else _typed_as(field.annotation)
        default = field.get_default(call_default_factory=True)
        if optional:
            kind, default = kind | None, None
        elif name in _READERS and type(None) in get_args(kind):
            default = None
        elif (model, name) in _NOT_ALWAYS:
            kind, default = kind | None, None
        elif field.is_required():
            default = inspect.Parameter.empty
        flag = flags.get(name) or typer.Option(help=field.description)
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, flag])


def _nested(name: str, annotation: Any) -> type[Frozen] | None:
    """Return the model that a field holds, unless the field has a flag of its own."""
    if name in _READERS:
        return None
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, Frozen)), None)


def _typed_as(annotation: Any) -> Any:
    """Return a field's type for the command line, where one of several words is text: the model checks it."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return functools.reduce(operator.or_, (str if get_origin(kind) is Literal else kind for kind in kinds))


def _optional(model: type[Frozen], typed: dict[str, Any]) -> Frozen | None:
    """Return calibration text, or None where none is named."""
    given = {name: typed[name] for name in model.model_fields if typed.get(name) is not None}
    missing = [name for name, field in model.model_fields.items() if field.is_required() and name not in given]
    if not missing:
        return model(**given)
    if given:
        flags = " and ".join(f"--calibration-{name}" for name in given)
        raise ConfigError(f"{flags} is given, but no text. Name it with --calibration, or leave the number out.")
    return None
