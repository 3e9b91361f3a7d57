"""Merges as candidates of a search: the same models, merged in other ways."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from impart_core.artifacts.delta import delta_recipe, file_bytes
from impart_core.base.errors import ConfigError
from impart_core.base.numerics import resolve_device
from impart_core.blocks.coding import calibration_of
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.digest import carried_digests, checkpoint_id
from impart_core.checkpoint.index import Checkpoint
from impart_core.engine.executor import Executor, ThreadExecutor
from impart_core.engine.merge import merge
from impart_core.engine.merge_models import CheckedMerge, Stage, check_stage, open_stage, opened_merge, sparsifier
from impart_core.engine.references import Run
from impart_core.engine.requests import MergeRequest
from impart_core.engine.stages import digest_checkpoint
from impart_core.engine.template import Model
from impart_core.merging.file import MergeFile, ModelReference, merge_of
from impart_core.merging.merged import Merge
from impart_core.merging.planning import plan_merge
from impart_core.merging.sources import Source, StageSource
from impart_core.store.store import Store

Digests = dict[str, str]
_PLACES = ("model", "base_model")


@dataclass(frozen=True)
class MergeTemplate:
    """Merges of the same checkpoints.

    Attributes:
        models: the checkpoints by what files call them, the base first.
        digests: of their tensors.
        reference: which of them is the base.
        settings: the template, with models by their numbers.
    """

    models: Mapping[ModelReference, Checkpoint]
    digests: Mapping[ModelReference, Digests] = field(repr=False)
    reference: ModelReference
    settings: Mapping[str, Any]
    _parts: dict[str, tuple[tuple[str, ...], int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def base(self) -> Checkpoint:
        """The base."""
        return self.models[self.reference]

    @property
    def experts(self) -> dict[str, Checkpoint]:
        """The models that are merged, by the last part of their places, or the whole where two are called alike."""
        merged = [reference for reference in self.models if reference != self.reference]
        short = {reference: _short(reference) for reference in merged}
        alike = len(set(short.values())) < len(short)
        return {str(one) if alike else short[one]: self.models[one] for one in merged}

    @property
    def contents(self) -> dict[str, object]:
        """The ids of the checkpoints."""
        found: dict[str, object] = {}
        for number, (reference, opened) in enumerate(self.models.items()):
            found[f"model {number}"] = checkpoint_id(self.digests[reference])
            found[f"model {number}_files"] = carried_digests(opened)
        return found

    def check(self, filled: Mapping[str, Any], run: Run) -> None:
        """Check a candidate's merge, and the compressions before it."""
        stage = self._stage(filled)
        check_stage(stage, self._request(stage.file, run))
        self._plan(stage, run)

    def inputs(self, filled: Mapping[str, Any]) -> dict[str, object]:
        """Return the id of the recipe that merges it."""
        stage = self._stage(filled)
        planned = self._plan(stage, None)
        merged = [source for one, source in planned.sources.items() if one != self.reference]
        deltas = tuple(source.key for source in merged if isinstance(source, StageSource))
        whole = sum(source.checkpoint.nbytes for source in merged if not isinstance(source, StageSource))
        self._parts[planned.key] = deltas, whole
        return {"merged": planned.key}

    def bytes_of(self, inputs: Mapping[str, object], store: Store) -> int | None:
        """Return the bytes of what is merged beside the base: of deltas, and of models that are not sparsified."""
        deltas, whole = self._parts[str(inputs["merged"])]
        sizes = [size for delta in deltas if (size := file_bytes(store, delta)) is not None]
        return whole + sum(sizes) if len(sizes) == len(deltas) else None

    @contextmanager
    def model_of(self, filled: Mapping[str, Any], run: Run) -> Iterator[Model]:
        """Give the merged model, computed tensor by tensor as it is written for the harness."""
        stage = self._stage(filled)
        request, checked = self._request(stage.file, run), CheckedMerge((stage,), self._plan(stage, run))
        with ThreadExecutor(1) as executor, opened_merge(request, checked, executor) as (planned, _):
            parents = tuple(source.artifact for source in planned.sources.values() if source.artifact)
            yield Model(checkpoint=planned.checkpoint(), merged=planned.key, parents=parents)

    def publish(self, filled: Mapping[str, Any], run: Run) -> str:
        """Return the id of the record of its merge."""
        stage = self._stage(filled)
        request, checked = self._request(stage.file, run), CheckedMerge((stage,), self._plan(stage, run))
        with ThreadExecutor(1) as executor:
            return merge(request, executor, checked=checked, run_id=run.id).report.artifact

    def _stage(self, filled: Mapping[str, Any]) -> Stage:
        file = merge_of(filled["merge"], "merge")
        return Stage(file.model_copy(update={"base_model": file.base_model or self.reference}), self.models)

    def _request(self, file: MergeFile, run: Run) -> MergeRequest:
        return MergeRequest(stages=(file,), store=run.store, device=run.device, workers=1, trust=run.trust)

    def _plan(self, stage: Stage, run: Run | None) -> Merge:
        """Plan a merge: deltas that are still to be made stand in it by their ids."""
        device = resolve_device(run.device if run else "cpu")
        sources = {one: self._source(stage, one, opened) for one, opened in self.models.items()}
        return plan_merge(stage.file, sources, device)

    def _source(self, stage: Stage, reference: ModelReference, opened: Checkpoint) -> Source:
        config = sparsifier(stage, reference)
        if config is None:
            return Source(str(reference), opened)
        return StageSource(str(reference), opened, self._delta(reference, opened, config))

    def _delta(self, reference: ModelReference, opened: Checkpoint, config: CompressConfig) -> str:
        if calibration_of(config) != "none":
            raise ConfigError(f"{config.method} is calibrated, and a search of merges has no calibration text.")
        digests = self.digests[self.reference], self.digests[reference]
        return delta_recipe(self.base, opened, config, digests).id


