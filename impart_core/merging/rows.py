"""Rows of embeddings and heads, arranged by the tokens of the merged model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

LACKING = -1  # stands for the row of a token that a model does not have


@dataclass(frozen=True)
class Fill:
    """Where the row of a token comes from, for models that lack it.

    Attributes:
        row: the token's id in the merged model.
        givers: models and their rows that it is the mean of; none: it is zero.
    """

    row: int
    givers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class TokenRows:
    """Which rows of each model are the rows of the merged model.

    Attributes:
        size: rows of the merged model.
        own: for each model and row of the merged model the model's own row, int64; `LACKING` where it has none, or
            is not to give its own.
        fills: what the models that lack a row take for it. A row without one is that of no token: it becomes the mean
            of those of tokens, in each model.
    """

    size: int
    own: Mapping[str, torch.Tensor] = field(repr=False)
    fills: Sequence[Fill] = field(repr=False)

    def givers(self, wanted: Collection[str]) -> set[str]:
        """Return the models whose rows are needed to arrange those of some models."""
        lacking = torch.stack([self.own[model][self._filled_rows] == LACKING for model in wanted]).any(0).tolist()
        used = (fill for fill, needed in zip(self.fills, lacking, strict=True) if needed)
        return {*wanted, *(model for fill in used for model, _ in fill.givers)}

    @cached_property
    def _filled_rows(self) -> torch.Tensor:
        return torch.tensor([fill.row for fill in self.fills], dtype=torch.int64)

    @cached_property
    def _given(self) -> Mapping[str, tuple[list[int], list[int]]]:
        """For each model, the places among the fills that it gives a row to, and its rows."""
        given: dict[str, tuple[list[int], list[int]]] = {}
        for place, fill in enumerate(self.fills):
            for model, row in fill.givers:
                places, rows = given.setdefault(model, ([], []))
                places.append(place)
                rows.append(row)
        return given

    def arranged(self, tensors: dict[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
        """Return tensors of some models with the rows of the merged model; empties `tensors`, to free memory.

        Args:
            tensors: of all models that `givers` names: float32 embeddings, heads (tokens, width) or their biases
                (tokens), on one device.
            wanted: the models whose tensors are returned.
        """
        filled = self._filled(tensors)
        for model in [model for model in tensors if model not in wanted]:
            del tensors[model]
        return {model: self._arranged(model, tensors.pop(model), filled) for model in wanted}

    def _filled(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the rows of `fills`, summed in the order of the models."""
        like = next(iter(tensors.values()))
        filled = like.new_zeros((len(self.fills), *like.shape[1:]))
        counts = like.new_zeros((len(self.fills), *[1] * (like.dim() - 1)))
        for model, tensor in tensors.items():
            places, rows = self._given.get(model, ([], []))
            filled[places] += tensor[rows]
            counts[places] += 1
        return filled.div_(counts.clamp_(min=1))

    def _arranged(self, model: str, tensor: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
        own = self.own[model].to(tensor.device)
        arranged = tensor[own.clamp(min=0)]
        lacking = own == LACKING
        rows = self._filled_rows.to(tensor.device)
        taken = lacking[rows]
        arranged[rows[taken]] = filled[taken]
        spare = lacking.index_fill(0, rows, False)
        if spare.any():
            arranged[spare] = arranged[~spare].mean(0)
        return arranged
