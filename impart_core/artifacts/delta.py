"""Deltas as artifacts: blocks published on their own, and one manifest that points to them."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from impart_core.artifacts.identity import Recipe
from impart_core.artifacts.manifest import (
    MANIFEST,
    BlockContent,
    BlockPointer,
    DeltaContent,
    Manifest,
    QuantizedEntry,
    TensorEntry,
)
from impart_core.artifacts.provenance import Stopwatch
from impart_core.artifacts.store import Found, Store, file_entry
from impart_core.busy import busy
from impart_core.checkpoint.digest import carried_digests, checkpoint_id
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.pairing import Pairs
from impart_core.codec.format import CODES_FILE, FORMAT_VERSION, BlockFile, EncodedTensor, write_block
from impart_core.codec.parts import Codes
from impart_core.config import AUTO, CompressConfig
from impart_core.errors import ConfigError, CorruptArtifactError
from impart_core.files import scratch_folder
from impart_core.policy import settings_for
from impart_core.quantize.streams import describe_streams
from impart_core.sparsify import SPARSIFIERS

_BLOCK_VERSION = 1
_DELTA_VERSION = 1
_PARENTS = ("factors", "calibration", "scales")
_CODED_BY = {"method", "cr", "seed", "accounting", "options"}
Digests = Mapping[str, str]


def block_recipe(
    pairs: Pairs,
    block: Block,
    config: CompressConfig,
    digests: tuple[Digests, Digests],
    factors: Recipe | None = None,
    calibration: Mapping[str, object] | None = None,
) -> Recipe:
    """Return what makes a block: its tensors' digests in both checkpoints, and the settings that it depends on.

    A block of which nothing is coded by a method depends on no method and no ratio, and is shared by all of them.

    Args:
        pairs: the tensors' pairs by name.
        block: which of them.
        config: the request.
        digests: the tensors' digests in the base and in the fine-tuned checkpoint.
        factors: what makes the block's factors, where the request uses some.
        calibration: what calibration is told by, where the block is: the text's id (`calibration`), the digest of the
            model's configuration (`model`), the id of the `activations` it is given, or of the `scales` it takes.
    """
    methods = {
        role.value: {
            "version": SPARSIFIERS.get(settings.method).version,
            **settings.model_dump(mode="json", include=_CODED_BY),
            "may_be_kept": role is not Role.PROJECTION and config.embeddings == AUTO,
        }
        for role in sorted({pairs[name].role for name in block.tensors})
        if (settings := settings_for(role, config))
    }
    ours = {pair.base.name: digests[0][pair.base.name] for name in block.tensors if (pair := pairs[name]).base}
    inputs: dict[str, object] = {"base": ours, "finetuned": {name: digests[1][name] for name in block.tensors}}
    if factors:
        inputs["factors"] = factors.id
    inputs.update(calibration or {})
    return Recipe(
        operation="compress-block",
        version=_BLOCK_VERSION,
        config={"block": block.name, "format": FORMAT_VERSION, "methods": methods},
        inputs=inputs,
    )


def delta_recipe(
    base: Checkpoint,
    finetuned: Checkpoint,
    config: CompressConfig,
    digests: tuple[Digests, Digests],
    calibration: str | None = None,
) -> Recipe:
    """Return what makes a delta: both checkpoints by content, the files carried along, the text's id, the settings."""
    return Recipe(
        operation="compress",
        version=_DELTA_VERSION,
        config={
            "format": FORMAT_VERSION,
            "method_version": SPARSIFIERS.get(config.method).version,
            **config.model_dump(mode="json"),
        },
        inputs={
            "base": checkpoint_id(digests[0]),
            "finetuned": checkpoint_id(digests[1]),
            "base_files": carried_digests(base),
            "finetuned_files": carried_digests(finetuned),
            **({"calibration": calibration} if calibration else {}),
        },
    )


