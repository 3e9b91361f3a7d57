"""Compressing one block: delta, factors and codes, in memory one matrix at a time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from impart_core.base.errors import TensorValueError
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.blocks.coding import (
    coding_of_delta,
    coding_of_role,
    depth_of_pair,
    format_of,
    is_feasible,
    matrices_of,
)
from impart_core.blocks.decompose import factors_of
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.pairing import Pair, Pairs
from impart_core.checkpoint.reader import digest_of_value
from impart_core.codec.exact import encode_exact, encode_residual
from impart_core.codec.format import (
    ADDED,
    EXACT,
    KEEP,
    OMITTED,
    PACKED_VERSION,
    PLANES,
    RESIDUAL,
    ROWS,
    VALUE,
    EncodedTensor,
    TensorHeader,
    packed_overhead,
)
from impart_core.codec.half import encode_half
from impart_core.codec.parts import Codes, nbytes
from impart_core.codec.rows import encode_rows, rows_bytes
from impart_core.delta.budget import MOST_SHARE, Claim, budget_bytes, share_out
from impart_core.delta.extract import require_finite
from impart_core.delta.factors import Factors
from impart_core.delta.fidelity import Fidelity, fidelity_of
from impart_core.delta.load import Digests, Loaded, load_block, load_matrix
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.quantization.curvature import Inputs
from impart_core.quantization.kfac import Sensitivity

# Gives the factors of a matrix by name that a decomposition of the same request left, or None: its delta is zero.
Stored = Callable[[str], Factors | None]
# Gives what a lossy delta rebuilds of a tensor by name, in the same bits on every machine.
Lossy = Callable[[str], torch.Tensor]
_WHOLE = (KEEP, VALUE, *EXACT)  # ways in which a stack is stored as one tensor
_SLACK = 2  # bytes a tensor of what a packed file says, since its text compresses a little better or worse
_CPU = torch.device("cpu")


class Made(NamedTuple):
    """What a tensor, or one matrix of a stack, became; its fidelity where its delta was at hand.

    `over` is the digest of what a residual is against.
    """

    method: str
    seed: int
    codes: Codes
    fidelity: Fidelity | None = None
    over: str | None = None


class Budgets(NamedTuple):
    """The bytes of a block's file that methods have a say in: those around codes, and of each matrix by its tensor."""

    around: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class Encoder:
    """Encodes the tensors of a model as one request says.

    Attributes:
        config: method and ratio.
        stored: factors that were computed before, from which projections are coded without being read again; None:
            everything is read, and decomposed here to the same bits.
        device: where decompositions run.
        digests: the tensors' digests in the base and in the fine-tuned checkpoint; those given are checked.
        lossy: gives what is rebuilt of a lossy delta, where residuals to that are stored.
        sensitivity: what calibration says of errors in a matrix, by name.
        observer: is given each matrix's delta and what its codes stand for; all deltas are read for it.
    """

    config: CompressConfig
    stored: Stored | None = None
    device: torch.device = _CPU
    digests: tuple[Digests, Digests] = ({}, {})
    lossy: Lossy | None = None
    sensitivity: Mapping[str, Sensitivity] = field(default_factory=dict)
    observer: Callable[[torch.Tensor, torch.Tensor], object] | None = None

    def block(self, pairs: Pairs, block: Block) -> dict[str, EncodedTensor]:
        """Return header and codes of each tensor of a block by name.

        Args:
            pairs: the tensors' pairs by name.
            block: which of them to work on.

        Raises:
            TensorValueError: a tensor holds NaN or infinity.
            CheckpointError: a tensor's content is not what its digest says.
        """
        made: dict[str, list[Made]] = {}
        budgets = budgets_of(pairs, block, self.config).sizes
        ready = {name for name in block.tensors if self._needs_factors_only(pairs[name])}
        with one_thread_per_kernel():
            for name in sorted(ready):
                for matrix in pairs[name].matrices():
                    made.setdefault(name, []).append(self._from_factors(matrix, budget=budgets.get(name)))
            unread = Block(block.name, tuple(name for name in block.tensors if name not in ready))
            for loaded in load_block(pairs, unread, self.digests, lambda pair: matrices_of(pair, self.config)):
                made.setdefault(loaded.tensor, []).append(self._from_values(loaded, budget=budgets.get(loaded.tensor)))
        return {name: assembled(pairs[name], parts) for name, parts in made.items()}

    def matrix(self, pair: Pair, matrix: Pair, inputs: Inputs | None) -> Made:
        """Return the codes of a projection, or of one matrix of a stack, that is told its inputs.

        Args:
            pair: the whole tensor.
            matrix: which matrix of it, or itself.
            inputs: what calibration says of its inputs; None: nothing.
        """
        if self._needs_factors_only(pair):
            return self._from_factors(matrix, inputs)
        return self._from_values(load_matrix(pair, matrix, self.digests), inputs)

    def _needs_factors_only(self, pair: Pair) -> bool:
        """Whether a tensor's codes follow from stored factors: how a projection is coded depends on no delta."""
        is_decomposed = pair.role is Role.PROJECTION and depth_of_pair(pair, self.config) is not None
        settings = self.config.projections
        if not is_decomposed or self.stored is None or self.observer:
            return False
        return not METHODS.get(settings.method).reads_delta(settings)

    def _from_factors(self, pair: Pair, inputs: Inputs | None = None, budget: int | None = None) -> Made:
        """Return the method, the seed and the codes of one projection whose factors are at hand."""
        factors = self.stored(pair.name) if self.stored else None
        settings = coding_of_role(pair.role, self.config)
        if factors is None or settings is None:
            return Made(OMITTED, 0, {})
        m, n = pair.shape
        projection = Projection(pair.name, (m, n), _no_delta, lambda: factors, inputs, budget)
        return Made(settings.method, settings.seed, METHODS.get(settings.method).encode(projection, settings))

    def _from_values(self, loaded: Loaded, inputs: Inputs | None = None, budget: int | None = None) -> Made:
        """Return the method, the seed and the codes of one matrix or other tensor."""
        pair = loaded.pair
        if self.config.is_lossless:
            return _bit_for_bit(loaded, self.lossy)
        new = loaded.finetuned if loaded.base is None else loaded.added
        if new is not None:
            require_finite(new, pair.name, "fine-tuned")
        if loaded.base is None or not pair.finetuned.is_floating:
            same = loaded.base is not None and torch.equal(loaded.base, loaded.finetuned)
            return Made(OMITTED, 0, {}) if same else Made(VALUE, 0, {"value": loaded.finetuned})
        added = {} if loaded.added is None else {ADDED: loaded.added.contiguous()}
        delta = loaded.delta()
        if not bool(delta.any()):
            return Made(OMITTED, 0, added)
        settings = coding_of_delta(pair, delta, self.config)
        if settings is None:
            in_rows = delta.dim() == 2 and rows_bytes(delta) < 2 * delta.numel()
            codes = encode_rows(delta, pair.name) if in_rows else encode_half(delta, "delta", pair.name)
            return Made(ROWS if in_rows else KEEP, 0, {**codes, **added})
        codes = METHODS.get(settings.method).encode(self._projection(pair, delta, inputs, budget), settings)
        rows, columns = pair.shape
        decoded = METHODS.get(settings.method).decode(codes, pair.name, (rows, columns), settings.seed)
        fidelity = fidelity_of(delta, decoded)
        if not all(map(math.isfinite, fidelity)):
            raise TensorValueError(
                f"The delta of {pair.name!r} is up to {float(delta.abs().max()):g} in size: what {settings.method} "
                "makes of it is beyond float32. Check that both checkpoints are whole, and that the base is right."
            )
        if self.observer:
            self.observer(delta, decoded)
        return Made(settings.method, settings.seed, {**codes, **added}, fidelity)

    def _projection(self, pair: Pair, delta: torch.Tensor, inputs: Inputs | None, budget: int | None) -> Projection:
        """Return what a method is given of a delta that was read."""
        on_device = delta.to(self.device)
        m, n = pair.shape

        def factors() -> Factors:
            found = self.stored(pair.name) if self.stored else None
            return found or factors_of(on_device, pair, self.config)

        sensitivity = self.sensitivity.get(pair.name)
        return Projection(pair.name, (m, n), lambda: on_device, factors, inputs, budget, sensitivity)


