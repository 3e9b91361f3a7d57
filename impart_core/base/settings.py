"""Frozen settings models, and the sentence that a wrong setting turns into."""

import difflib
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticKnownError

from impart_core.base.errors import ConfigError

Accounting = Literal["bytes", "paper"]


class Frozen(BaseModel):
    """A settings model that cannot be changed after it is made and forbids keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        """Make the model from keyword values.

        Raises:
            ConfigError: naming every setting that is wrong at once, with the nearest valid name.
            UnknownNameError: the method is not registered.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(" ".join(sentences(error, type(self), values))) from None

    # Pydantic reads JSON and nested models without the above, as without this mark it would not: what is wrong there
    # stays a ValidationError, which says where it stands.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number stands, which Python and pydantic take for 1 and 0."""
        is_number, has_models = _takes(cls, str(info.field_name))
        if is_number and (isinstance(value, bool) or (not has_models and _holds_truth(value))):
            raise PydanticKnownError("float_type")
        return value

    @classmethod
    def unknown_key(cls, path: tuple[str, ...], values: Mapping[str, Any]) -> str:  # noqa: ARG003 - for subclasses
        """Return the sentence about a key that the model does not know, with the nearest that it does.

        Args:
            path: where the key stands, from the outermost model inwards.
            values: what the model was to be built from.
        """
        known = _model_at(cls, path[:-1]).model_fields
        return f"Unknown setting {'.'.join(path)!r}." + nearest(path[-1], known)

    @classmethod
    def missing_key(cls, name: str) -> str:
        """Return the sentence about a key that is required, by its place."""
        return f"{name} is required."


# What a value must be, by pydantic's name of the fault.
_WANTED = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "finite_number": "a finite number",
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list, as [first, second]"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"), "a mapping, as {{key: value}}"
    ),
    "string_type": "text",
    "enum": "{expected}",
}


DISTIL: Any = Field(default=False, description="whether gains are trained until the logits are the fine-tune's")
_STEPS, _RATE = 100, 0.05
_MOST_STEPS, _MOST_RATE = 1_000_000, 10_000.0


class MethodOptions(Frozen):
    """Base of each method's own settings; the method's file holds the subclass.

    Those of distillation, which all methods have, are in recipes only where they are used.
    """

    distil: bool = Field(DISTIL.default, description=DISTIL.description, exclude_if=operator.not_)
    distil_norms: bool = Field(default=False, description="whether norms are trained too", exclude_if=operator.not_)
    distil_steps: int = Field(
        default=_STEPS, ge=1, le=_MOST_STEPS, description="steps of training", exclude_if=lambda steps: steps == _STEPS
    )
    distil_rate: float = Field(
        default=_RATE,
        gt=0.0,
        le=_MOST_RATE,
        description="by how much of itself a number is changed in the first step",
        exclude_if=lambda rate: rate == _RATE,
    )

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all options, the method's own first."""
        return sorted(cls.model_fields, key=lambda name: name in MethodOptions.model_fields)

    @model_validator(mode="after")
    def _distillation_is_asked_for(self) -> Self:
        given = [name for name in ("distil_norms", "distil_steps", "distil_rate") if not self._is_default(name)]
        if given and not self.distil:
            raise ValueError(f"{', '.join(given)}: without effect unless distil is true")
        return self

    def without_distillation(self) -> Self:
        """Return the same settings for a method alone."""
        fields = MethodOptions.model_fields
        return self.model_copy(update={name: field.default for name, field in fields.items()})

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self, name) == MethodOptions.model_fields[name].default)

    def more_room(self, accounting: Accounting) -> str | None:  # noqa: ARG002 - for those that have a knob
        """Return what else than a lower ratio makes an impossible request possible ("lower beta"), if anything."""
        return None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that guesses which known name was meant, or nothing where none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _model_at(model: type[BaseModel], path: tuple[str, ...]) -> type[BaseModel]:
    """Return the model that stands at a path inside of another one, as far as annotations tell."""
    for part in path:
        field = model.model_fields.get(part)
        inner = next(_models_in(field.annotation), None) if field else None
        model = inner or model
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    return (part for part in _parts(annotation) if isinstance(part, type) and issubclass(part, BaseModel))


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


@cache
def _takes(model: type[BaseModel], name: str) -> tuple[bool, bool]:
    """Return whether a field takes numbers and no truth, and whether it takes models, which look themselves."""
    annotation = model.model_fields[name].annotation
    parts = list(_parts(annotation))
    is_number = (int in parts or float in parts) and not any(part in parts for part in (bool, Any, object))
    return is_number, any(_models_in(annotation))


def _holds_truth(value: Any) -> bool:
    """Return whether true or false is among the values of a mapping or sequence, at any depth."""
    if isinstance(value, Mapping):
        return any(map(_holds_truth, value.values()))
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_truth, value)))


def sentences(error: ValidationError, model: type[Frozen], values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each thing that is wrong with the values that a settings model was to be made from."""
    faults = error.errors()
    within = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    # A list that holds something wrong is too short besides, since that is left out of it.
    told = [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in within]
    return [_sentence(dict(found), model, values) for found in told]


def _sentence(found: dict[str, Any], model: type[Frozen], values: Mapping[str, Any]) -> str:
    path = tuple(str(part) for part in found["loc"])
    name = ".".join(path) or model.__name__
    if found["type"] == "extra_forbidden":
        return model.unknown_key(path, values)
    if found["type"] == "missing":
        return model.missing_key(name)
    if found["type"] == "value_error":  # a sentence of ours
        why = str(found["ctx"]["error"])
        return f"{name} is {found['input']!r}: {why}." if path else f"{why[0].upper()}{why[1:]}."
    return value_sentence(name, found)


def value_sentence(name: str, found: Mapping[str, Any]) -> str:
    """Return the sentence on a value that is wrong, of whose fault pydantic tells this."""
    if found["type"] in _WANTED:
        return f"{name} is {found['input']!r:.60}; it must be {_WANTED[found['type']].format(**found.get('ctx', {}))}."
    if found["type"] == "literal_error":
        expected = found["ctx"]["expected"]
        guess = nearest(str(found["input"]), re.findall("'([^']*)'", expected))
        return f"{name} is {found['input']!r}; it must be {expected}." + guess
    return f"{name} is {found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}."