def publish_block(
    store: Store,
    recipe: Recipe,
    name: str,
    tensors: Mapping[str, EncodedTensor],
    watch: Stopwatch,
    **trust: bool,
) -> Manifest:
    """Write a block's codes to scratch and publish them; return the manifest in force.

    Its parents are the artifacts that hold its factors, where these were kept, and what it was calibrated with. `trust`
    is as in `Store.publish`.
    """
    projections = [item for item in tensors.values() if item.header.role is Role.PROJECTION]
    entries = {
        tensor: TensorEntry(
            method=item.header.method,
            role=item.header.role,
            shape=item.header.shape,
            dtype=item.header.dtype,
            bytes=item.nbytes,
            quantized=_quantized(item.codes),
        )
        for tensor, item in sorted(tensors.items())
    }
    content = BlockContent(
        name=name,
        tensors=entries,
        projection_bytes=sum(item.nbytes for item in projections),
        projection_dense_bytes=sum(2 * math.prod(item.header.shape) for item in projections),
    )
    made_from = [found for role in _PARENTS if isinstance(found := recipe.inputs.get(role), str)]
    with scratch_folder() as scratch:
        path = scratch / CODES_FILE
        with busy():
            write_block(path, tensors)
        manifest = Manifest.make(
            recipe,
            parents=tuple(found for found in made_from if store.lookup(found)),
            files=(file_entry(CODES_FILE, path),),
            content=content,
            provenance=watch.provenance(),
        )
        return store.publish(manifest, {CODES_FILE: path}, **trust)


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


@dataclass(frozen=True)
class Delta:
    """A published delta: its manifest and its blocks' manifests, in the model's order."""

    store: Store
    manifest: Manifest
    content: DeltaContent
    blocks: tuple[Manifest, ...]

    @property
    def bytes(self) -> int:
        """Every byte of the artifact and of its blocks as they lie in the store, manifests included."""
        return sum(self.store.artifact_bytes(made) for made in (self.manifest, *self.blocks))

    @property
    def saved_bytes(self) -> int:
        """What the lossless stage made the codes of its blocks smaller by."""
        entries = (entry.quantized for block in self.blocks for entry in _block_content(block).tensors.values())
        return sum(found.packed - found.parts["codes"] for found in entries if found)

    @property
    def cr_model(self) -> float:
        """The fine-tuned checkpoint's bytes over every byte of the artifact."""
        return self.content.finetuned_bytes / self.bytes

    def open_blocks(self, stack: ExitStack) -> dict[str, BlockFile]:
        """Open every block's file for as long as `stack` lasts; return the block file of each tensor."""
        by_tensor: dict[str, BlockFile] = {}
        for block in self.blocks:
            file = BlockFile(stack.enter_context(self.store.local_file(block, CODES_FILE)))
            if set(file.headers) != set(_block_content(block).tensors):
                raise CorruptArtifactError(f"{file.path} does not hold the tensors that its manifest lists.")
            by_tensor.update(dict.fromkeys(file.headers, file))
        return by_tensor

    def base_digests(self) -> dict[str, str]:
        """Return the digest of every tensor of the base that this delta was made against.

        Raises:
            CorruptArtifactError: a block's manifest does not tell.
        """
        found: dict[str, str] = {}
        for block in self.blocks:
            base = block.recipe.inputs.get("base")
            if not isinstance(base, dict):
                raise CorruptArtifactError(f"Block {block.id[:12]} does not say what base it was made against.")
            found.update(base)
        return found


