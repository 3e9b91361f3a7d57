"""Reading a block's tensors ahead: the same as reading them one by one, and honest about what went wrong."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from impart_core.base.errors import CheckpointError, TensorValueError
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.header import TensorInfo
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.layout import Block, group_blocks
from impart_core.checkpoint.pairing import Pair, pair_tensors
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.source import SourceFile
from impart_core.delta.load import Digests, Loaded, load_block
from tests.impart_core.mixture import EMBEDDING, EXPERTS, HEAD, NORM, ROUTER, Q, open_mixture
from tests.impart_core.pipeline import flip
from tests.support import save_checkpoint

LAYER = [NORM, f"{EXPERTS}[0]", f"{EXPERTS}[1]", f"{EXPERTS}[2]", ROUTER, Q]
NONE: tuple[Digests, Digests] = ({}, {})


@pytest.fixture
def mixture(tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    return open_mixture(tmp_path)


@pytest.fixture
def pairs(mixture: tuple[Checkpoint, Checkpoint]) -> dict[str, Pair]:
    return pair_tensors(*mixture)


def layer_of(pairs: dict[str, Pair]) -> Block:
    return group_blocks(pairs)[0]


def test_a_block_is_read_in_its_order_and_its_stacks_in_theirs(pairs: dict[str, Pair]) -> None:
    layer, outside = group_blocks(pairs)
    read = [(loaded.pair.name, loaded.tensor) for loaded in load_block(pairs, layer, NONE)]
    assert read == [(name, name.partition("[")[0]) for name in LAYER]
    assert [loaded.pair.name for loaded in load_block(pairs, outside, NONE)] == [HEAD, EMBEDDING]
    assert list(load_block(pairs, Block("empty", ()), NONE)) == []


def test_it_gives_what_reading_one_by_one_gives(pairs: dict[str, Pair], mixture: tuple[Checkpoint, Checkpoint]) -> None:
    digests = tensor_digests(mixture[0]), tensor_digests(mixture[1])
    for block in group_blocks(pairs):
        for loaded in load_block(pairs, block, digests):
            assert loaded.pair.base is not None
            assert loaded.base is not None
            assert torch.equal(loaded.base, read_tensor(loaded.pair.base))
            assert torch.equal(loaded.finetuned, read_tensor(loaded.pair.finetuned))


def test_the_delta_is_of_the_rows_that_both_have_and_the_others_are_added(pairs: dict[str, Pair]) -> None:
    for loaded in load_block(pairs, group_blocks(pairs)[1], NONE):
        assert loaded.base is not None
        assert loaded.added is not None
        assert torch.equal(torch.cat([loaded.finetuned[:40], loaded.added]), loaded.finetuned)
        assert torch.equal(loaded.delta(), loaded.finetuned[:40].float() - loaded.base.float())


def test_what_the_base_does_not_have_is_read_of_the_fine_tune_alone(pairs: dict[str, Pair]) -> None:
    alone = {Q: Pair(pairs[Q].finetuned, None, pairs[Q].role)}
    (loaded,) = load_block(alone, Block("b", (Q,)), NONE)
    assert (loaded.base, loaded.added) == (None, None)
    assert torch.equal(loaded.finetuned, read_tensor(pairs[Q].finetuned))


@dataclass(frozen=True)
class Watched(SourceFile):
    """A file that tells what is read of it, and may break."""

    inner: SourceFile
    read_at: list[int] = field(default_factory=list)
    broken_from: int | None = None

    def read_into(self, start: int, buffer: memoryview) -> int:
        if self.broken_from is not None and start >= self.broken_from:
            raise CheckpointError(f"{self} is gone.")
        self.read_at.append(start)
        return self.inner.read_into(start, buffer)

    def on_disk(self, scratch: Path) -> Path:
        return self.inner.on_disk(scratch)


def watch(pairs: dict[str, Pair], broken_from: str | None = None) -> tuple[dict[str, Pair], list[int]]:
    """Return the pairs with the fine-tuned side in a watched file, and where it has been read."""
    inner = next(iter(pairs.values())).finetuned.file
    start = pairs[broken_from].finetuned.start if broken_from else None
    file = Watched(inner.location, inner.size, inner.stamp, inner, [], start)
    return {
        name: Pair(replace(pair.finetuned, file=file), pair.base, pair.role) for name, pair in pairs.items()
    }, file.read_at


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def starts(pairs: dict[str, Pair], names: list[str]) -> list[int]:
    matrices = {matrix.name: matrix.finetuned for pair in pairs.values() for matrix in pair.matrices()}
    return [matrices[name].start for name in names]


def test_while_one_is_worked_on_the_next_is_read_and_no_further_one(pairs: dict[str, Pair]) -> None:
    watched, read_at = watch(pairs)
    for number, _ in enumerate(load_block(watched, layer_of(pairs), NONE), 1):
        ahead = min(number + 1, len(LAYER))
        wait_until(lambda ahead=ahead: len(read_at) == ahead)  # type: ignore[misc]
        time.sleep(0.01)
        assert read_at == starts(pairs, LAYER[:ahead])


def test_nothing_is_read_of_what_is_in_no_block_or_another(pairs: dict[str, Pair]) -> None:
    watched, read_at = watch(pairs)
    list(load_block(watched, Block("b", (NORM, Q)), NONE))
    assert read_at == starts(pairs, [NORM, Q])


def test_an_error_while_reading_ahead_comes_when_its_tensor_is_asked_for(pairs: dict[str, Pair]) -> None:
    # In the file, the layer's tensors lie in the order of their names: the norm, the experts, the router, q.
    watched, _ = watch(pairs, broken_from=ROUTER)
    loading = load_block(watched, layer_of(pairs), NONE)
    assert [next(loading).pair.name for _ in range(4)] == LAYER[:4]
    with pytest.raises(CheckpointError, match="is gone"):
        next(loading)
    assert list(loading) == []


def test_a_consumer_that_stops_leaves_no_reader_behind(pairs: dict[str, Pair]) -> None:
    before = threading.active_count()
    loading = load_block(pairs, layer_of(pairs), NONE)
    next(loading)
    assert isinstance(loading, Iterator)
    loading.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(("name", "first"), [(NORM, 0), (EXPERTS, 1), (Q, 5)])
def test_content_other_than_its_digest_is_refused_at_its_tensor(
    name: str, first: int, side: int, pairs: dict[str, Pair], mixture: tuple[Checkpoint, Checkpoint]
) -> None:
    digests = [tensor_digests(checkpoint) for checkpoint in mixture]
    digests[side][name] = "0" * 64
    loading = load_block(pairs, layer_of(pairs), (digests[0], digests[1]))
    assert [next(loading).pair.name for _ in range(first)] == LAYER[:first]
    with pytest.raises(CheckpointError, match=f"changed while it was in use .tensor '{name}'"):
        next(loading)


def test_a_stack_is_checked_as_a_whole_before_its_first_matrix_is_given(
    pairs: dict[str, Pair], mixture: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    digests = tensor_digests(mixture[0]), tensor_digests(mixture[1])
    info: TensorInfo = pairs[EXPERTS].finetuned
    flip(tmp_path / "finetuned" / "model.safetensors", info.end - 1)  # the last byte of the last expert
    loading = load_block(pairs, layer_of(pairs), digests)
    assert next(loading).pair.name == NORM
    with pytest.raises(CheckpointError, match=f"tensor '{EXPERTS}'"):
        next(loading)


def test_values_that_are_no_numbers_are_refused_when_the_delta_is_asked_for(tmp_path: Path) -> None:
    name = "model.layers.0.up_proj.weight"
    sides = {"base": torch.zeros(4, 4), "finetuned": torch.full((4, 4), float("nan"))}
    base, finetuned = (open_checkpoint(save_checkpoint(tmp_path / side, {name: t})) for side, t in sides.items())
    (loaded,) = load_block(pair_tensors(base, finetuned), Block("b", (name,)), NONE)
    assert isinstance(loaded, Loaded)
    with pytest.raises(TensorValueError, match=f"'{name}' of the fine-tuned"):
        loaded.delta()
