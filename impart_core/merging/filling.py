"""Where the row of each token comes from: the model's own, that of another model, the mean of several, or zero."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from impart_core.base.errors import ConfigError
from impart_core.merging.file import ModelReference, ModelToken, Tokenizer, TokenSource, ZeroRow
from impart_core.merging.rows import LACKING, Fill, TokenRows
from impart_core.merging.sources import Source
from impart_core.merging.tables import Tables
from impart_core.merging.tokens import Tokens, told_tokens

Own = Mapping[str, list[int]]  # by model: for each row of the merged model its own row, or LACKING


def token_rows(
    asked: Tokenizer,
    merged: Tokens,
    tokens: Mapping[str, Tokens],
    tables: Tables,
    sources: Mapping[ModelReference, Source],
    base: Source | None,
) -> tuple[TokenRows, list[str]]:
    """Return which rows of the models are the merged model's, and sentences on tokens that not all models have.

    A token that a model lacks has the row that the file says; else the base's; else the mean of those that have it.

    Args:
        asked: what the file says.
        merged: the merged model's tokens.
        tokens: those of each model, by what the file calls it.
        tables: how many rows each model has.
        sources: the models.
        base: the base; None where there is none.

    Raises:
        ConfigError: the file names a row that there is not.
    """
    own = {label: _own(merged, one, tables.rows.get(label, 0)) for label, one in tokens.items()}
    rule = _Rule(tokens, tables, sources, base, own)
    fills: dict[str, Fill] = {}
    for token, at in merged.ids.items():
        said = asked.tokens.get(token)
        if all(rows[at] != LACKING for rows in own.values()) and not (said and said.force):
            continue
        fills[token] = Fill(at, rule.givers(token, at, said))
        if said and said.force:
            for rows in own.values():
                rows[at] = LACKING
    multiple = asked.pad_to_multiple_of or 1
    size = -(-merged.size // multiple) * multiple
    padded = {
        label: torch.tensor([*rows, *[LACKING] * (size - len(rows))], dtype=torch.int64) for label, rows in own.items()
    }
    return TokenRows(size, padded, tuple(fills.values())), _notes(fills, asked)


def _own(merged: Tokens, tokens: Tokens, rows: int) -> list[int]:
    own = [LACKING] * merged.size
    for token, at in merged.ids.items():
        row = tokens.ids.get(token, rows)
        if row < rows:
            own[at] = row
    return own


@dataclass(frozen=True)
class _Rule:
    tokens: Mapping[str, Tokens]
    tables: Tables
    sources: Mapping[ModelReference, Source]
    base: Source | None
    own: Own

    def givers(self, token: str, at: int, said: TokenSource | None) -> tuple[tuple[str, int], ...]:
        """Return the rows that are the mean of what models take that lack a token."""
        having = tuple((label, rows[at]) for label, rows in self.own.items() if rows[at] != LACKING)
        if said is not None and said.source is not None:
            return self._said(token, at, said)
        if said is not None and not having:
            raise ConfigError(
                f"tokenizer.tokens: none of the models has {token!r}. Say where its row comes from: source, which is "
                "{kind: zero}, or {kind: model_token, model: …, token: …}."
            )
        return tuple(one for one in having if self.base and one[0] == self.base.label) or having

    def _said(self, token: str, at: int, said: TokenSource) -> tuple[tuple[str, int], ...]:
        source = said.source
        if source is None or isinstance(source, ZeroRow):
            return ()
        if isinstance(source, ModelReference):
            label = self.sources[source].label
            row = self.own[label][at]
            wanted = repr(token)
        else:
            label = self.sources[source.model].label
            row = self._row_of(label, source)
            wanted = repr(source.token) if source.token is not None else f"the id {source.token_id}"
        if row == LACKING:
            raise ConfigError(f"tokenizer.tokens.{token} is to have the row of {wanted} in {label}, which has no such.")
        return ((label, row),)

    def _row_of(self, label: str, source: ModelToken) -> int:
        at = source.token_id if source.token is None else self.tokens[label].ids.get(source.token, LACKING)
        return at if at is not None and at < self.tables.rows.get(label, 0) else LACKING


def _notes(fills: Mapping[str, Fill], asked: Tokenizer) -> list[str]:
    """Tell of tokens that not all models have, and of which the file says nothing."""
    given = {
        token: len(fill.givers)
        for token, fill in fills.items()
        if token not in asked.tokens or asked.tokens[token].source is None
    }
    kinds = {
        "No model has a row for these tokens, which becomes zero": [token for token, n in given.items() if n == 0],
        "Models that lack these tokens take another one's row": [token for token, n in given.items() if n == 1],
        "Models that lack these tokens take the mean of the others": [token for token, n in given.items() if n > 1],
    }
    return [f"{what}: {told_tokens(those)}." for what, those in kinds.items() if those]
