"""Artifacts copied from one store to another, with what they need: a delta with its blocks, and what measured it.

Parts go first and the artifact that was asked for goes last, so that the target shows it whole or not at all. Ids stay
what they are, and so do manifests but for what they record of who made them; see `Record`. What the target holds whole
is not copied again: a copy that was killed goes on where it stopped. One artifact's files at a time pass through
scratch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from time import perf_counter

from impart_core.base.errors import ArtifactNotFoundError, ConfigError, CorruptArtifactError, StoreError
from impart_core.base.settings import Frozen
from impart_core.storage.failures import Side, explained
from impart_core.store.catalog import CatalogEntry, entry_of, note, scan
from impart_core.store.manifest import Content, Manifest, kind_of
from impart_core.store.names import all_refs, get_ref, require_ref_name, require_whole, set_ref
from impart_core.store.pins import pin
from impart_core.store.store import Store

Progress = Callable[[int, int, int, int], None]


class Record(Enum):
    """What copies record of who made them; their ids are the same."""

    MADE = "all that the source says: manifests stay what they are, byte for byte"
    IMPORTED = "the same, and that they were not made here"
    PUBLIC = "nothing that strangers need not know"


class TransferSettings(Frozen):
    """What is copied with an artifact, and how.

    Attributes:
        factors: whether the decompositions that blocks were made from are copied as well.
        evaluations: whether the evaluations that measured a delta are.
        move_names: whether a name that points elsewhere in the target is moved.
        reread: skip only what is whole by its digests, too, and replace what is not.
        record: what the copies record of who made them.
    """

    factors: bool = False
    evaluations: bool = True
    move_names: bool = False
    reread: bool = False
    record: Record = Record.MADE


class Tally(Frozen):
    """Artifacts by kind, their data files, and all bytes of them, manifests included."""

    artifacts: dict[str, int]
    files: int
    bytes: int


class TransferReport(Frozen):
    """What a transfer did.

    Attributes:
        source: the store that was read.
        target: the store that was written.
        artifacts: ids of the artifacts that were asked for.
        copied: what the target did not hold.
        skipped: what it held already.
        otherwise: ids of what it held with other files than the source has under the same id; its own stay in force.
        names: the names that point to what was asked for, in both stores now.
        seconds: how long it took.
    """

    source: str
    target: str
    artifacts: tuple[str, ...]
    copied: Tally
    skipped: Tally
    otherwise: tuple[str, ...]
    names: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class _Part:
    """One artifact as it lies in the source, and what the target has of it."""

    entry: CatalogEntry
    bytes: int
    present: bool
    otherwise: bool
    content: Content

    @property
    def id(self) -> str:
        return self.entry.id


@dataclass(frozen=True)
class _Bundle:
    """An artifact that was asked for: what it cannot be without, what goes with it, and itself."""

    needed: tuple[_Part, ...]
    factors: tuple[_Part, ...]
    evaluations: tuple[_Part, ...]
    top: _Part

    @property
    def parts(self) -> tuple[_Part, ...]:
        return (*self.factors, *self.needed, *self.evaluations, self.top)


def transfer(
    source: Store,
    target: Store,
    artifact_ids: Iterable[str],
    settings: TransferSettings = TransferSettings(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> TransferReport:
    """Copy artifacts, and the names that point to them.

    Every file is held against its recorded SHA-256 on the way. One that is damaged keeps back what cannot be without
    it; the rest is copied, and the damage raised then.

    Args:
        source: the store to read.
        target: the store to write.
        artifact_ids: of deltas or any other artifacts.
        settings: what goes with them, and how.
        progress: called with artifacts copied, artifacts to copy, and both in bytes.

    Raises:
        ConfigError: both stores are the same.
        CorruptArtifactError: something is missing in the source, or damaged; the message names it.
        StoreError: a name points elsewhere in the target, or it cannot be written. Nothing was copied then.
    """
    started = perf_counter()
    _require_different(source, target)
    wanted = tuple(dict.fromkeys(artifact_ids))
    names = {require_ref_name(name): made for name, made in all_refs(source).items() if made in wanted}
    _require_names(target, names, settings.move_names)
    target.require_writable()
    work = _Transfer(source, target, settings, progress)
    bundles = work.survey(wanted)
    parts = {part.id: part for bundle in bundles for part in bundle.parts}
    with pin(target, parts) as hold:  # what is skipped is looked for once more after this
        for bundle in bundles:
            if work.copy(bundle):
                for name in (name for name, made in names.items() if made == bundle.top.id):
                    _require_names(target, {name: bundle.top.id}, settings.move_names)
                    set_ref(target, name, bundle.top.id, *_reason(source, settings.record))
        if hold.lost():
            _require_still_whole(target, [bundle.top.id for bundle in bundles if bundle.top.id not in work.faults])
    if work.faults:
        raise CorruptArtifactError(
            f"{' '.join(dict.fromkeys(work.faults.values()))} What depends on it was not copied; "
            f"{len(work.copied)} other artifacts were."
        )
    return TransferReport(
        source=source.url,
        target=target.url,
        artifacts=wanted,
        copied=_tally(parts[made] for made in parts if made in work.copied),
        skipped=_tally(parts[made] for made in parts if made not in work.copied),
        otherwise=tuple(part.id for part in parts.values() if part.otherwise),
        names=names,
        seconds=round(perf_counter() - started, 3),
    )


class _Transfer:
    """Looks up in both stores what is to be copied, each artifact once, however many need it; copies and counts it."""

    def __init__(self, source: Store, target: Store, settings: TransferSettings, progress: Progress | None) -> None:
        """Name the stores; nothing is read yet."""
        self._source, self._target, self._settings, self._progress = source, target, settings, progress
        self._seen: dict[str, _Part | None] = {}
        self._total = 0, 0  # artifacts that the target lacks, and their bytes
        self.copied: dict[str, int] = {}
        self.faults: dict[str, str] = {}

    def survey(self, wanted: Iterable[str]) -> list[_Bundle]:
        """Return what is to be copied for each artifact that was asked for, unless a fault keeps it back."""
        tops = [part for part in map(self._look, wanted) if part]
        measured: dict[str, list[str]] = {}
        if self._settings.evaluations and any(top.content.listed and not top.content.measures for top in tops):
            for entry in scan(self._source).values():
                kind = kind_of(entry.kind)
                for parent in entry.parents if kind and kind.measures else ():
                    measured.setdefault(parent, []).append(entry.id)
        found = [self._bundle(top, measured.get(top.id, ())) for top in tops]
        bundles = [bundle for bundle in found if bundle]
        missing = {part.id: part.bytes for bundle in bundles for part in bundle.parts if not part.present}
        self._total = len(missing), sum(missing.values())
        return bundles

    def _bundle(self, top: _Part, measured: Iterable[str]) -> _Bundle | None:
        needed = [self._look(pointer.id) for pointer in top.content.pointers()]
        parts = tuple(part for part in needed if part)
        if len(parts) < len(needed) or not self._adds_up(top, parts):
            return None
        makers = [maker for part in parts or (top,) for maker in part.entry.parents] if self._settings.factors else []
        return _Bundle(
            needed=parts,
            factors=tuple(part for part in self._some(makers) if not part.content.listed),
            evaluations=tuple(part for part in self._some(measured) if part.content.measures),
            top=top,
        )

    def _some(self, artifact_ids: Iterable[str]) -> list[_Part]:
        """Return those that the source has."""
        return [part for made in dict.fromkeys(artifact_ids) if (part := self._look(made, optional=True))]

    def _adds_up(self, top: _Part, parts: tuple[_Part, ...]) -> bool:
        """Return whether an artifact goes with those that it consists of as they will be in force in the target."""
        wrong = top.content.mismatch([part.content for part in parts]) if parts else None
        if wrong is None:
            return True
        where = self._target if any(part.otherwise for part in parts) else self._source
        self.faults[top.id] = (
            f"The {top.entry.kind} {top.id[:12]} of {self._source.url} {wrong} (parts as in {where.url}). "
            "Copy it to an empty store."
        )
        return False

    def _look(self, artifact_id: str, *, optional: bool = False) -> _Part | None:
        if artifact_id not in self._seen:
            try:
                self._seen[artifact_id] = self._compare(self._read(artifact_id))
            except (ArtifactNotFoundError, CorruptArtifactError) as error:
                if optional and isinstance(error, ArtifactNotFoundError):
                    return None  # factors that were never copied here, or an evaluation that is gone since
                self._seen[artifact_id], self.faults[artifact_id] = None, str(error)
        return self._seen[artifact_id]

    def _read(self, artifact_id: str) -> Manifest:
        """Return an artifact's manifest as it is to be in the target; errors as in `Store.manifest`."""
        manifest = self._source.manifest(artifact_id)
        made = manifest.provenance
        if self._settings.record is Record.MADE:
            return manifest
        return manifest.with_provenance(
            made.public() if self._settings.record is Record.PUBLIC else made.model_copy(update={"imported": True})
        )

    def _compare(self, manifest: Manifest) -> _Part:
        """Hold an artifact of the source against the target's.

        Raises:
            CorruptArtifactError: the target lacks it, and a file of it is missing in the source, or not as long.
        """
        there = self._target.lookup(manifest.id, reread=self._settings.reread)
        if there is None and (fault := self._source.examine(manifest.id).fault):
            raise CorruptArtifactError(fault)
        content = manifest.content if manifest.content.pointers() else (there or manifest).content
        return _Part(
            entry=entry_of(manifest),
            bytes=manifest.nbytes,
            present=there is not None,
            otherwise=there is not None and there.files != manifest.files,
            content=content,
        )

    def copy(self, bundle: _Bundle) -> bool:
        """Copy what the target lacks of a bundle, the artifact that was asked for last; return whether it is there."""
        self._report()
        for part in (*bundle.factors, *bundle.needed):
            self._copy(part)
        whole = not any(part.id in self.faults for part in bundle.needed)
        if whole:
            for part in bundle.evaluations:
                self._copy(part)
            self._require_parts(bundle)
            self._copy(bundle.top)
        here = [part.entry for part in bundle.parts if part.present or part.id in self.copied]
        if any(entry.id in self.copied for entry in here):
            note(self._target, here)
        return whole and bundle.top.id not in self.faults

    def _require_parts(self, bundle: _Bundle) -> None:
        """Look once more for what was skipped: whoever cleans up the target may have found it unused meanwhile."""
        skipped = [part.id for part in bundle.needed if part.present]
        if skipped and len([made for made in self._target.manifests(skipped) if made[1]]) < len(set(skipped)):
            raise StoreError(
                f"Parts of {bundle.top.id[:12]} were deleted from {self._target.url} while it was being copied. "
                "Run the same command again."
            )

    def _copy(self, part: _Part) -> None:
        if part.present or part.id in self.copied or part.id in self.faults:
            return
        try:
            manifest = self._read(part.id)
            with explained(Side.STORE, self._source.url), ExitStack() as stack:
                files: dict[str, Path] = {
                    entry.name: stack.enter_context(self._source.local_file(manifest, entry.name, verified=True))
                    for entry in manifest.files
                }
                self._target.publish(manifest, files, reread=self._settings.reread)
        except (ArtifactNotFoundError, CorruptArtifactError) as error:
            self.faults[part.id] = str(error)
            return
        self.copied[part.id] = part.bytes
        self._report()

    def _report(self) -> None:
        if self._progress:
            self._progress(len(self.copied), self._total[0], sum(self.copied.values()), self._total[1])


