"""Factors: the decomposition of a block, published once and used by every request that it serves."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from impart_core.base.errors import CheckpointError, CorruptArtifactError
from impart_core.base.settings import Frozen
from impart_core.blocks.coding import depth_of_pair
from impart_core.blocks.encode import Stored
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.header import TensorInfo, read_header
from impart_core.checkpoint.layout import Block
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.pairing import Pairs
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import write_tensors
from impart_core.delta.factors import Factors, Route
from impart_core.delta.load import Digests
from impart_core.store.manifest import Manifest, NamedContent, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse, publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

FACTORS_FILE = "factors.safetensors"
VERSIONS = {"factors": 2}  # raised whenever the same recipe gives other triplets or another number of them
_PARTS = ("u", "sigma", "v")


class FactorsEntry(Frozen):
    """The factors of one m×n matrix.

    Attributes:
        shape: (m, n).
        rank: how many triplets.
        route: how they were computed.
        fallbacks: how many quicker ways were tried first and did not hold.
        bytes: their bytes.
    """

    shape: tuple[int, int]
    rank: int = Field(ge=0)
    route: Route
    fallbacks: int = Field(ge=0)
    bytes: int = Field(ge=0)


@register
class FactorsContent(NamedContent):
    """The factors of a block's matrices whose delta is not zero, by the matrices' names."""

    kind: Literal["factors"] = "factors"
    plural: ClassVar[str] = "factors"
    colour: ClassVar[str] = "#fdebc8"
    part_of: ClassVar[str | None] = "delta"
    files: ClassVar[tuple[str, ...]] = (FACTORS_FILE,)
    matrices: dict[str, FactorsEntry]

    def check(self, name: str, path: Path) -> None:
        """Check that the file holds these factors."""
        if name == FACTORS_FILE:
            locate_factors(path, self)


def factors_recipe(
    pairs: Pairs, block: Block, config: CompressConfig, digests: tuple[Digests, Digests]
) -> Recipe | None:
    """Return what makes a block's factors, None where the request decomposes nothing of it.

    How deep they go is all that it takes from the request: neither method nor ratio, β, C or seed.
    """
    depths = {name: depth for name in block.tensors if (depth := depth_of_pair(pairs[name], config))}
    if not depths:
        return None
    ours = {pair.base.name: digests[0][pair.base.name] for name in depths if (pair := pairs[name]).base}
    return Recipe(
        operation="decompose-block",
        version=VERSIONS["factors"],
        config={"block": block.name, "lowest_cr": {name: depth.lowest_cr for name, depth in depths.items()}},
        inputs={"base": ours, "finetuned": {name: digests[1][name] for name in depths}},
    )


def publish_factors(
    store: Store, recipe: Recipe, name: str, factors: Mapping[str, Factors], watch: Stopwatch, *, replace: bool = False
) -> Manifest:
    """Publish a block's factors; return the manifest in force. `replace` is as in `Store.publish`."""
    parts = {f"{key}:{part}": getattr(found, part) for key, found in factors.items() for part in _PARTS}
    content = FactorsContent(name=name, matrices={key: _entry(found) for key, found in sorted(factors.items())})
    files = {FACTORS_FILE: lambda path: write_tensors(path, parts)}
    return publish(store, recipe, content, files, watch, reuse=Reuse(True, replace), read_again=True)


def _entry(factors: Factors) -> FactorsEntry:
    parts = [getattr(factors, part) for part in _PARTS]
    return FactorsEntry(
        shape=(factors.u.shape[1], factors.v.shape[1]),
        rank=len(factors.sigma),
        route=factors.route,
        fallbacks=factors.fallbacks,
        bytes=sum(part.numel() * part.element_size() for part in parts),
    )


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
def stored_factors(store: Store, artifact_id: str | None, *, imported: bool = True) -> Iterator[Stored | None]:
    """Give the factors that an artifact holds, read matrix by matrix; None where there is no whole artifact.

    A damaged artifact counts as none, and so does an imported one unless it is to count.
    """
    with ExitStack() as stack:
        manifest = store.lookup(artifact_id, imported=imported) if artifact_id else None
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
