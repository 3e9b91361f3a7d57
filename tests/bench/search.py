"""What a search costs beside evaluation: 100 trials of a real compression and a few items each."""

import tempfile
from pathlib import Path

import impart_core as impart
from impart_core import tinyzoo

TRIALS = 100


def measure_search() -> dict[str, float]:
    """Return the share of a search's time that is not spent in making and scoring candidates, by sampler."""
    return {f"search_overhead_{sampler}": _overhead(sampler) for sampler in ("tpe", "gp")}


def _overhead(sampler: str) -> float:
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
        "items": [50, 200],
        "budget": {"trials": TRIALS},
    }
    with tempfile.TemporaryDirectory() as scratch:
        report = impart.search(file, store=Path(scratch), device="cpu")
    tally = report.record.tally
    return (tally["seconds"] - tally["seconds_evaluating"]) / tally["seconds_evaluating"]
