"""Factors as artifacts: the decomposition of a block, published once and used by every request that it serves."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from impart_core.artifacts.identity import Recipe
from impart_core.artifacts.manifest import FactorsContent, FactorsEntry, Manifest
from impart_core.artifacts.provenance import Stopwatch
from impart_core.artifacts.store import Found, Store, file_entry
from impart_core.busy import busy
from impart_core.checkpoint.header import TensorInfo, read_header
from impart_core.checkpoint.layout import Block
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.pairing import Pairs
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import spec_of, write_safetensors
from impart_core.compress import Stored
from impart_core.config import CompressConfig
from impart_core.delta.factors import Factors
from impart_core.deltas import Digests
from impart_core.errors import CheckpointError, CorruptArtifactError
from impart_core.files import scratch_folder
from impart_core.policy import depth_for

FACTORS_FILE = "factors.safetensors"
_VERSION = 1  # raised whenever the same recipe gives other triplets or another number of them
_PARTS = ("u", "sigma", "v")


def factors_recipe(
    pairs: Pairs, block: Block, config: CompressConfig, digests: tuple[Digests, Digests]
) -> Recipe | None:
    """Return what makes a block's factors, None where the request decomposes nothing of it.

    How deep they go is all that it takes from the request: neither method nor ratio, β, C or seed.
    """
    depths = {name: depth for name in block.tensors if (depth := depth_for(pairs[name], config))}
    if not depths:
        return None
    ours = {pair.base.name: digests[0][pair.base.name] for name in depths if (pair := pairs[name]).base}
    return Recipe(
        operation="decompose-block",
        version=_VERSION,
        config={"block": block.name, "lowest_cr": {name: depth.lowest_cr for name, depth in depths.items()}},
        inputs={"base": ours, "finetuned": {name: digests[1][name] for name in depths}},
    )


def publish_factors(
    store: Store, recipe: Recipe, name: str, factors: Mapping[str, Factors], watch: Stopwatch, *, replace: bool = False
) -> Manifest:
    """Write a block's factors to scratch and publish them; return the manifest in force.

    `replace` is as in `Store.publish`.
    """
    parts = {f"{key}:{part}": getattr(found, part) for key, found in factors.items() for part in _PARTS}
    content = FactorsContent(
        name=name,
        matrices={key: _entry(found) for key, found in sorted(factors.items())},
    )
    with scratch_folder() as scratch:
        path = scratch / FACTORS_FILE
        with busy():
            write_safetensors(path, [spec_of(key, part) for key, part in parts.items()], parts.__getitem__, {})
        manifest = Manifest.make(
            recipe, files=(file_entry(FACTORS_FILE, path),), content=content, provenance=watch.provenance()
        )
        return store.publish(manifest, {FACTORS_FILE: path}, reread=True, replace=replace)


def _entry(factors: Factors) -> FactorsEntry:
    parts = [getattr(factors, part) for part in _PARTS]
    return FactorsEntry(
        shape=(factors.u.shape[1], factors.v.shape[1]),
        rank=len(factors.sigma),
        route=factors.route,
        fallbacks=factors.fallbacks,
        bytes=sum(part.numel() * part.element_size() for part in parts),
    )


def examine_factors(store: Store, artifact_id: str) -> Found:
    """Look for published factors; their file is re-read, for much is made from them."""
    found = store.examine(artifact_id, reread=True)
    return found if found.manifest is None or isinstance(found.manifest.content, FactorsContent) else Found()


def locate_factors(path: Path, content: FactorsContent) -> dict[str, tuple[TensorInfo, ...]]:
    """Return where a matrix's u, σ and v lie in a file of factors, by its name.

    Raises:
        CorruptArtifactError: the file does not hold the factors that its manifest lists.
    """
    try:
        infos, _ = read_header(local_file(path))
        found = {name: tuple(infos[f"{name}:{part}"] for part in _PARTS) for name in content.matrices}
    except (CheckpointError, KeyError) as error:
        raise CorruptArtifactError(f"{path} does not hold the factors that its manifest lists: {error}") from error
    for name, parts in found.items():
        rank, (m, n) = content.matrices[name].rank, content.matrices[name].shape
        if [(info.dtype, info.shape) for info in parts] != [("F16", (rank, m)), ("F32", (rank,)), ("F16", (rank, n))]:
            raise CorruptArtifactError(f"{path} holds other factors of {name!r} than its manifest says.")
    return found


@contextmanager
def stored_factors(store: Store, artifact_id: str | None) -> Iterator[Stored | None]:
    """Give the factors that an artifact holds, read matrix by matrix; None where there is no whole artifact.

    A damaged artifact counts as none.
    """
    with ExitStack() as stack:
        manifest = store.lookup(artifact_id) if artifact_id else None
        yield _open(store, manifest, stack) if manifest else None


def _open(store: Store, manifest: Manifest, stack: ExitStack) -> Stored | None:
    content = manifest.content
    if not isinstance(content, FactorsContent):
        return None
    try:
        path = stack.enter_context(store.local_file(manifest, FACTORS_FILE, verified=True))
        infos = locate_factors(path, content)
    except CorruptArtifactError:
        return None

    def read(name: str) -> Factors | None:
        if name not in infos:
            return None
        u, sigma, v = map(read_tensor, infos[name])
        return Factors(u, sigma, v, content.matrices[name].route, content.matrices[name].fallbacks)

    return read
