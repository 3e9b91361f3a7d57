"""What stages take: blocks as `plan` says, and small references on the way to wherever they are done."""

import shutil
from pathlib import Path

import pytest
import torch

from impart_core import tinyzoo
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import CalibrationText
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.engine import chain, stages
from impart_core.engine.executor import Need
from impart_core.engine.jobs import Planned, plan_jobs
from impart_core.engine.plan import make_plan
from impart_core.engine.preflight import check_compress
from impart_core.engine.references import BlockGroup, DeltaJob, Run
from impart_core.engine.requests import CompressRequest
from impart_core.engine.stages import digest_checkpoint
from impart_tasks.remote import pack
from tests.support import finetune, llama_shapes, random_tensors, save_checkpoint

LAYERS = 32  # as a model of seven billion parameters has
FEW = 4_000  # bytes


def planned(
    base: Path, finetuned: Path, store: Path, config: CompressConfig, calibration: CalibrationText | None = None
) -> tuple[Planned, tuple[Checkpoint, Checkpoint]]:
    """Return the jobs of a compression, and both checkpoints."""
    request = CompressRequest(
        base=str(base), finetuned=str(finetuned), config=config, store=str(store), calibration=calibration
    )
    checked = check_compress(request)
    digests = tensor_digests(checked.base), tensor_digests(checked.finetuned)
    text = "0" * 64 if calibration else None
    return plan_jobs(checked, digests, text, Run(request.store)), (checked.base, checked.finetuned)


def test_a_block_needs_the_device_and_the_memory_that_the_plan_says(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = CompressConfig(cr=4)
    made, sides = planned(*pair, tmp_path, config)
    expected = {block.name: block.peak_bytes for block in make_plan(*sides, config).blocks}
    for job in made.jobs:
        wanted = Need(device=True, memory=expected[job.block.name])
        group = BlockGroup((job,))
        assert stages.decompose_blocks.need(group) == stages.sparsify_blocks.need(group, True) == wanted
    together = stages.sparsify_blocks.need(BlockGroup(made.jobs))  # one after the other
    assert together == Need(device=True, memory=max(expected.values()))
    assert digest_checkpoint.need(sides[0], False) == Need()
    assert stages.find_delta.need(DeltaJob(made.jobs[0].run, sides[1], made.jobs[0].recipe)) == Need()


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A narrow base and its fine-tune with as many tensors as a model of seven billion parameters."""
    root = tmp_path_factory.mktemp("deep")
    base = random_tensors(llama_shapes(layers=LAYERS, hidden=64, intermediate=64, vocab=40), dtype=torch.bfloat16)
    shape = {"num_hidden_layers": LAYERS, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64}
    tuned = finetune(base)
    finetuned = save_checkpoint(root / "finetuned", tuned, {**shape, **heads})
    for file in tinyzoo.path("math").glob("tokenizer*"):  # calibration asks for one
        shutil.copy(file, finetuned)
    return save_checkpoint(root / "base", base, {**shape, **heads}), finetuned


def test_what_goes_out_for_a_block_is_small(deep: tuple[Path, Path], tmp_path: Path) -> None:
    made, _ = planned(*deep, tmp_path, CompressConfig(cr=4))
    sizes = [len(pack((stages.sparsify_blocks, (BlockGroup((job,)), False), {}))) for job in made.jobs]
    assert len(sizes) == LAYERS + 1
    assert max(sizes) < FEW


def test_what_goes_out_for_a_layer_is_small_though_it_names_all_layers_before_it(
    deep: tuple[Path, Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words")
    config = CompressConfig(method="impart-qt", cr=16)
    made, sides = planned(*deep, tmp_path / "store", config, CalibrationText(source=str(text), length=8))
    layers = [made.layers[number] for number in sorted(made.layers)]
    assert len(layers) == LAYERS
    sizes = [len(pack((chain.quantize_layer, (job,), {}))) for job in layers]
    assert max(sizes) < 4 * FEW
    need, own = chain.quantize_layer.need(layers[0]), stages.sparsify_blocks.need(BlockGroup((layers[0].job,)))
    assert need.device
    assert need.memory > own.memory
    assert len(pack((digest_checkpoint, (sides[1].weights_alone(), False), {}))) < 4 * FEW


def test_weights_alone_have_the_same_digests_and_no_files_beside_them(deep: tuple[Path, Path]) -> None:
    whole = open_checkpoint(deep[0]).with_files_at_hand()
    alone = whole.weights_alone()
    assert tensor_digests(alone) == tensor_digests(whole)
    assert not alone.carried
