"""The manifest: what an artifact is, what made it, and every file's size and digest (DESIGN.md §3)."""

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, ValidationError, model_validator

from impart_core.artifacts.identity import Recipe, canonical_json, digest_of
from impart_core.artifacts.provenance import Provenance
from impart_core.checkpoint.layout import Role
from impart_core.config import Frozen
from impart_core.delta.factors import Route
from impart_core.errors import CorruptArtifactError

MANIFEST = "manifest.json"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_MOST_ERRORS = 100  # to look into: as objects they take a thousand times the bytes that a stranger wrote
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$")]


class FileEntry(Frozen):
    """One data file: what it is called, where it lies under the artifact, its size in bytes and its digest."""

    name: FileName
    path: FileName
    size: int = Field(ge=0)
    sha256: Sha256


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
    """One tensor of a block: how it is stored, the bytes of its codes, and what is to say of quantised ones."""

    method: str
    role: Role
    shape: tuple[int, ...]
    dtype: str
    bytes: int = Field(ge=0)
    quantized: QuantizedEntry | None = Field(default=None, exclude_if=lambda value: value is None)


class BlockContent(Frozen):
    """A block of a compressed delta.

    Attributes:
        name: the block's name.
        tensors: its tensors.
        projection_bytes: bytes of its projections' codes.
        projection_dense_bytes: the 16-bit size of its projections.
    """

    kind: Literal["block"] = "block"
    name: str
    tensors: dict[str, TensorEntry]
    projection_bytes: int
    projection_dense_bytes: int


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


class FactorsContent(Frozen):
    """The factors of a block's matrices whose delta is not zero, by the matrices' names."""

    kind: Literal["factors"] = "factors"
    name: str
    matrices: dict[str, FactorsEntry]


class BlockPointer(Frozen):
    """A delta's pointer to a block: its name, artifact id, and all bytes of that artifact."""

    name: str
    id: Sha256
    bytes: int


class DeltaContent(Frozen):
    """A compressed delta: pointers to its blocks, and what belongs to no block.

    Attributes:
        blocks: the blocks, in the model's order.
        base: id of the base checkpoint.
        finetuned: id of the fine-tuned checkpoint.
        finetuned_bytes: its bytes on disk.
        carried: digests of the fine-tuned checkpoint's configuration and tokenizer files by name; those that
            are not among this artifact's files are the base's own.
        projection_bytes: bytes of all projections' codes.
        projection_dense_bytes: the 16-bit size of all projections.
        data_bytes: every byte of its blocks, manifests included, and of this artifact's files, when it was
            published. This manifest's own size comes on top. A block that was repaired since may have a manifest
            of another size, so that `Delta.bytes` and `cr_model` are read from the store.
        cr_projection: projection_dense_bytes / projection_bytes; none where no projection changed.
    """

    kind: Literal["delta"] = "delta"
    blocks: Annotated[tuple[BlockPointer, ...], FailFast()]
    base: Sha256
    finetuned: Sha256
    finetuned_bytes: int
    carried: dict[FileName, Sha256]
    projection_bytes: int
    projection_dense_bytes: int
    data_bytes: int
    cr_projection: float | None


class CalibrationContent(Frozen):
    """Calibration text as tokens: how many sequences, of how many tokens each."""

    kind: Literal["calibration"] = "calibration"
    sequences: int = Field(ge=1)
    length: int = Field(ge=1)


class ActivationsContent(Frozen):
    """What a decoder layer is given for calibration text, in float32: the layer's block, and (sequences, length, H)."""

    kind: Literal["activations"] = "activations"
    name: str
    shape: tuple[int, int, int]


class ScalesContent(Frozen):
    """Scales of a delta's matrices that distillation found, and of how many matrices."""

    kind: Literal["scales"] = "scales"
    matrices: int = Field(ge=0)


class EvaluationContent(Frozen):
    """An evaluation: for each task, each metric's value and standard error, and the number of items."""

    kind: Literal["evaluation"] = "evaluation"
    metrics: dict[str, dict[str, tuple[float, float | None]]]
    items: dict[str, int]


Content = Annotated[
    BlockContent
    | FactorsContent
    | CalibrationContent
    | ActivationsContent
    | ScalesContent
    | DeltaContent
    | EvaluationContent,
    Field(discriminator="kind"),
]


class Manifest(Frozen):
    """An artifact's manifest. Written last: an artifact exists when its manifest does.

    Attributes:
        format: version of the manifest's own layout.
        id: the digest of the recipe.
        recipe: what made it.
        parents: ids of the artifacts that it points to or was made from.
        files: its data files.
        content: what it holds, by kind.
        provenance: who, when, with what; no part of the id.
        seal: the digest of all the rest, so that any altered byte is noticed.
    """

    format: Literal[1] = 1
    id: Sha256
    recipe: Recipe
    parents: Annotated[tuple[Sha256, ...], FailFast()] = ()
    files: Annotated[tuple[FileEntry, ...], FailFast()]
    content: Content
    provenance: Provenance
    seal: Sha256 = "0" * 64

    @classmethod
    def make(cls, recipe: Recipe, **fields: Any) -> "Manifest":
        """Return the sealed manifest of a recipe."""
        manifest = cls(id=recipe.id, recipe=recipe, **fields)
        return manifest.model_copy(update={"seal": manifest._digest()})

    def _digest(self) -> str:
        return digest_of(self.model_dump(mode="json", exclude={"seal"}))

    @model_validator(mode="after")
    def _id_is_of_recipe(self) -> "Manifest":
        if self.recipe.id != self.id:
            raise ValueError("its id is not the digest of its recipe")
        return self

    @model_validator(mode="after")
    def _files_lie_apart(self) -> "Manifest":
        for taken in ([entry.name for entry in self.files], [MANIFEST, *(entry.path for entry in self.files)]):
            if len(set(taken)) < len(taken):
                raise ValueError("two of its files have the same name or place")
        return self

    def to_json(self) -> bytes:
        """Return the manifest as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    def file(self, name: str) -> FileEntry:
        """Return the entry of a data file.

        Raises:
            CorruptArtifactError: the artifact has no such file.
        """
        for entry in self.files:
            if entry.name == name:
                return entry
        raise CorruptArtifactError(f"Artifact {self.id[:12]} has no file {name!r}.")


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest, as hostile input.

    Raises:
        CorruptArtifactError: it is not a manifest, or its id does not match its recipe.
    """
    try:
        manifest = Manifest.model_validate_json(data)
        if manifest.seal == manifest._digest() and manifest.to_json() == data:
            return manifest
        why = "its content does not match its seal"
    except ValidationError as error:
        why = _first_of(error)
    raise CorruptArtifactError(
        f"{where} is not a valid manifest: {why}. It was altered after it was published; "
        "compress with the same settings again to make it anew."
    )


def _first_of(error: ValidationError) -> str:
    if error.error_count() > _MOST_ERRORS:
        return f"{error.error_count():,} of its values are wrong"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part)[:100] for part in first['loc'])} {first['msg'].lower()}"
