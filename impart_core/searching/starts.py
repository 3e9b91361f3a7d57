"""What a search tries first: the default candidate, and others that cover the space of weights."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from impart_core.searching.hole import Range
from impart_core.searching.space import Space

NamedStart = Literal["uniform", "one-hot"]
Start = NamedStart | dict[str, Any]


def starting_values(space: Space, starts: Sequence[Start]) -> Iterator[dict[str, Any]]:
    """Give the values of the first candidates: the default one, then what was asked for.

    Args:
        space: the space.
        starts: `uniform`: weights that sum to 1, the same for each model; `one-hot`: for each model one start that has
            its weight alone; or values of some parameters, the others being as in the default.
    """
    yield space.defaults
    models = _weights(space)
    for start in starts:
        if isinstance(start, dict):
            yield {**space.defaults, **start}
        elif start == "uniform" and models:
            yield _weighted(space, models, dict.fromkeys(models, 1 / len(models)))
        elif start == "one-hot":
            for chosen in models:
                yield _weighted(space, models, {model: float(model == chosen) for model in models})


def _weights(space: Space) -> dict[tuple[str | int, ...], list[str]]:
    """Return the parameters that are weights, by the place of the model that they weigh.

    A weight stands at `….parameters.weight`, alone or in a list of one a layer group.
    """
    found: dict[tuple[str | int, ...], list[str]] = {}
    for path, name in space.places.items():
        if "weight" in path and isinstance(space.holes[name], Range):
            model = path[: path.index("weight")]
            if name not in found.setdefault(model, []):
                found[model].append(name)
    return found


def _weighted(
    space: Space, models: Mapping[tuple[str | int, ...], list[str]], weights: Mapping[tuple[str | int, ...], float]
) -> dict[str, Any]:
    values = space.defaults
    for model, names in models.items():
        for name in names:
            hole = space.holes[name]
            assert isinstance(hole, Range)
            values[name] = hole.nearest(weights[model])
    return values
