"""The plan: what a compression will do and take, from headers alone (config → plan → run)."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from impart_core.artifacts.delta import Delta
from impart_core.base.errors import InfeasibleBudgetError
from impart_core.base.settings import Frozen
from impart_core.blocks.coding import (
    calibration_of,
    coding_of_role,
    depth_of_pair,
    is_feasible,
    kept_instead,
    matrices_of,
    may_be_kept,
    rounded_down,
)
from impart_core.blocks.encode import budgets_of
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.layer import BATCH_TOKENS
from impart_core.checkpoint.computed import ComputedTensor
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Block, Role, group_blocks
from impart_core.checkpoint.pairing import VOCABULARY, Pair, Pairs
from impart_core.checkpoint.preflight import preflight, require_complete
from impart_core.checkpoint.quantized import require_own_values
from impart_core.checkpoint.sides import swapped
from impart_core.codec.half import EXPONENT_BYTES
from impart_core.delta.quality import Quality
from impart_core.engine.description import block_description_bytes, delta_own_bytes
from impart_core.engine.memory import distil_bytes, is_weighted, sensitivity_bytes
from impart_core.engine.residual import rebuilding_bytes, require_same_tensors
from impart_core.methods import METHODS, Coding
from impart_core.quantization.support import MOST_ENTRIES

_MOST_KEPT = 0.1  # of the budget: projections that are kept because the ratio leaves nothing of them

# Picking entries of a delta: magnitudes and masks for each entry, positions and their order for each kept one.
# Measured, for the method that takes the most of those without a decomposition.
_PICKING_BYTES_PER_ENTRY, _PICKING_BYTES_PER_KEPT_ENTRY = 8, 36

# Float32 values while a matrix is quantised: for each entry of a Hessian, and for each entry that gets a code.
_CURVATURE_MATRICES, _STATES_PER_ENTRY = 8, 16

# What the linear algebra library keeps for each thread, and what the allocator wastes; `make bench` compares.
_KERNEL_BUFFER_BYTES = 32 << 20


class BlockPlan(Frozen):
    """What one block will take.

    Attributes:
        name: the block.
        tensors: how many tensors it has.
        projections: how many of them are projections.
        dense_bytes: the 16-bit size of its projections.
        projection_bytes: bytes of its projections' codes, at most.
        kept_bytes: bytes of all the rest, if all of it changed: kept at 16 bits, or as the embeddings' policy says.
        description_bytes: bytes of its manifest and of its file's header, at most.
        peak_bytes: expected peak working memory, above the idle process.
    """

    name: str
    tensors: int
    projections: int
    dense_bytes: int
    projection_bytes: int
    kept_bytes: int
    description_bytes: int
    peak_bytes: int

    @property
    def artifact_bytes(self) -> int:
        """Bytes of the block's artifact, at most: codes, file header and manifest."""
        return self.projection_bytes + self.kept_bytes + self.description_bytes


class Plan(Frozen):
    """What a compression will take; see `BlockPlan`.

    `bytes` is an upper bound, and so both ratios are lower bounds; under the paper's count but for one mask in ten
    million. `own_bytes` are those of the delta's own manifest, and of files beside the weights that the base has not;
    `over_bytes` those of the lossy delta that residuals are against, which are there already and count in `bytes` and
    in both ratios. `peak_bytes` is the working memory above the idle process with this many workers; `factors_bytes` is
    what the decompositions take in the store beside the artifact, at most. `calibration_bytes` is what a layer takes in
    addition while it is calibrated, which one layer is at a time; `sensitivity_bytes` is what measuring sensitivity
    takes, and coding by it beside a block's peak; `distil_bytes` is what training gains takes once all blocks are
    there. `notes` are sentences on the checkpoints. `quality` is what it keeps, where that was foretold.
    """

    blocks: tuple[BlockPlan, ...]
    workers: int
    own_bytes: int
    over_bytes: int = 0
    bytes: int
    cr_projection: float | None
    cr_model: float
    peak_bytes: int
    factors_bytes: int
    calibration_bytes: int
    sensitivity_bytes: int = 0
    distil_bytes: int = 0
    notes: tuple[str, ...] = ()
    quality: Quality | None = None


@dataclass(frozen=True)
class Work:
    """What a request comes to.

    Attributes:
        pairs: the pairs of tensors by name.
        blocks: the blocks in which they are worked on.
        notes: sentences on the checkpoints that whoever asked should know.
    """

    pairs: Pairs
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()


