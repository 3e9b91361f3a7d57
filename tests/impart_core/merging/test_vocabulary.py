"""Merges of models with other tokens, or other ids: held against merging by hand with transformers."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import impart_core as impart
from impart_core.base.errors import ConfigError, MismatchError
from impart_core.merging.file import merge_of
from impart_core.merging.merged import Merge
from impart_core.merging.methods import MERGE_METHODS
from impart_core.merging.planning import plan_merge
from tests.impart_core.merging.conftest import CPU, sources_of
from tests.impart_core.merging.speakers import KINDS, TEXT, Kind, content, logits, saved, turned, wrapped, written

TOOL = AddedToken("<tool>", special=True, lstrip=True)
SMILE = AddedToken("<smile>", special=False, rstrip=True, normalized=False)
WEIGHT = 0.6


def plan(base: Path | None, *models: Path, method: str = "task_arithmetic", **keys: Any) -> Merge:
    """Plan a merge with half of what each model adds."""
    file = {
        "merge_method": method,
        "models": [{"model": str(model), "parameters": {"weight": WEIGHT}} for model in models],
        **({"base_model": str(base)} if base else {}),
        **keys,
    }
    merge = merge_of(file)
    return plan_merge(merge, sources_of(merge), CPU)


def by_hand(
    base: PreTrainedModel, models: list[tuple[PreTrainedModel, torch.Tensor]], of_base: torch.Tensor
) -> PreTrainedModel:
    """Merge models whose rows are picked first: base + Σ w·(model − base), with transformers' own resizing."""
    rows = base.get_input_embeddings().weight.shape[0]

    def picked(model: PreTrainedModel, index: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: value[index] if value.shape[:1] == (rows,) else value[:, index] if value.shape == (1, rows) else value
            for name, value in model.state_dict().items()
            if value.is_floating_point()
        }

    start = picked(base, of_base)
    merged = {
        name: value + sum(WEIGHT * (picked(model, index)[name] - value) for model, index in models)
        for name, value in start.items()
    }
    config = base.config.__class__.from_dict({**base.config.to_dict(), "vocab_size": len(of_base)})
    made = type(base)(config)
    made.load_state_dict(merged, strict=False)
    return made.eval()


def row_index(of: PreTrainedTokenizerFast, merged: PreTrainedTokenizerFast) -> torch.Tensor:
    """Return the row of each of the merged tokens in a model's embedding."""
    ids = of.get_vocab()
    return torch.tensor([ids[token] for token, _ in sorted(merged.get_vocab().items(), key=lambda one: one[1])])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_same_tokens_with_other_ids_give_what_merging_by_hand_does(kind: Kind, tmp_path: Path) -> None:
    trained = kind.trained()
    ours, theirs = wrapped(trained), wrapped(turned(trained))
    base, tuned = kind.made(len(ours), 1), kind.made(len(ours), 2)
    places = saved(tmp_path / "base", base, ours), saved(tmp_path / "tuned", tuned, theirs)
    assert ours(TEXT)["input_ids"] != theirs(TEXT)["input_ids"]
    found = {}
    for source, wanted in (("base", ours), (str(places[1]), theirs)):
        out = written(tmp_path / f"out-{wanted is ours}", plan(*places, tokenizer_source=source))
        merged = getattr(transformers, kind.model).from_pretrained(out)
        again = AutoTokenizer.from_pretrained(out)
        assert again(TEXT)["input_ids"] == wanted(TEXT)["input_ids"]
        expected = by_hand(base, [(tuned, row_index(theirs, wanted))], row_index(ours, wanted))
        expected.config.decoder_start_token_id = wanted.eos_token_id  # an encoder-decoder begins with it
        ids = wanted(TEXT)["input_ids"]
        torch.testing.assert_close(logits(merged, ids), logits(expected, ids))
        found[source] = logits(merged, ids)[:, row_index(wanted, ours)]
    torch.testing.assert_close(*found.values())


