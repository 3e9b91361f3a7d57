"""Compressions of the zoo's math model by every quantising method at CR 64, in one store."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impart_core import tinyzoo
from tests.faults.warm import warm_json
from tests.support import Environment, data_files, manifests

BASE, MATH, CODE = (str(tinyzoo.path(name)) for name in ("base", "math", "code"))
SHORT = ("--calibration-sequences", "8", "--calibration-length", "64")
TEXT = ("--calibration", "tinyzoo:math", *SHORT)
SHORTER = ("--calibration", "tinyzoo:math", "--calibration-sequences", "8", "--calibration-length", "16")
CODED = ("impart-qt", "delta-come", "dare-qt")
# Every request of the shared store, at CR 64.
REQUESTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(CODED, TEXT),
    "bitdelta": (),
    "bitdelta distilled": ("--option", "distil=true", *SHORTER),
}
LAYERS, MATRICES = 3, 21
Report = dict[str, Any]


@dataclass(frozen=True)
class Quantised:
    """A store, and what each request's compression into it printed, by method."""

    store: Path
    reports: dict[str, Report]


def compress(method: str, cr: float, store: Path, *options: str) -> list[str]:
    """Return the arguments of a compression of the zoo's math model."""
    return ["compress", BASE, MATH, "--method", method.split()[0], "--cr", str(cr), "--store", str(store), *options]


def name_of(method: str) -> str:
    return method.replace(" ", "-")


def blocks_of(store: Path, artifact: str) -> list[dict[str, Any]]:
    """Return the manifests of a delta's blocks, in its order."""
    found = manifests(store)
    return [found[block["id"]] for block in found[artifact]["content"]["blocks"]]


def codes_of(store: Path, artifact: str) -> dict[str, str]:
    """Return the files of a delta and of its blocks, with their SHA-256."""
    own = {artifact, *(block["id"] for block in blocks_of(store, artifact))}
    return {path: digest for path, digest in data_files(store).items() if path.split("/")[1] in own}


def quantise_all(store: Path, environment: Environment) -> Quantised:
    """Run every request, each named after its method."""

    def run(method: str) -> Report:
        named = [*REQUESTS[method], "--name", f"{name_of(method)}@cr64"]
        return warm_json(*compress(method, 64, store, *named), environment=environment)

    with ThreadPoolExecutor(max_workers=2) as pool:
        return Quantised(store, dict(zip(REQUESTS, pool.map(run, REQUESTS), strict=True)))
