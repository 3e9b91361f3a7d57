"""The tensors of models that have a row for each token: embeddings, heads, and the biases of heads."""

from collections.abc import Mapping
from dataclasses import dataclass

from impart_core.base.errors import MismatchError
from impart_core.checkpoint.header import TensorInfo
from impart_core.checkpoint.layout import Role, in_layer
from impart_core.checkpoint.pairing import embedding_of_tokens, names_no_tokens
from impart_core.merging.alignment import Aligned, Alignment
from impart_core.merging.file import ModelReference
from impart_core.merging.sources import Source


@dataclass(frozen=True)
class Tables:
    """The tensors of a merge that have a row for each token.

    Attributes:
        names: the donor's names for them.
        rows: how many rows those of each model have, by what the file calls it; without those that have none.
    """

    names: frozenset[str]
    rows: Mapping[str, int]


def find_tables(sources: Mapping[ModelReference, Source], donor: Source, alignment: Alignment) -> Tables:
    """Return the tensors of a merge that have a row for each token.

    Raises:
        MismatchError: those of one model have different numbers of rows.
    """
    embedding = embedding_of_tokens(donor.checkpoint)
    if embedding is None:
        return Tables(frozenset(), {})
    names = sorted(name for name, one in alignment.tensors.items() if _is_table(one, embedding.shape[0]))
    rows: dict[str, int] = {}
    for column, source in enumerate(sources.values()):
        own = [info for name in names if (info := alignment.tensors[name].of[column]) is not None]
        numbers = {rows_of(info) for info in own}
        if len(numbers) > 1:
            told = ", ".join(f"{info.name} {rows_of(info)}" for info in own)
            raise MismatchError(
                f"{source.label} has tensors with a row for each token, and different numbers of rows: {told}. Save it "
                "with an embedding and a head of one size (`resize_token_embeddings`)."
            )
        rows |= dict.fromkeys([source.label], next(iter(numbers))) if numbers else {}
    return Tables(frozenset(names), rows)


def rows_of(info: TensorInfo) -> int:
    """Return the rows of a tensor that has one for each token; the bias of a head may have a side of 1 before them."""
    return info.shape[1] if len(info.shape) == 2 and info.shape[0] == 1 else info.shape[0]


def with_rows(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """Return the shape of a tensor with another number of rows."""
    return (1, rows) if len(shape) == 2 and shape[0] == 1 else (rows, *shape[1:])


def _is_table(one: Aligned, rows: int) -> bool:
    info = one.donor
    if not info.is_floating or not info.shape or rows_of(info) != rows:
        return False
    if one.role is Role.BIAS:  # nothing else outside of layers is as long as a head's
        return not in_layer(info.name)
    return one.role is Role.HEAD or (one.role is Role.EMBEDDING and not names_no_tokens(info.name))
