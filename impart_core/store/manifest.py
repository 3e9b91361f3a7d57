"""The manifest: what an artifact is, what made it, and every file's size and digest.

What an artifact holds depends on its kind. A kind registers the class of its content, and catalogue, cleaning up,
verification, transfer, lineage, drawings and events follow from what that class declares; the store knows no kind.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, LiteralString, TypeVar

from pydantic import FailFast, Field, SerializeAsAny, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from impart_core.base.canonical import canonical_json, digest_of
from impart_core.base.errors import CorruptArtifactError, NewerArtifactError
from impart_core.base.registry import Registry
from impart_core.base.settings import Frozen
from impart_core.store.provenance import Provenance
from impart_core.store.recipe import Recipe

MANIFEST = "manifest.json"
_FORMAT: Literal[1] = 1
_UNKNOWN: LiteralString = "unknown"  # what only a newer program can have written
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Measured = tuple[float, float | None]  # a value and its standard error
_MOST_ERRORS = 100  # to look into: as objects they take a thousand times the bytes that a stranger wrote
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$")]


class FileEntry(Frozen):
    """One data file: what it is called, where it lies under the artifact, its size in bytes and its digest."""

    name: FileName
    path: FileName
    size: int = Field(ge=0)
    sha256: Sha256


class Pointer(Frozen):
    """A pointer to an artifact that another consists of: its name there, its id, and all bytes of it."""

    name: str
    id: Sha256
    bytes: int


class Content(Frozen):
    """What an artifact holds; a kind's class says of itself what upkeep and display need to know.

    Attributes:
        kind: the kind's name.
        plural: what several are called.
        colour: the fill of its nodes in drawings, on which black text is legible.
        part_of: the kind that it belongs to: all of one such artifact are drawn as one node; None: drawn by itself.
        listed: whether people look for it by itself, so that `ls` shows it.
        measures: whether it measures what it was made from, and so is kept and copied along with that.
        gives: the role, among those of `checkpoints`, of a checkpoint that it gives instead of being made from it; it
            is kept as long as that is used.
        repeats: whether the same recipe gives the same bytes, on one machine.
        files: names of the data files that it cannot be without.
    """

    kind: str
    plural: ClassVar[str]
    colour: ClassVar[str]
    part_of: ClassVar[str | None] = None
    listed: ClassVar[bool] = False
    measures: ClassVar[bool] = False
    gives: ClassVar[str | None] = None
    repeats: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ()

    def summary(self, recipe: Recipe) -> str:  # noqa: ARG002 - for those that need it
        """Return what it is in a few words, for people."""
        return self.kind

    def checkpoints(self, recipe: Recipe) -> dict[str, str]:  # noqa: ARG002 - likewise
        """Return the ids of the checkpoints that it was made from, by role, and of one that it `gives`."""
        return {}

    def pointers(self) -> tuple[Pointer, ...]:
        """Return pointers to the artifacts that it consists of."""
        return ()

    def measurements(self) -> dict[str, dict[str, Measured]]:
        """Return what was measured, by task and metric."""
        return {}

    def check(self, name: str, path: Path) -> None:
        """Check a data file, whose size and digest are right, against this content.

        Raises:
            CorruptArtifactError: it holds something else.
        """

    def mismatch(self, parts: "Sequence[Content]") -> str | None:  # noqa: ARG002 - likewise
        """Return how the parts that it points to contradict its totals ("records 5; they hold 4"), if they do."""
        return None


class NamedContent(Content):
    """What belongs to one block or layer of a model, and is summed up by its name."""

    name: str

    def summary(self, recipe: Recipe) -> str:  # noqa: ARG002 - likewise
        """Return the name."""
        return self.name


ContentT = TypeVar("ContentT", bound=Content)
KINDS: Registry[type[Content]] = Registry("kind of artifact")


def register(kind: type[ContentT]) -> type[ContentT]:
    """Register the class of a kind's content under the kind's name; a class decorator."""
    KINDS.register(kind.model_fields["kind"].default, kind)
    return kind


def kind_of(name: str) -> type[Content] | None:
    """Return the class of a kind's content, None where no installed package has such a kind."""
    _load_kinds()
    return KINDS.get(name) if name in KINDS else None


