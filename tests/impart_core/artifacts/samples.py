"""Small artifacts for tests of the store."""

from pathlib import Path
from typing import Any

from impart_core.artifacts.identity import Recipe
from impart_core.artifacts.manifest import EvaluationContent, Manifest
from impart_core.artifacts.provenance import Stopwatch
from impart_core.artifacts.store import file_entry


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
