"""What every method offers, how a tensor is to be coded by one, and what it is given of a projection."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from impart_core.base.arguments import require_kind
from impart_core.base.errors import ConfigError
from impart_core.base.registry import Registry
from impart_core.base.settings import Accounting, Frozen, MethodOptions, nearest
from impart_core.codec.parts import Codes, require_proportion
from impart_core.delta.factors import Factors
from impart_core.delta.svd import decompose
from impart_core.methods.terms import Terms
from impart_core.quantization.curvature import Inputs
from impart_core.quantization.kfac import Sensitivity

# What a method is told of the model at work: the inputs of each matrix; or these and gradients of its predictions.
Calibration = Literal["none", "inputs", "gradients"]


@dataclass(frozen=True)
class Projection:
    """One projection to encode: its delta, or the factors of it, worked out when a method asks for them.

    Attributes:
        name: the tensor's full name.
        shape: (m, n).
        delta: gives the delta, float32, (m, n).
        factors: gives the leading singular triplets, as many as `Method.needed_rank` says or more.
        inputs: what calibration says of its inputs; None where nothing is known of them.
        budget: bytes for its codes, where its block's are shared out (see `Method.packed`); None: those of its ratio.
        sensitivity: what calibration says of errors in it; None where nothing is known: metrics of it have no effect.
    """

    name: str
    shape: tuple[int, int]
    delta: Callable[[], torch.Tensor]
    factors: Callable[[], Factors]
    inputs: Inputs | None = None
    budget: int | None = None
    sensitivity: Sensitivity | None = None

    @classmethod
    def of(cls, delta: torch.Tensor, name: str) -> "Projection":
        """Return the projection of a delta at hand, any floating dtype, (m, n); it is decomposed on demand.

        Raises:
            ConfigError: it is no matrix with entries.
        """
        require_kind(delta, torch.Tensor, f"The delta of {name!r}", "a tensor, (m, n)")
        if delta.dim() != 2 or not delta.numel():
            raise ConfigError(
                f"A projection is a matrix with entries, (m, n); {name!r} has the shape {list(delta.shape)}."
            )
        m, n = delta.shape
        return cls(name, (m, n), delta.float, lambda: decompose(delta, name))


class Method(ABC):
    """A method that turns one projection's delta into codes, and back.

    Attributes:
        version: raised whenever the same delta and coding give other bytes; part of every block's id.
        parts: names of the parts that its codes may have.
        options_model: the method's own settings; a field's description and default are what help says of it.
        summary: what the method keeps, in a few words for help.
        packed: whether its blocks' files have the format with the fewest bytes besides codes. Its budget covers these,
            and the budgets of a block's projections are shared out among them (see `weight`).
    """

    version: ClassVar[int]
    packed: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]]
    options_model: ClassVar[type[MethodOptions]]
    summary: ClassVar[str]

    def encode(self, projection: Projection, coding: "Coding") -> Codes:
        """Return the codes of a projection whose delta is not zero, as CPU tensors by part.

        Raises:
            ConfigError: it is given something else than a projection and a coding of this method.
            TensorValueError: a value cannot be stored.
        """
        if not isinstance(projection, Projection):
            kind = type(projection).__name__
            raise ConfigError(
                f"A projection is to be encoded, not a {kind}. Make one with Projection.of(tensor, name)."
            )
        if not isinstance(coding, Coding) or type(METHODS.get(coding.method)) is not type(self):
            given = coding.method if isinstance(coding, Coding) else type(coding).__name__
            raise ConfigError(f"{type(self).__name__} was given a coding of {given}. Make one with Coding(method=…).")
        return self.encode_projection(projection, coding)

    def decode(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
        """Return the reconstructed delta, float32, (m, n).

        Args:
            codes: what `encode` returned, by part.
            name: the projection's name, which its masks depend on.
            shape: (m, n).
            seed: the masks' seed.

        Raises:
            ConfigError: `codes` are no codes by part.
            CorruptArtifactError: the codes do not fit the shape.
        """
        if not isinstance(codes, Mapping):
            raise ConfigError(f"Decoding takes codes by part, as `encode` returns them, not a {type(codes).__name__}.")
        return self.decode_codes(codes, name, shape, seed)

    def check_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> None:
        """Check that codes decode, in no more memory than what is stored may stand for; arguments as for `decode`.

        Raises:
            CorruptArtifactError: they do not, or would decode to far more than they store.
        """
        require_proportion(codes, name, math.prod(shape))
        self.decode_codes(codes, name, shape, seed)

    def terms(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> Terms:
        """Return the reconstructed delta as a function of gains; arguments and errors as for `decode`."""
        return Terms(self.decode(codes, name, shape, seed))

    @abstractmethod
    def scaled(self, codes: Codes, name: str, shape: tuple[int, int], gains: torch.Tensor) -> Codes:
        """Return codes of the delta at gains: of as many bytes, what is stored of each number rounded once.

        Args:
            codes: what `encode` returned, by part.
            name: the projection's name.
            shape: (m, n).
            gains: more than 0, float32, as many as `terms` has, (count,).
        """

    @abstractmethod
    def encode_projection(self, projection: Projection, coding: "Coding") -> Codes:
        """Encode; see `encode`."""

    @abstractmethod
    def decode_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
        """Decode; see `decode`."""

    @abstractmethod
    def highest_cr(self, m: int, n: int, coding: "Coding") -> float:
        """Return the highest ratio at which an m×n projection still keeps anything."""

    @abstractmethod
    def expected_bytes(self, m: int, n: int, coding: "Coding") -> int:
        """Return the bytes that the codes of an m×n projection are expected to take, at most."""

    def weight(self, m: int, n: int, coding: "Coding") -> float:  # noqa: ARG002 - for those that share out bytes
        """Return in proportion to what an m×n projection gets of the bytes of its block's: by default as many a value.

        It counts for a method whose files are packed.
        """
        return m * n

    def check(self, coding: "Coding", largest_rank: int) -> None:  # noqa: B027 - most have nothing to check
        """Raise ConfigError when settings contradict each other, or ask for more vectors than any matrix has.

        Args:
            coding: the settings.
            largest_rank: min(m, n) of the largest matrix.
        """

    def needed_rank(self, m: int, n: int, coding: "Coding") -> int | None:  # noqa: ARG002 - for those that need some
        """Return the most singular triplets that `encode` uses; None when it works on the delta itself."""
        return None

    def reads_delta(self, coding: "Coding") -> bool:
        """Return whether `encode` asks for the delta; where it does not, factors that are stored suffice."""
        m = n = 1 << 10
        return self.needed_rank(m, n, coding) is None

    def calibration(self, coding: "Coding") -> Calibration:  # noqa: ARG002 - for those that are calibrated
        """Return what `encode` is to be told of the model's activations."""
        return "none"

    def usual_cr(self, coding: "Coding") -> float | None:
        """Return a ratio at which ImPart, with β 0.6 and C 1, keeps as many triplets as `encode` uses; None: none.

        Whole triplets are fewer than thinned ones in the same room.
        """
        return coding.cr


