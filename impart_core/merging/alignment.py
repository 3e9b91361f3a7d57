"""Which tensors of the models belong together, and what becomes of those that not all of them have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from impart_core.base.errors import MismatchError
from impart_core.base.text import visible
from impart_core.checkpoint.header import TensorInfo
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Role, in_layer, role_of
from impart_core.checkpoint.pairing import embedding_of_tokens, pair_tensors

_TIED = "tie_word_embeddings"
_TOLD = 5


@dataclass(frozen=True)
class Aligned:
    """A tensor of the merged model, and those of the models that it is made of.

    Attributes:
        donor: the tensor of the model that gives names and configuration.
        of: the tensor of each model, in their order; None where a model has none.
        role: what it is in the model.
    """

    donor: TensorInfo
    of: tuple[TensorInfo | None, ...]
    role: Role


@dataclass(frozen=True)
class Alignment:
    """The tensors of a merged model.

    Attributes:
        tensors: by name.
        untied: whether the merged model has a head of its own although the donor has none.
        notes: sentences on what only some of the models have.
    """

    tensors: Mapping[str, Aligned]
    untied: bool
    notes: tuple[str, ...]


def align(donor: Checkpoint, models: Sequence[tuple[str, Checkpoint]]) -> Alignment:
    """Return which tensors are merged into which.

    A head that some models have of their own, and others tie to their embedding, is one of the merged model's own.

    Args:
        donor: gives names, and what no model has.
        models: what the file calls each, and it.

    Raises:
        MismatchError: a model has tensors that the donor has not, which would be lost.
    """
    columns: list[dict[str, TensorInfo]] = []
    heads: dict[str, TensorInfo] = {}
    for label, model in models:
        column, extra = _column(donor, model)
        columns.append(column)
        for name, info in extra.items():
            if role_of(info, model.config) is Role.HEAD:
                heads.setdefault(name, info)
        lost = sorted(set(extra) - set(heads))
        if lost:
            raise MismatchError(
                f"{label} has {len(lost)} tensors that {donor.location} has not, and that would be lost: "
                f"{_listed(lost)}. Merge models of one architecture, or give as base_model one that has them."
            )
    tensors = {
        name: Aligned(info, tuple(column.get(name) for column in columns), role_of(info, donor.config))
        for name, info in donor.tensors.items()
    }
    tied = embedding_of_tokens(donor)
    for name, info in heads.items():
        own = tuple(
            column.get(name) or embedding_of_tokens(model) for column, (_, model) in zip(columns, models, strict=True)
        )
        tensors[name] = Aligned(tied or info, own, Role.HEAD)
    others = [number for number, (_, model) in enumerate(models) if model is not donor]
    return Alignment(tensors, bool(heads), tuple(_notes(tensors, donor, others)))


def _column(donor: Checkpoint, model: Checkpoint) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """Return a model's tensors by the donor's names, and those that the donor has not."""
    if model.location == donor.location or set(model.tensors) == set(donor.tensors):
        return dict(model.tensors), {}
    column: dict[str, TensorInfo] = {}
    extra: dict[str, TensorInfo] = {}
    for name, pair in pair_tensors(donor, model).items():
        base = pair.base
        tied_head = base is not None and pair.role is Role.HEAD and role_of(base, donor.config) is Role.EMBEDDING
        if base is None or tied_head:
            if pair.role is Role.HEAD and model.config.get(_TIED):
                continue  # saved although it is the embedding
            extra[name] = pair.finetuned
            if tied_head:
                column[name] = pair.finetuned
        elif name == base.name or base.name not in column:
            column[base.name] = pair.finetuned
    for name, info in donor.tensors.items():
        if name not in column and role_of(info, donor.config) is Role.HEAD and not in_layer(name):
            embedding = embedding_of_tokens(model)
            if embedding is not None and len(info.shape) == 2:
                column[name] = embedding
    return column, extra


def _notes(tensors: Mapping[str, Aligned], donor: Checkpoint, others: Sequence[int]) -> list[str]:
    held = {name: [one.of[number] is not None for number in others] for name, one in tensors.items()}
    alone = [name for name, found in held.items() if found and not any(found)]
    some = [name for name, found in held.items() if any(found) and not all(found)]
    notes = []
    if alone:
        notes.append(
            f"{len(alone)} tensors are as in {donor.location}, as none of the models has them: {_listed(alone)}."
        )
    if some:
        notes.append(f"{len(some)} tensors are merged of those models alone that have them: {_listed(some)}.")
    return notes


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(visible(name) for name in names[:_TOLD])
    return shown + (f" and {len(names) - _TOLD} more" if len(names) > _TOLD else "")