def check_request(base: Checkpoint, finetuned: Checkpoint, config: CompressConfig, over: Delta | None = None) -> Work:
    """Check everything that headers can tell, and return the work.

    Args:
        base: the base checkpoint.
        finetuned: the fine-tuned checkpoint.
        config: the request.
        over: the lossy delta that residuals are to be against, if any; whether its values are these, digests tell.

    Raises:
        ConfigError: settings contradict each other, or the lossy delta is of other tensors.
        MismatchError: the checkpoints do not fit each other.
        CheckpointError: the fine-tuned one is incomplete; or quantised, where its bits are to come back.
        InfeasibleBudgetError: the ratio leaves nothing of some projection, or of any embedding and head.
    """
    if config.is_lossless:
        require_own_values(finetuned)
    pairs = preflight(base, finetuned)
    for role in (Role.PROJECTION, Role.EMBEDDING):
        settings = coding_of_role(role, config)
        if settings is None:
            continue
        ranks = [
            min(pair.shape[-2:])
            for pair in pairs.values()
            if pair.base and coding_of_role(pair.role, config) == settings
        ]
        if ranks:
            METHODS.get(settings.method).check(settings, max(ranks))
    _require_feasible(pairs, config)
    for pair in pairs.values():
        depth_of_pair(pair, config)  # raises where `factors_for` does not serve the request
    notes = (*base.notes, *finetuned.notes, *swapped(base, finetuned), *require_complete(finetuned, base))
    notes += kept_instead(pairs.values(), config)
    blocks = tuple(group_blocks(finetuned.tensors))
    if over:
        require_same_tensors(over, blocks, pairs)
    return Work(pairs, blocks, notes)


def make_plan(
    base: Checkpoint, finetuned: Checkpoint, config: CompressConfig, workers: int = 1, over: Delta | None = None
) -> Plan:
    """Return what a compression will take, having checked the request as `check_request` does."""
    work = check_request(base, finetuned, config, over)
    sides = base, finetuned
    blocks = tuple(_plan_block(sides, block, work.pairs, config, residual=over is not None) for block in work.blocks)
    dense = sum(block.dense_bytes for block in blocks)
    codes = sum(block.projection_bytes for block in blocks) + (over.content.projection_bytes if over else 0)
    own = delta_own_bytes(sides, {block.name: block.artifact_bytes for block in blocks}, config, over)
    below = over.bytes if over else 0
    total = own + sum(block.artifact_bytes for block in blocks) + below
    return Plan(
        blocks=blocks,
        workers=workers,
        own_bytes=own,
        over_bytes=below,
        bytes=total,
        cr_projection=dense / codes if codes else None,
        cr_model=finetuned.nbytes / total,
        peak_bytes=sum(sorted((block.peak_bytes for block in blocks), reverse=True)[:workers]),
        factors_bytes=sum(
            _factors_bytes(work.pairs[name], config)
            for block in work.blocks
            if not is_weighted(block, work.pairs, config)
            for name in block.tensors
        ),
        calibration_bytes=max(calibration_bytes(block, work.pairs, config, workers) for block in work.blocks),
        sensitivity_bytes=sensitivity_bytes(work.pairs, work.blocks, config),
        distil_bytes=distil_bytes(work.pairs, work.blocks, config),
        notes=work.notes,
    )


def _require_feasible(pairs: Pairs, config: CompressConfig) -> None:
    """Raise one error with a sentence for each ratio that leaves nothing of some projection, or of every embedding."""
    asked: dict[Coding, dict[str, float]] = {}
    small = _too_small(pairs, config)
    for name, pair in pairs.items():
        if name in small:
            continue
        settings = coding_of_role(pair.role, config)
        if settings and pair.base and not may_be_kept(pair, config):
            m, n = pair.shape[-2:]
            asked.setdefault(settings, {})[name] = METHODS.get(settings.method).highest_cr(m, n, settings)
    found = []
    for settings, highest in asked.items():
        vocabulary = {name for name in highest if pairs[name].role in VOCABULARY}
        if any(highest[name] >= settings.cr for name in vocabulary):  # then a table of two labels is just kept
            highest = {name: cr for name, cr in highest.items() if name not in vocabulary or cr >= settings.cr}
        found.append(_too_high(highest, settings, pairs, config))
    if any(found):
        raise InfeasibleBudgetError(" ".join(filter(None, found)))


