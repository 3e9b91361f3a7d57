"""Optuna's samplers over the space of a search, and its importance of parameters. Optuna is loaded when it is used."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from impart_core.base.errors import ConfigError
from impart_core.searching.file import LEAST_WARM, SearchFile
from impart_core.searching.hole import AnyHole, Range
from impart_core.searching.result import Trial

if TYPE_CHECKING:
    import optuna


def require_optuna() -> None:
    """Raise ConfigError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise ConfigError("A search needs Optuna: pip install 'impart-zoo[search]'.")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's remarks on what of it is experimental, and its log of every trial, to itself."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def one_thread_of_blas() -> Iterator[None]:
    """Let the libraries of linear algebra that Optuna works with use one thread inside the block.

    With more, what is suggested could depend on the number of cores, and threads that wait for one another take them.
    """
    import scipy.linalg  # noqa: F401 - a library is limited once it is loaded
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def coded(hole: AnyHole, value: Any) -> Any:
    """Return a value of a hole as Optuna has it: one of a list by its place."""
    return value if isinstance(hole, Range) else hole.choose.index(value)


def decoded(hole: AnyHole, value: Any) -> Any:
    """Return what Optuna suggests for a hole as a value of it."""
    return hole.nearest(value) if isinstance(hole, Range) else hole.choose[value]


def distributions_of(file: SearchFile) -> "dict[str, optuna.distributions.BaseDistribution]":
    """Return Optuna's distribution of each parameter."""
    return {name: _distribution(hole) for name, hole in file.space.holes.items()}


def _distribution(hole: AnyHole) -> "optuna.distributions.BaseDistribution":
    from optuna import distributions

    if not isinstance(hole, Range):
        return distributions.CategoricalDistribution(range(len(hole.choose)))
    low, high = hole.range
    if hole.whole:
        return distributions.IntDistribution(int(low), int(high), step=int(hole.step or 1))
    return distributions.FloatDistribution(float(low), float(high), log=hole.log, step=hole.step)


def sampler_of(file: SearchFile, source: Sequence[Trial]) -> "optuna.samplers.BaseSampler":
    """Return the sampler that a search asks for.

    Args:
        file: the search.
        source: trials of a cheaper search, which tell CMA-ES where to begin.
    """
    from optuna import samplers

    settings, seed = file.sampler, file.seed
    startup = settings.startup or 10
    population = settings.population or 50
    match settings.name:
        case "grid" | "random":
            return samplers.RandomSampler(seed=seed)
        case "qmc":
            return samplers.QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)
        case "tpe":
            return samplers.TPESampler(n_startup_trials=startup, multivariate=True, seed=seed)
        case "gp":
            return samplers.GPSampler(n_startup_trials=startup, seed=seed)
        case "cmaes":
            told = _frozen(file, source)
            return samplers.CmaEsSampler(
                popsize=settings.population,
                lr_adapt=True,
                source_trials=told if len(told) >= LEAST_WARM else None,
                warn_independent_sampling=False,
                seed=seed,
            )
        case "nsga2":
            return samplers.NSGAIISampler(population_size=population, seed=seed)
        case _:
            return samplers.NSGAIIISampler(population_size=population, seed=seed)


def _frozen(file: SearchFile, trials: Sequence[Trial]) -> "list[optuna.trial.FrozenTrial]":
    """Return those trials that have a value as Optuna's, by the first objective."""
    from optuna.trial import create_trial

    distributions = distributions_of(file)
    return [
        create_trial(
            params={name: coded(file.space.holes[name], value) for name, value in trial.values.items()},
            distributions=distributions,
            value=trial.quantities[file.objectives[0].name],
        )
        for trial in trials
        if trial.quantities
    ]


def importance_of(file: SearchFile, trials: Sequence[Trial]) -> dict[str, float]:
    """Return the share of each parameter in the variance of the first objective (PED-ANOVA, arXiv 2304.10255).

    Nothing where no two trials differ.

    Args:
        file: the search.
        trials: its trials; those that failed say nothing.
    """
    import optuna

    with quiet():
        told = _frozen(file, trials)
        if len({trial.value for trial in told}) < 2:
            return {}
        study = optuna.create_study(direction=file.goals[file.objectives[0].name])
        study.add_trials(told)
        found: Mapping[str, float] = optuna.importance.get_param_importances(study)
    return {name: round(float(found.get(name, 0.0)), 6) for name in file.space.holes}
