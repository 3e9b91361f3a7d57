"""A merged model against float64, and what it is as a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from impart_core import tinyzoo
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import ConfigError, MismatchError, UnknownNameError
from impart_core.checkpoint import reader
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.writer import folder_of
from impart_core.merging import blocks
from impart_core.merging.merged import Merge
from impart_core.merging.methods import MERGE_METHODS
from impart_core.merging.sources import delta_source
from tests.impart_core.merging.conftest import Models, tensors_of
from tests.support import random_tensors

Planned = Callable[..., Merge]


def task_arithmetic(*names: str, **settings: Any) -> dict[str, Any]:
    """Return a file that adds up models with weight 0.5 each."""
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in names]
    return {"merge_method": "task_arithmetic", "base_model": "base", "models": models, **settings}


def added_up(zoo: Models, name: str, *weights: tuple[str, float]) -> torch.Tensor:
    """Return base + Σ weight·(model − base) in float64."""
    base = zoo["base"][name].double()
    return base + sum(weight * (zoo[model][name].double() - base) for model, weight in weights)


def rounded(value: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return value.to(dtype).double()


def test_every_tensor_is_the_sum_rounded_once(planned: Planned, zoo: Models) -> None:
    merged = tensors_of(planned(task_arithmetic("a", "b", parameters={"lambda": 0.8})))
    assert merged.keys() == zoo["base"].keys()
    for name, tensor in merged.items():
        exact = added_up(zoo, name, ("a", 0.4), ("b", 0.4))
        assert tensor.dtype == torch.bfloat16
        # A sum that float32 places on the other side of a rounding boundary is one unit in the last place away.
        differing = (tensor.double() != rounded(exact)).double().mean()
        assert differing < 1e-3
        torch.testing.assert_close(tensor.double(), exact, rtol=2**-8, atol=1e-6)


def test_gradients_run_over_layers_and_filters_go_by_name(planned: Planned, zoo: Models) -> None:
    weight = [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.25}]
    file = task_arithmetic("a", dtype="float32")
    file["models"][0]["parameters"]["weight"] = weight
    merged = tensors_of(planned(file))
    for layer, expected in ((0, 0.0), (1, 0.5), (2, 1.0)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        torch.testing.assert_close(merged[name].double(), added_up(zoo, name, ("a", expected)), rtol=0, atol=1e-7)
    name = "lm_head.weight"
    torch.testing.assert_close(merged[name].double(), added_up(zoo, name, ("a", 0.25)), rtol=0, atol=1e-7)


def test_what_stands_nearer_counts_more(planned: Planned) -> None:
    file: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "slices": [
            {
                "sources": [
                    {"model": "a", "layer_range": [0, 3], "parameters": {"weight": 0.1}},
                    {"model": "b", "layer_range": [0, 3]},
                ],
                "parameters": {"weight": 0.2, "lambda": 0.3},
            }
        ],
        "parameters": {"weight": 0.4, "lambda": 0.5, "normalize": True},
    }
    options = planned(file).tensors["model.layers.1.mlp.up_proj.weight"].options
    assert options == {"weight": [0.1, 0.2], "lambda_": 0.3, "normalize": True}


def test_a_filter_that_fits_nothing_leaves_the_value_to_what_stands_further(planned: Planned) -> None:
    file = task_arithmetic("a", parameters={"weight": 0.7})
    file["models"][0]["parameters"]["weight"] = [{"filter": "mlp", "value": 0.1}]
    tensors = planned(file).tensors
    assert tensors["model.layers.1.mlp.up_proj.weight"].options["weight"] == [0.1]
    assert tensors["lm_head.weight"].options["weight"] == [0.7]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"merge_method": "task_arithmetics"}, "Did you mean 'task_arithmetic'"),
        ({"parameters": {"lamda": 1}}, "no parameter 'lamda'. Did you mean 'lambda'"),
        ({"parameters": {"lambda": "x"}}, "lambda is 'x'"),
        ({"parameters": {"lambda": float("nan")}}, "lambda is nan"),
        ({"models": [{"model": "a"}]}, "weight of .*a is missing"),
        ({"models": [{"model": "a", "parameters": {"weight": 1, "lambda": 1}}]}, "one for all models"),
        ({"models": [{"model": "base", "parameters": {"weight": 1}}, {"model": "a"}]}, "adds nothing to itself"),
        ({"base_model": None}, "needs base_model"),
        ({"models": [{"model": "a"}, {"model": "a"}]}, "listed twice"),
        ({"impart": {"models": {"b": {}}}}, "b, which is none of the models"),
        ({"merge_method": "ties", "parameters": {"weight": 1, "density": 1.5}}, "density is 1.5"),
        ({"merge_method": "della", "parameters": {"weight": 1, "density": 0.1}}, "epsilon"),
        ({"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 0}}]}, "weight"),
        ({"merge_method": "slerp", "parameters": {"t": 0.5}, "models": [{"model": "a"}, {"model": "b"}]}, "has 3"),
    ],
)
def test_mistakes_are_told_before_any_weight_is_read(
    change: dict[str, Any], told: str, planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "read_tensor", pytest.fail)
    with pytest.raises((ConfigError, UnknownNameError), match=told):
        planned({**task_arithmetic("a"), **change})


def test_the_base_among_the_models_is_told_and_left_out(planned: Planned, zoo: Models) -> None:
    file = task_arithmetic("a")
    file["models"].insert(0, {"model": "base"})
    merge = planned(file)
    assert any("adds nothing to itself" in note for note in merge.notes)
    alone = tensors_of(planned(task_arithmetic("a")))
    assert all(torch.equal(tensor, alone[name]) for name, tensor in tensors_of(merge).items())


def test_what_a_method_has_no_use_for_is_told(planned: Planned) -> None:
    merge = planned(task_arithmetic("a", parameters={"int8_mask": True}))
    assert merge.notes == ("int8_mask: no effect on task_arithmetic.",)


def test_other_shapes_are_refused_by_name(planned: Planned, zoo: Models) -> None:
    wide = {**zoo["a"], "model.norm.weight": torch.zeros(41, dtype=torch.bfloat16)}
    with pytest.raises(MismatchError, match=r"(?s)model\.norm\.weight: \[41\] in a, \[32\] in base.*one shape"):
        planned(task_arithmetic("a"), {"base": zoo["base"], "a": wide})
    thick = {**zoo["a"], "model.layers.0.mlp.up_proj.weight": torch.zeros(48, 33, dtype=torch.bfloat16)}
    with pytest.raises(MismatchError, match="of one shape"):
        planned(task_arithmetic("a"), {"base": zoo["base"], "a": thick})


def test_tensors_that_only_a_model_has_are_refused_by_name(planned: Planned, zoo: Models) -> None:
    more = {**zoo["a"], "vision_tower.blocks.0.attn.weight": torch.zeros(8, 8, dtype=torch.bfloat16)}
    with pytest.raises(MismatchError, match=r"1 tensors that .* has not.*vision_tower\.blocks\.0\.attn\.weight"):
        planned(task_arithmetic("a"), {"base": zoo["base"], "a": more})


def test_a_tower_of_the_base_alone_stays_as_it_is(planned: Planned, zoo: Models) -> None:
    tower = {"vision_tower.blocks.0.attn.weight": torch.ones(8, 8, dtype=torch.bfloat16)}
    merge = planned(task_arithmetic("a"), {"base": {**zoo["base"], **tower}, "a": zoo["a"]})
    assert any("1 tensors are as in" in note for note in merge.notes)
    assert torch.equal(tensors_of(merge)["vision_tower.blocks.0.attn.weight"], next(iter(tower.values())))


def test_integers_are_the_bases(planned: Planned, zoo: Models) -> None:
    numbers = torch.arange(5)
    models = {name: {**zoo[name], "model.position_ids": numbers} for name in ("base", "a")}
    assert torch.equal(tensors_of(planned(task_arithmetic("a"), models))["model.position_ids"], numbers)


@pytest.mark.parametrize("tied", ["base", "a"])
def test_a_head_of_its_own_survives_a_tied_one(tied: str, planned: Planned, zoo: Models) -> None:
    models = {name: dict(zoo[name]) for name in ("base", "a")}
    del models[tied]["lm_head.weight"]
    merge = planned(task_arithmetic("a", dtype="float32"), models, **{tied: {"tie_word_embeddings": True}})
    heads = {
        name: tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]) for name, tensors in models.items()
    }
    expected = heads["base"].double() + 0.5 * (heads["a"].double() - heads["base"].double())
    torch.testing.assert_close(tensors_of(merge)["lm_head.weight"].double(), expected, rtol=0, atol=1e-7)
    config = merge.checkpoint().config
    assert not config.get("tie_word_embeddings")


def test_tied_heads_stay_tied(planned: Planned, zoo: Models) -> None:
    models = {name: {key: one for key, one in zoo[name].items() if key != "lm_head.weight"} for name in ("base", "a")}
    merge = planned(task_arithmetic("a"), models, base={"tie_word_embeddings": True}, a={"tie_word_embeddings": True})
    assert "lm_head.weight" not in merge.tensors
    assert merge.checkpoint().config["tie_word_embeddings"]


def test_names_with_a_prefix_more_are_the_same_tensors(planned: Planned, zoo: Models) -> None:
    bare = {name.removeprefix("model."): tensor for name, tensor in zoo["a"].items()}
    merged = tensors_of(planned(task_arithmetic("a"), {"base": zoo["base"], "a": bare}))
    plain = tensors_of(planned(task_arithmetic("a")))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in merged.items())


def test_stacks_of_experts_are_merged_as_one_tensor(planned: Planned, zoo: Models) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    experts = {one: random_tensors({name: (4, 32, 48)}, seed=seed) for seed, one in enumerate(("base", "a"))}
    models = {one: {**zoo[one], **experts[one]} for one in ("base", "a")}
    merged = tensors_of(planned(task_arithmetic("a", dtype="float32"), models))[name]
    torch.testing.assert_close(merged.double(), added_up(models, name, ("a", 0.5)), rtol=0, atol=1e-7)


def test_layers_are_taken_from_slices(planned: Planned, zoo: Models) -> None:
    sources = [{"model": "a", "layer_range": [2, 3], "parameters": {"weight": 1.0}}]
    again = [{"model": "a", "layer_range": [0, 2], "parameters": {"weight": 1.0}}]
    file = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "slices": [{"sources": sources}, {"sources": again}],
    }
    configs = {"num_hidden_layers": 3, "layer_types": ["x", "y", "z"]}
    merge = planned(file, base=configs, a=configs)
    merged, order = tensors_of(merge), [2, 0, 1]
    for layer, source in enumerate(order):
        ours, theirs = (f"model.layers.{number}.mlp.up_proj.weight" for number in (layer, source))
        torch.testing.assert_close(merged[ours], zoo["a"][theirs], rtol=2**-7, atol=1e-6)
    assert merge.checkpoint().config["layer_types"] == ["z", "x", "y"]
    with pytest.raises(ConfigError, match="layers are 0 to 3"):
        planned({**file, "slices": [{"sources": [{"model": "a", "layer_range": [2, 4]}]}]})


def test_the_dtype_that_is_asked_for_is_in_the_configuration(planned: Planned) -> None:
    merge = planned(task_arithmetic("a", dtype="float32", out_dtype="float16"), base={"torch_dtype": "bfloat16"})
    assert {tensor.dtype for tensor in tensors_of(merge).values()} == {torch.float16}
    assert merge.checkpoint().config["torch_dtype"] == "float16"


def test_the_key_follows_from_content_and_settings_alone(planned: Planned, zoo: Models, tmp_path: Path) -> None:
    first = planned(task_arithmetic("a", "b")).key
    assert planned(task_arithmetic("a", "b", parameters={"lambda": 1.0})).key != first
    assert planned(task_arithmetic("b", "a")).key != first
    assert planned(task_arithmetic("a", "b")).key == first
    moved = {"base": zoo["base"], "x": zoo["a"], "y": zoo["b"]}
    assert planned(task_arithmetic("x", "y"), moved).key == first


def test_a_merged_model_can_be_written_for_transformers(planned: Planned) -> None:
    merge = planned(task_arithmetic("a"))
    with folder_of(merge.checkpoint()) as folder:
        again = open_checkpoint(folder)
    assert {name: info.shape for name, info in again.tensors.items()} == {
        name: planned.shape for name, planned in merge.tensors.items()
    }


BLOCKWISE = {"linear": {}, "nearswap": {"t": 0.01}, "passthrough": {"scale": 0.7}, "ties": {"density": 0.4}}
BLOCKWISE |= {"ram": {}, "task_arithmetic": {}, "dare_linear": {"density": 0.6, "rescale": False}}


@pytest.mark.parametrize("method", BLOCKWISE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bits_do_not_depend_on_the_size_of_blocks(
    method: str, dtype: torch.dtype, planned: Planned, zoo: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those of methods that go entry by entry, nor those of one that sees whole tensors."""
    models = {name: {key: tensor.to(dtype) for key, tensor in tensors.items()} for name, tensors in zoo.items()}
    names = "abc"[: MERGE_METHODS.get(method).models[1]]
    parameters = {"weight": 0.5} if "weight" in MERGE_METHODS.get(method).options else {}
    file = {"merge_method": method, "models": [{"model": name, "parameters": parameters} for name in names]}
    merge = planned({**file, "base_model": "base", "parameters": BLOCKWISE[method]}, models)
    expected = tensors_of(merge)
    monkeypatch.setattr(blocks, "_ON_CPU", 37)
    found = tensors_of(merge)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert max(tensor.numel() for tensor in found.values()) > 37


