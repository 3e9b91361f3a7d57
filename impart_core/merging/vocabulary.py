"""The tokens of a merged model: its tokenizer, and which rows of the models' embeddings and heads belong to them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from impart_core.base.errors import MismatchError
from impart_core.checkpoint.source import SourceFile
from impart_core.checkpoint.tokenizer import is_of_tokenizer, tokens_digest
from impart_core.merging.alignment import Alignment
from impart_core.merging.arrangement import Arrangement, arranged
from impart_core.merging.chat import chosen_template, in_memory, with_template
from impart_core.merging.file import MergeFile, ModelReference
from impart_core.merging.rows import TokenRows
from impart_core.merging.sources import Source
from impart_core.merging.tables import Tables, find_tables
from impart_core.merging.token_ids import renumbered, require_one_vocabulary, resized
from impart_core.merging.tokens import Tokens, read_tokens, told_tokens

_GENERATION = "generation_config.json"
_ADVICE = (
    "Say which tokens the merged model is to have: tokenizer_source: base, or union, or the place of one of the models."
)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a merged model.

    Attributes:
        tables: names of the donor's tensors that have a row for each token.
        rows: how these are arranged; None where they stay as they are.
        files: what lies beside the weights.
        config: the model's configuration, but for its layers and dtype.
        notes: sentences that whoever asked should know.
    """

    tables: frozenset[str]
    rows: TokenRows | None
    files: Mapping[str, SourceFile] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...]


def merged_vocabulary(
    file: MergeFile, sources: Mapping[ModelReference, Source], donor: Source, alignment: Alignment
) -> Vocabulary:
    """Return the tokens of a merged model; reads tokenizers and headers alone.

    Where all models have the same tokenizer's file, no tokenizer is loaded unless its tokens change.

    Args:
        file: what is merged how.
        sources: every model of the file.
        donor: the model that gives the configuration, and the tokenizer where no other is asked for.
        alignment: which tensors belong together.

    Raises:
        ConfigError: the tokenizer or the chat template that the file asks for cannot be made.
        MismatchError: the models have different tokens and the file does not say which the merged model has; or it
            cannot be told which rows are those of which tokens.
    """
    template = chosen_template(file, sources)
    tables = find_tables(sources, donor, alignment)
    if file.vocabulary is None:
        notes = _require_shared(list(sources.values()), donor, tables)
        made = Vocabulary(tables.names, None, donor.checkpoint.carried, donor.checkpoint.config, notes)
    else:
        made = _with_files(arranged(file.vocabulary, file.base_model, sources, tables, donor), donor, tables)
    return made if template is None else replace(made, files=with_template(made.files, template))


def _with_files(arrangement: Arrangement, donor: Source, tables: Tables) -> Vocabulary:
    """Return the vocabulary of an arrangement: files and configuration are the donor's, but for what is of tokens."""
    checkpoint, source = donor.checkpoint, arrangement.source.checkpoint
    files = {name: file for name, file in checkpoint.carried.items() if not is_of_tokenizer(name)}
    files |= {name: file for name, file in arrangement.files.items() if is_of_tokenizer(name)}
    config: Mapping[str, Any] = checkpoint.config
    if arrangement.rows is not None:
        require_one_vocabulary(config, checkpoint.location)
        config = resized(config, tables.rows[donor.label], arrangement.rows.size)
    if arrangement.renamed:
        config = renumbered(config, arrangement.renamed, source.config)
        if _GENERATION in files:
            before, theirs = _json(files[_GENERATION]), source.carried.get(_GENERATION)
            after = renumbered(before, arrangement.renamed, _json(theirs) if theirs else {})
            files[_GENERATION] = in_memory(_GENERATION, (json.dumps(after, indent=2, sort_keys=True) + "\n").encode())
    return Vocabulary(tables.names, arrangement.rows, dict(sorted(files.items())), config, arrangement.notes)


def _json(file: SourceFile) -> dict[str, Any]:
    try:
        found = json.loads(bytes(file.read(0, file.size)))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _require_shared(sources: list[Source], donor: Source, tables: Tables) -> tuple[str, ...]:
    """Refuse models that have different tokens, where no tokenizer is asked for; return what is to be told else."""
    digests = {source.label: tokens_digest(source.checkpoint) for source in sources}
    without = [label for label, digest in digests.items() if digest is None]
    known = {digest for digest in digests.values() if digest is not None}
    rows = tables.rows
    sized = len(set(rows.values())) <= 1
    lines = [] if (len(known) <= 1 and sized) or not known else _differing(sources, donor, tables)
    if lines:
        raise MismatchError(f"The models have different tokens:\n{_list(lines)}\n{_ADVICE}")
    if not sized:
        told = _list([f"{label} has {number} rows" for label, number in rows.items()])
        if without:
            raise MismatchError(
                f"The models' embeddings have different numbers of rows, and {', '.join(without)} no tokenizer that "
                f"would say which row is which token's:\n{told}\nPut the tokenizers' files beside the weights, and say "
                "tokenizer_source: base, or union, or the place of one of the models."
            )
        raise MismatchError(
            f"The models have the same tokens, and embeddings that differ in rows after the last of them:\n{told}\n"
            "Say tokenizer_source: base, which leaves such rows out; with tokenizer: {source: base, "
            "pad_to_multiple_of: 64} there are new ones."
        )
    if without and known:
        told = f"{', '.join(without)}: no tokenizer files. Their rows are taken to be of the others' tokens."
        return (told,)
    return ()


def _differing(sources: list[Source], donor: Source, tables: Tables) -> list[str]:
    """Say which tokens of models are other ones than the donor's, or have other ids; those without a row aside."""
    tokens = {
        label: Tokens({token: at for token, at in one.ids.items() if at < tables.rows.get(label, one.size)}, one.added)
        for label, one in read_tokens(sources).items()
    }
    first = donor.label if donor.label in tokens else next(iter(tokens))
    lines = []
    for label, one in tokens.items():
        ours = tokens[first].ids
        lacking = [token for token in ours if token not in one.ids]
        more = [token for token in one.ids if token not in ours]
        moved = [token for token, at in one.ids.items() if ours.get(token, at) != at]
        told = [
            *([f"lacks {told_tokens(lacking)}"] if lacking else []),
            *([f"has {told_tokens(more)} besides"] if more else []),
            *([f"has other ids for {told_tokens(moved)}"] if moved else []),
        ]
        if told:
            lines.append(f"{label}, held against {first}, {', and '.join(told)}")
    return lines


def _list(lines: list[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)
