"""Requests of every method, whatever its options are, and the deltas that they are tried on."""

from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st

from impart_core.base.errors import ConfigError
from impart_core.base.settings import MethodOptions
from impart_core.blocks.request import CompressConfig
from impart_core.codec.parts import Codes
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from tests.impart_core.pipeline import config_of, small_options
from tests.support import decaying_delta

WITHOUT_MASKS = ("delta-come", "ecsq", "lowrank", "magnitude")
DECOMPOSING = ("delta-come", "ecsq", "impart", "impart-qt", "lowrank")
# Of every option of any method, what is tried; a new option needs an entry.
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "beta": st.floats(0, 0.9),
    "c": st.floats(0, 2),
    "preprune": st.booleans(),
    "allocation": st.sampled_from(["importance", "uniform"]),
    "floor": st.none(),
    "rescale": st.booleans(),
    "per_row": st.booleans(),
    "bits": st.sampled_from([2, 4, 8]),
    "ladder": st.sampled_from(["8x2,3x8,2", "16", "4", "2", "16x1,8x1,3", "2x1,16"]),
    "group_size": st.sampled_from([1, 16, 128]),
    "solver": st.sampled_from(["support", "masked", "nearest"]),
    "lossless": st.booleans(),
    "fill": st.booleans(),
    "p": st.sampled_from([None, 0.0, 1.0, 2.0]),
    "gain": st.floats(0, 1),
    "filling": st.sampled_from(["lagrangian", "one_step"]),
    "domain": st.sampled_from(["auto", "factors", "entries"]),
    "share_by": st.sampled_from(["directions", "entries"]),
    "metric": st.sampled_from(["frobenius", "kfac"]),
    "feedback": st.sampled_from([0.0, 0.5, 1.0]),
}
KINDS = ("decaying", "flat", "spikes", "blocks", "ties", "corner", "one entry", "rank one")


def request_of(method: str, cr: float = 8, **settings: Any) -> CompressConfig:
    """Return settings whose ladder, where there is one, suits small matrices; others as given."""
    options = {**small_options(method), **settings.pop("options", {})}
    return config_of(cr, method=method, options=options, **settings)


def own_options(method: str) -> list[str]:
    """Return the names of a method's options but for those of distillation, which encoding does not know."""
    return [name for name in METHODS.get(method).options_model.model_fields if name not in MethodOptions.model_fields]


def where_known(method: str, **options: Any) -> dict[str, Any]:
    """Return those of the options that a method has."""
    return {name: value for name, value in options.items() if name in METHODS.get(method).options_model.model_fields}


VARIANTS = [
    (method, options)
    for method in METHODS
    for options in ([{"lossless": True}, {"lossless": False}] if where_known(method, lossless=True) else [{}])
]


@st.composite
def any_requests(draw: st.DrawFn, method: str, **settings: Any) -> CompressConfig:
    """Draw any request of a method, its options included; settings and options that are given are taken as they are."""
    options = {name: draw(OPTIONS[name]) for name in own_options(method)}
    if method == "impart" and draw(st.booleans()):
        floor = draw(st.none() | st.floats(0.01, 1))
        options |= {"allocation": "proportional", "floor": floor, "beta": None, "preprune": True}
    given = {
        "cr": draw(st.floats(1, 800)),
        "accounting": draw(st.sampled_from(["bytes", "paper"])),
        "seed": draw(st.integers(0, 50)),
        **settings,
        "options": _with_effect({**options, **settings.get("options", {})}),
    }
    return config_of(method=method, **given)


def _with_effect(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out a floor where another allocation was asked for, and a metric or feedback where these do nothing."""
    if options.get("domain") == "entries":
        options = {**options, "metric": "frobenius"}
    if options.get("metric") == "frobenius":
        options = {name: value for name, value in options.items() if name != "feedback"}
    if options.get("allocation") == "proportional" or "floor" not in options:
        return options
    return {**options, "floor": None}


@st.composite
def requests(draw: st.DrawFn, method: str, m: int, n: int, **settings: Any) -> CompressConfig:
    """Draw any request of a method that an m×n matrix can be coded by, up to the highest ratio there is."""
    request = draw(any_requests(method, **settings))
    # ImPart takes no β of 0.9 below a ratio of 5.
    lowest = 1.0 if is_feasible(request.model_copy(update={"cr": 1.0}), m, n) else 5.0
    highest = METHODS.get(method).highest_cr(m, n, request)
    assume(lowest <= highest)
    share = draw(st.just(1.0) | st.floats(0, 1))  # of the way up, often all of it
    cr = highest if share == 1 else min(highest, lowest * (highest / lowest) ** share)
    feasible = request.model_copy(update={"cr": cr})
    assert is_feasible(feasible, m, n)
    return feasible


def is_feasible(request: CompressConfig, m: int, n: int) -> bool:
    """Return whether a method takes a request of an m×n matrix, its settings being those for a larger model."""
    method = METHODS.get(request.method)
    try:
        method.check(request, 1 << 20)
    except ConfigError:
        return False
    return request.cr <= method.highest_cr(m, n, request)


def encode(projection: Projection, request: CompressConfig) -> Codes:
    """Return the codes of a projection by the request's method."""
    return METHODS.get(request.method).encode(projection, request)


def decode(codes: Codes, projection: Projection, request: CompressConfig) -> torch.Tensor:
    """Return the delta that codes of a projection stand for."""
    return METHODS.get(request.method).decode(codes, projection.name, projection.shape, request.seed)


def one_entry(m: int, n: int, at: int, value: float = -0.25) -> torch.Tensor:
    """Return a delta of shape (m, n) that is zero but for the entry at this position of the flattened matrix."""
    delta = torch.zeros(m * n)
    delta[at % (m * n)] = value
    return delta.reshape(m, n)


def delta_of(kind: str, m: int, n: int, seed: int = 0) -> torch.Tensor:
    """Return a delta of a kind.

    Singular values fall or are all the same; entries are few, alike, or crowd in one place; there is one of either.
    """
    falling = decaying_delta(m, n, seed=seed)
    if kind == "flat":
        u, _, v = torch.linalg.svd(torch.randn(m, n, generator=torch.Generator().manual_seed(m)), full_matrices=False)
        return u @ v
    if kind == "blocks":
        return torch.block_diag(*(decaying_delta(4, 4, seed=at) for at in range(max(m, n) // 4 + 1)))[:m, :n]
    corner = torch.where(torch.arange(m * n).reshape(m, n) < m * n // 3, 1.0, 1e-3)
    return {
        "decaying": falling,
        "spikes": torch.eye(m, n),
        "ties": torch.sign(falling) * 0.5,
        "corner": falling * corner,
        "one entry": one_entry(m, n, 7919 * seed),
        "rank one": torch.outer(falling[:, 0], decaying_delta(1, n, seed=seed)[0]),
    }[kind]
