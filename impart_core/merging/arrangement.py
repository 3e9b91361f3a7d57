"""The tokenizer that a merge asks for, and what it makes of the models' tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from impart_core.base.errors import ConfigError, MismatchError
from impart_core.base.settings import nearest
from impart_core.checkpoint.source import SourceFile
from impart_core.checkpoint.tokenizer import tokens_digest
from impart_core.merging.file import ModelReference, ModelToken, Tokenizer
from impart_core.merging.filling import token_rows
from impart_core.merging.rows import TokenRows
from impart_core.merging.sources import Source
from impart_core.merging.tables import Tables
from impart_core.merging.tokens import Tokens, counted_tokens, extended, read_tokens, told_tokens

_UNION = "union"


@dataclass(frozen=True)
class Arrangement:
    """The tokens that a merge asks for.

    Attributes:
        source: the model whose tokenizer the merged model's is, or is made of.
        files: hold the tokenizer's files.
        rows: how rows are arranged; None where they stay as they are.
        renamed: new ids of the donor's tokens, by those that they have no longer; None where a token is gone.
        notes: sentences that whoever asked should know.
    """

    source: Source
    files: Mapping[str, SourceFile] = field(repr=False)
    rows: TokenRows | None
    renamed: Mapping[int, int | None] = field(repr=False)
    notes: tuple[str, ...]


def arranged(
    asked: Tokenizer,
    base: ModelReference | None,
    sources: Mapping[ModelReference, Source],
    tables: Tables,
    donor: Source,
) -> Arrangement:
    """Return the tokens that a merge asks for; reads tokenizers alone.

    Args:
        asked: what the file says.
        base: the base that the file names.
        sources: every model of the merge.
        tables: the tensors that have a row for each token.
        donor: the base, or else the first model.

    Raises:
        ConfigError: the tokenizer that is asked for cannot be made.
        MismatchError: it cannot be told which rows are those of which tokens.
    """
    if donor.label not in tables.rows:
        raise MismatchError(
            f"{donor.checkpoint.location} has no embedding with a row for each token, so that there is nothing to "
            "choose a tokenizer for. Leave out tokenizer and tokenizer_source."
        )
    _check_models(asked, sources)
    source = donor if isinstance(asked.source, str) else sources[asked.source]
    if _is_as_it_is(asked, sources, tables):
        return Arrangement(source, source.checkpoint.carried, None, {}, ())
    tokens, notes = _tokens(list(sources.values()), donor, tables)
    merged, files = tokens[source.label], source.checkpoint.carried
    added, told = _added(asked, source, tokens, tables)
    if added:
        merged, files = extended(source.checkpoint, added)
    rows, filled = token_rows(asked, merged, tokens, tables, sources, sources[base] if base else None)
    unchanged = all(
        number == rows.size and rows.own[label].tolist() == list(range(number)) for label, number in tables.rows.items()
    )
    renamed = {
        at: merged.ids.get(token) for token, at in tokens[donor.label].ids.items() if merged.ids.get(token) != at
    }
    notes += [*told, *filled, *_lost(merged, tokens), *_spare(rows.size, merged, tokens, tables)]
    return Arrangement(source, files, None if unchanged else rows, renamed, tuple(notes))


def _check_models(asked: Tokenizer, sources: Mapping[ModelReference, Source]) -> None:
    named = {"tokenizer_source": asked.source} if isinstance(asked.source, ModelReference) else {}
    for token, one in asked.tokens.items():
        model = one.source.model if isinstance(one.source, ModelToken) else one.source
        if isinstance(model, ModelReference):
            named[f"tokenizer.tokens.{token}"] = model
    known = [str(reference) for reference in sources]
    for where, model in named.items():
        if model not in sources:
            raise ConfigError(
                f"{where} names {model}, which is none of the models.{nearest(str(model), [*known, 'base', _UNION])} "
                f"They are {', '.join(known)}."
            )


def _is_as_it_is(asked: Tokenizer, sources: Mapping[ModelReference, Source], tables: Tables) -> bool:
    """Whether all models have one tokenizer, and rows for its tokens alone; no tokenizer is loaded to tell."""
    digests = {tokens_digest(source.checkpoint) for source in sources.values()}
    numbers = set(tables.rows.values())
    if asked.tokens or len(digests) > 1 or None in digests or len(numbers) > 1:
        return False
    (number,) = numbers
    if number % (asked.pad_to_multiple_of or 1):
        return False
    return counted_tokens(next(iter(sources.values())).checkpoint) == number


def _tokens(sources: list[Source], donor: Source, tables: Tables) -> tuple[dict[str, Tokens], list[str]]:
    """Return the tokens of every model; one that has no tokenizer has the donor's, where it has as many rows."""
    found = read_tokens(sources)
    if donor.label not in found:
        raise MismatchError(
            f"{donor.label} has no tokenizer files, and the merged model's tokenizer is made of them. Put them beside "
            "its weights, or leave out tokenizer and tokenizer_source."
        )
    without = [source.label for source in sources if source.label not in found]
    for label in without:
        if tables.rows.get(label) != tables.rows[donor.label]:
            raise MismatchError(
                f"{label} has no tokenizer files, and {tables.rows.get(label, 0)} rows in its embedding where "
                f"{donor.label} has {tables.rows[donor.label]}: it cannot be told which row is which token's. Put its "
                "tokenizer's files beside its weights."
            )
        found[label] = found[donor.label]
    told = f"{', '.join(without)}: no tokenizer files. Their tokens are taken to be those of {donor.label}."
    return {source.label: found[source.label] for source in sources}, [told] if without else []