def _too_small(pairs: Pairs, config: CompressConfig) -> frozenset[str]:
    """Return the projections that are kept at 16 bits, as they have too few entries for the ratio.

    Gates and mixers of a few rows: they count in the ratio, so that they may take a tenth of the budget; else none is.
    """
    if config.is_lossless:
        return frozenset()
    projections = {name: pair for name, pair in pairs.items() if pair.role is Role.PROJECTION and pair.base}
    small = {
        name: math.prod(pair.shape)
        for name, pair in projections.items()
        if not is_feasible(pair.shape, config.projections)
    }
    room = sum(math.prod(pair.shape) for pair in projections.values()) / config.cr
    return frozenset(small if sum(small.values()) <= _MOST_KEPT * room else ())


def _too_high(highest: dict[str, float], settings: Coding, pairs: Pairs, config: CompressConfig) -> str | None:
    """Return why the ratio of these settings is too high for some of the matrices, given the highest of each."""
    short = {name: cr for name, cr in highest.items() if cr < settings.cr}
    if not short:
        return None
    largest = max((cr for name, cr in highest.items() if pairs[name].role in VOCABULARY), default=math.inf)
    binding = {name: cr for name, cr in short.items() if pairs[name].role is Role.PROJECTION or cr == largest}
    projections = all(pairs[name].role is Role.PROJECTION for name in highest)
    tightest, possible = _highest(highest, pairs) if projections else min(binding.items(), key=lambda item: item[1])
    more_room = settings.options.more_room(settings.accounting)
    return (
        f"CR {settings.cr:g} is too high to keep anything of {len(short)} of {len(highest)} "
        f"{'projections' if projections else 'matrices'}; the "
        f"tightest is {tightest!r} with shape {list(pairs[tightest].shape)}. The highest "
        f"possible CR for {'this model' if projections else 'them'} with method {settings.method!r} and these settings "
        f"is {rounded_down(possible)}. "
        f"Lower {'the CR' if settings.cr == config.cr else 'embeddings_cr'}"
        + (f", or {more_room}." if more_room else ".")
    )


def _highest(highest: dict[str, float], pairs: Pairs) -> tuple[str, float]:
    """Return the highest ratio that projections allow, and which of them binds it, given the highest of each.

    The tighter ones are kept at 16 bits as long as they are few; see `_too_small`.
    """
    entries = {
        name: math.prod(pair.shape) for name, pair in pairs.items() if pair.role is Role.PROJECTION and pair.base
    }
    names = sorted(highest, key=lambda name: highest[name])
    best, kept = (names[0], highest[names[0]]), 0
    for before, name in itertools.pairwise(names):
        kept += entries[before]
        room = _MOST_KEPT * sum(entries.values()) / kept
        best = max(best, (name, highest[name]) if highest[name] <= room else (before, room), key=lambda found: found[1])
    return best


def _plan_block(
    sides: tuple[Checkpoint, Checkpoint], block: Block, pairs: Pairs, config: CompressConfig, *, residual: bool
) -> BlockPlan:
    own = [pairs[name] for name in block.tensors]
    projections = [pair for pair in own if pair.role is Role.PROJECTION]
    codes = _projection_bytes(projections, block, pairs, config)
    kept = sum(_coded_bytes(pair, config) for pair in own if pair.role is not Role.PROJECTION)
    return BlockPlan(
        name=block.name,
        tensors=len(own),
        projections=len(projections),
        dense_bytes=sum(2 * pair.finetuned.numel for pair in projections),
        projection_bytes=codes,
        kept_bytes=kept,
        description_bytes=block_description_bytes(sides, pairs, block, config, codes + kept, residual=residual),
        peak_bytes=block_peak_bytes(own, config, residual=residual),
    )


def _projection_bytes(projections: Sequence[Pair], block: Block, pairs: Pairs, config: CompressConfig) -> int:
    """Bytes of projections' codes, at most, and what the block's file says around all codes."""
    around, sizes = budgets_of(pairs, block, config)
    found = sum(
        sizes[pair.name] * math.prod(pair.shape[:-2]) if pair.name in sizes else _coded_bytes(pair, config)
        for pair in projections
    )
    return found + around if found else 0


def block_peak_bytes(own: Sequence[Pair], config: CompressConfig, *, residual: bool) -> int:
    """Return the expected peak working memory of a block's tensors, above the idle process.

    Codes and factors are held until the block is done, and tensors are worked on one after the other; for a residual
    each is rebuilt from a lossy delta before.
    """
    held = sum(_coded_bytes(pair, config) + _factors_bytes(pair, config) for pair in own)
    return held + max(_working_bytes(pair, config) + (rebuilding_bytes(pair) if residual else 0) for pair in own)


