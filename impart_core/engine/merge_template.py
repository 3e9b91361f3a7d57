"""Merges as candidates of a search: the same models, merged in other ways."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from impart_core.apply.reader import require_base
from impart_core.artifacts.delta import Delta, delta_recipe, file_bytes, foreseen_recipe
from impart_core.base.errors import ConfigError
from impart_core.blocks.coding import needs_text
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.index import Checkpoint
from impart_core.engine.executor import Executor, ThreadExecutor
from impart_core.engine.merge import merge
from impart_core.engine.merge_models import (
    CheckedMerge,
    Stage,
    compressed,
    open_stage,
    opened_merge,
    plan_stage,
    sparsifier,
)
from impart_core.engine.references import Run
from impart_core.engine.requests import MergeRequest
from impart_core.engine.stages import digest_checkpoint
from impart_core.engine.template import Model
from impart_core.merging.file import MergeFile, ModelReference, merge_of
from impart_core.merging.merged import recipe_of
from impart_core.merging.sources import known_by
from impart_core.searching.hole import Choose
from impart_core.searching.space import Space
from impart_core.store.store import Store

Digests = dict[str, str]
_PLACES = ("model", "base_model")
_ADVICE = "List all models in each candidate, and search their weights."
_MAY_BE_PLACES = ("tokenizer_source", "chat_template", "source")


@dataclass(frozen=True)
class MergeTemplate:
    """Merges of the same checkpoints and deltas.

    Attributes:
        models: the models by what files call them, the base first.
        digests: of the tensors of those that are checkpoints.
        default: the default candidate, which names them.
        settings: the template, with models by their numbers.
    """

    models: Mapping[ModelReference, Checkpoint | Delta]
    digests: Mapping[ModelReference, Digests] = field(repr=False)
    default: MergeFile
    settings: Mapping[str, Any]

    @property
    def base(self) -> Checkpoint:
        """The base."""
        base = self.models[self._reference]
        assert isinstance(base, Checkpoint)
        return base

    @property
    def experts(self) -> dict[str, Model]:
        """The models that are merged, by the last part of their places, or the whole where two are called alike."""
        merged = [reference for reference in self.models if reference != self._reference]
        short = {reference: _short(reference) for reference in merged}
        alike = len(set(short.values())) < len(short)
        return {str(one) if alike else short[one]: self._model(self.models[one]) for one in merged}

    @property
    def contents(self) -> dict[str, object]:
        """The ids of the models."""
        return {
            f"model {number}{end}": value
            for number, reference in enumerate(self.models)
            for end, value in self._known(reference).items()
        }

    def check(self, filled: Mapping[str, Any], run: Run) -> None:
        """Check a candidate's merge, and the compressions before and after it."""
        stage = self._stage(filled)
        plan_stage(stage, self._request(stage.file, run), {})
        self.inputs(filled)

    def inputs(self, filled: Mapping[str, Any]) -> dict[str, object]:
        """Return the id of the recipe that merges it, or of that which compresses what is merged."""
        stage = self._stage(filled)
        known: dict[ModelReference, Mapping[str, Any]] = {}
        for reference in self.models:
            config = sparsifier(stage, reference)
            known[reference] = {"": self._delta(reference, config)} if config else self._known(reference)
        merged, config = recipe_of(stage.file, known).id, stage.file.impart.compress
        if config is None:
            return {"merged": merged}
        _require_uncalibrated(config)
        return {"compressed": foreseen_recipe(config, merged).id}

    def bytes_of(self, filled: Mapping[str, Any], made: Sequence[str], store: Store) -> int | None:
        """Return the bytes of the delta that the merged model was compressed to; else of what is merged.

        What is merged is deltas, and those models that are not sparsified.
        """
        stage = self._stage(filled)
        if stage.file.impart.compress is not None:
            return file_bytes(store, made[0])
        whole = sum(
            opened.nbytes
            for reference, opened in self.models.items()
            if isinstance(opened, Checkpoint) and reference != self._reference and sparsifier(stage, reference) is None
        )
        sizes = [size for delta in made if (size := file_bytes(store, delta)) is not None]
        return whole + sum(sizes) if len(sizes) == len(made) else None

    @contextmanager
    def model_of(self, filled: Mapping[str, Any], run: Run) -> Iterator[Model]:
        """Give the merged model, computed tensor by tensor as it is written for the harness; or its delta."""
        stage, inputs = self._stage(filled), self.inputs(filled)
        request = self._request(stage.file, run)
        with ThreadExecutor(1) as executor, opened_merge(request, (stage,), executor) as (planned, _):
            whole, config = planned.checkpoint(), stage.file.impart.compress
            parents = tuple(dict.fromkeys(one.artifact for one in planned.sources.values() if one.artifact))
            if config is None:
                yield Model(checkpoint=whole, inputs=inputs, parents=parents)
            else:
                made = compressed(request, config, (self.base, whole), executor, None).report.artifact
                yield Model(delta=made, base=self.base, inputs=inputs, parents=parents)

    def publish(self, filled: Mapping[str, Any], run: Run) -> str:
        """Return the id of its delta, or of the record of its merge where it is not compressed."""
        stage = self._stage(filled)
        request = self._request(stage.file, run)
        checked = CheckedMerge((stage,), plan_stage(stage, request, {}))
        with ThreadExecutor(1) as executor:
            report = merge(request, executor, checked=checked, run_id=run.id).report
        return report.delta.artifact if report.delta else report.artifact

    def require_same_models(self, file: MergeFile) -> None:
        """Check that a candidate merges no other models than the default one.

        Raises:
            ConfigError: naming one.
        """
        asked = [*file.references(), *file.bases(), *([file.base_model] if file.base_model else [])]
        others = [one for one in asked if one not in self.models]
        others += [one for one in asked if file.own_of(one).ref != self.default.own_of(one).ref]
        if file.base_model != self.default.base_model and file.base_model:
            others.append(file.base_model)
        if others:
            raise ConfigError(
                f"A candidate merges {others[0]}, and the default one does not, or does otherwise. {_ADVICE}"
            )

    @property
    def _reference(self) -> ModelReference:
        assert self.default.base_model is not None
        return self.default.base_model

    def _stage(self, filled: Mapping[str, Any]) -> Stage:
        file = merge_of(filled["merge"], "merge")
        self.require_same_models(file)
        return Stage(file, self.models)

    def _request(self, file: MergeFile, run: Run) -> MergeRequest:
        return MergeRequest(stages=(file,), store=run.store, device=run.device, workers=1, trust=run.trust)

    def _model(self, opened: Checkpoint | Delta) -> Model:
        if isinstance(opened, Delta):
            return Model(delta=opened.id, base=self.base)
        return Model(checkpoint=opened)

    def _known(self, reference: ModelReference) -> dict[str, Any]:
        """Return what stands for a model in recipes as it is, by the end of a role."""
        opened = self.models[reference]
        return {"": opened.id} if isinstance(opened, Delta) else known_by(opened, self.digests[reference])

    def _delta(self, reference: ModelReference, config: CompressConfig) -> str:
        """Return the id of the delta that a checkpoint is sparsified to."""
        _require_uncalibrated(config)
        opened = self.models[reference]
        assert isinstance(opened, Checkpoint)
        return delta_recipe(self.base, opened, config, (self.digests[self._reference], self.digests[reference])).id