def _added(
    asked: Tokenizer, source: Source, tokens: Mapping[str, Tokens], tables: Tables
) -> tuple[list[Any], list[str]]:
    """Return what is added to the source's tokenizer: tokens that were trained first, then those that were added."""
    ours = tokens[source.label]
    trained: dict[str, str] = {}
    settings: dict[str, Any] = dict(ours.added)
    otherwise: list[str] = []
    if asked.source == _UNION:
        for label, one in tokens.items():
            for token, at in one.ids.items():
                if at >= tables.rows.get(label, 0):
                    continue  # it has no row
                info = one.added.get(token)
                if info is None:
                    trained.setdefault(token, token)
                elif str(settings.setdefault(token, info)) != str(info):
                    otherwise.append(token)
    for token in asked.tokens:
        info = next((one.added[token] for one in tokens.values() if token in one.added), None)
        if token not in ours.ids and info is not None:
            settings.setdefault(token, info)
        trained.setdefault(token, token)
    new = [token for token in trained if token not in ours.ids and token not in settings]
    notes = []
    if otherwise:
        told = told_tokens(list(dict.fromkeys(otherwise)))
        notes.append(f"Added with different settings in the models, of which the first are taken: {told}.")
    grown = [token for token in new if token not in asked.tokens]
    if grown:
        notes.append(f"{len(grown)} tokens are added as whole pieces of text, which they are not in their models.")
    return [*new, *(info for token, info in settings.items() if token not in ours.added)], notes


def _lost(merged: Tokens, tokens: Mapping[str, Tokens]) -> list[str]:
    lost = {label: [token for token in one.ids if token not in merged.ids] for label, one in tokens.items()}
    return [
        f"{label}: {len(those)} tokens are not the merged tokenizer's, and left out: {told_tokens(those)}."
        for label, those in lost.items()
        if those
    ]


def _spare(size: int, merged: Tokens, tokens: Mapping[str, Tokens], tables: Tables) -> list[str]:
    """Tell of rows that are no token's: those of the models are left out, those of the merged model are means."""
    notes = []
    spare = {label: number - tokens[label].size for label, number in tables.rows.items()}
    dropped = ", ".join(f"{number} of {label}" for label, number in spare.items() if number > 0)
    if dropped:
        notes.append(f"Rows after the last token are left out: {dropped}.")
    if size > len(merged.ids):
        notes.append(f"{size - len(merged.ids)} rows of the merged embedding are no token's: the mean of all others.")
    return notes