def _coded_bytes(pair: Pair, config: CompressConfig) -> int:
    """Bytes of a tensor's codes, at most: a method's budget, or 16 bits a value; added rows as they are."""
    if pair.base is None or not pair.finetuned.is_floating:
        return pair.finetuned.nbytes
    if config.is_lossless:  # values decide
        return pair.finetuned.nbytes
    settings, dense = coding_of_role(pair.role, config), 2 * math.prod(pair.shape)
    added = (pair.finetuned.numel - math.prod(pair.shape)) * pair.finetuned.torch_dtype.itemsize
    if settings is None or not is_feasible(pair.shape, settings):
        return dense + added + EXPONENT_BYTES
    *count, m, n = pair.shape
    coded = math.prod(count) * METHODS.get(settings.method).expected_bytes(m, n, settings)
    return (min(coded, dense) if may_be_kept(pair, config) else coded) + added


def _factors_bytes(pair: Pair, config: CompressConfig) -> int:
    """Bytes of a tensor's factors in float16, at most, which are held until their block is done."""
    depth = depth_of_pair(pair, config)
    if depth is None:
        return 0
    *count, m, n = pair.shape
    return 2 * math.prod(count) * depth.most(m, n) * (m + n)


def calibration_bytes(block: Block, pairs: Pairs, config: CompressConfig, workers: int) -> int:
    """Memory of a layer that is run: its weights, workers' batches, one group's Hessians, and one matrix's solving.

    Weights are there in float32 beside those that are read. Of activations, what each matrix is fed and gives is held
    at most. A group has the Hessians of all experts, also where the checkpoint has a tensor for each of them.
    """
    own = [pairs[name] for name in block.tensors]
    matrices = [pair for pair in own if pair.role is Role.PROJECTION]
    if calibration_of(config) != "inputs" or not matrices:
        return 0
    shapes = [pair.shape for pair in matrices]
    weights = 2 * sum(pair.finetuned.numel for pair in own)
    activations = workers * BATCH_TOKENS * sum(sum(shape[-2:]) for shape in shapes)
    experts: Counter[str] = Counter()  # by name without its numbers: within a layer only experts have others
    for pair in matrices:
        experts[re.sub(r"\d+", "", pair.name)] += math.prod(pair.shape[:-2])
    hessians = max(experts[re.sub(r"\d+", "", pair.name)] * max(pair.shape[-2:]) ** 2 for pair in matrices)
    return 4 * (weights + activations + hessians) + max(solving_bytes((m, n), config, workers) for *_, m, n in shapes)


def solving_bytes(shape: tuple[int, int], config: CompressConfig, workers: int) -> int:
    """Memory of quantising one m×n matrix with its inputs' Hessian, beside that and its factors, at most.

    The Hessian damped, in the order of quantisation, its factor and that one's inverse; likewise of the vectors of the
    other side; grids, masks and states of what is quantised, which is all entries or K vectors of each side; and the
    rows' own factors (see `quantization.support`), a batch a worker.
    """
    m, n = shape
    method, side = METHODS.get(config.method), max(m, n)
    rank = min(method.needed_rank(m, n, config.projections) or 0, m, n)
    entries = rank * (m + n) or m * n
    factors = min(max(MOST_ENTRIES, side**2), side**3)
    curvature = _CURVATURE_MATRICES * (side**2 + rank**2)
    return 4 * (curvature + _STATES_PER_ENTRY * entries + 2 * workers * factors)


def _working_bytes(pair: Pair, config: CompressConfig) -> int:
    """Working memory of one matrix: both as stored, the next one being read, and the delta; then its method's need.

    The divide-and-conquer SVD, in float32, holds a copy of its input, both factors and about 6·r² of workspace;
    the factors are then copied once, to lie vector after vector. The quicker routes take less.
    """
    stack = len(matrices_of(pair, config))
    stored = (pair.finetuned.nbytes + (pair.base.nbytes if pair.base else 0)) // max(1, stack)
    numel = math.prod(pair.shape) // max(1, stack)
    merging = 8 * numel if isinstance(pair.finetuned.file, ComputedTensor) else 0  # the base's values and what is added
    read = 2 * stored + 4 * numel + merging
    settings = coding_of_role(pair.role, config)
    if settings is None or pair.base is None:
        return read + 8 * numel
    m, n = pair.shape[-2:]
    r = min(m, n)
    if depth_of_pair(pair, config) is None:
        return read + int((_PICKING_BYTES_PER_ENTRY + _PICKING_BYTES_PER_KEPT_ENTRY / settings.cr) * numel)
    return read + 4 * (m * n + 2 * r * (m + n) + 6 * r * r) + _KERNEL_BUFFER_BYTES
