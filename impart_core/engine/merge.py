"""Merging models: written to a folder, compressed again, and what was merged how published."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import yaml

from impart_core.artifacts.merged import MergedContent, publish_merged
from impart_core.base.new_folder import new_folder
from impart_core.base.numerics import default_workers
from impart_core.base.parallel import at_once
from impart_core.base.retry import Retried, patiently, recording
from impart_core.base.settings import Frozen
from impart_core.base.units import human_bytes
from impart_core.checkpoint.digest import checkpoint_id, remember_digest, tensor_digests
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.reader import digest_of_value
from impart_core.checkpoint.spool import spooling
from impart_core.checkpoint.writer import TensorSpec, write_carried, write_checkpoint
from impart_core.engine.compress import Compression, CompressReport
from impart_core.engine.executor import Executor, Progress
from impart_core.engine.merge_models import CheckedMerge, check_merge, compressed, opened_merge
from impart_core.engine.requests import MergeRequest
from impart_core.merging.merged import Merge
from impart_core.merging.sources import StageSource
from impart_core.store.catalog import CatalogEntry, entry_of, note
from impart_core.store.manifest import Manifest
from impart_core.store.names import require_whole, set_ref
from impart_core.store.pins import pin
from impart_core.store.provenance import Stopwatch, peak_rss_bytes
from impart_core.store.store import Store

_IN_FLIGHT = 12  # tensors in memory at once, unless somebody says how many are to be merged at once
OWN_FILE = "merge.yaml"  # beside the weights that were made by it


class MergeReport(Frozen):
    """What a merge made.

    Attributes:
        artifact: id of the record of the merge.
        name: the name that the result got: the delta's where it was compressed again, else the record's.
        store: the store.
        out: the folder of the merged model, if it was written.
        method: the merge method.
        models: what the file calls the models, the base first.
        tensors: the number of tensors.
        bytes: of the merged weights.
        sparsified: the deltas that models were compressed to before they were merged.
        delta: the compression of the result, if the file asks for one.
        notes: sentences that whoever asked should know.
        retried: what was tried again.
        seconds: how long it took.
        peak_rss_bytes: the most memory that the process has held.
    """

    artifact: str
    name: str | None
    store: str
    out: Path | None
    method: str
    models: tuple[str, ...]
    tensors: int
    bytes: int
    sparsified: tuple[CompressReport, ...] = ()
    delta: CompressReport | None = None
    notes: tuple[str, ...] = ()
    retried: tuple[Retried, ...] = ()
    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Merging:
    """A finished merge.

    Attributes:
        report: what it reports.
        entries: catalogue entries of what it made or found, the record of the merge last.
        new: ids of those that it made.
        sources: where its checkpoints lie.
    """

    report: MergeReport
    entries: tuple[CatalogEntry, ...]
    new: frozenset[str]
    sources: tuple[str, ...]


def merge(
    request: MergeRequest,
    executor: Executor,
    *,
    checked: CheckedMerge | None = None,
    progress: Progress | None = None,
    run_id: str = "",
) -> Merging:
    """Merge models, and publish what was merged how.

    Args:
        request: what to merge.
        executor: runs compressions, before and after.
        checked: what `check_merge` returned for the request, where that was called before.
        progress: called with a stage, tensors or blocks done, their number, and what the last one was; with `merge`
            from several threads.
        run_id: the pipeline's id of the run, to be recorded.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    with recording() as ledger, spooling():
        checked = checked or patiently("check the request", lambda: check_merge(request))
        with opened_merge(request, checked.stages, executor, progress) as (planned, sparsified):
            run = _Run(request, planned, run_id)
            digests = patiently("merge", lambda: run.write(progress) if request.out else run.digest(progress))
            manifest = run.publish(digests)
            delta = run.compress(executor, checked, progress)
        content = manifest.content
        assert isinstance(content, MergedContent)
        report = MergeReport(
            artifact=manifest.id,
            name=run.name,
            store=request.store,
            out=request.out,
            method=content.method,
            models=content.models,
            tensors=content.tensors,
            bytes=content.bytes,
            sparsified=tuple(made.report for made in sparsified),
            delta=delta.report if delta else None,
            notes=planned.notes,
            retried=ledger.retried,
            seconds=round(run.watch.seconds, 3),
            peak_rss_bytes=peak_rss_bytes(),
        )
        parts = [*sparsified, *([delta] if delta else [])]
        entries = [entry for made in parts for entry in made.entries]
        new = frozenset([manifest.id]).union(*(made.new for made in parts))
        return Merging(report, (*entries, entry_of(manifest)), new, tuple(run.sources.values()))


