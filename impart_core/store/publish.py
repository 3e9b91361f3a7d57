"""Publishing: an artifact that the store holds is found, any other is made, written to scratch and published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from impart_core.base.files import scratch_folder
from impart_core.store.kept import keep
from impart_core.store.manifest import Content, Manifest
from impart_core.store.provenance import Stopwatch
from impart_core.store.recipe import Recipe
from impart_core.store.store import IMPORTED, Store, file_entry

Writer = Callable[[Path], object]


@dataclass(frozen=True)
class Reuse:
    """How far an artifact that is there is reused.

    Attributes:
        reread: whether its files are held against their digests first.
        replace: whether it is made again whatever is there.
        imported: whether one that was made elsewhere and imported is reused.
    """

    reread: bool = False
    replace: bool = False
    imported: bool = False


REREAD = Reuse(reread=True)


@dataclass(frozen=True)
class Outcome:
    """An artifact that was made or found.

    Attributes:
        manifest: the one in force.
        cached: whether it was there already, whole.
        fault: what was wrong with the one that was there, if anything.
        changed: whether it was made again as asked and came out other than the one that was there.
    """

    manifest: Manifest
    cached: bool
    fault: str | None = None
    changed: bool = False


def made_or_found(
    store: Store,
    artifact_id: str,
    make: Callable[[], Manifest],
    *,
    kind: type[Content] = Content,
    reuse: Reuse = Reuse(),
) -> Outcome:
    """Return an artifact from the store, else make it.

    Args:
        store: where it is looked for.
        artifact_id: which.
        make: makes and publishes it; returns the manifest in force.
        kind: what it is to be; one of another kind is made again.
        reuse: how far one that is there is reused.
    """
    before = store.examine(artifact_id, reread=reuse.reread, imported=reuse.imported, kind=kind)
    if before.manifest is not None and not reuse.replace:
        return Outcome(before.manifest, cached=True)
    former = before.manifest or (store.lookup(artifact_id) if before.fault == IMPORTED else None)
    manifest = make()
    changed = former is not None and not manifest.gives_the_same(former)
    return Outcome(manifest, cached=False, fault=before.fault, changed=changed)


def publish(
    store: Store,
    recipe: Recipe,
    content: Content,
    files: Mapping[str, Path | Writer],
    watch: Stopwatch,
    *,
    parents: tuple[str, ...] = (),
    reuse: Reuse = Reuse(),
    read_again: bool = False,
) -> Manifest:
    """Write an artifact's files to scratch, seal its manifest and publish both; return the manifest in force.

    Args:
        store: where it goes.
        recipe: what makes it.
        content: what it holds.
        files: its data files by name: where one lies already, or what writes it to the path that it is given.
        watch: started when the work began.
        parents: ids of the artifacts that it points to or was made from.
        reuse: how far one that is there is reused.
        read_again: whether the run will soon read its files once, so that they are kept until then; see `kept`.
    """
    with scratch_folder() as scratch:
        paths: dict[str, Path] = {}
        for name, source in files.items():
            paths[name] = source if isinstance(source, Path) else scratch / name
            if not isinstance(source, Path):
                source(paths[name])
        manifest = Manifest.make(
            recipe,
            parents=parents,
            files=tuple(file_entry(name, path) for name, path in paths.items()),
            content=content,
            provenance=watch.provenance(),
        )
        published = store.publish(manifest, paths, reread=reuse.reread, replace=reuse.replace)
        if read_again and not store.objects.is_local and published.files == manifest.files:
            for entry in manifest.files:
                keep(store.url, entry.sha256, paths[entry.name])
        return published
