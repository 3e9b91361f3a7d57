"""A compressed delta: pointers to its blocks under one manifest, and the files that belong to no block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import FailFast, Field

from impart_core.artifacts.block import BlockContent, block_content
from impart_core.artifacts.scales import VERSIONS as DISTIL_VERSIONS
from impart_core.artifacts.sensitivity import VERSIONS as SENSITIVITY_VERSIONS
from impart_core.base.errors import ConfigError, CorruptArtifactError
from impart_core.base.files import scratch_folder
from impart_core.blocks.coding import calibration_of, format_of
from impart_core.blocks.request import LOSSLESS, CompressConfig, labelled
from impart_core.checkpoint.carried import CARRIED_NAME, is_code, stored_name
from impart_core.checkpoint.digest import carried_digests, checkpoint_id
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Role
from impart_core.codec.exact import RESIDUAL_VERSION
from impart_core.codec.format import CODES_FILE
from impart_core.store.manifest import MANIFEST, Content, Manifest, Pointer, Sha256, register
from impart_core.store.provenance import Stopwatch
from impart_core.store.publish import Reuse, publish
from impart_core.store.recipe import Recipe
from impart_core.store.store import Store

VERSIONS = {"delta": 1}  # raised whenever the same recipe gives other bytes
Digests = Mapping[str, str]
CarriedName = Annotated[str, Field(pattern=CARRIED_NAME)]


@register
class DeltaContent(Content):
    """A compressed delta: pointers to its blocks, and what belongs to no block.

    Attributes:
        blocks: the blocks, in the model's order.
        over: the lossy delta that its residuals are against, where there is one: that one's blocks, then itself. All
            totals cover them.
        base: id of the base checkpoint.
        finetuned: id of the fine-tuned checkpoint.
        finetuned_bytes: its bytes on disk.
        carried: digests of the files beside the fine-tuned checkpoint's weights by name; those that are not among
            this artifact's files are the base's own.
        projection_bytes: bytes of all projections' codes.
        projection_dense_bytes: the 16-bit size of all projections.
        data_bytes: every byte of its blocks, manifests included, and of this artifact's files, when it was
            published. This manifest's own size comes on top. A block that was repaired since may have a manifest
            of another size, so that `Delta.bytes` and `cr_model` are read from the store.
        cr_projection: projection_dense_bytes / projection_bytes; none where no projection changed.
    """

    kind: Literal["delta"] = "delta"
    plural: ClassVar[str] = "deltas"
    colour: ClassVar[str] = "#cfe8d5"
    listed: ClassVar[bool] = True
    blocks: Annotated[tuple[Pointer, ...], FailFast()]
    over: Annotated[tuple[Pointer, ...], FailFast()] = Field(default=(), exclude_if=lambda value: not value)
    base: Sha256
    finetuned: Sha256
    finetuned_bytes: int
    carried: dict[CarriedName, Sha256]
    projection_bytes: int
    projection_dense_bytes: int
    data_bytes: int
    cr_projection: float | None

    def summary(self, recipe: Recipe) -> str:
        """Return method, ratio and seed."""
        cr = recipe.config.get("cr")
        label = labelled(str(recipe.config.get("method", "delta")), cr if isinstance(cr, float | int) else None)
        if label == LOSSLESS:
            return f"{label} over {self.over[-1].name}" if self.over else label
        return f"{label}, seed {recipe.config.get('seed', 0)}"

    def checkpoints(self, recipe: Recipe) -> dict[str, str]:  # noqa: ARG002
        """Return the base and the fine-tuned checkpoint."""
        return {"base": self.base, "finetuned": self.finetuned}

    def pointers(self) -> tuple[Pointer, ...]:
        """Return the blocks, and the lossy delta that it is over, with its own."""
        return (*self.blocks, *self.over)

    def mismatch(self, parts: Sequence[Content]) -> str | None:
        """Return how the bytes of projections differ from those of the blocks, if they do."""
        deltas = [part for part in parts if isinstance(part, DeltaContent)]
        others = [part.kind for part in parts if not isinstance(part, BlockContent | DeltaContent)]
        if len(deltas) > bool(self.over):
            others += [deltas[0].kind]
        if others:
            return f"points to a {others[0]} where a block should be"
        if any(self.over[:-1] != delta.blocks for delta in deltas):
            return "does not point to the blocks of the lossy delta that it is over"
        held = sum(part.projection_bytes for part in parts if isinstance(part, BlockContent))
        if held == self.projection_bytes:
            return None
        return f"records {self.projection_bytes:,} bytes of projections; its blocks hold {held:,}"


def delta_recipe(
    base: Checkpoint,
    finetuned: Checkpoint,
    config: CompressConfig,
    digests: tuple[Digests, Digests],
    calibration: str | None = None,
    over: "Delta | None" = None,
) -> Recipe:
    """Return what makes a delta: both checkpoints by content, the files carried along, the settings.

    Args:
        base: the base checkpoint.
        finetuned: the fine-tuned checkpoint.
        config: the settings.
        digests: of the tensors of both.
        calibration: id of the calibration text.
        over: the lossy delta that residuals are against: by its id, and by its blocks' codes, since these may come out
            otherwise where it is made again on another machine.
    """
    residual = {"residual_version": RESIDUAL_VERSION} if over else {}
    return Recipe(
        operation="compress",
        version=VERSIONS["delta"],
        config={**_recipe_config(config), **residual},
        inputs={
            "base": checkpoint_id(digests[0]),
            "finetuned": checkpoint_id(digests[1]),
            "base_files": carried_digests(base),
            "finetuned_files": carried_digests(finetuned),
            **({"calibration": calibration} if calibration else {}),
            **({"over": over.id, "over_files": over.codes()} if over else {}),
        },
    )


def foreseen_recipe(config: CompressConfig, merged: str) -> Recipe:
    """Return what makes a delta of a merged model that is not computed yet.

    It stands for the delta where its model has to be known before it is made; the delta has an id of its own.

    Args:
        config: the settings.
        merged: the id of the recipe that merges the model, of which the base is part.
    """
    return Recipe(
        operation="compress", version=VERSIONS["delta"], config=_recipe_config(config), inputs={"merged": merged}
    )


def _recipe_config(config: CompressConfig) -> dict[str, Any]:
    """Return what of a recipe the settings are, and the versions that bytes depend on."""
    distilled = {"distil_version": DISTIL_VERSIONS["scales"]} if config.distils else {}
    by_gradients = calibration_of(config) == "gradients"
    measured = {"sensitivity_version": SENSITIVITY_VERSIONS["sensitivity"]} if by_gradients else {}
    versions = {"format": format_of(Role, config), "method_version": config.method_version, **distilled, **measured}
    return {**versions, **config.model_dump(mode="json")}


def own_files(recipe: Recipe) -> list[str]:
    """Return the names of the carried files that a delta itself holds: those that are not the base's own."""
    carried, base_files = recipe.inputs["finetuned_files"], recipe.inputs["base_files"]
    return [name for name in sorted(carried) if base_files.get(name) != carried[name]]