@pytest.fixture(scope="session")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, and two fine-tunes with the same tokens at other ids, as they are and with their rows put in order."""
    root, kind = tmp_path_factory.mktemp("permuted"), KINDS["llama"]
    trained = kind.trained()
    ours, theirs = wrapped(trained), wrapped(turned(trained))
    places = {"base": saved(root / "base", kind.made(len(ours), 0), ours)}
    for seed, name in enumerate("ab", 1):
        model = kind.made(len(ours), seed)
        places[name] = saved(root / name, model, theirs)
        index = row_index(theirs, ours)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight.data = layer.weight.data[index].clone()
        places[f"{name} in order"] = saved(root / f"{name} in order", model, ours)
    return places


@pytest.mark.parametrize("name", list(MERGE_METHODS))
def test_every_method_merges_tokens_with_tokens(name: str, permuted: dict[str, Path]) -> None:
    method = MERGE_METHODS.get(name)
    number = min(method.models[1] or 2, 2) - (method.base == "among")
    given = {option: 0.5 for option, one in method.options.items() if one.required}

    def tensors(models: list[str], **keys: Any) -> dict[str, torch.Tensor]:
        file = {
            "merge_method": name,
            "models": [{"model": str(permuted[model]), "parameters": {}} for model in models],
            "base_model": str(permuted["base"]),
            "parameters": given,
            **keys,
        }
        merge = merge_of(file)
        planned = plan_merge(merge, sources_of(merge), CPU)
        assert (planned.vocabulary.rows is not None) == bool(keys)
        return {tensor: planned.compute(tensor) for tensor in planned.tensors}

    found = tensors(["a", "b"][:number], tokenizer_source="base")
    expected = tensors(["a in order", "b in order"][:number])
    assert {tensor for tensor in found if not torch.equal(found[tensor], expected[tensor])} == set()


@pytest.fixture
def grown(tmp_path: Path) -> dict[str, Path]:
    """A base, and two fine-tunes with a token more each that have the same id."""
    trained = KINDS["llama"].trained()
    plain = wrapped(trained, chat_template="{{ 'base' }}")
    tool = wrapped(trained, [TOOL], chat_template="{{ 'tool' }}")
    smile = wrapped(trained, [SMILE], chat_template="{{ 'tool' }}")
    return {
        name: saved(tmp_path / name, KINDS["llama"].made(len(tokenizer), seed), tokenizer)
        for seed, (name, tokenizer) in enumerate({"base": plain, "tool": tool, "smile": smile}.items())
    }


def embedding(place: Path | Merge, token: str) -> torch.Tensor:
    """Return the row of a token in a model's embedding."""
    if isinstance(place, Merge):
        tokenizer = json.loads(content(place.checkpoint().carried["tokenizer.json"]))
        ids = {**tokenizer["model"]["vocab"], **{one["content"]: one["id"] for one in tokenizer["added_tokens"]}}
        return place.compute("model.embed_tokens.weight")[ids[token]]
    model = transformers.LlamaForCausalLM.from_pretrained(place)
    row: torch.Tensor = model.get_input_embeddings().weight[AutoTokenizer.from_pretrained(place).get_vocab()[token]]
    return row.detach()


def test_a_union_has_every_token_with_its_settings_and_rows(grown: dict[str, Path], tmp_path: Path) -> None:
    merge = plan(*grown.values(), tokenizer_source="union")
    out = written(tmp_path / "out", merge)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ours = AutoTokenizer.from_pretrained(grown["base"])
    assert list(tokenizer.get_vocab().items() - ours.get_vocab().items()) != []
    assert {one.content: str(one) for one in tokenizer.added_tokens_decoder.values()} == {
        **{one.content: str(one) for one in ours.added_tokens_decoder.values()},
        "<tool>": str(TOOL),
        "<smile>": str(SMILE),
    }
    text = f"{TEXT} <tool>{TEXT}"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == (
        (theirs := AutoTokenizer.from_pretrained(grown["tool"])).convert_ids_to_tokens(theirs(text)["input_ids"])
    )
    model = transformers.LlamaForCausalLM.from_pretrained(out)
    assert model.config.vocab_size == len(tokenizer) == len(ours) + 2
    # The base and the other model take the row of the only one that has it: nothing is added to it.
    for name in ("tool", "smile"):
        torch.testing.assert_close(embedding(merge, f"<{name}>"), embedding(grown[name], f"<{name}>"))
    assert any("take another one's row: '<tool>', '<smile>'" in note for note in merge.notes)


