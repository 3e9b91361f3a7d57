"""Stages and jobs go anywhere: pickled by name, run in threads, tried again by their policies."""

import pickle
from pathlib import Path

import pytest

from impart_core.base.errors import ConfigError
from impart_core.base.retry import Retried, RetryPolicy, recording
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.digest import tensor_digests
from impart_core.engine import chain, evaluate, stages
from impart_core.engine.executor import Stage, ThreadExecutor, stage
from impart_core.engine.jobs import plan_jobs
from impart_core.engine.preflight import check_compress
from impart_core.engine.references import BlockGroup, Run
from impart_core.engine.requests import CompressRequest
from impart_core.store.store import Store

QUICK = RetryPolicy(retries=3, first_delay=0.001, longest_delay=0.001, limit_seconds=60)
ALL = [one for module in (stages, chain, evaluate) for one in vars(module).values() if isinstance(one, Stage)]
failures: list[Exception] = []


@stage("add", "add {one} to {other}", QUICK)
def add(one: int, other: int = 1) -> int:
    """Add, unless it is to fail."""
    if failures:
        raise failures.pop()
    return one + other


@pytest.mark.parametrize("one", [*ALL, add], ids=lambda one: one.name)
def test_a_stage_is_pickled_by_its_name(one: Stage[..., object]) -> None:
    assert pickle.loads(pickle.dumps(one)) is one
    assert len(pickle.dumps(one)) < 200


def test_jobs_are_small_and_the_same_wherever_they_are_unpickled(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, finetuned = map(str, pair)
    request = CompressRequest(base=base, finetuned=finetuned, config=CompressConfig(cr=4), store=str(tmp_path / "s"))
    checked = check_compress(request)
    digests = tensor_digests(checked.base), tensor_digests(checked.finetuned)
    planned = plan_jobs(checked, digests, None, Run(request.store))
    for job in planned.jobs:
        data = pickle.dumps(job)
        assert pickle.loads(data) == job
        assert len(data) < 1000 * (len(job.block.tensors) + 4)
    assert pickle.loads(pickle.dumps(checked.base)) == checked.base


def test_a_block_is_made_from_an_unpickled_job_without_opening_a_checkpoint(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, finetuned = map(str, pair)
    request = CompressRequest(base=base, finetuned=finetuned, config=CompressConfig(cr=4), store=str(tmp_path / "s"))
    checked = check_compress(request)
    digests = tensor_digests(checked.base), tensor_digests(checked.finetuned)
    job = plan_jobs(checked, digests, None, Run(request.store)).jobs[0]

    def refuse(*_: object) -> None:
        raise AssertionError("a checkpoint was opened")

    monkeypatch.setattr("impart_core.checkpoint.location.open_folder", refuse)
    there: object = pickle.loads(pickle.dumps(BlockGroup((job,))))
    (made,) = stages.sparsify_blocks(there)  # type: ignore[arg-type]
    assert made.id == job.recipe.id
    assert Store(request.store).lookup(made.id) is not None
    assert stages.sparsify_blocks(BlockGroup((job,)))[0].cached


def test_threads_try_again_what_may_pass_and_note_it() -> None:
    failures.extend([ConnectionError("gone"), ConnectionError("gone")])
    with ThreadExecutor(2) as executor, recording() as ledger:
        assert executor.submit(add, 1, other=2).result() == 3
        assert executor.run(add, 1) == 2
        failures.append(ConfigError("wrong"))
        with pytest.raises(ConfigError):
            executor.submit(add, 1).result()
    assert ledger.retried == (Retried(what="add 1 to 2", times=2, why="ConnectionError: gone"),)


def test_what_is_submitted_comes_back_as_it_gets_done() -> None:
    with ThreadExecutor(3) as executor:
        pending = [executor.submit(add, number) for number in range(20)]
        assert {done.result() for done in executor.as_completed(pending)} == set(range(1, 21))