def publish_delta(
    store: Store,
    recipe: Recipe,
    finetuned: Checkpoint,
    block_ids: Sequence[str],
    watch: Stopwatch,
    **trust: bool,
) -> Delta:
    """Gather published blocks under one manifest, without copying their bytes; return the delta in force.

    `trust` is as in `Store.publish`.
    """
    blocks = [store.manifest(block_id) for block_id in block_ids]
    base_files = recipe.inputs["base_files"]
    carried = recipe.inputs["finetuned_files"]
    own = [name for name in sorted(carried) if base_files.get(name) != carried[name]]
    pointers = tuple(
        BlockPointer(name=_block_content(block).name, id=block.id, bytes=store.artifact_bytes(block))
        for block in blocks
    )
    codes = sum(_block_content(block).projection_bytes for block in blocks)
    dense = sum(_block_content(block).projection_dense_bytes for block in blocks)
    with scratch_folder() as scratch:
        files = {name: finetuned.carried[name].on_disk(scratch) for name in own}
        entries = tuple(file_entry(name, path) for name, path in files.items())
        content = DeltaContent(
            blocks=pointers,
            base=recipe.inputs["base"],
            finetuned=recipe.inputs["finetuned"],
            finetuned_bytes=finetuned.nbytes,
            carried=carried,
            projection_bytes=codes,
            projection_dense_bytes=dense,
            data_bytes=sum(pointer.bytes for pointer in pointers) + sum(entry.size for entry in entries),
            cr_projection=dense / codes if codes else None,
        )
        manifest = Manifest.make(
            recipe,
            parents=tuple(block_ids),
            files=entries,
            content=content,
            provenance=watch.provenance(),
        )
        manifest = store.publish(manifest, files, **trust)
    read = {block.id: block for block in blocks}
    return _delta_of(store, manifest, read)


def open_delta(store: Store, artifact_id: str) -> Delta:
    """Open a delta by its artifact id.

    Raises:
        ArtifactNotFoundError: it, or one of its blocks, does not exist.
        CorruptArtifactError: a manifest is damaged.
        ConfigError: the artifact is not a delta.
    """
    return _delta_of(store, store.manifest(artifact_id), {})


def _delta_of(store: Store, manifest: Manifest, read: Mapping[str, Manifest]) -> Delta:
    """Return a delta from its manifest and those of its blocks, which are read unless they have been; see above."""
    if not isinstance(manifest.content, DeltaContent):
        raise ConfigError(f"Artifact {manifest.id[:12]} is a {manifest.content.kind}, not a compressed delta.")
    ids = (pointer.id for pointer in manifest.content.blocks)
    blocks = tuple(read.get(block_id) or store.manifest(block_id) for block_id in ids)
    return Delta(store=store, manifest=manifest, content=manifest.content, blocks=blocks)


@dataclass(frozen=True)
class FoundDelta:
    """What a look for a delta found: the delta where it and all its blocks are whole, and whatever is wrong with it."""

    delta: Delta | None
    faults: tuple[str, ...] = ()


def examine_delta(store: Store, artifact_id: str, *, reread: bool = False) -> FoundDelta:
    """Look for a published delta of which every part is whole; `reread` as in `Store.examine`."""
    top = store.examine(artifact_id, reread=reread)
    if top.manifest is None or not isinstance(top.manifest.content, DeltaContent):
        return FoundDelta(None, (top.fault,) if top.fault else ())
    pointers = top.manifest.content.blocks
    blocks = [(pointer, store.examine(pointer.id, reread=reread)) for pointer in pointers]
    whole = tuple(found.manifest for _, found in blocks if found.manifest)
    if len(whole) == len(pointers):
        return FoundDelta(Delta(store=store, manifest=top.manifest, content=top.manifest.content, blocks=whole))
    return FoundDelta(None, tuple(_fault(store, pointer, found) for pointer, found in blocks if not found.manifest))


def _fault(store: Store, pointer: BlockPointer, found: Found) -> str:
    lost = f"{store.url.rstrip('/')}/artifacts/{pointer.id}/{MANIFEST} is missing: block {pointer.name} is lost."
    return found.fault or lost


def _block_content(block: Manifest) -> BlockContent:
    if not isinstance(block.content, BlockContent):
        raise CorruptArtifactError(f"Artifact {block.id[:12]} is a {block.content.kind}, not a block of a delta.")
    return block.content