@cache
def _load_kinds() -> None:
    """Import what registers kinds: the entry points `impart.kinds` of installed packages, this one's own among them."""
    for point in entry_points(group="impart.kinds"):
        point.load()
    if not list(KINDS):  # else everything in a store would look damaged
        raise RuntimeError("impart is not installed: no package names kinds of artifacts. Install it with pip.")


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

    format: Literal[1] = _FORMAT
    id: Sha256
    recipe: Recipe
    parents: Annotated[tuple[Sha256, ...], FailFast()] = ()
    files: Annotated[tuple[FileEntry, ...], FailFast()]
    content: SerializeAsAny[Content]
    provenance: Provenance
    seal: Sha256 = "0" * 64

    @classmethod
    def make(cls, recipe: Recipe, **fields: Any) -> "Manifest":
        """Return the sealed manifest of a recipe."""
        manifest = cls(id=recipe.id, recipe=recipe, **fields)
        return manifest.sealed()

    def sealed(self) -> "Manifest":
        """Return it with the seal that fits it."""
        return self.model_copy(update={"seal": self._digest()})

    def with_provenance(self, provenance: Provenance) -> "Manifest":
        """Return it, sealed again, with another provenance, which is no part of its id."""
        return self.model_copy(update={"provenance": provenance}).sealed()

    def _digest(self) -> str:
        return digest_of(self.model_dump(mode="json", exclude={"seal"}))

    @field_validator("content", mode="before")
    @classmethod
    def _content_of_kind(cls, value: Any) -> Any:
        """Read the content by the class that its kind registered."""
        if isinstance(value, Content):
            return value
        name = value.get("kind") if isinstance(value, dict) else None
        kind = kind_of(name) if isinstance(name, str) else None
        if kind is None:
            why = f"the kind {name!r:.50} is not one that this version knows"
            raise _content_error(why, unknown=isinstance(name, str))
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise _content_error(_first_of(error), unknown=_only_unknown(error)) from None

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

    @property
    def nbytes(self) -> int:
        """Every byte of this artifact as it lies in a store: its files and this manifest."""
        return sum(entry.size for entry in self.files) + len(self.to_json())

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

    def gives_the_same(self, other: "Manifest") -> bool:
        """Return whether another making of this artifact came out alike, in its bytes or in what it says."""
        ours, theirs = (one.files if self.content.repeats else one.content for one in (self, other))
        return ours == theirs


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest, as hostile input.

    Raises:
        CorruptArtifactError: it is not a manifest, or its id does not match its recipe.
        NewerArtifactError: it is whole, and a newer program made it: its seal holds, but its format, its kind or one
            of its fields is not known.
    """
    if not data:
        raise CorruptArtifactError(f"{where} is empty. Compress with the same settings again to make it anew.")
    try:
        manifest = Manifest.model_validate_json(data)
        if manifest.seal == manifest._digest() and manifest.to_json() == data:
            return manifest
        why = "its content does not match its seal"
    except ValidationError as error:
        why = _first_of(error)
        if _is_newer(data, error):
            raise NewerArtifactError(
                f"{where} was made by a newer impart: {why}. It is left as it is. Use the version of impart that made "
                "it, or a later one."
            ) from None
    raise CorruptArtifactError(
        f"{where} is not a valid manifest: {why}. It was altered after it was published; "
        "compress with the same settings again to make it anew."
    )


def _content_error(why: str, *, unknown: bool) -> PydanticCustomError:
    """Return what is wrong with a content; `unknown`: nothing but what a newer program may have written."""
    return PydanticCustomError(_UNKNOWN if unknown else "value_error", "{why}", {"why": why})


def _is_newer(data: bytes, error: ValidationError) -> bool:
    """Return whether a manifest that cannot be read is whole by its seal, and in a form that is not known yet."""
    try:
        value = json.loads(data)
        rest = {key: item for key, item in value.items() if key != "seal"}
        if canonical_json(value) != data or value["seal"] != digest_of(rest):
            return False
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False
    form = rest.get("format")
    return (type(form) is int and form > _FORMAT) or _only_unknown(error)


def _only_unknown(error: ValidationError) -> bool:
    """Return whether all that is wrong with a value are fields or kinds that are not known."""
    if error.error_count() > _MOST_ERRORS:
        return False
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return all(one["type"] in ("extra_forbidden", _UNKNOWN) for one in found)


def _first_of(error: ValidationError) -> str:
    if error.error_count() > _MOST_ERRORS:
        return f"{error.error_count():,} of its values are wrong"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:100] for part in first["loc"])
    return f"{where} {first['msg'].lower()}".strip()
