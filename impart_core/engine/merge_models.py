"""The models of a merge: opened and checked, sparsified where the file says so, and planned."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from impart_core.apply.reader import require_base
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.base.errors import ArtifactNotFoundError, CheckpointError, ConfigError, UnknownNameError
from impart_core.base.new_folder import check_output_folder, require_apart
from impart_core.base.numerics import resolve_device
from impart_core.base.retry import patiently
from impart_core.base.settings import Frozen
from impart_core.blocks.coding import needs_text
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.location import is_remote
from impart_core.checkpoint.plain import plain
from impart_core.engine.bases import base_of
from impart_core.engine.compress import Compression, compress
from impart_core.engine.executor import Executor, Progress
from impart_core.engine.preflight import check_compress, open_side
from impart_core.engine.requests import CompressRequest, MergeRequest, absolute
from impart_core.merging.file import MergeFile, ModelReference, check_stages
from impart_core.merging.merged import Merge
from impart_core.merging.methods import MERGE_METHODS
from impart_core.merging.planning import plan_merge
from impart_core.merging.sources import Source, StageSource, delta_source, foreseen_source
from impart_core.store.names import require_movable, resolve
from impart_core.store.store import Store

# A model as it was opened: a checkpoint, a delta, or the name of an earlier stage of the same file.
Opened = Checkpoint | Delta | str


@dataclass(frozen=True)
class Stage:
    """A merge of a file, and its models, opened.

    Attributes:
        file: the merge, its base named.
        models: the models, the base first, by what the file calls them.
    """

    file: MergeFile
    models: Mapping[ModelReference, Opened]

    def base(self) -> Checkpoint:
        """Return the base, which is a checkpoint."""
        base = self.models[self.file.base_model] if self.file.base_model else None
        if not isinstance(base, Checkpoint):
            raise ConfigError("A sparsifier, or compressing the result, needs a base_model that is a checkpoint.")
        return base


@dataclass(frozen=True)
class CheckedMerge:
    """A merge that can be carried out, as far as headers and configurations tell.

    Attributes:
        stages: its stages.
        plan: the last of them, planned on the models as they are before any sparsifier; reads no weights.
    """

    stages: tuple[Stage, ...]
    plan: Merge


class ModelPlan(Frozen):
    """A model of a merge that was foreseen: what the file calls it, and its options by name, least and most."""

    model: str
    options: dict[str, tuple[float, float]]
    sparsify: str | None


class MergePlan(Frozen):
    """What a merge would do; attributes are those of `Merge` in numbers.

    Attributes:
        method: the merge method.
        base: the base, where there is one.
        models: what is merged.
        options: the method's options that all models share, by name, least and most over the tensors.
        tensors: the number of tensors of the merged model.
        copied: those of them that are taken as they are.
        bytes: of its weights.
        notes: sentences that whoever asked should know.
    """

    method: str
    base: str | None
    models: tuple[ModelPlan, ...]
    options: dict[str, tuple[float, float]]
    tensors: int
    copied: int
    bytes: int
    notes: tuple[str, ...]


def plan_of(checked: CheckedMerge) -> MergePlan:
    """Return what a merge that was checked would do."""
    merge, stage = checked.plan, checked.stages[-1]
    merged = [planned for planned in merge.tensors.values() if planned.parts]
    of_models: dict[str, dict[str, list[float]]] = {}
    shared: dict[str, list[float]] = {}
    for planned in merged:
        for option in merge.method.options.values():
            value = planned.options[option.keyword]
            if not option.per_model:
                shared.setdefault(option.name, []).append(float(value))
                continue
            for (source, _), own in zip(planned.parts, value, strict=True):
                of_models.setdefault(source.label, {}).setdefault(option.name, []).append(float(own))
    models = [ref for ref in merge.sources if not (merge.method.takes_deltas and ref == merge.file.base_model)]
    return MergePlan(
        method=merge.method.name,
        base=str(merge.file.base_model) if merge.file.base_model else None,
        models=tuple(
            ModelPlan(
                model=str(ref),
                options={name: (min(all_), max(all_)) for name, all_ in of_models.get(str(ref), {}).items()},
                sparsify=config.label if (config := sparsifier(stage, ref)) else None,
            )
            for ref in models
        ),
        options={name: (min(values), max(values)) for name, values in shared.items()},
        tensors=len(merge.tensors),
        copied=len(merge.tensors) - len(merged),
        bytes=sum(info.nbytes for info in merge.checkpoint().tensors.values()),
        notes=merge.notes,
    )


def check_merge(request: MergeRequest) -> CheckedMerge:
    """Check a merge without doing any of its work; raise an `ImpartError` that says what to change."""
    store, last = Store(request.store), request.stages[-1]
    if (request.name or last.impart.name) is not None:
        require_movable(store, request.name or str(last.impart.name))
    if request.out is None and last.impart.compress is None:
        raise ConfigError(
            "Nothing would become of the merged model. Name a folder for it (--out, or out=…), or say in the file how "
            "it is compressed (impart: {compress: {method: …, cr: …}})."
        )
    check_stages(request.stages)
    named: set[str] = set()
    stages = []
    for file in request.stages:
        stages.append(open_stage(file, named, store))
        if file.name:
            named.add(file.name)
    if request.out is not None:
        check_output_folder(request.out, request.overwrite)
        local = store.objects.local("artifacts")
        kept = {"the store": local.parent} if local else {}
        for one in stages:
            kept |= {f"the model {place}": place for place in _folders(one)}
        require_apart(request.out, kept)
    store.require_writable()
    plans: dict[str, Merge] = {}
    for one in stages:
        plan = plan_stage(one, request, plans)
        if one.file.name:
            plans[one.file.name] = plan
    return CheckedMerge(tuple(stages), plan)


def _folders(stage: Stage) -> Iterator[Path]:
    """Give the folders of this machine that a stage reads from, those of adapters and what these are on among them."""
    places = [place for one in stage.models for place in (one.place, one.adapter) if place]
    places += [opened.location for opened in stage.models.values() if isinstance(opened, Checkpoint)]
    for place in dict.fromkeys(places):
        if "://" not in place and Path(place).is_dir():
            yield Path(place)


def plan_stage(stage: Stage, request: MergeRequest, plans: Mapping[str, Merge]) -> Merge:
    """Check a stage, and plan it on the models as they are before any sparsifier; nothing is made.

    Args:
        stage: the stage.
        request: how it is going to be run.
        plans: the stages before it by their names.

    Raises:
        ImpartError: it cannot be carried out; the message says what to change.
    """
    sources: dict[ModelReference, Source] = {}
    for reference, opened in stage.models.items():
        _check_sparsifier(stage, reference, opened, request)
        if isinstance(opened, Delta):
            require_base(opened, stage.base())
        sources[reference] = _stand_in(str(reference), opened, stage, plans)
    plan = plan_merge(stage.file, sources, resolve_device(request.device))
    if stage.file.impart.compress:
        check_compress(_compress_request(request, stage.file.impart.compress), (stage.base(), plan.checkpoint()))
    return plan


def open_stage(file: MergeFile, named: set[str], store: Store) -> Stage:
    """Open the models of a merge.

    Args:
        file: the merge.
        named: the names of earlier stages.
        store: where deltas are looked for.

    Raises:
        ConfigError: two of them are one, called otherwise.
    """
    base_reference = file.base_model
    base = None if base_reference is None else _open_model(file, base_reference, None, named, store)
    opened = {
        reference: _open_model(file, reference, base, named, store)
        for reference in dict.fromkeys([*file.references(), *file.bases()])
        if reference != base_reference
    }
    deltas = [one for one in opened.values() if isinstance(one, Delta)]
    if base_reference is None and deltas and MERGE_METHODS.get(file.merge_method).base != "donor":
        base = base_of(deltas[0])  # deltas say what they were made against
        base_reference = ModelReference(place=base.location)
        file = file.model_copy(update={"base_model": base_reference})
    models = opened if base_reference is None or base is None else {base_reference: base, **opened}
    _require_distinct(models)
    return Stage(file, models)


def _require_distinct(models: Mapping[ModelReference, Opened]) -> None:
    """Refuse one model under two names: by links to a folder, revisions of one commit, or a delta's name and its id."""
    known: dict[object, ModelReference] = {}
    for reference, opened in models.items():
        if isinstance(opened, Checkpoint):
            place = opened.location if reference.adapter is None else reference.place  # that of the Hub has a commit
            identity: object = (_real(place), reference.adapter and _real(reference.adapter))
        else:
            identity = opened.id if isinstance(opened, Delta) else opened
        first = known.setdefault(identity, reference)
        if first != reference:
            raise ConfigError(
                f"{first} and {reference} are one model under two names. Name it once, with the sum of its weights, or "
                "the same wherever the file speaks of it."
            )