def test_tokens_that_the_merged_model_lacks_are_told(grown: dict[str, Path]) -> None:
    merge = plan(*grown.values(), tokenizer_source="base")
    assert [note for note in merge.notes if "left out" in note] == [
        "tool: 1 tokens are not the merged tokenizer's, and left out: '<tool>'.",
        "smile: 1 tokens are not the merged tokenizer's, and left out: '<smile>'.",
    ]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert content(merge.checkpoint().carried[name]) == (grown["base"] / name).read_bytes()


def test_rows_come_from_where_the_file_says(grown: dict[str, Path]) -> None:
    tool = str(grown["tool"])
    tokens = {
        "<new>": {"source": {"kind": "zero"}},
        "<copy>": {"source": {"kind": "model_token", "model": tool, "token": "<tool>"}},
        "<third>": {"source": {"kind": "model_token", "model": tool, "token_id": 3}},
        "</s>": {"source": tool, "force": True},
    }
    merge = plan(*grown.values(), tokenizer={"source": "base", "tokens": tokens, "pad_to_multiple_of": 32})
    embedded = merge.compute("model.embed_tokens.weight")
    assert embedded.shape[0] % 32 == 0
    assert merge.checkpoint().config["vocab_size"] == embedded.shape[0]
    assert not embedding(merge, "<new>").any()
    torch.testing.assert_close(embedding(merge, "<copy>"), embedding(grown["tool"], "<tool>"))
    torch.testing.assert_close(embedding(merge, "</s>"), embedding(grown["tool"], "</s>"))
    named = 3 + AutoTokenizer.from_pretrained(grown["base"]).vocab_size  # what follows is no token's
    torch.testing.assert_close(embedded[named], embedded[:named].mean(0))
    torch.testing.assert_close(embedded[-1], embedded[named])
    assert any("are no token's" in note for note in merge.notes)


def test_nothing_is_arranged_where_all_have_the_same_tokens(tmp_path: Path) -> None:
    kind = KINDS["llama"]
    tokenizer = wrapped(kind.trained())
    places = [saved(tmp_path / name, kind.made(len(tokenizer), seed), tokenizer) for seed, name in enumerate("ab")]
    stored = json.loads((places[0] / "tokenizer.json").read_text())
    for place in places:  # no library would load this one, and none is asked to
        broken = {"model": {"vocab": stored["model"]["vocab"]}, "added_tokens": stored["added_tokens"]}
        (place / "tokenizer.json").write_text(json.dumps(broken))
    for keys in ({}, {"tokenizer_source": "base"}, {"tokenizer_source": "union"}):
        merge = plan(*places, **keys)
        assert merge.vocabulary.rows is None
        assert merge.notes == ()


def test_rows_after_the_last_token_are_left_out_and_told(tmp_path: Path) -> None:
    kind = KINDS["gpt2"]
    tokenizer = wrapped(kind.trained())
    rows = {"base": len(tokenizer) + 5, "tuned": len(tokenizer)}
    places = [saved(tmp_path / name, kind.made(number, number), tokenizer) for name, number in rows.items()]
    with pytest.raises(MismatchError, match=r"(?s)the same tokens.*rows after the last.*base has .* rows.*pad_to_mul"):
        plan(*places)
    merge = plan(*places, tokenizer_source="base")
    assert merge.notes == ("Rows after the last token are left out: 5 of base.",)
    model = transformers.GPT2LMHeadModel.from_pretrained(written(tmp_path / "out", merge))
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_ids_in_configurations_follow_their_tokens(tmp_path: Path) -> None:
    kind = KINDS["llama"]
    trained = kind.trained()
    ours, theirs = wrapped(trained), wrapped(turned(trained))
    places = (
        saved(tmp_path / "base", kind.made(len(ours), 1), ours),
        saved(tmp_path / "tuned", kind.made(len(ours), 2), theirs),
    )
    assert (places[0] / "generation_config.json").exists()
    carried = plan(*places, tokenizer_source=str(places[1])).checkpoint().carried
    for name in ("config.json", "generation_config.json"):
        settings = json.loads(content(carried[name]))
        wanted = {"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<unk>"}
        assert {key: theirs.convert_ids_to_tokens(settings[key]) for key in wanted} == wanted


