"""The merge file: what mergekit's users have is read unchanged, and every mistake is a sentence."""

from pathlib import Path

import pytest

from impart_core.base.errors import ConfigError, ImpartError
from impart_core.merging.file import ModelReference, Tokenizer, merge_of, parse_merge, read_merge_file
from tests.odd_values import tracebacks

TIES = """
models:
  - model: psmathur/orca_mini_v3_13b
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: WizardLM/WizardMath-13B-V1.0@main+some/lora
    parameters:
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: TheBloke/Llama-2-13B-fp16
parameters: {normalize: true, int8_mask: true}
dtype: float16
"""
SLICES = """
slices:
  - sources:
      - {model: psmathur/orca_mini_v3_13b, layer_range: [0, 40]}
      - {model: garage-bAInd/Platypus2-13B, layer_range: [0, 40]}
merge_method: slerp
base_model: psmathur/orca_mini_v3_13b
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 1]}, {value: 0.5}]
tokenizer: {source: union, tokens: {"<|im_start|>": {source: {kind: zero}, force: true}}}
"""


def test_models_revisions_and_adapters_are_told_apart() -> None:
    (merge,) = parse_merge(TIES)
    assert [str(one) for one in merge.references()] == [
        "psmathur/orca_mini_v3_13b",
        "WizardLM/WizardMath-13B-V1.0@main+some/lora",
    ]
    assert merge.references()[1] == ModelReference(place="WizardLM/WizardMath-13B-V1.0@main", adapter="some/lora")
    written = {"model": {"path": "a/b", "revision": "r"}, "lora": {"path": "c/d"}}
    assert ModelReference.model_validate(written) == ModelReference(place="a/b@r", adapter="c/d")


def test_a_folder_with_a_plus_in_its_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a+b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelReference.model_validate("a+b") == ModelReference(place=str(tmp_path / "a+b"))


def test_slices_and_tokenizer_are_read() -> None:
    (merge,) = parse_merge(SLICES)
    assert merge.slices[0].sources[1].layer_range == (0, 40)
    assert merge.vocabulary is not None
    assert merge.vocabulary.tokens["<|im_start|>"].force
    (short,) = parse_merge(SLICES.partition("tokenizer:")[0] + "tokenizer_source: base")
    assert short.vocabulary == Tokenizer(source="base")


def test_documents_are_stages() -> None:
    first, second = parse_merge("name: a\n" + TIES + "\n---\n" + TIES.replace("psmathur/orca_mini_v3_13b", "a"))
    assert (first.name, second.references()[0].place) == ("a", "a")


def test_a_file_that_is_written_reads_the_same() -> None:
    (merge,) = parse_merge(TIES)
    assert type(merge)(**merge.model_dump(mode="json", exclude_defaults=True)) == merge


def test_the_own_block_speaks_of_all_models_or_of_one() -> None:
    own = "impart: {sparsify: {method: dare, cr: 4}, models: {a/b: {sparsify: null}, c/d: {ref: math@prod}}}"
    (merge,) = parse_merge(f"merge_method: linear\nmodels: [{{model: a/b}}, {{model: c/d}}, {{model: e/f}}]\n{own}")
    methods = [merge.own_of(model).sparsify for model in merge.references()]
    assert [method and method.method for method in methods] == [None, "dare", "dare"]
    assert merge.own_of(merge.references()[1]).ref == "math@prod"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("- a", "merge_method and models"),
        ("merge_method: [a", "no YAML"),
        ("merge_method: ties", "xactly one of models, slices and modules"),
        ("merge_method: ties\nmodels: [{model: a}]\nmerge_method: linear", "'merge_method' is given twice"),
        ("merge_method: ties\nmodels: [{model: a}]\nbase_modle: b", "Did you mean 'base_model'"),
        ("merge_method: ties\nmodels: [{model: a, paramters: {}}]", "Did you mean 'parameters'"),
        ("merge_method: ties\nmodels: [{model: a}]\ndtype: fp16", "must be 'float32'"),
        ("merge_method: ties\nmodels: [{model: a}]\nimpart: {sparsify: {method: impar, cr: 3}}", "mean 'impart'"),
        ("merge_method: ties\nmodels: [{model: a}]\nimpart: {sparsfy: null}", "Did you mean 'sparsify'"),
        ("merge_method: ties\nmodels: [{model: 5}]", "models.0.model"),
        ("merge_method: ties\nmodels: [{model: a}]\n? [a]\n: 3", "no YAML"),
        ("merge_method: ties\nmodels: [{model: a, parameters: {weight: 2020-99-99}}]", "no YAML"),
        ("merge_method: ties\nmodels: [{model: a}]\ntokenizer: {pad_to_multiple_of: 1000000000000}", "pad_to"),
        ("merge_method: ties\nslices: [{sources: [{model: a, layer_range: [3, 1]}]}]", "the one after the last"),
        (
            "merge_method: ties\nslices: [{sources: [{model: a, layer_range: [0, 1]}, "
            "{model: b, layer_range: [0, 2]}]}]",
            "same number of layers",
        ),
        ("merge_method: a\nmodels: [{model: a}]\ntokenizer_source: base\ntokenizer: {source: union}", "one of them"),
    ],
)
def test_mistakes_are_sentences(text: str, told: str) -> None:
    with pytest.raises(ImpartError, match=told):
        parse_merge(text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        read_merge_file(tmp_path / "none.yaml")


def test_whatever_is_written_in_a_merge_file_gives_a_sentence() -> None:
    own = {"sparsify": {"cr": 4}, "models": {"a": {"sparsify": None}}, "compress": {"cr": 4}, "seed": 0}
    shared = {"merge_method": "ties", "base_model": "b", "parameters": {"lambda": [0, 1]}, "impart": own}
    tokens = {"source": "union", "tokens": {"x": {"source": "a", "force": True}}, "pad_to_multiple_of": 8}
    model = {"model": {"model": "a", "lora": "l"}, "parameters": {"density": [{"filter": "mlp", "value": 1}]}}
    for document in (
        {**shared, "models": [{"model": "a"}], "tokenizer": tokens, "chat_template": "auto", "dtype": "float32"},
        {"merge_method": "linear", "slices": [{"sources": [{**model, "layer_range": [0, 1]}]}]},
        {"merge_method": "linear", "modules": {"m": {"models": [model]}}, "tokenizer_source": "union"},
    ):
        merge_of(document)
        assert tracebacks(document, merge_of) == []