def open_merge_template(template: Mapping[str, Any], space: Space, store: Store, executor: Executor) -> MergeTemplate:
    """Open the models of a template.

    Args:
        template: the merge file with holes in it.
        space: its holes.
        store: where deltas are looked for.
        executor: digests the checkpoints.

    Raises:
        ConfigError: a model's place is a hole, or the base is no checkpoint.
        WrongBaseError: a delta was made against another base.
    """
    file = merge_of(space.fill(space.defaults).filled["merge"], "merge")
    if file.name is not None or file.impart.name is not None:
        raise ConfigError("The winner of a search is published under the name beside merge: leave out name in merge.")
    if file.base_model is None:
        raise ConfigError("A search of merges needs base_model, which candidates are held against.")
    models: dict[ModelReference, Checkpoint | Delta] = {}
    for reference, opened in open_stage(file, set(), store).models.items():
        assert not isinstance(opened, str), "there are no earlier stages"
        models[reference] = opened
    base = models[file.base_model]
    if not isinstance(base, Checkpoint):
        raise ConfigError(f"base_model is {file.base_model}, a delta. Give the checkpoint that it was made against.")
    checkpoints = {reference: one for reference, one in models.items() if isinstance(one, Checkpoint)}
    pending = {
        reference: executor.submit(digest_checkpoint, one.weights_alone(), False)
        for reference, one in checkpoints.items()
    }
    digests = {reference: one.result() for reference, one in pending.items()}
    for opened in models.values():
        if isinstance(opened, Delta):
            require_base(opened, base)
    found = MergeTemplate(models, digests, file, {})
    _require_models_of_default(found, space)
    return MergeTemplate(models, digests, file, _numbered(template, list(models)))


def _require_models_of_default(template: MergeTemplate, space: Space) -> None:
    """Check that no value of a hole brings in another model."""
    for place in space.places:
        if place[-1] in _PLACES:
            raise ConfigError(f"merge.{'.'.join(map(str, place[1:]))}: the place of a model is no hole. {_ADVICE}")
    for name, hole in space.holes.items():
        for value in hole.values or () if isinstance(hole, Choose) else ():
            try:
                file = merge_of(space.fill({**space.defaults, name: value}).filled["merge"])
            except ConfigError:  # is said when it is tried
                continue
            template.require_same_models(file)


def _require_uncalibrated(config: CompressConfig) -> None:
    if needs_text(config):
        raise ConfigError(
            f"{config.method} is calibrated, and a search of merges has no calibration text. Compress the model first, "
            "and merge the delta by its name."
        )


def _numbered(value: Any, models: list[ModelReference], *path: str) -> Any:
    """Return a template with models by their numbers: places are in no recipe."""
    if isinstance(value, Mapping):
        if path == ("impart", "models"):
            return {
                str(_number(place, models)): _numbered({key: one for key, one in own.items() if key != "ref"}, models)
                for place, own in value.items()
            }
        return {
            key: _number(one, models) if key in _PLACES else _numbered(one, models, *path, str(key))
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_numbered(one, models, *path) for one in value]
    if isinstance(value, str) and path and path[-1] in _MAY_BE_PLACES and "{" not in value:
        number = _number(value, models)
        return value if number is None else {"model": number}
    return value


def _number(place: Any, models: list[ModelReference]) -> int | None:
    try:
        reference = ModelReference.model_validate(place)
    except (ConfigError, ValueError):  # of a candidate that cannot be read
        return None
    return models.index(reference) if reference in models else None


def _short(reference: ModelReference) -> str:
    return str(reference).rstrip("/").rpartition("/")[2]