def file_bytes(store: Store, delta: str) -> int | None:
    """Return the bytes of the files of a delta and of all it points to; None: one of them is not in the store.

    Manifests are not counted: they hold dates, and may differ by some bytes when a delta is made again.
    """
    top = store.lookup(delta)
    if top is None or not isinstance(top.content, DeltaContent):
        return None
    blocks = [store.lookup(part.id) for part in top.content.pointers()]
    found = [top, *(block for block in blocks if block is not None)]
    return None if None in blocks else sum(entry.size for manifest in found for entry in manifest.files)


@dataclass(frozen=True, repr=False)
class Delta:
    """A published delta: its manifest and its blocks' manifests, in the model's order; the one that it is over."""

    store: Store
    manifest: Manifest
    content: DeltaContent
    blocks: tuple[Manifest, ...]
    over: "Delta | None" = None

    def __repr__(self) -> str:
        """Return it in one line: its id, both ratios, its bytes."""
        projection = self.content.cr_projection
        ratio = "no change" if projection is None else f"{projection:.2f}"
        return (
            f"Delta({self.manifest.id[:12]}, cr_projection={ratio}, cr_model={self.cr_model:.2f}, bytes={self.bytes:,})"
        )

    @property
    def id(self) -> str:
        """Its artifact id."""
        return self.manifest.id

    @property
    def bytes(self) -> int:
        """Every byte of the artifact and of its blocks as they lie in the store, manifests included.

        Those of a lossy delta that it is over are among them.
        """
        below = self.over.bytes if self.over else 0
        return below + sum(manifest.nbytes for manifest in (self.manifest, *self.blocks))

    @property
    def code(self) -> tuple[str, ...]:
        """Names of the Python files that the fine-tune has and its base has not, or has otherwise."""
        own = {entry.name for entry in self.manifest.files}
        return tuple(name for name in sorted(self.content.carried) if is_code(name) and stored_name(name) in own)

    @property
    def is_lossless(self) -> bool:
        """Whether every tensor comes back bit for bit."""
        return bool(self.manifest.recipe.config.get("method") == LOSSLESS)

    @property
    def saved_bytes(self) -> int:
        """What the lossless stage made the codes of its blocks smaller by."""
        entries = (entry.quantized for block in self.blocks for entry in block_content(block).tensors.values())
        return sum(found.packed - found.parts["codes"] for found in entries if found)

    @property
    def cr_model(self) -> float:
        """The fine-tuned checkpoint's bytes over every byte of the artifact."""
        return self.content.finetuned_bytes / self.bytes

    def codes(self) -> dict[str, str]:
        """Return the SHA-256 of each block's codes, by the block's name."""
        return {block_content(block).name: block.file(CODES_FILE).sha256 for block in self.blocks}

    def base_digests(self) -> dict[str, str]:
        """Return the digest of every tensor of the base that this delta was made against.

        Raises:
            CorruptArtifactError: a block's manifest does not tell.
        """
        return self._digests("base", "what base it was made against")

    def finetuned_digests(self) -> dict[str, str]:
        """Return the digest of every tensor of the fine-tuned checkpoint; errors as above."""
        return self._digests("finetuned", "what it was made of")

    def _digests(self, side: str, what: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for block in self.blocks:
            digests = block.recipe.inputs.get(side)
            if not isinstance(digests, dict):
                raise CorruptArtifactError(f"Block {block.id[:12]} does not say {what}.")
            found.update(digests)
        return found


def publish_delta(
    store: Store,
    recipe: Recipe,
    finetuned: Checkpoint,
    block_ids: Sequence[str],
    watch: Stopwatch,
    *,
    reuse: Reuse = Reuse(),  # noqa: B008 - frozen
) -> Delta:
    """Gather published blocks under one manifest, without copying their bytes; return the delta in force.

    `reuse` is as in `publish`.
    """
    blocks = [store.manifest(block_id) for block_id in block_ids]
    contents = [block_content(block) for block in blocks]
    pointers = tuple(
        Pointer(name=content.name, id=block.id, bytes=block.nbytes)
        for content, block in zip(contents, blocks, strict=True)
    )
    over = _over(store, recipe)
    below = over.content.projection_bytes if over else 0
    codes = below + sum(content.projection_bytes for content in contents)
    dense = sum(content.projection_dense_bytes for content in contents)
    with scratch_folder() as scratch:
        files: dict[str, Path] = {}
        for number, name in enumerate(own_files(recipe)):  # two in different folders may have the same name
            (scratch / str(number)).mkdir()
            files[stored_name(name)] = finetuned.carried[name].on_disk(scratch / str(number))
        content = DeltaContent(
            blocks=pointers,
            over=pointers_to(over) if over else (),
            base=recipe.inputs["base"],
            finetuned=recipe.inputs["finetuned"],
            finetuned_bytes=finetuned.nbytes,
            carried=recipe.inputs["finetuned_files"],
            projection_bytes=codes,
            projection_dense_bytes=dense,
            data_bytes=sum(pointer.bytes for pointer in pointers)
            + sum(path.stat().st_size for path in files.values())
            + (over.bytes if over else 0),
            cr_projection=dense / codes if codes else None,
        )
        parents = (*block_ids, *([over.id] if over else []))
        manifest = publish(store, recipe, content, files, watch, parents=parents, reuse=reuse)
    return _delta_of(store, manifest, {block.id: block for block in blocks})


def _over(store: Store, recipe: Recipe) -> Delta | None:
    """Return the lossy delta that a delta of this recipe is over; errors as in `open_delta`."""
    over = recipe.inputs.get("over")
    return open_delta(store, over) if isinstance(over, str) else None


def pointers_to(delta: Delta) -> tuple[Pointer, ...]:
    """Return pointers to a delta's blocks, and to it under what it is called."""
    name = delta.content.summary(delta.manifest.recipe)
    return (*delta.content.blocks, Pointer(name=name, id=delta.id, bytes=delta.manifest.nbytes))


def open_delta(store: Store, artifact_id: str) -> Delta:
    """Open a delta by its artifact id.

    Raises:
        ArtifactNotFoundError: it, or one that it points to, does not exist.
        CorruptArtifactError: a manifest is damaged, or points to what is no lossy delta.
        ConfigError: the artifact is not a delta.
    """
    return _delta_of(store, store.manifest(artifact_id), {})


def _delta_of(store: Store, manifest: Manifest, read: Mapping[str, Manifest]) -> Delta:
    """Return a delta from its manifest and those of its blocks, which are read unless they have been; see above."""
    if not isinstance(manifest.content, DeltaContent):
        raise ConfigError(f"Artifact {manifest.id[:12]} is of kind {manifest.content.kind}, not a compressed delta.")
    ids = (pointer.id for pointer in manifest.content.blocks)
    blocks = tuple(read.get(block_id) or store.part(block_id, manifest.id) for block_id in ids)
    over = _lossy(store, manifest) if manifest.content.over else None
    return Delta(store=store, manifest=manifest, content=manifest.content, blocks=blocks, over=over)


def _lossy(store: Store, manifest: Manifest) -> Delta:
    """Return the lossy delta that a delta is over, by its manifest; errors as in `open_delta`."""
    assert isinstance(manifest.content, DeltaContent)
    below = store.part(manifest.content.over[-1].id, manifest.id)
    if not isinstance(below.content, DeltaContent) or below.content.over:
        raise CorruptArtifactError(f"The delta {manifest.id[:12]} is over {below.id[:12]}, which is no lossy delta.")
    return _delta_of(store, below, {})


@dataclass(frozen=True)
class FoundDelta:
    """What a look for a delta found: the delta where it and all its blocks are whole, and whatever is wrong with it."""

    delta: Delta | None
    faults: tuple[str, ...] = ()


def examine_delta(store: Store, artifact_id: str, *, reread: bool = False, imported: bool = True) -> FoundDelta:
    """Look for a published delta of which every part is whole; `reread` and `imported` as in `Store.examine`."""
    top = store.examine(artifact_id, reread=reread, imported=imported)
    if top.manifest is None or not isinstance(top.manifest.content, DeltaContent):
        return FoundDelta(None, (top.fault,) if top.fault else ())
    content = top.manifest.content
    pointers = content.pointers()
    blocks = [(pointer, store.examine(pointer.id, reread=reread, imported=imported)) for pointer in pointers]
    whole = tuple(found.manifest for _, found in blocks if found.manifest)
    if len(whole) == len(pointers):
        return FoundDelta(_delta_of(store, top.manifest, {manifest.id: manifest for manifest in whole}))
    faults = (
        found.fault or f"{store.place_of(pointer.id, MANIFEST)} is missing: block {pointer.name} is lost."
        for pointer, found in blocks
        if not found.manifest
    )
    return FoundDelta(None, tuple(faults))