def budgets_of(pairs: Pairs, block: Block, config: CompressConfig) -> Budgets:
    """Return the bytes that each matrix of a tensor may take, by tensor, where its method's files are packed.

    What the file says besides codes is taken off. What is left for a block's projections is shared out by their
    methods' weights: each gets at most `MOST_SHARE` times what it would have by itself.
    """
    around, entries = _around_codes(pairs, block, config)
    claims: dict[str, Claim] = {}
    for name in block.tensors:
        pair, coding = pairs[name], coding_of_role(pairs[name].role, config)
        if coding and pair.base and METHODS.get(coding.method).packed and is_feasible(pair.shape, coding):
            method, (*count, m, n) = METHODS.get(coding.method), pair.shape
            least = budget_bytes(m, n, method.highest_cr(m, n, coding))
            own = max(least, budget_bytes(m, n, coding.cr) - math.ceil(around / entries * m * n))
            claims[name] = Claim(method.weight(m, n, coding), least, own, MOST_SHARE * own, math.prod(count))
    shared = [name for name in claims if pairs[name].role is Role.PROJECTION]
    given = share_out([claims[name] for name in shared])
    alone = {name: claim.own for name, claim in claims.items()}
    return Budgets(around, alone | dict(zip(shared, given, strict=True)))


def _around_codes(pairs: Pairs, block: Block, config: CompressConfig) -> tuple[int, int]:
    """Return the bytes of a block's file besides its codes, and the entries of the matrices that pay for them.

    Both are 0 where no method's budget covers them. What the file will say is known but for lengths and exponents.
    """
    if format_of([pairs[name].role for name in block.tensors], config) != PACKED_VERSION:
        return 0, 0
    expected, entries = {}, 0
    for name in block.tensors:
        pair, codes = pairs[name], dict[str, torch.Tensor]()
        coding = coding_of_role(pair.role, config)
        if coding and METHODS.get(coding.method).packed and is_feasible(pair.shape, coding):
            m, n = pair.shape[-2:]
            method, count = METHODS.get(coding.method), math.prod(pair.shape[:-2])
            entries, part = entries + count * m * n, method.parts[0]
            most = torch.empty(method.expected_bytes(m, n, coding), dtype=torch.uint8, device="meta")
            codes = {f"{index}.{part}": most for index in range(count)} if pair.is_stack else {part: most}
            expected[name] = _encoded(pair, coding.method, coding.seed, codes)
        else:
            half = torch.empty(pair.finetuned.shape, dtype=torch.float16, device="meta")
            codes = {"delta": half, "exponent": torch.empty(1, dtype=torch.int8, device="meta")}
            expected[name] = _encoded(pair, KEEP, 0, codes)
    return packed_overhead(expected) + _SLACK * len(expected), entries


