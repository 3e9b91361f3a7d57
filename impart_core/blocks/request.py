"""What a compression is asked to do."""

from pydantic import Field, ValidationInfo, field_validator

from impart_core.base.errors import unknown_name
from impart_core.methods import METHODS, Coding

KEEP, AUTO = "keep", "auto"  # policies for embeddings and head beside the methods' names


class CompressConfig(Coding):
    """What a compression is asked to do: how projections are coded, and what becomes of the rest.

    Every field is part of the artifact's id.

    Attributes:
        factors_for: the lowest ratio that the decomposition of each projection has to serve: it is kept no deeper
            than that. None: deep enough for every usual request (see `methods.depth`), so that all share one.
        embeddings: how embeddings and head are coded: `keep` (at 16 bits, or their changed rows where that is
            smaller), a method's name, or `auto` (whichever of these takes the fewest bytes).
        embeddings_cr: the ratio for embeddings and head; None: that of the projections.
    """

    factors_for: float | None = Field(default=None, ge=1.0)
    embeddings: str = KEEP
    embeddings_cr: float | None = Field(default=None, ge=1.0)

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

    @property
    def projections(self) -> Coding:
        """How projections are coded."""
        return Coding.model_construct(**{name: getattr(self, name) for name in Coding.model_fields})