class _Count:
    """Counts tensors that are merged, in whatever thread, and tells how far the merge is."""

    def __init__(self, whole: Checkpoint, progress: Progress | None) -> None:
        self._tensors, self._progress, self._lock = whole.tensors, progress, Lock()
        self._bytes = sum(info.nbytes for info in whole.tensors.values())
        self._done = self._done_bytes = 0

    def __call__(self, name: str) -> None:
        with self._lock:
            self._done, self._done_bytes = self._done + 1, self._done_bytes + self._tensors[name].nbytes
            done, what = self._done, f"{name}, {human_bytes(self._done_bytes)} of {human_bytes(self._bytes)}"
        if self._progress:
            self._progress("merge", done, len(self._tensors), what)


class _Run:
    """One run of a merge whose models are open."""

    def __init__(self, request: MergeRequest, planned: Merge, run_id: str) -> None:
        self._request, self._planned = request, planned
        self._store = Store(request.store)
        self._roles = {planned.roles[reference]: source for reference, source in planned.sources.items()}
        self.sources = {role: one.checkpoint.location for role, one in self._roles.items() if one.artifact is None}
        self.watch = Stopwatch(self.sources, run=run_id)
        self.name = request.name or request.stages[-1].impart.name

    def write(self, progress: Progress | None) -> dict[str, str]:
        """Write the merged model's folder; return the digests of its tensors."""
        request, planned = self._request, self._planned
        assert request.out is not None
        workers = request.workers or min(default_workers(), max(1, _IN_FLIGHT // (1 + len(planned.sources))))
        with at_once(workers):
            whole = planned.checkpoint()
        digests: dict[str, str] = {}
        count = _Count(whole, progress)

        def produce(name: str) -> torch.Tensor:
            tensor = planned.compute(name)
            digests[name] = digest_of_value(tensor, whole.tensors[name].dtype)
            if planned.file.impart.compress:  # which asks for it again
                remember_digest(whole.tensors[name], digests[name])
            count(name)
            return tensor

        specs = [TensorSpec(name, info.dtype, info.shape) for name, info in whole.tensors.items()]
        with new_folder(request.out, request.overwrite) as scratch, at_once(workers):
            write_checkpoint(scratch, specs, produce, request.max_shard_bytes)
            write_carried(scratch, whole, with_code=True)
            (scratch / OWN_FILE).write_text(yaml.safe_dump_all(self._file(), sort_keys=False))
        return dict(sorted(digests.items()))

    def digest(self, progress: Progress | None) -> dict[str, str]:
        """Return the digests of the merged model's tensors, which are written nowhere."""
        whole, digests = self._planned.checkpoint(), dict[str, str]()
        count = _Count(whole, progress)
        for name, info in whole.tensors.items():
            digests |= tensor_digests(replace(whole, tensors={name: info}))
            count(name)
        return dict(sorted(digests.items()))

    def publish(self, digests: Mapping[str, str]) -> Manifest:
        """Publish what was merged how, under the name where the result is not compressed."""
        planned, store = self._planned, self._store
        recipe = planned.recipe
        inputs = {
            role: recipe.inputs[role]
            for role, one in self._roles.items()
            if one.artifact is None and not isinstance(one, StageSource)
        }
        content = MergedContent(
            method=planned.method.name,
            models=tuple(source.label for source in self._roles.values()),
            tensors=len(digests),
            merged=checkpoint_id(digests),
            inputs=inputs,
            bytes=sum(info.nbytes for info in planned.checkpoint().tensors.values()),
        )
        parents = [one.artifact for one in self._roles.values() if one.artifact]

        def publish() -> Manifest:
            manifest = publish_merged(store, recipe, content, {"stages": self._file()}, parents, self.watch)
            if self.name and not planned.file.impart.compress:
                require_whole(store, manifest.id)
                set_ref(store, self.name, manifest.id, why="merge")
            note(store, [entry_of(manifest)])
            return manifest

        with patiently("pin the merge", lambda: pin(store, [recipe.id, *parents])):
            return patiently("publish the merge", publish)

    def compress(self, executor: Executor, checked: CheckedMerge, progress: Progress | None) -> Compression | None:
        """Compress the merged model as a delta of the base, where the file says so."""
        config = self._planned.file.impart.compress
        if config is None:
            return None
        sides = checked.stages[-1].base(), self._planned.checkpoint()
        return compressed(self._request, config, sides, executor, progress, self.name)

    def _file(self) -> list[dict[str, Any]]:
        return [stage.model_dump(mode="json", exclude_unset=True) for stage in self._request.stages]