def _real(place: str) -> str:
    """Return a folder of this machine with all links followed; another place as it is."""
    return os.path.realpath(place) if Path(place).exists() else place


def _open_model(
    file: MergeFile, reference: ModelReference, base: Opened | None, named: set[str], store: Store
) -> Opened:
    """Open one model: a delta that the own block names, an earlier stage, a checkpoint, or a delta by name or id."""
    own, place = file.own_of(reference), reference.place
    if reference.adapter is not None and (own.ref is not None or place in named or _may_be_named(place)):
        raise ConfigError(
            f"{reference}: an adapter is merged into a checkpoint, and {place} is none here. Give the checkpoint."
        )
    if own.ref is not None:
        return patiently(f"look for {own.ref}", lambda: open_delta(store, resolve(store, str(own.ref))))
    if place in named:
        return place
    if _may_be_named(place):
        try:
            return patiently(f"look for {place}", lambda: open_delta(store, resolve(store, place)))
        except (ArtifactNotFoundError, UnknownNameError) as error:
            raise CheckpointError(f"{place} does not exist, and no delta has this name or id. {error}") from error
    under = base if isinstance(base, Checkpoint) else None
    whole = patiently(f"open {place}", lambda: open_side(absolute(place), under))
    if reference.adapter is None:
        return whole
    adapter = absolute(reference.adapter)
    return patiently(f"open {adapter}", lambda: plain(open_checkpoint(adapter, whole)).with_files_at_hand())


