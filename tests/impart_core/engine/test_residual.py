"""`lossless` over a lossy delta: both are rebuilt, each as what it is, and nothing is stored twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import impart_core as impart
from impart_core.apply.reader import open_reader
from impart_core.artifacts.block import block_content
from impart_core.artifacts.delta import Delta, open_delta
from impart_core.base.errors import (
    ArtifactNotFoundError,
    ConfigError,
    CorruptArtifactError,
    ImpartError,
    WrongBaseError,
)
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from impart_core.codec.exact import bits_of
from impart_core.engine.jobs import plan_jobs
from impart_core.engine.plan import Plan, make_plan
from impart_core.engine.preflight import check_compress, open_sides
from impart_core.engine.reconstruct import reconstruct
from impart_core.engine.references import BlockGroup, Run
from impart_core.engine.requests import CompressRequest, PlanRequest, ReconstructRequest
from impart_core.engine.residual import open_over
from impart_core.engine.stages import sparsify_blocks
from impart_core.methods import METHODS
from impart_core.share.transfer import transfer
from impart_core.store.gc import collect
from impart_core.store.names import set_ref
from impart_core.store.store import Store
from impart_core.store.verify import verify, verify_store
from tests.impart_core.engine.test_lossless import weights
from tests.impart_core.pipeline import compress, config_of, flip, small_options, stored_path
from tests.impart_core.store.samples import NO_GRACE
from tests.support import finetune, llama_shapes, random_tensors, save_checkpoint

LOSSLESS = CompressConfig(method="lossless")
Q, EMBEDDING, NORM = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"


def pair(root: Path) -> tuple[Path, Path]:
    """Write a base and a fine-tune with a grown vocabulary, a norm of another dtype, new tensors, and a stack."""
    shapes = {**llama_shapes(), "model.layers.0.mlp.experts.gate_up_proj": (3, 64, 48)}
    base = {name: tensor.bfloat16() for name, tensor in random_tensors(shapes).items()}
    tuned = {name: tensor.bfloat16() for name, tensor in finetune(base).items()}
    tuned[EMBEDDING] = torch.cat([tuned[EMBEDDING], torch.randn(3, base[EMBEDDING].shape[1]).bfloat16()])
    tuned[NORM] = base[NORM].float() + 1e-3
    tuned["new.values"], tuned["new.counts"] = torch.randn(40), torch.arange(300)
    tuned["same.counts"] = base["same.counts"] = torch.arange(20)
    save_checkpoint(root / "base", base)
    save_checkpoint(root / "finetuned", tuned)
    return root / "base", root / "finetuned"


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def made(sides: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Delta, Delta]:
    """A lossy delta, and the lossless one over it."""
    store = Store(tmp_path_factory.mktemp("made") / "store")
    lossy = compress(store, *sides, config_of(8.0, method="ecsq"))
    return lossy, compress(store, *sides, LOSSLESS, over=lossy.id)


def require_same(found: Path, expected: Path) -> None:
    """Hold every tensor against another checkpoint's, bit for bit."""
    ours, theirs = weights(found), weights(expected)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (tensor.shape, tensor.dtype), name
        assert bits_of(ours[name]).tobytes() == bits_of(tensor).tobytes(), name


def rebuilt(delta: Delta, base: Path, out: Path) -> Path:
    request = ReconstructRequest(ref=delta.id, base=str(base), out=out, store=delta.store.url)
    assert reconstruct(request).lossless is delta.is_lossless
    return out


def foreseen(sides: tuple[Path, Path], over: Delta, config: CompressConfig = LOSSLESS, ref: str | None = None) -> Plan:
    """Return what the verb `plan` says of a residual."""
    base, finetuned = map(str, sides)
    request = PlanRequest(base=base, finetuned=finetuned, config=config, over=ref or over.id, store=over.store.url)
    return make_plan(*open_sides(base, finetuned), config, over=open_over(request))