def assembled(pair: Pair, made: list[Made]) -> EncodedTensor:
    """Return a tensor from what was made of it, or of each matrix of a stack in turn, whose parts are numbered.

    A stack that no method codes is made as one tensor.
    """
    measured = tuple(one.fidelity for one in made if one.fidelity)
    if not pair.is_stack or made[0].method in _WHOLE:
        return replace(_encoded(pair, *made[0][:3], over=made[0].over), fidelity=measured)
    coded = next((one for one in made if one.method != OMITTED), made[0])
    numbered = {f"{index}.{part}": code for index, one in enumerate(made) for part, code in one.codes.items()}
    return replace(_encoded(pair, coded.method, coded.seed, numbered), fidelity=measured)


def _bit_for_bit(loaded: Loaded, lossy: Lossy | None) -> Made:
    """Return how a tensor is stored bit for bit in the fewest bytes, as a residual where that is."""
    base, value = loaded.base, loaded.finetuned
    if lossy is None:
        return _without_residual(loaded)
    rebuilt = lossy(loaded.tensor)
    if base is not None and (base.shape, base.dtype) == (value.shape, value.dtype):
        way, codes = encode_residual(value, rebuilt, base)
    else:
        way, codes = encode_residual(value, rebuilt, None)
        without = _without_residual(loaded)
        if nbytes(without.codes) <= nbytes(codes):
            return without
    over = digest_of_value(rebuilt, loaded.pair.finetuned.dtype) if way == RESIDUAL else None
    return Made(way, 0, codes, over=over)


def _without_residual(loaded: Loaded) -> Made:
    """Return how a tensor is stored against the base's where that has the same dtype, or by itself.

    Rows that the base does not have stay as they are beside the difference of the others.
    """
    base, value, added = loaded.base, loaded.finetuned, loaded.added
    if base is None or base.dtype != value.dtype:
        way, codes = encode_exact(value, None)
    elif added is None:
        way, codes = encode_exact(value, base)
    else:
        way, codes = encode_exact(value[: len(base)], base)
        if way in (PLANES, VALUE):  # nothing is gained by what the base has
            way, codes = encode_exact(value, None)
        else:
            codes = {**codes, ADDED: added.contiguous()}
    return Made(way, 0, codes)


def _no_delta() -> torch.Tensor:
    raise AssertionError("a method that works on factors asked for the delta")


def _encoded(pair: Pair, method: str, seed: int, codes: Codes, over: str | None = None) -> EncodedTensor:
    ours = pair.base.name if pair.base and pair.base.name != pair.name else None
    header = TensorHeader(
        method=method,
        role=pair.role,
        shape=pair.finetuned.shape,
        dtype=pair.finetuned.dtype,
        seed=seed,
        parts=tuple(sorted(codes)),
        base=ours,
        over=over,
    )
    return EncodedTensor(header=header, codes=codes)
