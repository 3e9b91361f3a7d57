"""Calibrated compressions that tell what they compute, and that hooks kill or hold up in chosen places."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from impart_core.artifacts import activations
from impart_core.artifacts.activations import Spill
from impart_core.blocks.encode import Encoder
from impart_core.calibrate.model import CausalModel
from impart_core.engine import chain, distil
from impart_core.storage.folder import FolderObjects
from impart_core.storage.s3 import RemoteObjects, S3Objects
from tests.faults.warm import impart

Pair = tuple[Path, Path]
TEXT = ["--calibration", "tinyzoo:math", "--calibration-sequences", "8", "--calibration-length", "32"]


def words(models: Pair, url: str, *options: str) -> list[str]:
    """Return the arguments of the calibrated compression."""
    method = ["--method", "impart-qt", "--cr", "8", "--option", "ladder=3x4,2", *TEXT]
    return ["compress", *map(str, models), *(options or method), "--name", "qt", "--store", url, "--json"]


def run_hooked(hook: str, log: str, arguments: list[str]) -> None:
    """Run a command that writes to a file what it computes of a calibration, and that a hook may kill or hold up.

    Text goes in two batches with a file for each.
    """
    chain.batch_size = lambda length: 4  # type: ignore[assignment]
    activations.FILE_BATCHES = 1

    def traced(owner: Any, name: str, label: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def traces(*given: Any, **named: Any) -> Any:
            with Path(log).open("a") as file:
                print(label(*given), file=file)
            return real(*given, **named)

        setattr(owner, name, traces)

    traced(chain, "compress_layer", lambda encoder, pairs, block, *_: f"compress {block.name[-1]}")
    traced(chain, "run_layer", lambda model, name, *_: f"run {name[-1]}")
    traced(CausalModel, "embed", lambda *_: "embed")
    if hook:
        HOOKS[hook]()
    impart(*arguments)


def before(owner: Any, name: str, when: Callable[..., bool], act: Callable[[], object]) -> None:
    """Do something in this process whenever a function is called with certain arguments, before it does its work."""
    real = getattr(owner, name)

    def hooked(*given: Any, **named: Any) -> Any:
        if when(*given):
            act()
        return real(*given, **named)

    setattr(owner, name, hooked)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_when_quantising(matrix: str) -> None:
    before(Encoder, "matrix", lambda encoder, pair, own, *_: own.name == f"{matrix}.weight", die)


def die_when_uploading(half: bool) -> None:
    """Die when what layer 1 gives is on its way: half of its files are there, or all of them without the manifest."""
    begun: list[bool] = []
    before(Spill, "publish", gives_layer_1, lambda: begun.append(True))
    for kind in (FolderObjects, RemoteObjects, S3Objects):
        if half and "put" in vars(kind):
            before(kind, "put", lambda objects, path, *_: bool(begun) and "batches-00001" in path, die)
        if not half and "create" in vars(kind):
            before(kind, "create", lambda objects, path, data: bool(begun) and b'"activations"' in data, die)


def gives_layer_1(spill: Spill, store: object, recipe: object, name: str, *_: object) -> bool:
    """Return whether what is published is what layer 1 gives."""
    return name == "after model.layers.1"


def wait_in_layer_1() -> None:
    """Hold the run up in the middle of its calibration, until it is let go."""
    folder = Path(os.environ["TEST_FOLDER"])

    def wait() -> None:
        (folder / "waiting").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)

    before(chain, "compress_layer", lambda encoder, pairs, block, *_: block.name == "model.layers.1", wait)


ATTENTION = "model.layers.{}.self_attn.o_proj"
HOOKS: dict[str, Callable[[], None]] = {
    "while it embeds": lambda: before(CausalModel, "embed", lambda *_: True, die),
    "in the middle of layer 1": lambda: die_when_quantising(ATTENTION.format(1)),
    "in the middle of the last layer": lambda: die_when_quantising(ATTENTION.format(2)),
    "between layer 1 and what it gives": lambda: before(
        chain, "run_layer", lambda model, name, *_: name == "model.layers.1", die
    ),
    "with what layer 1 gives in scratch": lambda: before(Spill, "publish", gives_layer_1, die),
    "with half of what layer 1 gives uploaded": lambda: die_when_uploading(half=True),
    "with what layer 1 gives uploaded but not its manifest": lambda: die_when_uploading(half=False),
    "distilled": lambda: before(distil, "release_memory", lambda: True, die),
    "wait in layer 1": wait_in_layer_1,
}