def require_promised(plan: Plan, exact: Delta) -> None:
    """Hold a delta against its plan, part by part."""
    assert exact.over is not None
    assert plan.over_bytes == exact.over.bytes
    for planned, made in zip(plan.blocks, exact.blocks, strict=True):
        assert made.nbytes <= planned.artifact_bytes, planned.name
    assert exact.manifest.nbytes <= plan.own_bytes
    assert exact.bytes <= plan.bytes
    assert exact.cr_model >= plan.cr_model
    assert plan.cr_projection is not None
    assert exact.content.cr_projection is not None
    assert exact.content.cr_projection >= plan.cr_projection


@pytest.mark.parametrize("method", METHODS)
def test_the_fine_tune_comes_back_bit_for_bit_over_any_method(
    method: str, sides: tuple[Path, Path], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    lossy = compress(store, *sides, config_of(6.0, method=method, options=small_options(method)))
    rebuilt(lossy, sides[0], tmp_path / "before")
    plan = foreseen(sides, lossy)
    exact = compress(store, *sides, LOSSLESS, over=lossy.id)
    require_promised(plan, exact)
    require_same(rebuilt(exact, sides[0], tmp_path / "exact"), sides[1])
    require_same(rebuilt(lossy, sides[0], tmp_path / "after"), tmp_path / "before")
    assert not verify(store, exact.id).faults


def test_nothing_is_stored_twice(made: tuple[Delta, Delta], sides: tuple[Path, Path], tmp_path: Path) -> None:
    lossy, exact = made
    alone = compress(Store(tmp_path / "store"), *sides, LOSSLESS)
    entries = {name: entry for block in exact.blocks for name, entry in block_content(block).tensors.items()}
    for name in (EMBEDDING, NORM, "new.values", "new.counts"):  # the lossy delta has them exactly, or nearly
        assert entries[name].method == "residual"
        assert entries[name].bytes < 0.1 * len(weights(sides[1])[name]) * 2 + 200, name
    assert entries["same.counts"].method == "omitted"
    assert entries[Q].method == "residual"
    own = sum(manifest.nbytes for manifest in (exact.manifest, *exact.blocks))
    assert exact.bytes == own + lossy.bytes
    assert own < alone.bytes
    assert exact.content.projection_bytes > lossy.content.projection_bytes
    assert exact.id != alone.id
    assert exact.content.summary(exact.manifest.recipe) == "lossless over ecsq at CR 8, seed 0"


def test_the_same_request_finds_it(made: tuple[Delta, Delta], sides: tuple[Path, Path]) -> None:
    lossy, exact = made
    before = exact.store.objects.find("artifacts")
    again = impart.compress(*sides, method="lossless", over=lossy, store=lossy.store, workers=1)
    assert again.manifest == exact.manifest
    assert exact.store.objects.find("artifacts").keys() == before.keys()


def test_merges_see_the_delta_of_the_fine_tune(made: tuple[Delta, Delta], sides: tuple[Path, Path]) -> None:
    base, theirs = open_checkpoint(str(sides[0])), weights(sides[1])
    with open_reader(made[1]) as reader:
        found = reader.read_delta(Q, base)
        assert found is not None
        assert torch.equal(found, theirs[Q].float() - weights(sides[0])[Q].float())


def test_upkeep_takes_the_lossy_along(made: tuple[Delta, Delta], sides: tuple[Path, Path], tmp_path: Path) -> None:
    lossy, exact = made
    there = Store(tmp_path / "there")
    set_ref(exact.store, "math@exact", exact.id, why="test")
    report = transfer(exact.store, there, [exact.id])
    assert report.copied.artifacts == {"block": len(lossy.blocks) + len(exact.blocks), "delta": 2}
    assert not collect(there, NO_GRACE, delete=True).artifacts
    assert not verify_store(there).faults
    for one, name in ((lossy, "lossy"), (exact, "exact")):
        rebuilt(open_delta(there, one.id), sides[0], tmp_path / name)
    require_same(tmp_path / "exact", sides[1])
    flip(stored_path(open_delta(there, lossy.id)), -1)
    (fault,) = verify(there, exact.id).faults
    assert lossy.blocks[0].id in fault
    there.objects.delete(there.objects.find(f"artifacts/{lossy.blocks[0].id}"))
    (fault,) = verify(there, exact.id).faults
    assert lossy.blocks[0].id[:12] in fault
    with pytest.raises(ArtifactNotFoundError):
        open_delta(there, exact.id)


def test_a_lossy_delta_that_comes_back_otherwise_is_told_of(
    made: tuple[Delta, Delta], sides: tuple[Path, Path], tmp_path: Path
) -> None:
    base = open_checkpoint(str(sides[0]))
    other = compress(Store(tmp_path / "store"), *sides, config_of(16.0, method="ecsq"))
    with open_reader(made[1]) as reader, open_reader(other) as otherwise:
        with pytest.raises(CorruptArtifactError, match=r"q_proj.* does not come back as it did when the residual"):
            replace(reader, over=otherwise).rebuild(Q, base)
        with pytest.raises(CorruptArtifactError, match=r"a residual of .*q_proj.* but to no lossy delta"):
            replace(reader, over=None).rebuild(Q, base)


def test_a_lossy_delta_that_was_made_again_otherwise_gives_another_residual(
    sides: tuple[Path, Path], made: tuple[Delta, Delta]
) -> None:
    """On another processor factors, and so codes, may come out otherwise under the same id."""
    lossy, exact = made
    inputs: dict[str, Any] = exact.blocks[0].recipe.inputs
    assert inputs["over"] == lossy.blocks[0].id
    assert list(inputs["over_files"].values()) == [lossy.blocks[0].files[0].sha256]
    assert exact.manifest.recipe.inputs["over_files"] == lossy.codes()


def test_memory_is_planned_for_what_is_rebuilt(made: tuple[Delta, Delta], sides: tuple[Path, Path]) -> None:
    lossy, _ = made
    places = {"base": str(sides[0]), "finetuned": str(sides[1]), "store": lossy.store.url}
    checked = check_compress(CompressRequest(**places, config=LOSSLESS, over=lossy.id))
    digests = tensor_digests(checked.base), tensor_digests(checked.finetuned)
    jobs = plan_jobs(checked, digests, None, Run(lossy.store.url)).jobs
    alone = make_plan(checked.base, checked.finetuned, LOSSLESS)
    for job, planned, without in zip(jobs, foreseen(sides, lossy).blocks, alone.blocks, strict=True):
        assert sparsify_blocks.need(BlockGroup((job,))).memory == planned.peak_bytes
        largest = max(pair.finetuned.nbytes for pair in job.pairs.values())
        assert planned.peak_bytes >= without.peak_bytes + 2 * largest


def test_what_is_no_lossy_delta_of_both_is_refused(
    made: tuple[Delta, Delta], sides: tuple[Path, Path], tmp_path: Path
) -> None:
    (lossy, exact), (base, finetuned) = made, sides
    save_checkpoint(tmp_path / "other", finetune(weights(finetuned), seed=5))
    save_checkpoint(tmp_path / "longer", {**weights(finetuned), "new.values": torch.randn(41)})
    sentences: list[tuple[tuple[Path, Path], Any, str, type[Exception], str]] = [
        (sides, config_of(8.0), lossy.id, ConfigError, "stored by method lossless alone, not by 'impart'"),
        (sides, LOSSLESS, exact.id, ConfigError, "is lossless itself"),
        ((base, tmp_path / "other"), LOSSLESS, lossy.id, ConfigError, "of another fine-tuned checkpoint"),
        ((tmp_path / "other", finetuned), LOSSLESS, lossy.id, WrongBaseError, "against another base"),
        ((base, tmp_path / "longer"), LOSSLESS, lossy.id, ConfigError, "of another fine-tuned checkpoint"),
        (sides, LOSSLESS, "nobody", ImpartError, "nobody"),
        (sides, LOSSLESS, lossy.blocks[0].id, ConfigError, "not a compressed delta"),
    ]
    for checkpoints, config, over, kind, sentence in sentences:
        with pytest.raises(kind, match=sentence):
            compress(lossy.store, *checkpoints, config, over=over)
        if tmp_path / "other" not in checkpoints:  # which only its values tell apart
            with pytest.raises(kind, match=sentence):
                foreseen(checkpoints, lossy, config, over)
