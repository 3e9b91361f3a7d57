"""The model that a merge gives: a checkpoint whose tensors are computed when they are read."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from impart_core.artifacts.merged import merge_recipe
from impart_core.base.errors import ConfigError, TensorValueError
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.base.parallel import in_order
from impart_core.checkpoint.computed import ComputedTensor
from impart_core.checkpoint.header import DTYPES, TensorInfo
from impart_core.checkpoint.index import CONFIG, Checkpoint
from impart_core.checkpoint.merging import with_settings
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.source import MemoryFile
from impart_core.checkpoint.writer import tensor_bytes
from impart_core.merging.blocks import blocks
from impart_core.merging.chat import place_of
from impart_core.merging.file import InputModel, MergeFile, ModelReference, ModelToken, Tokenizer, ZeroRow, settings_of
from impart_core.merging.method import Draws, MergeMethod
from impart_core.merging.methods import MERGE_METHODS
from impart_core.merging.places import layer_settings
from impart_core.merging.sources import Source
from impart_core.merging.tables import rows_of
from impart_core.merging.vocabulary import Vocabulary
from impart_core.store.recipe import Recipe

BASE = "base"
_DTYPE_KEYS = ("torch_dtype", "dtype")


@dataclass(frozen=True)
class Planned:
    """A tensor of the merged model, and all that computing it needs.

    Attributes:
        name: its name.
        dtype: its safetensors dtype name.
        shape: its shape.
        parts: the models that it is merged from, and their tensors; none: the donor's tensor is taken as it is.
        base: the base and its tensor, where the method has a use for it.
        options: the method's keywords for it; those of each model as a list, in the order of the parts.
        donor: the donor's tensor.
        tables: models and their tensors, by what the file calls them, whose rows are arranged by the merged model's
            tokens before they are merged; none where rows are no tokens, or stay as they are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[tuple[Source, TensorInfo], ...]
    base: tuple[Source, TensorInfo] | None
    options: Mapping[str, Any]
    donor: TensorInfo
    tables: Mapping[str, tuple[Source, TensorInfo]] = field(default_factory=dict)