def _may_be_named(place: str) -> bool:
    """Return whether a place is none of a checkpoint, and so the name or id of a delta."""
    return "/" not in place and not is_remote(place) and not Path(place).exists()


def _stand_in(label: str, opened: Opened, stage: Stage, plans: Mapping[str, Merge]) -> Source:
    """Return a model for planning alone."""
    if isinstance(opened, Delta):
        return patiently(f"look into {label}", lambda: foreseen_source(label, opened, stage.base()))
    return Source(label, opened if isinstance(opened, Checkpoint) else plans[opened].checkpoint())


def _check_sparsifier(stage: Stage, reference: ModelReference, opened: Opened, request: MergeRequest) -> None:
    config = sparsifier(stage, reference)
    if config is not None and isinstance(opened, Checkpoint):
        check_compress(_compress_request(request, config), (stage.base(), opened))


def sparsifier(stage: Stage, reference: ModelReference) -> CompressConfig | None:
    """Return how a model is compressed before it is merged, if it is.

    Raises:
        ConfigError: it is no checkpoint.
    """
    config = None if reference == stage.file.base_model else stage.file.own_of(reference).sparsify
    opened = stage.models[reference]
    if config is not None and not isinstance(opened, Checkpoint):
        raise ConfigError(
            f"{reference} is {'a delta' if isinstance(opened, Delta) else 'an earlier stage'}, and cannot be "
            "sparsified. Say `sparsify: null` for it under impart.models, or give the checkpoint."
        )
    return config


def _compress_request(request: MergeRequest, config: CompressConfig, name: str | None = None) -> CompressRequest:
    if needs_text(config):
        whose = " with distil=true" if config.distils else ""
        raise ConfigError(
            f"Method {config.method!r}{whose} needs calibration text, and a merge has none. Compress models first, and "
            "merge the deltas by their names; compress what is merged from its folder."
        )
    return CompressRequest(
        base="base",
        finetuned="merged",
        config=config,
        store=request.store,
        name=name,
        device=request.device,
        workers=request.workers,
        trust=request.trust,
    )


def compressed(
    request: MergeRequest,
    config: CompressConfig,
    sides: tuple[Checkpoint, Checkpoint],
    executor: Executor,
    progress: Progress | None,
    name: str | None = None,
) -> Compression:
    """Compress one of a merge's models, or what it gives; `sides` are the base and the model."""
    asked = _compress_request(request, config, name)
    checked = patiently("check the request", lambda: check_compress(asked, sides))
    return compress(asked, executor, checked=checked, progress=progress)


@contextmanager
def opened_merge(
    request: MergeRequest, stages: Sequence[Stage], executor: Executor, progress: Progress | None = None
) -> Iterator[tuple[Merge, tuple[Compression, ...]]]:
    """Give the merge of the last stage, ready to be computed, for as long as the block lasts.

    Models that the file has sparsified are compressed first, into the store.

    Args:
        request: the request.
        stages: its stages, checked.
        executor: runs the compressions.
        progress: called as for `compress`.
    """
    device, store = resolve_device(request.device), Store(request.store)
    merges: dict[str, Merge] = {}
    made: list[Compression] = []
    with ExitStack() as stack:
        for stage in stages:
            sources: dict[ModelReference, Source] = {}
            for reference, opened in stage.models.items():
                config, label = sparsifier(stage, reference), str(reference)
                if config is not None and isinstance(opened, Checkpoint):
                    made.append(compressed(request, config, (stage.base(), opened), executor, progress))
                    opened = open_delta(store, made[-1].report.artifact)
                if isinstance(opened, Delta):
                    sources[reference] = stack.enter_context(delta_source(label, opened, stage.base()))
                elif isinstance(opened, Checkpoint):
                    sources[reference] = Source(label, opened)
                else:
                    merge = merges[opened]
                    sources[reference] = StageSource(label, merge.checkpoint(), merge.key)
            merge = plan_merge(stage.file, sources, device)
            if stage.file.name:
                merges[stage.file.name] = merge
        yield merge, tuple(made)
