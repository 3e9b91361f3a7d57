"""What a compression is asked to do."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from impart_core.base.errors import unknown_name
from impart_core.base.settings import MethodOptions
from impart_core.codec import exact
from impart_core.methods import METHODS, Coding

KEEP, AUTO = "keep", "auto"  # policies for embeddings and head beside the methods' names
LOSSLESS = "lossless"  # in the place of a method's name: every tensor is stored bit for bit
LOSSLESS_SUMMARY = "every tensor bit for bit, as its difference in integers; no ratio is asked for"
_OF_METHODS = ("seed", "accounting", "factors_for", "embeddings", "embeddings_cr")
_NO_RATIO = 1.0  # the ratio in the settings of what is stored bit for bit: nothing is left out


def _ratio_by_method(schema: dict[str, Any]) -> None:
    """Say in a JSON schema that only a method needs a ratio."""
    schema["required"] = [name for name in schema["required"] if name != "cr"]
    exact_only = {"properties": {"method": {"const": LOSSLESS}}, "required": ["method"]}
    schema["anyOf"] = [{"required": ["cr"]}, exact_only]


class CompressConfig(Coding):
    """What a compression is asked to do: how projections are coded, and what becomes of the rest.

    Every field is part of the artifact's id. The method may also be `lossless`, which has no ratio and no settings:
    then every tensor of whatever role comes back bit for bit.

    Attributes:
        factors_for: the lowest ratio that the decomposition of each projection has to serve: it is kept no deeper
            than that. None: deep enough for every usual request (see `methods.depth`), so that all share one.
        embeddings: how embeddings and head are coded: `keep` (at 16 bits, or their changed rows where that is
            smaller), a method's name, or `auto` (whichever of these takes the fewest bytes).
        embeddings_cr: the ratio for embeddings and head; None: that of the projections.
    """

    model_config = ConfigDict(json_schema_extra=_ratio_by_method)

    factors_for: float | None = Field(default=None, ge=1.0)
    embeddings: str = KEEP
    embeddings_cr: float | None = Field(default=None, ge=1.0)

    @model_validator(mode="before")
    @classmethod
    def _without_ratio(cls, values: Any) -> Any:
        """Fill in the ratio that has no meaning; where another has one, None is none."""
        if not isinstance(values, Mapping) or values.get("cr", None) is not None:
            return values
        rest = {name: value for name, value in values.items() if name != "cr"}
        return {**rest, "cr": _NO_RATIO} if values.get("method") == LOSSLESS else rest

    @field_validator("options", mode="before")
    @classmethod
    def _options_of_method(cls, value: Any, info: ValidationInfo) -> MethodOptions:
        """Read `options` with the settings model that the method registered; `lossless` has none."""
        method = info.data.get("method", LOSSLESS)
        if method != LOSSLESS and method not in METHODS:
            raise unknown_name("method", method, (*METHODS, LOSSLESS))
        if method != LOSSLESS:
            return super()._options_of_method(value, info)
        if value and (not isinstance(value, MethodOptions) or value.model_dump()):
            raise ValueError(f"{LOSSLESS} has no options. Leave them out")
        return MethodOptions()

    @field_validator("embeddings")
    @classmethod
    def _policy_exists(cls, value: str) -> str:
        if value not in (KEEP, AUTO) and value not in METHODS:
            raise unknown_name("policy for embeddings", value, (KEEP, AUTO, *METHODS))
        return value

    @field_validator("embeddings_cr")
    @classmethod
    def _ratio_has_effect(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("embeddings") == KEEP:
            raise ValueError(
                "it has no effect while embeddings are kept at 16 bits; set embeddings to auto or a method"
            )
        return value

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        """Refuse settings of methods where nothing is coded by one."""
        if not self.is_lossless:
            return self
        if self.cr != _NO_RATIO:
            raise ValueError(f"{LOSSLESS} keeps every bit, so that no ratio can be asked for. Leave cr out")
        fields = CompressConfig.model_fields
        given = [name for name in _OF_METHODS if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(f"{', '.join(given)}: without effect on {LOSSLESS}, which keeps every bit. Leave it out")
        return self

    @classmethod
    def unknown_key(cls, path: tuple[str, ...], values: Mapping[str, Any]) -> str:
        """Return the sentence about an unknown setting, or an unknown option of the method."""
        if path[0] == "options" and values.get("method") == LOSSLESS:
            return f"{LOSSLESS} has no options. Leave {path[-1]!r} out."
        return super().unknown_key(path, values)

    @classmethod
    def missing_key(cls, name: str) -> str:
        """Return the sentence about a key that is required: the ratio, which all methods but one need."""
        if name != "cr":
            return super().missing_key(name)
        return f"No compression ratio is given. Give one (cr, on the command line --cr 32), or method {LOSSLESS}."

    @property
    def is_lossless(self) -> bool:
        """Whether every tensor is stored bit for bit."""
        return self.method == LOSSLESS

    @property
    def distils(self) -> bool:
        """Whether gains are trained once everything is coded."""
        return self.options.distil

    @property
    def without_distillation(self) -> "CompressConfig":
        """The same request without; its delta is what is trained."""
        return self.model_copy(update={"options": self.options.without_distillation()})

    @property
    def method_version(self) -> int:
        """The version of the method, or of the codes bit for bit."""
        return exact.VERSION if self.is_lossless else METHODS.get(self.method).version

    @property
    def label(self) -> str:
        """What it is called for people: the method and the ratio."""
        return labelled(self.method, self.cr)

    @property
    def projections(self) -> Coding:
        """How projections are coded."""
        return Coding.model_construct(**{name: getattr(self, name) for name in Coding.model_fields})


def labelled(method: str, cr: float | None) -> str:
    """Return a method and a ratio for people; what is bit for bit has none."""
    return method if method == LOSSLESS or cr is None else f"{method} at CR {cr:g}"
