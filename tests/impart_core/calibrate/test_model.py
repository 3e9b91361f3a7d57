"""A model run layer by layer does what it does when it is loaded whole, whatever its architecture."""

import re
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from impart_core import tinyzoo
from impart_core.base.errors import CalibrationError
from impart_core.base.parallel import at_once
from impart_core.calibrate.architecture import check_calibratable
from impart_core.calibrate.layer import Batch, Layer
from impart_core.calibrate.model import CausalModel
from impart_core.calibrate.watch import Watch
from impart_core.checkpoint.index import CONFIG, Checkpoint, open_checkpoint
from impart_core.checkpoint.layout import Role, group_blocks
from impart_core.checkpoint.pairing import pair_tensors
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.weights import SINGLE
from tests.architectures import ARCHITECTURES, load_whole, save_pair

CPU = torch.device("cpu")
OTHERS = ("bert", "bert-classifier", "t5")
DECODERS = [name for name in ARCHITECTURES if name not in OTHERS]
STACKED = [name for name in DECODERS if ARCHITECTURES[name].routers]
TOKENS = torch.randint(1, 320, (3, 16), generator=torch.Generator().manual_seed(3))
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums in another order


@dataclass(frozen=True)
class Case:
    """An architecture's fine-tune, loaded whole and to be run layer by layer; and its base's tensors."""

    architecture: str
    folder: Path
    checkpoint: Checkpoint
    whole: transformers.PreTrainedModel
    model: CausalModel
    tensors: dict[str, torch.Tensor]
    base: dict[str, torch.Tensor]

    @property
    def layers(self) -> list[str]:
        return self.model.layers(self.tensors)

    def block(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a layer, or of all that is in none."""
        blocks = {block.name: block.tensors for block in group_blocks(self.tensors)}
        return {tensor: self.tensors[tensor] for tensor in blocks[name]}

    def matrices(self, block: str) -> list[str]:
        """The projections of a layer, matrix by matrix."""
        pairs = pair_tensors(self.checkpoint, self.checkpoint)
        found = [pairs[name] for name in self.block(block) if pairs[name].role is Role.PROJECTION]
        return [matrix.name for pair in found for matrix in pair.matrices()]

    def matrix(self, name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """A matrix by its name, `name[index]` in a stack."""
        whole, _, index = name.partition("[")
        return tensors[whole][int(index[:-1])] if index else tensors[whole]

    def embedded(self) -> torch.Tensor:
        return self.model.embed(self.block("outside"), TOKENS)


def read(folder: Path) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    checkpoint = open_checkpoint(folder)
    return checkpoint, {name: read_tensor(info) for name, info in checkpoint.tensors.items()}


@pytest.fixture(scope="module", params=DECODERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    base, folder = save_pair(tmp_path_factory.mktemp(request.param), request.param)
    checkpoint, tensors = read(folder)
    whole = load_whole(folder, ARCHITECTURES[request.param].model)
    return Case(request.param, folder, checkpoint, whole, CausalModel.of(checkpoint, CPU), tensors, read(base)[1])


@torch.no_grad()
def layer_outputs(model: transformers.PreTrainedModel) -> list[torch.Tensor]:
    """What the first layer is given and what each layer returns; the last before the norm that follows."""
    norm = next(module for name, module in model.named_modules() if re.search(r"\.(norm|ln_f|final_\w+norm)$", name))
    last: list[torch.Tensor] = []
    handle = norm.register_forward_pre_hook(lambda module, args: last.append(args[0].clone()))
    hidden = model(TOKENS, output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    return [*hidden[:-1], last[-1]]


@pytest.mark.e2e
def test_layers_one_after_the_other_give_the_whole_models_hidden_states(case: Case) -> None:
    expected = layer_outputs(case.whole)
    hidden = case.embedded()
    torch.testing.assert_close(hidden, expected[0], **CLOSE)
    for name, wanted in zip(case.layers, expected[1:], strict=True):
        with case.model.layer(name, case.block(name)) as layer:
            first, hidden = layer.run(hidden[:1]), layer.run(hidden)
        torch.testing.assert_close(hidden, wanted, **CLOSE)
        torch.testing.assert_close(first, wanted[:1], **CLOSE)  # whatever the size of a batch
    assert all(parameter.is_meta for parameter in case.model._model.parameters())


@pytest.mark.e2e
def test_buffers_are_those_of_the_model_that_is_loaded_whole(case: Case) -> None:
    expected, found = (dict(model.named_buffers()) for model in (case.whole, case.model._model))
    assert expected.keys() == found.keys()
    assert all(torch.equal(buffer, found[name]) for name, buffer in expected.items())


def stage(name: str) -> int:
    """Which step of a layer whose parts follow each other a matrix belongs to."""
    steps = (r"attn\.(([qkv]|qkv)_proj|c_attn)", r"attn\.(o_proj|out_proj|dense|c_proj)")
    found = [step for step, pattern in enumerate(steps) if re.search(pattern, name)]
    return found[0] if found else 2 if re.search(r"gate|up_|w[13]|fc1|c_fc", name) else 3


@pytest.mark.e2e
def test_groups_hold_every_projection_once_in_the_order_of_their_use(case: Case) -> None:
    (block, *_), hidden = case.layers, case.embedded()
    with case.model.layer(block, case.block(block)) as layer:
        groups, unseen = layer.groups([Batch.of(hidden)], case.matrices(block))
    assert unseen == []
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(case.matrices(block))
    last = {step: max(i for i, group in enumerate(groups) if step in map(stage, group.names)) for step in range(4)}
    first = {step: min(i for i, group in enumerate(groups) if step in map(stage, group.names)) for step in range(4)}
    assert first[0] == last[0] == 0
    assert last[0] < first[1]
    assert first[2] < first[3]
    if case.architecture in ("phi", "cohere"):  # attention and MLP side by side
        assert first[2] == 0
    else:
        assert last[1] < first[2]
    of_rows = {name for group in groups for site in group.sites if site.of_rows for name in site.names}
    stored_in_out = {"gpt2": r".*", "gpt-oss": r".*experts.*", "llama4": r".*\.experts\..*"}
    assert of_rows == {name for name in names if re.match(stored_in_out.get(case.architecture, r"$^"), name)}


@pytest.mark.e2e
def test_hessians_are_those_of_what_the_whole_models_linear_modules_get(case: Case) -> None:
    (block, *_), hidden = case.layers, case.embedded()
    inputs = inputs_of_linear_modules(case.whole)
    checked = set()
    with case.model.layer(block, case.block(block)) as layer:
        for group in layer.groups([Batch.of(hidden)], case.matrices(block))[0]:
            for site, hessian in layer.hessians(group, [Batch.of(hidden[:1]), Batch.of(hidden[1:])]).items():
                for name in set(site.names) & inputs.keys():
                    torch.testing.assert_close(hessian.matrix, plain_hessian(inputs[name]), **CLOSE)
                    checked.add(name)
    assert checked == {name for name in case.matrices(block) if not re.search(r"\.experts\b", name)}


def test_a_run_ends_where_all_of_a_group_has_been_fed(tmp_path: Path) -> None:
    checkpoint, tensors = read(save_pair(tmp_path, "llama")[1])
    model = CausalModel.of(checkpoint, CPU)
    whole = load_whole(tmp_path / "finetuned", ARCHITECTURES["llama"].model)
    case = Case("llama", tmp_path, checkpoint, whole, model, tensors, tensors)
    (block, *_), hidden = case.layers, case.embedded()
    fed: list[list[str]] = []
    with model.layer(block, case.block(block)) as layer:
        groups = layer.groups([Batch.of(hidden)], case.matrices(block))[0]
        for group in groups:
            calls: list[str] = []
            with Watch(layer._parameters, lambda call, calls=calls: calls.append(call.parameter)):
                layer.hessians(group, [Batch.of(hidden[:1]), Batch.of(hidden[1:])])
            fed.append(calls)
    assert len(groups) == 4
    for number, (group, calls) in enumerate(zip(groups, fed, strict=True)):
        seen = {f"{block}.{call}" for call in calls}
        before = {name for one in groups[:number] for name in one.names}
        assert before <= seen <= before | set(group.names)
        assert group.sites[0].names[0] not in seen  # the run ends before this one is worked out


@torch.no_grad()
def inputs_of_linear_modules(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """What each ordinary linear module gets, (tokens, side), by its weight's name."""
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda module, args, name=name: inputs.update({f"{name}.weight": args[0].reshape(-1, args[0].shape[-1])})
        )
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    ]
    model(TOKENS, use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs


def plain_hessian(inputs: torch.Tensor) -> torch.Tensor:
    """2·X·Xᵀ over the tokens, in float64."""
    x = inputs.double()
    return (2 * x.T @ x / int(x.any(dim=1).sum())).float()


@pytest.mark.e2e
@pytest.mark.parametrize("case", STACKED, indirect=True)
def test_an_experts_hessians_are_those_of_the_tokens_that_it_gets(case: Case) -> None:
    block, expert, hidden = case.layers[0], 1, case.embedded()
    inputs, inner = one_experts_inputs(case, expert)
    with case.model.layer(block, case.block(block)) as layer:
        groups, _ = layer.groups([Batch.of(hidden)], case.matrices(block))
        *_, entry, leave = [group for group in groups if any(is_of_expert(name, expert) for name in group.names)]
        for group, wanted in ((entry, inputs), (leave, inner)):
            site = next(site for site in group.sites if is_of_expert(site.names[0], expert))
            assert all(is_of_expert(name, expert) for name in site.names)
            torch.testing.assert_close(
                layer.hessians(group, [Batch.of(hidden)])[site].matrix, plain_hessian(wanted), **CLOSE
            )


def is_of_expert(name: str, expert: int) -> bool:
    return bool(re.search(rf"\.experts\.({expert}\.|.*\[{expert}\]$)", name))


@torch.no_grad()
def one_experts_inputs(case: Case, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What an expert of the first layer gets, and what its last matrix gets, worked out by hand."""
    experts = next(
        module
        for name, module in case.whole.named_modules()
        if name.endswith("0.mlp.experts") or name.endswith("0.feed_forward.experts")
    )
    calls: list[tuple[torch.Tensor, ...]] = []
    handle = experts.register_forward_pre_hook(lambda module, args: calls.append(args))
    case.whole(TOKENS, use_cache=False)
    handle.remove()
    if case.architecture == "llama4":
        x = calls[0][0].view(4, -1, calls[0][0].shape[-1])[expert]
        gate, up = (x @ experts.gate_up_proj[expert]).chunk(2, dim=-1)
        return x, up * torch.nn.functional.silu(gate)
    x = calls[0][0][(calls[0][1] == expert).any(-1)]
    if case.architecture == "gpt-oss":
        return x, experts._apply_gate(x @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert])
    theirs = {
        name.rsplit(".", 2)[1]: w.float()
        for name, w in case.block(case.layers[0]).items()
        if is_of_expert(name, expert)
    }
    gate, up = (x @ theirs[part].T for part in (("w1", "w3") if "w1" in theirs else ("gate_proj", "up_proj")))
    return x, torch.nn.functional.silu(gate) * up


@pytest.mark.e2e
@pytest.mark.parametrize("case", STACKED, indirect=True)
def test_experts_that_no_token_chose_are_in_their_group_and_have_no_hessian(case: Case) -> None:
    block, hidden = case.layers[0], case.embedded()[:1, :1]
    with case.model.layer(block, case.block(block)) as layer:
        groups, unseen = layer.groups([Batch.of(hidden)], case.matrices(block))
        assert unseen == []
        idle = {
            name
            for group in groups
            for site, hessian in layer.hessians(group, [Batch.of(hidden)]).items()
            if not hessian.matrix.any()
            for name in site.names
        }
    assert bool(idle) == (case.whole.config.num_experts_per_tok < 4)  # gpt-oss lets every token go to all of them
    assert all(re.search(r"\.experts\.", name) for name in idle)


@pytest.mark.e2e
def test_setting_matrices_does_what_loading_a_changed_checkpoint_does(case: Case, tmp_path: Path) -> None:
    block, hidden = case.layers[0], case.embedded()
    chosen = case.matrices(block)[::2]
    changed = {name: tensor.clone() for name, tensor in case.tensors.items()}
    for name in chosen:
        case.matrix(name, changed).copy_(case.matrix(name, case.base))
    save_file(changed, tmp_path / SINGLE, metadata={"format": "pt"})
    copyfile(case.folder / CONFIG, tmp_path / CONFIG)
    expected = layer_outputs(load_whole(tmp_path, ARCHITECTURES[case.architecture].model))[1]
    given = case.block(block)
    before = {name: tensor.clone() for name, tensor in given.items()}
    with case.model.layer(block, given) as layer:
        unchanged = layer.run(hidden)
        for name in chosen:
            layer.set(name, case.matrix(name, case.base))
        torch.testing.assert_close(layer.run(hidden), expected, **CLOSE)
        assert not torch.allclose(unchanged, expected, **CLOSE)
    assert all(torch.equal(tensor, given[name]) for name, tensor in before.items())


def described(model: str, **settings: object) -> Checkpoint:
    """Return a checkpoint of which there is only the configuration."""
    config = getattr(transformers, model).config_class(**settings)
    return Checkpoint("somewhere", {**config.to_dict(), "architectures": [model]}, {}, {}, 0)


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused_by_name(name: str) -> None:
    wanted = ARCHITECTURES[name]
    checkpoint = described(wanted.model, **wanted.settings)
    for refuse in (check_calibratable, lambda it: CausalModel.of(it, CPU)):
        with pytest.raises(CalibrationError, match=f"is a {wanted.model}, and only decoder-only causal"):
            refuse(checkpoint)


def test_models_that_transformers_does_not_know_or_cannot_read_are_refused() -> None:
    for config in ({"model_type": "ours", "auto_map": {"AutoModelForCausalLM": "ours.Model"}}, {}):
        with pytest.raises(CalibrationError, match="does not know, and code from a checkpoint is not run"):
            check_calibratable(Checkpoint("somewhere", config, {}, {}, 0))
    wrong = Checkpoint("somewhere", {"model_type": "llama", "hidden_size": "wide"}, {}, {}, 0)
    with pytest.raises(CalibrationError, match="cannot read the configuration of somewhere as one of 'llama'"):
        check_calibratable(wrong)


def test_a_model_whose_layers_get_more_than_hidden_states_is_refused() -> None:
    small = {"vocab_size": 320, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    checkpoint = described(
        "Gemma3nForCausalLM",
        **small,
        num_hidden_layers=2,
        intermediate_size=[96] * 2,
        layer_types=["sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
        activation_sparsity_pattern=None,
        vocab_size_per_layer_input=320,
    )
    with pytest.raises(CalibrationError, match="are given more than hidden states and positions"):
        CausalModel.of(checkpoint, CPU)


@pytest.fixture(scope="module")
def tiny() -> tuple[CausalModel, dict[str, torch.Tensor]]:
    checkpoint, tensors = read(tinyzoo.path("math"))
    return CausalModel.of(checkpoint, CPU), tensors


def block_of(tensors: dict[str, torch.Tensor], block: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{block}.")}


def test_layers_are_the_blocks_that_run_with_the_bodys_prefix_or_without(
    tiny: tuple[CausalModel, dict[str, torch.Tensor]],
) -> None:
    model, tensors = tiny
    names = model.layers(tensors)
    assert names == [f"model.layers.{index}" for index in range(len(names))]
    bare = [name.removeprefix("model.") for name in tensors]
    extra = [f"layers.{len(names)}.self_attn.q_proj.weight", "vision.blocks.0.fc.weight"]
    assert model.layers([*bare, *extra]) == [name.removeprefix("model.") for name in names]
    with pytest.raises(CalibrationError, match="it holds no tensors of layer 0"):
        model.layers(["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])


def test_missing_tensors_are_named(tiny: tuple[CausalModel, dict[str, torch.Tensor]]) -> None:
    model, tensors = tiny
    block = block_of(tensors, "model.layers.1")
    gone = "model.layers.1.mlp.up_proj.weight"
    with (
        pytest.raises(CalibrationError, match=r"no tensor for 'mlp\.up_proj\.weight' of model\.layers\.1"),
        model.layer("model.layers.1", {name: tensor for name, tensor in block.items() if name != gone}),
    ):
        pass
    with pytest.raises(CalibrationError, match="'outside' is no decoder layer"), model.layer("outside", {}):
        pass
    with pytest.raises(CalibrationError, match="lacks one of them"):
        model.embed({"model.norm.weight": tensors["model.norm.weight"]}, TOKENS % 100)


def test_what_the_model_does_not_have_is_left_alone_and_comes_last(
    tiny: tuple[CausalModel, dict[str, torch.Tensor]],
) -> None:
    model, tensors = tiny
    block = "model.layers.0"
    unused = f"{block}.adapter.weight"
    weights = {**block_of(tensors, block), unused: torch.ones(32, 32)}
    hidden = model.embed({name: tensor for name, tensor in tensors.items() if "layers" not in name}, TOKENS % 100)
    with model.layer(block, weights) as layer:
        groups, unseen = layer.groups([Batch.of(hidden)], [unused, f"{block}.mlp.up_proj.weight"])
        before = layer.run(hidden)
        layer.set(unused, torch.zeros(32, 32))
        assert torch.equal(layer.run(hidden), before)
    assert unseen == [unused]
    assert [group.names for group in groups] == [(f"{block}.mlp.up_proj.weight",)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_same_inputs_give_the_same_bytes_however_many_batches_run_at_once(
    count: int, tiny: tuple[CausalModel, dict[str, torch.Tensor]]
) -> None:
    model, tensors = tiny
    block = "model.layers.0"
    hidden = model.embed({name: tensor for name, tensor in tensors.items() if "layers" not in name}, TOKENS % 100)

    def results(layer: Layer) -> list[torch.Tensor]:
        groups, _ = layer.groups(
            [Batch.of(hidden)], [name for name, tensor in block_of(tensors, block).items() if tensor.dim() == 2]
        )
        batches = [Batch.of(part) for part in (hidden, *(hidden * factor for factor in (2, 3, 4, 5)), hidden[:, :3])]
        hessians = (layer.hessians(group, batches) for group in groups)
        return [*layer.outputs(batches), *(found.matrix for by_site in hessians for found in by_site.values())]

    with model.layer(block, block_of(tensors, block)) as layer:
        first = results(layer)
        assert all(torch.equal(one, layer.run(part)) for one, part in zip(first, (hidden, hidden * 2), strict=False))
    with at_once(count), model.layer(block, block_of(tensors, block)) as layer:
        assert all(torch.equal(one, other) for one, other in zip(first, results(layer), strict=True))