def _differing(root: Path) -> dict[str, Path]:
    """Save models of all kinds of tokens, by what is said of them."""
    kind = KINDS["llama"]
    trained = kind.trained()
    plain, size = wrapped(trained), wrapped(trained).vocab_size
    tokenizers = {
        "base": (size, plain),
        "turned": (size, wrapped(turned(trained))),
        "more": (size + 1, wrapped(trained, ["<more>"])),
        "more, unused": (size, wrapped(trained, ["<more>"])),
        "bare": (size, None),
        "bare and grown": (size + 2, None),
    }
    return {name: saved(root / name, kind.made(rows, 1), tokenizer) for name, (rows, tokenizer) in tokenizers.items()}


@pytest.mark.parametrize(
    ("model", "keys", "told"),
    [
        ("turned", {}, r"other ids for '.*and \d+ more.*tokenizer_source: base, or union"),
        ("more", {}, r"more, held against base, has '<more>' besides.*tokenizer_source: base, or union"),
        ("bare and grown", {}, r"bare and grown no tokenizer.*bare and grown has \d+ rows"),
        ("bare and grown", {"tokenizer_source": "base"}, "bare and grown has no tokenizer files, and .* rows"),
        ("more", {"tokenizer_source": "nowhere"}, "tokenizer_source names nowhere, which is none of the models"),
        ("more", {"tokenizer": {"tokens": {"<x>": {}}}}, "none of the models has '<x>'"),
        ("more", {"tokenizer": {"tokens": {"<x>": {"source": "nowhere"}}}}, "names nowhere"),
        ("more", {"tokenizer": {"tokens": {"<x>": {"source": {"kind": "nought"}}}}}, "kind is 'nought'"),
        ("more", {"tokenizer": {"tokens": {"<x>": {"source": {"kind": "zero", "by": 1}}}}}, "'by'"),
        ("more", {"tokenizer_source": "base", "chat_template": "chatml"}, "'chatml', which is no template"),
        ("more", {"tokenizer_source": "base", "chat_template": "@base"}, "has no chat template"),
        ("more", {"chat_template": "{% for one in messages %}"}, "no template in Jinja: line 1: .*endfor"),
        ("more", {"chat_template": "Hello {name}"}, "says nothing of `messages`"),
        ("more", {"chat_template": "{{ messages | shout }}"}, "line 1: No filter named 'shout'"),
        ("more", {"chat_template": "{% set messages = 1 %}{{ messages }}"}, "says nothing of `messages`"),
    ],
)
def test_what_cannot_be_told_apart_is_refused_by_name(
    model: str, keys: Mapping[str, Any], told: str, tmp_path: Path
) -> None:
    places = _differing(tmp_path)
    keys = {key: str(places["base"]) if value == "@base" else value for key, value in keys.items()}
    with pytest.raises((MismatchError, ConfigError), match=f"(?s){told}"):
        plan(places["base"], places[model], **keys)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"token": "<never>"}, "'<never>' in more, which has no such"),
        ({"token_id": 999}, "the id 999 in more, which has no such"),
        ({"token": "<more>", "token_id": 3}, "either token or token_id"),
    ],
)
def test_rows_that_there_are_not_are_refused(source: Mapping[str, Any], told: str, tmp_path: Path) -> None:
    places = _differing(tmp_path)
    tokens = {"<x>": {"source": {"kind": "model_token", "model": str(places["more"]), **source}}}
    with pytest.raises(ConfigError, match=told):
        plan(places["base"], places["more"], tokenizer={"source": "base", "tokens": tokens})


def test_a_token_without_a_row_is_none_of_its_models(tmp_path: Path) -> None:
    places = _differing(tmp_path)
    unused = places["more, unused"]
    assert plan(places["base"], unused).vocabulary.rows is None
    with pytest.raises(MismatchError, match=r"more, unused, held against more, lacks '<more>'"):
        plan(places["more"], unused)
    for asked, tokens in (("union", {"<more>"}), ("base", set())):
        merge = plan(places["base"], places["more"], unused, tokenizer_source=asked)
        named = json.loads(content(merge.checkpoint().carried["tokenizer.json"]))["added_tokens"]
        assert {one["content"] for one in named} >= tokens
        if tokens:
            torch.testing.assert_close(embedding(merge, "<more>"), embedding(places["more"], "<more>"))


