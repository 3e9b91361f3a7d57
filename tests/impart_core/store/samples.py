"""Small artifacts for tests of the store."""

from pathlib import Path
from typing import Any

from impart_core.artifacts.block import publish_block
from impart_core.artifacts.delta import DeltaContent
from impart_core.artifacts.evaluation import RESULTS_FILE, EvaluationContent
from impart_core.artifacts.factors import FactorsContent
from impart_core.base.canonical import canonical_json, digest_of
from impart_core.base.files import scratch_folder
from impart_core.codec.format import FORMAT_VERSION
from impart_core.store.manifest import Content, Manifest, Pointer
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.retention import Rules
from impart_core.store.store import Store, file_entry

NO_GRACE = Rules(grace_days=0)


def sample(
    folder: Path, data: dict[str, bytes] | None = None, seed: int = 0, **fields: Any
) -> tuple[Manifest, dict[str, Path]]:
    """Write data files and return the manifest and paths to publish them with."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, content in (data or {"data.bin": b"0123456789"}).items():
        files[name] = folder / name
        files[name].write_bytes(content)
    manifest = Manifest.make(
        Recipe(operation="sample", version=1, config={"seed": seed}, inputs={}),
        files=tuple(file_entry(name, path) for name, path in files.items()),
        content=EvaluationContent(metrics={"task": {"acc": (0.5, None)}}, items={"task": 4}),
        provenance=Stopwatch().provenance(),
        **fields,
    )
    return manifest, files


def evaluation_of(
    store: Store,
    inputs: dict[str, str],
    parents: tuple[str, ...] = (),
    metrics: dict[str, tuple[float, float | None]] | None = None,
    task: str = "task",
) -> Manifest:
    """Publish an evaluation of what `inputs` names, as if a harness had measured it."""
    with scratch_folder() as scratch:
        path = scratch / RESULTS_FILE
        path.write_bytes(canonical_json(inputs))
        manifest = Manifest.make(
            Recipe(operation="evaluate", version=1, config={"task": task, "split": "test"}, inputs=inputs),
            parents=parents,
            files=(file_entry(RESULTS_FILE, path),),
            content=EvaluationContent(metrics={task: metrics or {"acc": (0.5, 0.25)}}, items={task: 4}),
            provenance=Stopwatch().provenance(),
        )
        return store.publish(manifest, {RESULTS_FILE: path})


_NO_TENSORS = (8).to_bytes(8, "little") + b"{}      "  # a safetensors file


def small_delta(store: Store, seed: int = 0, blocks: int = 2) -> Manifest:
    """Publish a delta of some blocks that were made from factors, each with a file of no tensors."""
    pointers = []
    for number in range(blocks):
        name = f"model.layers.{number}"
        factors = _publish(store, f"factors {seed} {number}", FactorsContent(name=name, matrices={}))
        recipe = _recipe(f"block {seed} {number}", factors=factors.id)
        block = publish_block(store, recipe, name, {}, Stopwatch())
        pointers.append(Pointer(name=name, id=block.id, bytes=block.nbytes))
    content_of_all = DeltaContent(
        blocks=tuple(pointers),
        base=digest_of("base"),
        finetuned=digest_of(seed),
        finetuned_bytes=1,
        carried={},
        projection_bytes=0,
        projection_dense_bytes=0,
        data_bytes=8,
        cr_projection=None,
    )
    return _publish(store, f"delta {seed}", content_of_all, *(pointer.id for pointer in pointers))


def _publish(store: Store, key: str, content: Content, *parents: str) -> Manifest:
    with scratch_folder() as scratch:
        path = scratch / (content.files[0] if content.files else "data.bin")
        path.write_bytes(_NO_TENSORS)
        manifest = Manifest.make(
            _recipe(key),
            parents=parents,
            files=(file_entry(path.name, path),),
            content=content,
            provenance=Stopwatch().provenance(),
        )
        return store.publish(manifest, {path.name: path})


def _recipe(key: str, **inputs: str) -> Recipe:
    return Recipe(
        operation="sample",
        version=1,
        config={"format": FORMAT_VERSION, "method": "impart"},
        inputs={"key": key, **inputs},
    )
