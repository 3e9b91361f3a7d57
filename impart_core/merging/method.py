"""What a merge method is: a pure function in a file of its own, whose signature is its options."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from impart_core.base.errors import ConfigError
from impart_core.base.registry import Registry
from impart_core.base.settings import value_sentence
from impart_core.codec.mask import mask_key, mask_words

Tensors = Sequence[torch.Tensor]
_Merge = TypeVar("_Merge", bound=Callable[..., torch.Tensor])

LEAST_SUM = 1e-8  # weights that add up to less divide nothing
_PER_MODEL = object()  # marks an option that each model has a value of its own for
_WORD_BITS, _FLOAT_BITS = 32, 24
_WORDS_AT_ONCE = 1 << 20
Each = Annotated[float | Sequence[float], _PER_MODEL]
Share = Annotated[float, Field(gt=0, le=1)]
EachShare = Annotated[float | Sequence[float], _PER_MODEL, Field(gt=0, le=1)]

# What a method does with the model that the others were fine-tuned from. `apart`: it is given what each model adds to
# it, or the base beside the models. `among`: the base is the first of its models. `donor`: the base gives
# configuration and tokenizer only, unless it is listed among the models.
BaseUse = Literal["apart", "among", "donor"]


@dataclass(frozen=True)
class Option:
    """An option of a method.

    Attributes:
        name: as it is written in files (`lambda`).
        keyword: as the function calls it (`lambda_`).
        per_model: whether each model has a value of its own.
        required: whether it has no default.
        default: its default.
        adapter: what a value has to be.
    """

    name: str
    keyword: str
    per_model: bool
    required: bool
    default: Any
    adapter: TypeAdapter[Any]

    def checked(self, value: Any) -> Any:
        """Return one value, having checked its type and range.

        Raises:
            ConfigError: it is another kind of value, or out of range.
        """
        if isinstance(value, bool) and self.per_model:
            raise ConfigError(f"{self.name} is {value}; it must be a number.")
        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            raise ConfigError(value_sentence(self.name, error.errors()[0])) from None


@dataclass(frozen=True)
class Draws:
    """Random numbers that a method draws for one tensor: the same whatever was drawn before, and in any order.

    Attributes:
        seed: of the merge.
        tensor: the tensor's name.
    """

    seed: int
    tensor: str

    def uniform(self, model: int, shape: Sequence[int]) -> torch.Tensor:
        """Return numbers in [0, 1) in steps of 2⁻²⁴, float32, of a shape.

        Args:
            model: the number of the model that they are drawn for, from 0.
            shape: of what is returned.
        """
        columns = shape[-1] if shape else 1
        rows = math.prod(shape[:-1])
        numbers = np.empty((rows, columns), dtype=np.float32)
        key = mask_key(self.seed, self.tensor, f"merge {model}")
        step = max(1, _WORDS_AT_ONCE // max(1, columns))
        for first in range(0, rows, step):
            words = mask_words(key, columns, min(step, rows - first), first)
            np.multiply(
                words >> np.uint32(_WORD_BITS - _FLOAT_BITS),
                np.float32(2.0**-_FLOAT_BITS),
                numbers[first : first + step],
                dtype=np.float32,
            )
        return torch.from_numpy(numbers).reshape(tuple(shape))


@dataclass(frozen=True)
class MergeMethod:
    """A registered merge method.

    Attributes:
        name: as files write it.
        title: as people do.
        source: the paper, or where else it is described.
        function: the pure function. Its first argument is `deltas` (what each model adds to the base; it returns what
            the merged model adds) or `tensors` (weights of the models; it returns those of the merged model), float32,
            all of one shape, on one device. It does not change them. It may take `base`, the base's tensor or None,
            and `draws`.
        base: what it does with the base.
        models: the fewest and the most models that it merges, those of `tensors`; None: any number.
        options: its options by the name that files write.
        ignored: names that files of mergekit may have for it, and that change nothing.
        entrywise: whether each entry of what it returns follows from the same entry of its arguments alone, and from
            no draws: it may be given any part of the tensors.
    """

    name: str
    title: str
    source: str
    function: Callable[..., torch.Tensor]
    base: BaseUse
    models: tuple[int, int | None]
    options: Mapping[str, Option]
    ignored: tuple[str, ...]
    entrywise: bool

    @property
    def takes_deltas(self) -> bool:
        """Whether it is given what the models add to the base."""
        return next(iter(self._parameters)) == "deltas"

    @property
    def needs_base(self) -> bool:
        """Whether it merges nothing without a base: `donor` and a `base` that may be None do without."""
        own = self._parameters.get("base")
        return self.base != "donor" and (own is None or own.default is inspect.Parameter.empty)

    def takes(self, keyword: str) -> bool:
        """Return whether its function has a parameter of this name."""
        return keyword in self._parameters

    @cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters


MERGE_METHODS: Registry[MergeMethod] = Registry("merge method")


def merge_method(
    name: str,
    title: str,
    source: str,
    *,
    base: BaseUse = "apart",
    models: tuple[int, int | None] = (1, None),
    ignored: tuple[str, ...] = (),
    entrywise: bool = False,
) -> Callable[[_Merge], _Merge]:
    """Return the decorator that registers a merge method; arguments as in `MergeMethod`."""

    def registered(function: _Merge) -> _Merge:
        options = {option.name: option for option in _options(function)}
        method = MergeMethod(name, title, source, function, base, models, options, ignored, entrywise)
        if not method.takes_deltas and "tensors" not in inspect.signature(function).parameters:
            raise TypeError(f"{name}: the first parameter of a merge method is `deltas` or `tensors`")
        MERGE_METHODS.register(name, method)
        return function

    return registered


def _options(function: Callable[..., torch.Tensor]) -> Iterator[Option]:
    """Give the options of a method: the keyword parameters of its function, but for `base` and `draws`."""
    hints = get_type_hints(function, include_extras=True)
    for keyword, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or keyword in ("base", "draws"):
            continue
        hint = hints[keyword]
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        per_model = _PER_MODEL in marks
        if per_model:
            rest = tuple(mark for mark in marks if mark is not _PER_MODEL)
            hint = Annotated[float, *rest] if rest else float
        required = parameter.default is inspect.Parameter.empty
        yield Option(
            name=keyword.rstrip("_"),
            keyword=keyword,
            per_model=per_model,
            required=required,
            default=None if required else parameter.default,
            adapter=TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)),
        )


def each(value: float | Sequence[float], tensors: Tensors) -> list[float]:
    """Return a value for each model: those that are given, or the one for all.

    Raises:
        ValueError: there are more or fewer values than models.
    """
    values = [float(value)] * len(tensors) if isinstance(value, int | float) else [float(one) for one in value]
    if len(values) != len(tensors):
        raise ValueError(f"{len(values)} values are given for {len(tensors)} models")
    return values


def shares(weight: float | Sequence[float], tensors: Tensors) -> list[float]:
    """Return a weight for each model, divided by their sum.

    Raises:
        ConfigError: they add up to nought.
    """
    weights = each(weight, tensors)
    total = sum(weights)
    if abs(total) < LEAST_SUM:
        raise ConfigError(
            f"The weights {weights} add up to {total:g} and cannot be divided by it. Give weights with another sum, "
            "or turn normalising off."
        )
    return [one / total for one in weights]
