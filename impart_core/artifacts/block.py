"""A block of a compressed delta: the codes of the tensors of one decoder layer, or of all that is in none."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from impart_core.base.errors import CorruptArtifactError
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.base.settings import Frozen
from impart_core.blocks.coding import coding_of_role, format_of
from impart_core.blocks.request import AUTO, CompressConfig
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.pairing import Pairs
from impart_core.codec.exact import RESIDUAL_VERSION
from impart_core.codec.format import (
    CODES_FILE,
    PACKED_VERSION,
    BlockFile,
    EncodedTensor,
    packed_overhead,
    write_block,
)
from impart_core.codec.parts import Codes
from impart_core.delta.fidelity import Fidelity
from impart_core.methods import METHODS
from impart_core.methods.decode import check_delta, check_stack
from impart_core.quantization.streams import describe_streams
from impart_core.store.manifest import Manifest, NamedContent, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse, publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

VERSIONS = {"block": 1}  # raised whenever the same recipe gives other bytes
_PARENTS = ("factors", "calibration", "scales", "over")
Digests = Mapping[str, str]


class QuantizedEntry(Frozen):
    """How a tensor's kept entries are quantised.

    Attributes:
        bits: rows of each matrix at each width, as `8x2,3x32,2x210`; of a stack those of its first coded matrix.
        group_size: kept entries that share a scale; none: all of the same bits.
        parts: bytes of each part: `codes`, `scales`, `zeros`, `sigma`, and `other`.
        packed: bytes that the codes would take without the lossless stage.
    """

    bits: str
    group_size: int | None
    parts: dict[str, int]
    packed: int = Field(ge=0)


class TensorEntry(Frozen):
    """One tensor of a block: how it is stored, the bytes of its codes, and how these are quantised, if they are.

    `fidelity` has ρ² and gain of a tensor's codes, or of those of each matrix of a stack whose delta is not zero. It is
    empty where the delta itself was not read, and of artifacts that are older.
    """

    method: str
    role: Role
    shape: tuple[int, ...]
    dtype: str
    bytes: int = Field(ge=0)
    quantized: QuantizedEntry | None = Field(default=None, exclude_if=lambda value: value is None)
    fidelity: tuple[Fidelity, ...] = Field(default=(), exclude_if=lambda value: not value)


@register
class BlockContent(NamedContent):
    """A block of a compressed delta.

    Attributes:
        name: the block's name.
        tensors: its tensors.
        projection_bytes: bytes of its projections' codes, and of a file of format 3 all that is no code.
        projection_dense_bytes: the 16-bit size of its projections.
    """

    kind: Literal["block"] = "block"
    plural: ClassVar[str] = "blocks"
    colour: ClassVar[str] = "#fff7d6"
    part_of: ClassVar[str | None] = "delta"
    files: ClassVar[tuple[str, ...]] = (CODES_FILE,)
    tensors: dict[str, TensorEntry]
    projection_bytes: int
    projection_dense_bytes: int

    def check(self, name: str, path: Path) -> None:
        """Check that the codes are those of these tensors, and that all of them decode."""
        if name == CODES_FILE:
            with one_thread_per_kernel():
                _check_codes(BlockFile(path), self)


def block_recipe(
    pairs: Pairs,
    block: Block,
    config: CompressConfig,
    digests: tuple[Digests, Digests],
    factors: Recipe | None = None,
    more: Mapping[str, object] | None = None,
) -> Recipe:
    """Return what makes a block: its tensors' digests in both checkpoints, and the settings that it depends on.

    A block of which nothing is coded by a method depends on no method and no ratio, and is shared by all of them.

    Args:
        pairs: the tensors' pairs by name.
        block: which of them.
        config: the request.
        digests: the tensors' digests in the base and in the fine-tuned checkpoint.
        factors: what makes the block's factors, where the request uses some.
        more: its other inputs. What calibration is told by, where the block is: the text's id (`calibration`), the
            digest of the model's configuration (`model`), the id of the `activations` it is given, or of the `scales`
            it takes. Of the lossy block that residuals are against the id (`over`) and the digest of its codes
            (`over_files`).
    """
    roles = sorted({pairs[name].role for name in block.tensors})
    methods = {
        role.value: {
            "version": METHODS.get(coding.method).version,
            **coding.model_dump(mode="json"),
            "may_be_kept": role is not Role.PROJECTION and config.embeddings == AUTO,
        }
        for role in roles
        if (coding := coding_of_role(role, config))
    }
    ours = {pair.base.name: digests[0][pair.base.name] for name in block.tensors if (pair := pairs[name]).base}
    inputs: dict[str, object] = {"base": ours, "finetuned": {name: digests[1][name] for name in block.tensors}}
    if factors:
        inputs["factors"] = factors.id
    inputs.update(more or {})
    exactly = {"lossless": config.method_version} if config.is_lossless else {}
    if "over" in inputs:
        exactly["residual"] = RESIDUAL_VERSION
    return Recipe(
        operation="compress-block",
        version=VERSIONS["block"],
        config={"block": block.name, "format": format_of(roles, config), "methods": methods, **exactly},
        inputs=inputs,
    )


def publish_block(
    store: Store,
    recipe: Recipe,
    name: str,
    tensors: Mapping[str, EncodedTensor],
    watch: Stopwatch,
    *,
    kept_factors: bool = True,
    reuse: Reuse = Reuse(),  # noqa: B008 - frozen
    read_again: bool = False,
) -> Manifest:
    """Publish a block's codes; return the manifest in force.

    Its parents are the artifacts that hold its factors, if it has some, what it was calibrated with, and the lossy
    block that it is the residual to.
    `kept_factors` says whether its factors were read from the store; `reuse` and `read_again` are as in `publish`.
    """
    projections = [item for item in tensors.values() if item.header.role is Role.PROJECTION]
    version = recipe.config["format"]
    codes = sum(item.nbytes for item in projections)
    around = packed_overhead(tensors) if codes and version == PACKED_VERSION else 0
    content = BlockContent(
        name=name,
        tensors={tensor: _entry(item) for tensor, item in sorted(tensors.items())},
        projection_bytes=codes + around,
        projection_dense_bytes=sum(2 * math.prod(item.header.shape) for item in projections),
    )
    roles = [role for role in _PARENTS if kept_factors or role != "factors"]
    parents = tuple(parent for role in roles if isinstance(parent := recipe.inputs.get(role), str))
    return publish(
        store,
        recipe,
        content,
        {CODES_FILE: lambda path: write_block(path, tensors, version)},
        watch,
        parents=parents,
        reuse=reuse,
        read_again=read_again,
    )


def block_content(block: Manifest) -> BlockContent:
    """Return the content of a block.

    Raises:
        CorruptArtifactError: the artifact is of another kind.
    """
    if not isinstance(block.content, BlockContent):
        raise CorruptArtifactError(f"Artifact {block.id[:12]} is of kind {block.content.kind}, not a block of a delta.")
    return block.content


def _entry(item: EncodedTensor) -> TensorEntry:
    header = item.header
    return TensorEntry(
        method=header.method,
        role=header.role,
        shape=header.shape,
        dtype=header.dtype,
        bytes=item.nbytes,
        quantized=_quantized(item.codes),
        fidelity=item.fidelity,
    )


def _quantized(codes: Codes) -> QuantizedEntry | None:
    """Return what is to say of quantised codes, those of a stack taken together; None for others."""
    found = describe_streams(codes)
    if found is None:
        return None
    parts = dict.fromkeys(("codes", "scales", "zeros", "sigma", "other"), 0)
    for part, code in codes.items():
        kind = part.rpartition(".")[2]
        parts[kind if kind in parts else "other"] += code.numel() * code.element_size()
    return QuantizedEntry(bits=found.bits, group_size=found.size, parts=parts, packed=found.packed)


def _check_codes(file: BlockFile, content: BlockContent) -> None:
    if set(file.headers) != set(content.tensors):
        raise CorruptArtifactError(f"{file.path} does not hold the tensors that its manifest lists.")
    for name, entry in content.tensors.items():
        header = file.headers[name]
        if (header.method, header.shape, header.dtype) != (entry.method, entry.shape, entry.dtype):
            raise CorruptArtifactError(f"{file.path} stores {name!r} otherwise than its manifest says.")
        if file.code_bytes([name]) != entry.bytes:
            raise CorruptArtifactError(f"{file.path}: the codes of {name!r} are not as long as its manifest says.")
        if header.is_stack:
            check_stack(file, name)
        else:
            check_delta(name, header, file.codes(name))
    projections = [name for name, header in file.headers.items() if header.role is Role.PROJECTION]
    codes = file.code_bytes(projections)
    if codes and file.version == PACKED_VERSION:
        codes += file.path.stat().st_size - file.code_bytes(file.headers)
    if codes != content.projection_bytes:
        raise CorruptArtifactError(
            f"{file.path} holds {codes:,} bytes of projections; its manifest says {content.projection_bytes:,}."
        )