@dataclass(frozen=True)
class Merge:
    """A merge that can be carried out: every tensor of it is planned, nothing is computed yet.

    Attributes:
        file: what is merged how.
        method: the method.
        sources: its models, by what the file calls them; the base among them.
        donor: the base, else the first model: gives names, configuration and what is beside the weights.
        tensors: what each tensor is made of, names sorted.
        notes: sentences that whoever asked should know.
        untied: whether the merged model has a head of its own although the donor ties it.
        device: where it is computed.
        vocabulary: its tokens.
    """

    file: MergeFile
    method: MergeMethod
    sources: Mapping[ModelReference, Source]
    donor: Source
    tensors: Mapping[str, Planned]
    notes: tuple[str, ...]
    untied: bool
    device: torch.device
    vocabulary: Vocabulary

    @cached_property
    def recipe(self) -> Recipe:
        """What makes the merged model."""
        known = in_order(lambda source: source.known, list(self.sources.values()))  # which may read all of a model
        return recipe_of(self.file, dict(zip(self.sources, known, strict=True)))

    @cached_property
    def roles(self) -> dict[ModelReference, str]:
        """What its models are called in recipes: `base`, and `model 1` and so on in the order of the file."""
        return _roles(self.file, self.sources)

    @property
    def key(self) -> str:
        """A digest of all that its bytes follow from: the id of its recipe."""
        return self.recipe.id

    def compute(self, name: str) -> torch.Tensor:
        """Return a tensor of the merged model, in its dtype, on the CPU; float32 until the last step.

        Raises:
            TensorValueError: it would hold NaN or infinity.
        """
        planned = self.tensors[name]
        if not planned.parts and not planned.tables:
            return read_tensor(planned.donor).to(DTYPES[planned.dtype])
        with one_thread_per_kernel():
            by_blocks = self.method.entrywise and not planned.tables
            merged = self._by_blocks(planned) if by_blocks else self._whole(planned)
            cast = merged.to(DTYPES[planned.dtype]).cpu()
        if cast.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(cast)):  # NaN is either end
            raise TensorValueError(
                f"The merged {name!r} would hold NaN or infinity: a model does, or weights are so large that "
                f"{planned.dtype} cannot hold what comes of them."
            )
        return cast

    def _by_blocks(self, planned: Planned) -> torch.Tensor:
        """Return a tensor of an entrywise method, in its dtype: only a block at a time is in float32."""
        whole = None if planned.base is None else read_tensor(planned.base[1])
        deltas = self.method.takes_deltas
        parts = [source.part(info, whole if deltas else None) for source, info in planned.parts]
        merged = torch.empty(planned.shape, dtype=DTYPES[planned.dtype])
        for block in blocks(merged, self.device):
            base = None if whole is None else self._wide(whole.reshape(-1)[block])
            made = self._made(planned, [self._wide(part(block, base if deltas else None)) for part in parts], base)
            merged.view(-1)[block] = base + made if deltas and base is not None else made
        return merged

    def _whole(self, planned: Planned) -> torch.Tensor:
        """Return a tensor of any method: of those that take deltas in its dtype, of others in float32."""
        if planned.tables:
            return self._arranged(planned)
        base = None if planned.base is None else read_tensor(planned.base[1])
        if self.method.takes_deltas:
            assert base is not None
            deltas = [source.delta(info, base).to(self.device) for source, info in planned.parts]
            return self._added(base, self._made(planned, deltas), DTYPES[planned.dtype])
        inputs = [self._wide(source.tensor(info)) for source, info in planned.parts]
        return self._made(planned, inputs, None if base is None else self._wide(base))

    def _added(self, base: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of the base, which is given as it is stored, plus a delta, rounded once; block by block."""
        merged, flat = torch.empty(base.shape, dtype=dtype), delta.reshape(-1)
        for block in blocks(merged, self.device):
            merged.view(-1)[block] = self._wide(base.reshape(-1)[block]) + flat[block]
        return merged

    def _wide(self, entries: torch.Tensor) -> torch.Tensor:
        return entries.to(self.device, torch.float32)

    def _arranged(self, planned: Planned) -> torch.Tensor:
        """Return a tensor that has a row for each token, of the models' with their rows arranged."""
        assert self.vocabulary.rows is not None
        base = planned.base[0].label if planned.base else None
        parts = [source.label for source, _ in planned.parts] or [self.donor.label]
        wanted = dict.fromkeys([*parts, *([base] if base else [])])
        givers = self.vocabulary.rows.givers(list(wanted)) & set(planned.tables)
        read = {
            label: source.exact(info).to(self.device).reshape(rows_of(info), -1)
            for label, (source, info) in planned.tables.items()
            if label in givers
        }
        rows = self.vocabulary.rows.arranged(read, list(wanted))
        arranged = {label: tensor.reshape(planned.shape) for label, tensor in rows.items()}
        if not planned.parts:
            return arranged[self.donor.label]
        of_base = arranged.pop(base) if base else None
        if not self.method.takes_deltas or of_base is None:
            return self._made(planned, [arranged[label] for label in parts], of_base)
        for label in set(parts):
            arranged[label].sub_(of_base)
        return of_base.add_(self._made(planned, [arranged[label] for label in parts]))

    def _made(self, planned: Planned, inputs: list[torch.Tensor], base: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the method makes of a tensor of each model, or of what each adds to the base, float32."""
        method, options = self.method, dict(planned.options)
        if method.takes("draws"):
            options["draws"] = Draws(self.file.impart.seed, planned.name)
        if method.takes("base"):
            options["base"] = base
        return method.function(inputs, **options)

    def checkpoint(self) -> Checkpoint:
        """Return the merged model as a checkpoint; its tensors are computed whenever they are read."""
        tensors = {name: self._info(planned) for name, planned in self.tensors.items()}
        config = self._config()
        carried = dict(self.vocabulary.files)
        data = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        carried[CONFIG] = MemoryFile(CONFIG, len(data), None, data)
        nbytes = sum(info.nbytes for info in tensors.values()) + sum(file.size for file in carried.values())
        return Checkpoint(f"merge {self.key[:12]}", config, tensors, carried, nbytes)

    def _info(self, planned: Planned) -> TensorInfo:
        size = torch.Size(planned.shape).numel() * DTYPES[planned.dtype].itemsize
        file = ComputedTensor(
            location=f"merge {self.key[:12]}",
            size=size,
            stamp=self.key,
            key=f"merge:{self.key}:{planned.name}",
            compute=lambda _: tensor_bytes(self.compute(planned.name).contiguous()),
        )
        return TensorInfo(planned.name, planned.dtype, planned.shape, file, 0, size)

    def _config(self) -> dict[str, Any]:
        config = dict(self.vocabulary.config)
        settings = layer_settings(config, self.file)
        if self.untied:
            settings["tie_word_embeddings"] = False
        wanted = self.file.out_dtype or self.file.dtype
        if wanted:
            settings |= {key: wanted for key in _DTYPE_KEYS if key in config} or {_DTYPE_KEYS[0]: wanted}
        return dict(with_settings(config, settings)) if settings else config


def recipe_of(file: MergeFile, known: Mapping[ModelReference, Mapping[str, Any]]) -> Recipe:
    """Return what makes a merged model, without planning it.

    Args:
        file: what is merged how.
        known: what stands for every model of the file, the base among them, in a fixed order: see `Source.known`.

    Raises:
        ConfigError: a parameter of the file is no value that a parameter has; or its tokenizer is no model's.
        UnknownNameError: there is no such method.
    """
    roles = _roles(file, known)
    inputs = {f"{roles[ref]}{suffix}": value for ref, own in known.items() for suffix, value in own.items()}
    return merge_recipe({"method": MERGE_METHODS.get(file.merge_method).name, **_normal(file, roles)}, inputs)


def _roles(file: MergeFile, models: Iterable[ModelReference]) -> dict[ModelReference, str]:
    """Return what models are called in recipes."""
    roles: dict[ModelReference, str] = {}
    for reference in models:
        number = len(roles) - (BASE in roles.values()) + 1
        roles[reference] = BASE if reference == file.base_model else f"model {number}"
    return roles


def _normal(file: MergeFile, roles: Mapping[ModelReference, str]) -> dict[str, Any]:
    """Return what a file says that bytes depend on, with models by their numbers."""

    def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: setting.plain() for name, setting in sorted(settings_of(given, "parameters").items())}

    def model(one: InputModel) -> dict[str, Any]:
        layers = {"layers": list(layer_range)} if (layer_range := getattr(one, "layer_range", None)) else {}
        return {"model": roles[one.model], "parameters": parameters(one.parameters), **layers}

    def slices(given: Sequence[Any]) -> list[dict[str, Any]]:
        return [
            {
                "sources": [model(source) for source in one.sources],
                "base": None if one.base_model is None else roles[one.base_model],
                "parameters": parameters(one.parameters),
            }
            for one in given
        ]

    modules = [  # of two that a tensor could be in, the first has it
        {
            "name": name,
            "models": [model(one) for one in module.models],
            "slices": slices(module.slices),
            "parameters": parameters(module.parameters),
        }
        for name, module in file.modules.items()
    ]
    return {
        "base": None if file.base_model is None else roles[file.base_model],
        "models": [model(one) for one in file.models],
        "slices": slices(file.slices),
        "modules": modules,
        "parameters": parameters(file.parameters),
        "dtype": file.out_dtype or file.dtype,
        "tokenizer": _normal_tokenizer(file.vocabulary, roles) if file.vocabulary else None,
        "chat_template": _normal_template(file.chat_template, roles) if file.chat_template else None,
        "seed": file.impart.seed if MERGE_METHODS.get(file.merge_method).takes("draws") else 0,
    }


def _normal_tokenizer(tokenizer: Tokenizer, roles: Mapping[ModelReference, str]) -> dict[str, Any]:
    """Return what a file says of the tokenizer, with models by their roles."""

    def source(one: Any) -> Any:
        model = one.model if isinstance(one, ModelToken) else one
        if isinstance(model, ModelReference) and model not in roles:
            raise ConfigError(f"The tokenizer is to come from {model}, which is none of the models.")
        if isinstance(one, ModelReference):
            return {"model": roles[one]}
        if isinstance(one, ModelToken):
            return {**one.model_dump(mode="json"), "model": roles[one.model]}
        return one.model_dump(mode="json") if isinstance(one, ZeroRow) else one

    return {
        "source": source(tokenizer.source),
        "tokens": [  # in this order they get their ids
            {"token": token, "source": source(one.source), "force": one.force}
            for token, one in tokenizer.tokens.items()
        ],
        "pad_to_multiple_of": tokenizer.pad_to_multiple_of,
    }


def _normal_template(template: str, roles: Mapping[ModelReference, str]) -> Any:
    """Return the chat template that a file asks for, a model by its role."""
    named = next((role for reference, role in roles.items() if str(reference) == place_of(template)), None)
    return template if named is None else {"model": named}