def test_a_token_that_no_model_has_a_row_for_becomes_zero_and_is_told(tmp_path: Path) -> None:
    places = _differing(tmp_path)
    merge = plan(places["more, unused"], places["base"], tokenizer_source="base")
    assert not embedding(merge, "<more>").any()
    assert any("'<more>'" in note and "becomes zero" in note for note in merge.notes)


@pytest.mark.parametrize("keys", [{}, {"tokenizer_source": "union"}])
def test_a_model_without_a_tokenizer_is_told(keys: Mapping[str, Any], tmp_path: Path) -> None:
    places = _differing(tmp_path)
    merge = plan(places["base"], places["bare"], **keys)
    assert [note for note in merge.notes if note.startswith("bare: no tokenizer files.")]


def test_a_tokenizer_that_transformers_cannot_load_is_refused_by_name(tmp_path: Path) -> None:
    places = _differing(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (places["turned"] / name).unlink()
    (places["turned"] / "tokenizer.model").write_bytes(b"a model of SentencePiece")
    with pytest.raises(MismatchError, match=r"The tokenizer of .*turned cannot be loaded: .*save_pretrained"):
        plan(places["base"], places["turned"], tokenizer_source="base")


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("auto", "{{ 'tool' }}"),
        ("{{ messages | length }}", "{{ messages | length }}"),
        ("@base", "{{ 'base' }}"),
        (None, "{{ 'base' }}"),
    ],
)
@pytest.mark.parametrize("tokenizer", [None, "union"])
def test_the_chat_template_is_chosen(
    asked: str | None, wanted: str, tokenizer: str | None, grown: dict[str, Path], tmp_path: Path
) -> None:
    settings = json.loads((grown["base"] / "tokenizer_config.json").read_text())
    (grown["base"] / "chat_template.jinja").unlink()  # as transformers 4 has it
    (grown["base"] / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ 'base' }}"}))
    chosen = str(grown["base"]) if asked == "@base" else asked
    places = list(grown.values())
    if tokenizer is None:  # the models have to have the same tokens
        for name in ("tool", "smile"):
            for file in ("config.json", "model.safetensors", "tokenizer.json"):
                shutil.copy(grown["base"] / file, grown[name] / file)
    merge = plan(*places, tokenizer_source=tokenizer, chat_template=chosen)
    assert AutoTokenizer.from_pretrained(written(tmp_path / "out", merge)).chat_template == wanted


def test_the_same_request_gives_the_same_bytes_wherever_the_models_lie(grown: dict[str, Path], tmp_path: Path) -> None:
    moved = {name: Path(shutil.copytree(place, tmp_path / "moved" / name)) for name, place in grown.items()}
    merges = [
        plan(
            *places.values(),
            tokenizer={"source": "union", "tokens": {"<tool>": {"source": str(places["tool"])}}},
            chat_template=str(places["tool"]),
        )
        for places in (grown, moved)
    ]
    one, other = (merge.checkpoint() for merge in merges)
    assert merges[0].key == merges[1].key
    assert {name: content(file) for name, file in one.carried.items()} == {
        name: content(file) for name, file in other.carried.items()
    }


def test_a_delta_brings_its_own_tokens(grown: dict[str, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    delta = impart.compress(grown["base"], grown["tool"], 2, store=store, workers=1, keep_factors=False)
    with pytest.raises(MismatchError, match=r"'<tool>' besides"):
        impart.merge([delta], base=grown["base"], store=store, out=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    file = {
        "merge_method": "task_arithmetic",
        "base_model": str(grown["base"]),
        "models": [{"model": delta.id, "parameters": {"weight": 1.0}}],
        "tokenizer_source": "union",
    }
    impart.merge(file, store=store, out=tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<tool>") > 0
    torch.testing.assert_close(embedding(tmp_path / "out", "<tool>"), embedding(grown["tool"], "<tool>"))
    of_delta = {key: value for key, value in file.items() if key != "tokenizer_source"} | {"tokenizer_source": delta.id}
    impart.merge(of_delta, store=store, out=tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").convert_tokens_to_ids("<tool>") > 0