def _reason(source: Store, record: Record) -> tuple[str, str | None]:
    """Return why a name is moved, and by whom."""
    return ("push-hub", "") if record is Record.PUBLIC else (f"from {source.url}", None)


def _tally(parts: Iterable[_Part]) -> Tally:
    found = list(parts)
    return Tally(
        artifacts=dict(sorted(Counter(part.entry.kind for part in found).items())),
        files=sum(part.entry.files for part in found),
        bytes=sum(part.bytes for part in found),
    )


def _require_still_whole(target: Store, artifact_ids: Iterable[str]) -> None:
    """Look once more for what was copied: the copying was stopped for so long that nothing kept it meanwhile."""
    for artifact_id in artifact_ids:
        try:
            require_whole(target, artifact_id)
        except (ArtifactNotFoundError, CorruptArtifactError) as error:
            raise StoreError(
                f"Copying was stopped for so long that parts of {artifact_id[:12]} were cleaned up in {target.url}. "
                f"Run the same command again. {error}"
            ) from error


def _require_different(source: Store, target: Store) -> None:
    places = [
        str(Path(store.url).resolve()) if store.objects.is_local else store.url.rstrip("/")
        for store in (source, target)
    ]
    if places[0] == places[1]:
        raise ConfigError(f"Both stores are {source.url}. Give another one to copy to or from.")


def _require_names(target: Store, names: Mapping[str, str], move_names: bool) -> None:
    taken = {name: there for name, made in names.items() if (there := get_ref(target, name)) not in (None, made)}
    if taken and not move_names:
        listed = ", ".join(f"{name} ({str(there)[:12]}, not {names[name][:12]})" for name, there in taken.items())
        raise StoreError(
            f"The store {target.url} has other artifacts under the same names: {listed}. "
            "Let them be moved there (move_names=True, on the command line --move-names), or name the artifacts "
            "otherwise in one of the stores."
        )