def open_merge_template(
    template: Mapping[str, Any], filled: Mapping[str, Any], store: Store, executor: Executor
) -> MergeTemplate:
    """Open the models of a template.

    Args:
        template: the merge file with holes in it.
        filled: the same as its default candidate.
        store: where names would be looked for.
        executor: digests the checkpoints.

    Raises:
        ConfigError: a model's place is a hole, or something else than a checkpoint; or the result is compressed.
    """
    file = merge_of(filled, "merge")
    _check_places(template)
    if file.impart.compress is not None or file.name is not None:
        raise ConfigError("A search scores merged models as they are: leave out name and impart.compress in merge.")
    if file.base_model is None:
        raise ConfigError("A search of merges needs base_model, which candidates are held against.")
    stage = open_stage(file, set(), store)
    models: dict[ModelReference, Checkpoint] = {}
    for reference, opened in stage.models.items():
        if not isinstance(opened, Checkpoint):
            raise ConfigError(
                f"{reference} is a delta. A search merges checkpoints, sparsified as impart.sparsify says: give its "
                "checkpoint."
            )
        models[reference] = opened
    pending = {reference: executor.submit(digest_checkpoint, one, False) for reference, one in models.items()}
    digests = {reference: one.result() for reference, one in pending.items()}
    return MergeTemplate(models, digests, file.base_model, _numbered(template, list(models)))


def _check_places(template: Any) -> None:
    if isinstance(template, Mapping):
        for key, value in template.items():
            if key in _PLACES and isinstance(value, Mapping) and not ({"model", "path", "lora"} & set(value)):
                raise ConfigError(f"{key} is {value!r:.60}; the place of a model is no hole. List the models instead.")
            _check_places(value)
    elif isinstance(template, list | tuple):
        for value in template:
            _check_places(value)


def _numbered(template: Any, models: list[ModelReference]) -> Any:
    """Return a template with models by their numbers: places are in no recipe."""
    if isinstance(template, Mapping):
        return {
            key: models.index(ModelReference.model_validate(value)) if key in _PLACES else _numbered(value, models)
            for key, value in template.items()
        }
    return [_numbered(value, models) for value in template] if isinstance(template, list | tuple) else template


def _short(reference: ModelReference) -> str:
    return str(reference).rstrip("/").rpartition("/")[2]
