"""A merge checked against its models, from headers and configurations alone, and every tensor of it planned."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from impart_core.base.errors import ConfigError, MismatchError
from impart_core.base.settings import nearest
from impart_core.checkpoint.header import TensorInfo
from impart_core.merging.alignment import Alignment, align
from impart_core.merging.file import InputModel, MergeFile, ModelReference, settings_of
from impart_core.merging.merged import Merge, Planned
from impart_core.merging.method import Draws, Option
from impart_core.merging.methods import MERGE_METHODS
from impart_core.merging.places import Place, places_of
from impart_core.merging.sources import Source
from impart_core.merging.tables import with_rows
from impart_core.merging.values import Scalar, Setting
from impart_core.merging.vocabulary import Vocabulary, merged_vocabulary

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def plan_merge(file: MergeFile, sources: Mapping[ModelReference, Source], device: torch.device) -> Merge:
    """Check a merge against its models, from headers and configurations alone, and plan every tensor of it.

    Args:
        file: what is merged how.
        sources: every model of the file, the base among them, in a fixed order.
        device: where it is computed.

    Raises:
        ConfigError: a parameter is unknown, missing, or out of its range; or the method merges another number of
            models.
        MismatchError: the models' tensors do not fit each other.
        UnknownNameError: there is no such method.
    """
    return _Planner(file, sources, device).merge()


class _Planner:
    def __init__(self, file: MergeFile, sources: Mapping[ModelReference, Source], device: torch.device) -> None:
        self._file, self._sources, self._device = file, sources, device
        self._method = MERGE_METHODS.get(file.merge_method)
        self._notes: list[str] = []
        self._parsed: dict[int, dict[str, Setting]] = {}

    def merge(self) -> Merge:
        file, method = self._file, self._method
        self._check_keys()
        self._check_models()
        donor = self._sources[file.base_model or file.references()[0]]
        references = list(self._sources)
        models = [(source.label, source.checkpoint) for source in self._sources.values()]
        alignment = align(donor.checkpoint, models)
        columns = {reference: number for number, reference in enumerate(references)}
        vocabulary = merged_vocabulary(file, self._sources, donor, alignment)
        tensors = {}
        for place in places_of(file, donor.checkpoint, alignment.tensors):
            planned = self._planned(place, alignment, columns)
            tensors[place.name] = self._with_tokens(planned, place, alignment, vocabulary)
        self._check_shapes(tensors)
        self._check_values(tensors.values())
        return Merge(
            file=file,
            method=method,
            sources=self._sources,
            donor=donor,
            tensors=dict(sorted(tensors.items())),
            notes=(*self._notes, *alignment.notes, *vocabulary.notes),
            vocabulary=vocabulary,
            untied=alignment.untied,
            device=self._device,
        )

    def _check_models(self) -> None:
        file, method = self._file, self._method
        if file.base_model is None and method.needs_base:
            raise ConfigError(f"{method.name} needs base_model: what the models were fine-tuned from.")
        listed = [one for one in file.inputs() if one.model == file.base_model]
        if method.takes_deltas and listed:
            if any(one.parameters for one in listed):
                raise ConfigError(
                    f"The base {file.base_model} is listed among the models, with parameters of its own. It adds "
                    f"nothing to itself: take it out of the list."
                )
            self._notes.append(f"The base {file.base_model} is listed among the models; it adds nothing to itself.")
        for models, base in file.groups():
            self._check_number({one.model for one in models}, base)

    def _check_number(self, models: set[ModelReference], base: ModelReference | None) -> None:
        """Refuse other numbers of models than the method merges; `base` is that of the same tensors."""
        method, (least, most) = self._method, self._method.models
        listed = method.base == "among" or (method.base == "donor" and base in models)
        number = len(models - {base}) + listed
        if number < least or (most is not None and number > most):
            wanted = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
            with_base = ", the base among them" if method.base == "among" else ""
            raise ConfigError(f"{method.name} merges {wanted} models{with_base}; the file has {number}.")

    def _check_keys(self) -> None:
        """Refuse parameters that the method does not know, wherever they stand."""
        file, known = self._file, [*self._method.options, *self._method.ignored]
        places: list[tuple[str, Mapping[str, Any], bool]] = [("parameters", file.parameters, False)]
        places += [(f"{one.model}", one.parameters, True) for one in file.inputs()]
        for slices in (file.slices, *(module.slices for module in file.modules.values())):
            places += [(f"slices.{number}", one.parameters, False) for number, one in enumerate(slices)]
        places += [(f"modules.{name}", module.parameters, False) for name, module in file.modules.items()]
        for where, parameters, of_model in places:
            for name in parameters:
                if name not in known:
                    raise ConfigError(
                        f"{where}: {self._method.name} has no parameter {name!r}.{nearest(name, known)} It takes "
                        f"{', '.join(self._method.options) or 'none'}."
                    )
                option = self._method.options.get(name)
                if of_model and option is not None and not option.per_model:
                    raise ConfigError(
                        f"{where}: {name} is one for all models. Give it under parameters, beside merge_method."
                    )
        unused = sorted({name for _, given, _ in places for name in given if name in self._method.ignored})
        if unused:
            self._notes.append(f"{', '.join(unused)}: no effect on {self._method.name}.")

    def _planned(self, place: Place, alignment: Alignment, columns: Mapping[ModelReference, int]) -> Planned:
        method, donor_name = self._method, place.sources[0][1] if place.sources else place.name
        aligned = alignment.tensors[donor_name]

        def own(model: ModelReference, name: str) -> TensorInfo | None:
            return alignment.tensors[name].of[columns[model]]

        dtype = aligned.donor.dtype
        if aligned.donor.is_floating:
            dtype = _DTYPES.get(self._file.out_dtype or self._file.dtype or "", dtype)
        inputs = [
            (one, name) for one, name in place.sources if not (method.base == "apart" and self._is_base(one, place))
        ]
        if method.base == "among" and place.base is not None:
            inputs = [(one, name) for one, name in inputs if not self._is_base(one, place)]
            inputs.insert(0, (InputModel(model=place.base[0]), place.base[1]))
        found = [(one, name, info) for one, name in inputs if (info := own(one.model, name)) is not None]
        base = own(*place.base) if place.base else None
        baseless = base is None and method.base != "donor" and (method.needs_base or place.base is not None)
        alone = not found or not aligned.donor.is_floating or baseless
        if method.base == "among" and len(found) < method.models[0]:
            alone = True
        if alone:
            return Planned(place.name, dtype, aligned.donor.shape, (), None, {}, aligned.donor)
        shape = found[0][2].shape if base is None else base.shape
        options = {option.keyword: self._value(option, place, found) for option in method.options.values()}
        return Planned(
            name=place.name,
            dtype=dtype,
            shape=shape,
            parts=tuple((self._sources[one.model], info) for one, _, info in found),
            base=(self._sources[place.base[0]], base) if place.base and base and method.base == "apart" else None,
            options=options,
            donor=aligned.donor,
        )

    def _with_tokens(self, planned: Planned, place: Place, alignment: Alignment, vocabulary: Vocabulary) -> Planned:
        """Return a tensor with a row for each token in the merged model's shape, and all that its rows come from."""
        donor_name = place.sources[0][1] if place.sources else place.name
        if vocabulary.rows is None or donor_name not in vocabulary.tables:
            return planned
        columns = zip(self._sources.values(), alignment.tensors[donor_name].of, strict=True)
        tables = {source.label: (source, info) for source, info in columns if info is not None}
        size = vocabulary.rows.size
        return replace(planned, shape=with_rows(planned.shape, size), tables=tables)

    def _is_base(self, one: InputModel, place: Place) -> bool:
        return place.base is not None and one.model == place.base[0]

    def _value(self, option: Option, place: Place, found: Sequence[tuple[InputModel, str, TensorInfo]]) -> Any:
        """Return an option's value for a tensor, or those of its models: the nearest that the file states.

        Filters go by the donor's names, which are the same for a model with a prefix more, or with a tied head.
        """
        if not option.per_model:
            return self._looked_up(option, place, None, place.name)
        return [self._looked_up(option, place, one, name) for one, name, _ in found]

    def _looked_up(self, option: Option, place: Place, model: InputModel | None, tensor: str) -> Any:
        file = self._file
        nearer = [model.parameters if model else {}, place.slice.parameters if place.slice else {}]
        nearer += [place.module.parameters if place.module else {}, file.parameters]
        for parameters in nearer:
            if option.name in parameters:
                value = self._settings(parameters)[option.name].at(tensor, place.depth)
                if value is not None:
                    return self._checked(option, value, model)
        if option.required:
            of_model = f" of {model.model}" if model else ""
            base = model is not None and model.model == file.base_model
            raise ConfigError(
                f"{option.name}{of_model} is missing ({self._method.name} needs it, here for {tensor}). "
                + ("It is the base: take it out of the models, or give" if base else "Give")
                + f" {option.name} under its parameters, or one for all."
            )
        return option.default

    def _checked(self, option: Option, value: Scalar, model: InputModel | None) -> Any:
        try:
            return option.checked(value)
        except ConfigError as error:
            raise ConfigError(f"{model.model}: {error}" if model else str(error)) from None

    def _settings(self, parameters: Mapping[str, Any]) -> dict[str, Setting]:
        if id(parameters) not in self._parsed:
            self._parsed[id(parameters)] = settings_of(parameters, "parameters")
        return self._parsed[id(parameters)]

    def _check_values(self, tensors: Iterable[Planned]) -> None:
        """Refuse values that cannot go together, by merging tensors without entries."""
        method, seen, empty = self._method, set[str](), torch.empty(0)
        for planned in tensors:
            number = len(planned.parts)
            told = f"{number} {planned.options}"
            if not number or told in seen:
                continue
            seen.add(told)
            options = dict(planned.options)
            if method.takes("draws"):
                options["draws"] = Draws(0, planned.name)
            if method.takes("base"):
                options["base"] = empty if planned.base else None
            try:
                method.function([empty] * number, **options)
            except (ConfigError, ValueError) as error:
                raise ConfigError(f"{planned.name}: {error}") from error

    def _check_shapes(self, tensors: Mapping[str, Planned]) -> None:
        """Refuse tensors of different shapes; rows of tokens may be more in some models than in others."""
        lines = []
        for name, planned in tensors.items():
            parts = [*planned.parts, *([planned.base] if planned.base else [])]
            shapes = {with_rows(info.shape, 1) if planned.tables else info.shape for _, info in parts}
            if len(shapes) > 1:
                told = ", ".join(f"{list(info.shape)} in {source.label}" for source, info in parts)
                lines.append(f"{name}: {told}")
        if lines:
            shown = "\n".join(f"  - {line}" for line in lines[:8])
            raise MismatchError(
                f"{len(lines)} tensors have different shapes in the models:\n{shown}\nMerge models of one shape."
            )
