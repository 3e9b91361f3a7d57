"""Where CMA-ES begins: told by the trials of a cheaper search, this one's own first stage or another study."""

from collections.abc import Iterable

from impart_core.base.errors import ConfigError
from impart_core.searching.file import LEAST_WARM, Budget, SamplerSettings, SearchFile
from impart_core.searching.result import Study, Trial


def first_stage(file: SearchFile, available: int) -> SearchFile | None:
    """Return the search's own cheaper stage, where it has one: spread over the space, on the first rung of items.

    Args:
        file: the search.
        available: how many validation items the task with the fewest has.
    """
    if not file.sampler.warm_start:
        return None
    update = {
        "sampler": SamplerSettings(name="qmc"),
        "items": (file.rungs(available)[0][1],),
        "budget": Budget(trials=file.sampler.warm_start),
    }
    return file.model_copy(update=update)


def fitting_trials(file: SearchFile, study: Study, called: str) -> tuple[Trial, ...]:
    """Return the trials of another study that tell a search where to begin: those that have values, inside its space.

    Args:
        file: the search.
        study: the other study.
        called: what people call it, for messages.

    Raises:
        ConfigError: it has other parameters, or another first objective; or too few trials in this space.
    """
    theirs = list(study.trials[0].values) if study.trials else []
    if study.trials and set(theirs) != set(file.space.holes):
        raise ConfigError(
            f"The study {called} has the parameters {_listed(theirs)}, and this search {_listed(file.space.holes)}. "
            "Holes are called the same in both: by their places, or by `name`."
        )
    first, goal = next(iter(file.goals.items()))
    if study.objectives.get(first) != goal:
        known = ", ".join(f"{way} {name}" for name, way in study.objectives.items())
        raise ConfigError(f"The study {called} looks for {known}; this search begins with {goal} {first}.")
    told = [trial for trial in study.trials if trial.quantities and _is_inside(file, trial)]
    if len(told) < LEAST_WARM:
        raise ConfigError(
            f"The study {called} has {len(told)} trials with values in the space of this search; CMA-ES begins at the "
            f"best tenth of at least {LEAST_WARM}. Widen the ranges, or run more trials there."
        )
    return tuple(told)


def _is_inside(file: SearchFile, trial: Trial) -> bool:
    return all(hole.holds(trial.values[name]) for name, hole in file.space.holes.items())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