class FactorMethod(Method):
    """A method that codes factors of a delta, whose product need not be made to check them."""

    @abstractmethod
    def decode_factors(
        self, codes: Codes, name: str, shape: tuple[int, int], seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors, (K, m) and (K, n), float32, the delta being Σ_k u_k v_kᵀ; see `Method.decode`."""

    def terms(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> Terms:
        """Return Σ_k g_k u_k v_kᵀ; see `Method`."""
        u, v = self.decode_factors(codes, name, shape, seed)
        return Terms(v, u)

    def scaled(self, codes: Codes, name: str, shape: tuple[int, int], gains: torch.Tensor) -> Codes:  # noqa: ARG002
        """Return codes with singular values times gains; see `Method`."""
        sigma = codes["sigma"]
        return {**codes, "sigma": (sigma.float() * gains).to(sigma.dtype)}

    def decode_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> torch.Tensor:
        """Return Σ_k u_k v_kᵀ; see `Method.decode`."""
        u, v = self.decode_factors(codes, name, shape, seed)
        return u.T @ v

    def check_codes(self, codes: Codes, name: str, shape: tuple[int, int], seed: int) -> None:
        """Check that the factors decode; see `Method`."""
        pairs = codes["sigma"].numel() if "sigma" in codes else 0
        require_proportion(codes, name, pairs * sum(shape))
        self.decode_factors(codes, name, shape, seed)


METHODS: Registry[Method] = Registry("method")


class _SchemaOfOptions:
    """Describes `options` in JSON schemas as what any of the methods takes: which one depends on `method`."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        models = dict.fromkeys(METHODS.get(name).options_model for name in METHODS)
        return {"anyOf": [handler(model.__pydantic_core_schema__) for model in models]}


class Coding(Frozen):
    """How one tensor, or every tensor of a role, is coded by a method.

    Attributes:
        method: registered name of the method.
        cr: requested compression ratio against the 16-bit size, at least 1.
        seed: seed of every mask.
        accounting: `bytes` makes the ratio hold for the stored bytes of each projection, of `ecsq` for those of a
            block's together; `paper` keeps the paper's count of kept entries, and leaves out what describes them.
        options: the method's own settings.
    """

    method: str = "impart"
    cr: float = Field(ge=1.0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    accounting: Accounting = "bytes"
    options: Annotated[SerializeAsAny[MethodOptions], _SchemaOfOptions()] = Field(
        default_factory=MethodOptions, validate_default=True
    )

    @field_validator("options", mode="before")
    @classmethod
    def _options_of_method(cls, value: Any, info: ValidationInfo) -> MethodOptions:
        """Read `options` with the settings model that the method registered."""
        if "method" not in info.data:  # refused on its own account
            return MethodOptions()
        given = value.model_dump() if isinstance(value, MethodOptions) else value
        return METHODS.get(info.data["method"]).options_model.model_validate({} if given is None else given)

    @classmethod
    def unknown_key(cls, path: tuple[str, ...], values: Mapping[str, Any]) -> str:
        """Return the sentence about an unknown setting, or an unknown option of the method."""
        if path[0] == "options":
            method = values.get("method", cls.model_fields["method"].default)
            known = METHODS.get(method).options_model.names()
            has = f"Method {method!r} has no option {path[-1]!r}; it has: {', '.join(known) or 'none'}."
            return has + nearest(path[-1], known)
        options = [name for method in METHODS for name in METHODS.get(method).options_model.model_fields]
        return f"Unknown setting {'.'.join(path)!r}." + nearest(path[-1], [*cls.model_fields, *options])