def test_a_delta_is_added_before_any_cast(math_delta: Delta) -> None:
    base = open_checkpoint(tinyzoo.path("base"))
    with delta_source("math", math_delta, base) as source:
        for name, info in source.checkpoint.tensors.items():
            before = reader.read_tensor(base.tensors[name]).float()
            delta = source.delta(info, before)
            rebuilt = reader.read_tensor(info)
            assert torch.equal((before + delta).to(rebuilt.dtype), rebuilt), name
            part = source.part(info, before)
            assert torch.equal(part(slice(1, 9), before.flatten()[1:9]), delta.flatten()[1:9]), name


@pytest.mark.parametrize("listed", [False, True], ids=["apart", "listed"])
def test_nuslerp_takes_a_base_or_does_without(planned: Planned, zoo: Models, listed: bool) -> None:
    models = [{"model": name, "parameters": {"weight": 1.0}} for name in ("a", "b")]
    file: dict[str, Any] = {"merge_method": "nuslerp", "models": models, "dtype": "float32"}
    name = "model.layers.0.mlp.up_proj.weight"
    a, b = (zoo[model][name].float() for model in ("a", "b"))
    function = MERGE_METHODS.get("nuslerp").function
    assert torch.equal(tensors_of(planned(file))[name], function([a, b], weight=1.0))
    file |= {"base_model": "base", "models": [{"model": "base"}, *models] if listed else models}
    expected = function([a, b], weight=1.0, base=zoo["base"][name].float())
    assert torch.equal(tensors_of(planned(file))[name], expected)


