"""What a search costs beside evaluation: 100 trials of a real compression and a few items each.

Trials here take a second or two. Whatever costs less than 5 % of these costs nothing of trials that take minutes.
"""

import tempfile
from pathlib import Path

import impart_core as impart
from impart_core import tinyzoo

TRIALS = 100


def measure_search() -> dict[str, float]:
    """Return the time that is not spent in making and scoring candidates, by sampler.

    `search_overhead`: over the time that is; `search_seconds_outside`: for each trial.
    """
    figures: dict[str, float] = {}
    for sampler in ("tpe", "gp"):
        tally = _tally(sampler)
        outside = tally["seconds"] - tally["seconds_evaluating"]
        figures[f"search_overhead_{sampler}"] = outside / tally["seconds_evaluating"]
        figures[f"search_seconds_outside_{sampler}"] = outside / TRIALS
        figures[f"search_seconds_evaluating_{sampler}"] = tally["seconds_evaluating"] / TRIALS
    return figures


def _tally(sampler: str) -> dict[str, float]:
    file = {
        "compress": {
            "base": str(tinyzoo.path("base")),
            "finetuned": str(tinyzoo.path("math")),
            "cr": {"range": [4, 32], "log": True},
            "seed": {"range": [0, 9], "step": 1},
            "options": {"beta": {"range": [0.0, 0.6]}},
        },
        "tasks": {"tinyzoo_math": "exact_match"},
        "sampler": sampler,
        "parallel": 2,
        "items": [25, 50],
        "budget": {"trials": TRIALS},
    }
    with tempfile.TemporaryDirectory() as scratch:
        report = impart.search(file, store=Path(scratch), device="cpu")
    return dict(report.record.tally)
