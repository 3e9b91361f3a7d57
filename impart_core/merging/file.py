"""The merge file: mergekit's YAML, and beside it one block of our own, `impart`.

Its documents, separated by `---`, are stages: each may name models that earlier ones made.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from impart_core.base.errors import ConfigError
from impart_core.base.settings import Frozen, nearest
from impart_core.base.yaml_text import read_yaml, read_yaml_file
from impart_core.blocks.request import CompressConfig
from impart_core.merging.values import Setting, parse_setting

Dtype = Literal["float32", "float16", "bfloat16"]
OWN_BLOCK = "impart"
Parameters = dict[str, Any]  # parsed by `settings_of`


class ModelReference(Frozen):
    """A model of a merge.

    Attributes:
        place: its folder, Hub id or URL; or the name or id of a delta in the store; or the name of an earlier stage.
        adapter: where an adapter lies that is merged into it first.
    """

    place: str
    adapter: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, raw: Any) -> Any:
        """Read `place[@revision][+adapter]`, or mergekit's mapping of the same."""
        if isinstance(raw, str):
            place, plus, adapter = raw.partition("+")
            if not plus or Path(raw).exists():
                return {"place": _place(raw)}
            return {"place": _place(place), "adapter": _place(adapter)}
        if isinstance(raw, Mapping) and "model" in raw:
            unknown = set(raw) - {"model", "lora", "override_architecture"}
            if unknown:
                raise ValueError(f"unknown key {min(unknown)!r}; it takes model and lora")
            lora = raw.get("lora")
            return {"place": _place(raw["model"]), "adapter": None if lora is None else _place(lora)}
        return raw

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        """Describe it as the text that is read and written, or mergekit's mapping."""
        return {"title": "ModelReference", "type": ["string", "object"]}

    @model_serializer
    def _written(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Return it as it is written in a file."""
        return f"{self.place}+{self.adapter}" if self.adapter else self.place


def _place(raw: Any) -> Any:
    """Return a place as text, a folder of this machine as its absolute path."""
    if isinstance(raw, Mapping) and "path" in raw:
        return f"{raw['path']}@{raw['revision']}" if raw.get("revision") else raw["path"]
    if not isinstance(raw, str) or not raw or "://" in raw:
        return raw
    try:
        path = Path(raw).expanduser()
        return os.path.normpath(path.absolute()) if path.exists() else raw
    except (OSError, RuntimeError, ValueError):  # a name that no file system has, a user that there is not
        return raw


class InputModel(Frozen):
    """A model that is merged, and its own parameters."""

    model: ModelReference
    parameters: Parameters = Field(default_factory=dict)


class InputSlice(InputModel):
    """Layers of a model, from the first number to before the second."""

    layer_range: tuple[int, int]

    @field_validator("layer_range")
    @classmethod
    def _rising(cls, layers: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= layers[0] < layers[1]:
            raise ValueError("give the first layer, and the one after the last")
        return layers


class OutputSlice(Frozen):
    """Layers of the merged model, made of as many layers of each source."""

    sources: tuple[InputSlice, ...] = Field(min_length=1)
    base_model: ModelReference | None = None
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_one_length(self) -> "OutputSlice":
        if len({stop - start for start, stop in (source.layer_range for source in self.sources)}) > 1:
            raise ValueError("the sources of a slice must have the same number of layers each")
        return self


class Module(Frozen):
    """A part of a model with several, such as the text model beside a vision tower."""

    models: tuple[InputModel, ...] = ()
    slices: tuple[OutputSlice, ...] = ()
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Module":
        if bool(self.models) == bool(self.slices):
            raise ValueError("a module is made of models or of slices: of one of them")
        return self


class ZeroRow(Frozen):
    """A row of zeros, for a token that no model has."""

    kind: Literal["zero"]


class ModelToken(Frozen):
    """The row of another token, given by itself or by its id.

    Attributes:
        kind: tells it from the others.
        model: whose row it is.
        token: the token; or
        token_id: its id in that model.
    """

    kind: Literal["model_token"]
    model: ModelReference
    token: str | None = None
    token_id: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_of_both(self) -> "ModelToken":
        if (self.token is None) == (self.token_id is None):
            raise ValueError("give either token or token_id")
        return self


class TokenSource(Frozen):
    """Where the row of a token comes from that not all models have.

    Attributes:
        source: a model, `{kind: zero}`, or `{kind: model_token, model, token_id | token}`; None: as for all tokens.
        force: whether it is taken from there for all models, those that have the token too.
    """

    source: ZeroRow | ModelToken | ModelReference | None = None
    force: bool = False

    @field_validator("source", mode="before")
    @classmethod
    def _of_kind(cls, raw: Any) -> Any:
        """Read the kind that is named, so that what is wrong is told of it alone."""
        kinds = {"zero": ZeroRow, "model_token": ModelToken}
        if not isinstance(raw, Mapping) or "kind" not in raw:
            return raw
        if raw["kind"] not in kinds:
            raise ValueError(f"kind is {raw['kind']!r:.40}; it is zero or model_token")
        return kinds[raw["kind"]](**raw)


class Tokenizer(Frozen):
    """The merged model's tokenizer.

    Attributes:
        source: `base`, `union`, or one of the models.
        tokens: tokens that it has besides, and where their embeddings come from.
        pad_to_multiple_of: a number that the rows of the embedding are a multiple of.
    """

    source: Literal["base", "union"] | ModelReference = "union"
    tokens: dict[str, TokenSource] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = Field(default=None, ge=1, le=1 << 20)

    @field_validator("tokens", mode="before")
    @classmethod
    def _none(cls, tokens: Any) -> Any:
        return {} if tokens is None else tokens


class OwnModel(Frozen):
    """What the own block says of one model.

    Attributes:
        ref: the delta's name or id that stands for it.
        sparsify: how it is compressed before it is merged; None: not at all.
    """

    ref: str | None = None
    sparsify: CompressConfig | None = None


class OwnBlock(Frozen):
    """The block of our own.

    Attributes:
        name: what the result is published under.
        seed: of the random numbers that a method draws.
        sparsify: how every model is compressed before it is merged, unless `models` says otherwise for it.
        models: by the place that the file gives.
        compress: how the merged model is compressed again, as a delta of the same base.
    """

    name: str | None = None
    seed: int = Field(default=0, ge=0)
    sparsify: CompressConfig | None = None
    models: dict[str, OwnModel] = Field(default_factory=dict)
    compress: CompressConfig | None = None

    @field_validator("models")
    @classmethod
    def _by_place(cls, models: dict[str, OwnModel]) -> dict[str, OwnModel]:
        return {str(ModelReference.model_validate(place)): own for place, own in models.items()}


class MergeFile(Frozen):
    """One merge; attributes are those of mergekit's file, where not said otherwise.

    Attributes:
        name: what later stages call it.
        merge_method: the method.
        base_model: what the models were fine-tuned from.
        models: what is merged, whole; or
        slices: the merged model's layers; or
        modules: the merged model's parts.
        parameters: for all models and tensors, unless something nearer says otherwise.
        dtype: what the merged tensors are cast to, unless `out_dtype` says otherwise; arithmetic is in float32.
        out_dtype: what they are cast to; None for both: as in the base, or else the first model.
        tokenizer_source: short for `tokenizer: {source: …}`.
        tokenizer: the merged model's.
        chat_template: `auto` (that of most models), or a template; None: as the tokenizer has it.
        impart: our own block.
    """

    name: str | None = None
    merge_method: str
    base_model: ModelReference | None = None
    models: tuple[InputModel, ...] = ()
    slices: tuple[OutputSlice, ...] = ()
    modules: dict[str, Module] = Field(default_factory=dict)
    parameters: Parameters = Field(default_factory=dict)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: Literal["base", "union"] | ModelReference | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    impart: OwnBlock = OwnBlock()

    @model_validator(mode="after")
    def _of_one_kind(self) -> "MergeFile":
        given = [name for name in ("models", "slices", "modules") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"exactly one of models, slices and modules says what is merged; this file has {found}")
        for group, _ in self.groups():
            twice = next((one for one, count in Counter(each.model for each in group).items() if count > 1), None)
            if twice is not None:
                raise ValueError(f"{twice} is listed twice; give it once, with the sum of its weights")
        models = [*self.references(), *([self.base_model] if self.base_model else [])]
        known = list(map(str, models))
        unknown = next((place for place in self.impart.models if place not in known), None)
        if unknown is not None:
            raise ValueError(
                f"impart.models speaks of {unknown}, which is none of the models.{nearest(unknown, known)}"
            )
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("tokenizer_source and tokenizer say the same; give one of them")
        return self

    @property
    def vocabulary(self) -> Tokenizer | None:
        """The tokenizer that is asked for; None: the base's, which all models have to share."""
        return Tokenizer(source=self.tokenizer_source) if self.tokenizer_source else self.tokenizer

    def groups(self) -> Iterator[tuple[tuple[InputModel, ...], ModelReference | None]]:
        """Give the models that are merged with each other, and their base, wherever the file says it."""
        parts: tuple[MergeFile | Module, ...] = (self, *self.modules.values())
        for part in parts:
            if part.models:
                yield part.models, self.base_model
            for one in part.slices:
                yield one.sources, one.base_model or self.base_model

    def inputs(self) -> Iterator[InputModel]:
        """Give what is merged, wherever the file says it."""
        yield from self.models
        for slices in (self.slices, *(module.slices for module in self.modules.values())):
            for one in slices:
                yield from one.sources
        for module in self.modules.values():
            yield from module.models

    def bases(self) -> tuple[ModelReference, ...]:
        """Return the bases that slices name for themselves."""
        parts: tuple[MergeFile | Module, ...] = (self, *self.modules.values())
        return tuple(dict.fromkeys(one.base_model for part in parts for one in part.slices if one.base_model))

    def references(self) -> tuple[ModelReference, ...]:
        """Return what is merged, each model once, in the order in which the file names them."""
        return tuple(dict.fromkeys(one.model for one in self.inputs()))

    def own_of(self, model: ModelReference) -> OwnModel:
        """Return what the own block says of a model."""
        named = self.impart.models.get(str(model))
        if named is None:
            return OwnModel(sparsify=self.impart.sparsify)
        return (
            named
            if "sparsify" in named.model_fields_set
            else named.model_copy(update={"sparsify": self.impart.sparsify})
        )


def check_stages(stages: Sequence[MergeFile]) -> None:
    """Refuse stages that none could tell apart, or that nothing comes of.

    Raises:
        ConfigError: saying which.
    """
    names: set[str] = set()
    for file in stages[:-1]:
        if not file.name:
            raise ConfigError("Every merge but the last needs a name, by which later ones call it.")
        if file.impart.compress is not None or file.impart.name is not None:
            raise ConfigError(
                f"The stage {file.name} is not published: impart.compress and impart.name belong in the last merge."
            )
    for file in stages:
        if file.name in names:
            raise ConfigError(f"Two merges of the file are called {file.name}. Call one of them otherwise.")
        if file.name and Path(file.name).exists():
            raise ConfigError(
                f"A merge of the file is called {file.name}, and so is what lies at {Path(file.name).absolute()}. "
                "Call it otherwise."
            )
        names |= {file.name} if file.name else set()


def settings_of(parameters: Mapping[str, Any], where: str) -> dict[str, Setting]:
    """Return a file's parameters, parsed; errors say where they stand."""
    return {name: parse_setting(f"{where}.{name}", raw) for name, raw in parameters.items()}


def read_merge_file(path: Path) -> tuple[MergeFile, ...]:
    """Return the stages of a merge file, in the order of the file.

    Raises:
        ConfigError: it cannot be read or is none; the message names every key that is wrong.
    """
    return _stages(read_yaml_file(path, "merge file"), str(path))


def parse_merge(text: str, called: str = "the merge file") -> tuple[MergeFile, ...]:
    """Return the stages of a merge file's text; errors as in `read_merge_file`."""
    return _stages(read_yaml(text, called), called)


def _stages(documents: Sequence[Any], called: str) -> tuple[MergeFile, ...]:
    if not documents:
        raise ConfigError(f"{called} is empty. It holds at least merge_method and models.")
    return tuple(merge_of(document, called) for document in documents)


def merge_of(document: Any, called: str = "the merge") -> MergeFile:
    """Return a merge from what a file holds, read as YAML or JSON; errors as in `read_merge_file`."""
    if not isinstance(document, Mapping):
        raise ConfigError(f"{called} holds {document!r:.60} where keys such as merge_method and models are expected.")
    try:
        return MergeFile(**{str(key): value for key, value in document.items()})
    except ConfigError as error:
        raise ConfigError(f"{called}: {error}") from None