def test_filters_go_by_the_names_of_the_merged_model(planned: Planned, zoo: Models) -> None:
    file = task_arithmetic("a")
    file["models"][0]["parameters"]["weight"] = [
        {"filter": "lm_head", "value": 0},
        {"filter": "model.layers.0.", "value": 0},
        {"value": 1},
    ]
    tied = {name.removeprefix("model."): one for name, one in zoo["a"].items() if name != "lm_head.weight"}
    merge = planned(file, {"base": zoo["base"], "a": tied}, a={"tie_word_embeddings": True})
    merged = tensors_of(merge)
    for name in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        assert torch.equal(merged[name], zoo["base"][name])
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(merged[name], zoo["a"][name], rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize(
    "module", [{}, {"models": [{"model": "a"}], "slices": [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]}]
)
def test_a_module_is_of_one_kind(module: dict[str, Any], planned: Planned) -> None:
    with pytest.raises(ConfigError, match="of one of them"):
        planned({"merge_method": "linear", "base_model": "base", "modules": {"mlp": module}})


def test_a_slice_may_have_a_base_of_its_own(planned: Planned) -> None:
    sources = [{"model": "a", "layer_range": [0, 3], "parameters": {"weight": 1.0}}]
    file = {"merge_method": "task_arithmetic", "base_model": "base", "slices": [{"sources": sources}]}
    own = {**file, "slices": [{"sources": sources, "base_model": "b"}]}
    assert planned(file).key != planned(own).key
