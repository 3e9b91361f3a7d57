"""Rows of tokens: whose they are, against the rule written out token by token."""

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from impart_core.checkpoint.index import Checkpoint
from impart_core.merging.file import ModelReference, Tokenizer
from impart_core.merging.filling import token_rows
from impart_core.merging.rows import TokenRows
from impart_core.merging.sources import Source
from impart_core.merging.tables import Tables
from impart_core.merging.tokens import Tokens

WIDTH = 3
Ids = Mapping[str, Mapping[str, int]]


def arranged(ids: Ids, merged: Mapping[str, int], base: str | None, **asked: Any) -> TokenRows:
    """Return how rows are arranged that are as many as each model has tokens."""
    sources = {ModelReference(place=name): Source(name, Checkpoint(name, {}, {}, {}, 0)) for name in ids}
    rows, _ = token_rows(
        Tokenizer(source="base", **asked),
        Tokens(merged, {}),
        {name: Tokens(own, {}) for name, own in ids.items()},
        Tables(frozenset(), {name: len(own) for name, own in ids.items()}),
        sources,
        sources[ModelReference(place=base)] if base else None,
    )
    return rows


def wanted(
    ids: Ids, merged: Mapping[str, int], base: str | None, asked: Mapping[str, Any], values: Any, of: str
) -> Any:
    """Return a model's rows as mergekit arranges them."""
    rows = torch.zeros(len(merged), WIDTH, dtype=torch.float64)
    for token, at in merged.items():
        said = asked.get(token, {"source": None, "force": False})
        having = [values[model][own[token]].double() for model, own in ids.items() if token in own]
        if token in ids[of] and not said["force"]:
            rows[at] = values[of][ids[of][token]]
        elif said["source"] == {"kind": "zero"}:
            pass
        elif isinstance(said["source"], str):
            rows[at] = values[said["source"]][ids[said["source"]][token]]
        elif said["source"]:
            rows[at] = values[said["source"]["model"]][said["source"]["token_id"]]
        elif base and token in ids[base]:
            rows[at] = values[base][ids[base][token]]
        else:
            rows[at] = torch.stack(having).mean(0)
    return rows


@pytest.mark.parametrize("seed", range(30))
def test_rows_are_those_that_the_rule_gives(seed: int) -> None:
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    names = ["base", "a", "b"][: draw.choice([2, 3])]
    ids = {}
    for name in names:
        own = draw.sample(range(12), draw.randint(4, 12))
        ids[name] = {f"t{token}": at for at, token in enumerate(own)}
    known = sorted({token for own in ids.values() for token in own})
    draw.shuffle(known)
    merged, base = {token: at for at, token in enumerate(known)}, draw.choice(["base", None])
    asked: dict[str, dict[str, Any]] = {}
    for token in draw.sample(known, 3):
        giver = draw.choice(names)
        kinds: list[Any] = [
            {"kind": "zero"},
            next(name for name in names if token in ids[name]),
            {"kind": "model_token", "model": giver, "token_id": draw.randrange(len(ids[giver]))},
            None,
        ]
        asked[token] = {"source": draw.choice(kinds), "force": draw.random() < 0.5}
    values = {name: torch.randn(len(own), WIDTH, generator=generator) for name, own in ids.items()}
    rows = arranged(ids, merged, base, tokens=asked, pad_to_multiple_of=4)
    of = draw.sample(names, draw.randint(1, len(names)))
    found = rows.arranged({name: values[name].clone() for name in names if name in rows.givers(of)}, of)
    assert list(found) == of
    for name, tensor in found.items():
        expected = wanted(ids, merged, base, asked, values, name)
        torch.testing.assert_close(tensor[: len(merged)], expected.float())
        assert tensor.shape[0] % 4 == 0
        torch.testing.assert_close(
            tensor[len(merged) :], expected.mean(0).float().expand(tensor.shape[0] - len(merged), WIDTH)
        )


def test_rows_between_tokens_that_are_no_tokens_are_the_mean_of_all_others() -> None:
    rows = arranged({"a": {"x": 0, "y": 1}}, {"x": 0, "y": 3}, None)
    found = rows.arranged({"a": torch.tensor([1.0, 5.0])}, ["a"])["a"]
    assert found.tolist() == [1, 3, 3, 5]


def test_models_that_give_nothing_are_not_read() -> None:
    rows = arranged({"a": {"x": 0}, "b": {"x": 0, "y": 1}, "c": {"x": 1, "y": 0}}, {"x": 0, "y": 1}, "b")
    assert rows.givers(["b"]) == {"b"}
    assert rows.givers(["a"]) == {"a", "b"}
