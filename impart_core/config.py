"""Frozen settings models, and the sentence that a wrong setting turns into."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from impart_core.errors import ConfigError, unknown_name

Accounting = Literal["bytes", "paper"]
KEEP, AUTO = "keep", "auto"  # policies for embeddings and head beside the methods' names
ModelT = TypeVar("ModelT", bound=BaseModel)


class Frozen(BaseModel):
    """A settings model that cannot be changed after it is made and forbids keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MethodOptions(Frozen):
    """Base of each method's own settings; the method's file holds the subclass."""

    def more_room(self, accounting: Accounting) -> str | None:  # noqa: ARG002 - for those that have a knob
        """Return what else than a lower ratio makes an impossible request possible ("lower beta"), if anything."""
        return None


class CompressConfig(Frozen):
    """What a compression is asked to do. Every field is part of the artifact's id.

    Attributes:
        method: registered name of the sparsifier.
        cr: requested compression ratio of the projections against their 16-bit size, at least 1.
        seed: seed of every mask.
        accounting: `bytes` makes the ratio hold for the stored bytes of each projection; `paper` keeps the
            paper's count of kept entries, and leaves out what describes them.
        options: the method's own settings.
        factors_for: the lowest ratio that the decomposition of each projection has to serve: it is kept no deeper
            than that. None: deep enough for every usual request (see `sparsify.depth`), so that all share one.
        embeddings: how embeddings and head are coded: `keep` (at 16 bits, or their changed rows where that is
            smaller), a method's name, or `auto` (whichever of these takes the fewest bytes).
        embeddings_cr: the ratio for embeddings and head; None: that of the projections.
    """

    method: str = "impart"
    cr: float = Field(ge=1.0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    accounting: Accounting = "bytes"
    options: SerializeAsAny[MethodOptions] = Field(default_factory=MethodOptions, validate_default=True)
    factors_for: float | None = Field(default=None, ge=1.0)
    embeddings: str = KEEP
    embeddings_cr: float | None = Field(default=None, ge=1.0)

    @field_validator("options", mode="before")
    @classmethod
    def _options_of_method(cls, value: Any, info: ValidationInfo) -> MethodOptions:
        """Read `options` with the settings model that the method registered."""
        from impart_core.sparsify import SPARSIFIERS

        if "method" not in info.data:  # refused on its own account
            return MethodOptions()
        given = value.model_dump() if isinstance(value, MethodOptions) else value
        return SPARSIFIERS.get(info.data["method"]).options_model.model_validate({} if given is None else given)

    @field_validator("embeddings")
    @classmethod
    def _policy_exists(cls, value: str) -> str:
        from impart_core.sparsify import SPARSIFIERS

        if value not in (KEEP, AUTO) and value not in SPARSIFIERS:
            raise unknown_name("policy for embeddings", value, (KEEP, AUTO, *SPARSIFIERS))
        return value

    @field_validator("embeddings_cr")
    @classmethod
    def _ratio_has_effect(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("embeddings") == KEEP:
            raise ValueError(
                "it has no effect while embeddings are kept at 16 bits; set embeddings to auto or a method"
            )
        return value


def build_config(model: type[ModelT], **values: Any) -> ModelT:
    """Build a settings model from keyword values.

    Raises:
        ConfigError: naming every setting that is wrong at once, with the nearest valid name.
        UnknownNameError: the method is not registered.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError(" ".join(_sentence(dict(found), model, values) for found in error.errors())) from None


def _sentence(found: dict[str, Any], model: type[BaseModel], values: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in found["loc"]) or model.__name__
    if found["type"] == "extra_forbidden" and found["loc"][0] == "options":
        return _no_such_option(str(found["loc"][-1]), values.get("method", model.model_fields["method"].default))
    if found["type"] == "extra_forbidden":
        return f"Unknown setting {name!r}." + _guess(name, [*model.model_fields, *_option_names()])
    if found["type"] == "literal_error":
        expected = found["ctx"]["expected"]
        guess = _guess(str(found["input"]), re.findall("'([^']*)'", expected))
        return f"{name} is {found['input']!r}; it must be {expected}." + guess
    return f"{name} is {found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}."


def _no_such_option(name: str, method: str) -> str:
    from impart_core.sparsify import SPARSIFIERS

    known = list(SPARSIFIERS.get(method).options_model.model_fields)
    return f"Method {method!r} has no option {name!r}; it has: {', '.join(known) or 'none'}." + _guess(name, known)


def _guess(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _option_names() -> list[str]:
    from impart_core.sparsify import SPARSIFIERS

    return [name for method in SPARSIFIERS for name in SPARSIFIERS.get(method).options_model.model_fields]
