"""Compressing one block: delta, factors and codes, in memory one matrix at a time."""

from collections.abc import Callable, Mapping

import torch

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.blocks.coding import coding_of_delta, coding_of_role, depth_of_pair
from impart_core.blocks.decompose import factors_of
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.pairing import Pair, Pairs
from impart_core.codec.format import ADDED, KEEP, OMITTED, ROWS, VALUE, EncodedTensor, TensorHeader
from impart_core.codec.keep import encode_keep
from impart_core.codec.parts import Codes
from impart_core.codec.rows import encode_rows, rows_bytes
from impart_core.delta.extract import require_finite
from impart_core.delta.factors import Factors
from impart_core.delta.load import Digests, Loaded, load_block, load_matrix
from impart_core.methods import METHODS
from impart_core.methods.base import Projection
from impart_core.quantization.curvature import Inputs

Scales = Mapping[str, torch.Tensor]  # by matrix, where distillation found some
# Gives the factors of a matrix by name that a decomposition of the same request left, or None: its delta is zero.
Stored = Callable[[str], Factors | None]
Made = tuple[str, int, Codes]  # method, seed and codes
_CPU = torch.device("cpu")


def compress_block(
    pairs: Pairs,
    block: Block,
    config: CompressConfig,
    *,
    stored: Stored | None = None,
    scales: Scales | None = None,
    device: torch.device = _CPU,
    digests: tuple[Digests, Digests] = ({}, {}),
) -> dict[str, EncodedTensor]:
    """Compress the tensors of one block.

    Args:
        pairs: the tensors' pairs by name.
        block: which of them to work on.
        config: method and ratio.
        stored: factors that were computed before, from which projections are coded without being read again; None:
            everything is read, and decomposed here to the same bits.
        scales: of each matrix, what distillation found.
        device: where decompositions run.
        digests: the tensors' digests in the base and in the fine-tuned checkpoint; those given are checked.

    Returns:
        Header and codes of each tensor by name.

    Raises:
        TensorValueError: a tensor holds NaN or infinity.
        CheckpointError: a tensor's content is not what its digest says.
    """
    made: dict[str, list[Made]] = {}
    ready = {name for name in block.tensors if stored and needs_factors_only(pairs[name], config)}
    with one_thread_per_kernel():
        for name in sorted(ready):
            for matrix in pairs[name].matrices():
                made.setdefault(name, []).append(_encode_factors(matrix, config, stored))
        unread = Block(block.name, tuple(name for name in block.tensors if name not in ready))
        for loaded in load_block(pairs, unread, digests):
            given = (scales or {}).get(loaded.pair.name)
            made.setdefault(loaded.tensor, []).append(_encode(loaded, config, stored, device, scales=given))
    return {name: assembled(pairs[name], parts) for name, parts in made.items()}


def encode_matrix(
    pair: Pair,
    matrix: Pair,
    config: CompressConfig,
    *,
    stored: Stored | None,
    inputs: Inputs | None,
    device: torch.device,
    digests: tuple[Digests, Digests],
) -> Made:
    """Return the codes of a projection, or of one matrix of a stack, that is told its inputs.

    Args:
        pair: the whole tensor.
        matrix: which matrix of it, or itself.
        config: method and ratio.
        stored: as for `compress_block`.
        inputs: what calibration says of its inputs; None: nothing.
        device: where its decomposition runs.
        digests: as for `compress_block`.
    """
    if stored and needs_factors_only(pair, config):
        return _encode_factors(matrix, config, stored, inputs)
    return _encode(load_matrix(pair, matrix, digests), config, stored, device, inputs)


def needs_factors_only(pair: Pair, config: CompressConfig) -> bool:
    """Whether a tensor's codes follow from its factors: how a projection is coded does not depend on its delta."""
    return pair.role is Role.PROJECTION and depth_of_pair(pair, config) is not None


def assembled(pair: Pair, made: list[Made]) -> EncodedTensor:
    """Return a tensor from what was made of it, or of each matrix of a stack in turn, whose parts are numbered."""
    if not pair.is_stack:
        return _encoded(pair, *made[0])
    method, seed = next(((method, seed) for method, seed, _ in made if method != OMITTED), (OMITTED, 0))
    numbered = {f"{index}.{part}": code for index, (*_, codes) in enumerate(made) for part, code in codes.items()}
    return _encoded(pair, method, seed, numbered)


def _encode_factors(pair: Pair, config: CompressConfig, stored: Stored | None, inputs: Inputs | None = None) -> Made:
    """Return the method, the seed and the codes of one projection whose factors are at hand."""
    factors = stored(pair.name) if stored else None
    settings = coding_of_role(pair.role, config)
    if factors is None or settings is None:
        return OMITTED, 0, {}
    m, n = pair.shape
    projection = Projection(pair.name, (m, n), _no_delta, lambda: factors, inputs)
    return settings.method, settings.seed, METHODS.get(settings.method).encode(projection, settings)


def _no_delta() -> torch.Tensor:
    raise AssertionError("a method that works on factors asked for the delta")


def _encode(
    loaded: Loaded,
    config: CompressConfig,
    stored: Stored | None,
    device: torch.device,
    inputs: Inputs | None = None,
    scales: torch.Tensor | None = None,
) -> Made:
    """Return the method, the seed and the codes of one matrix or other tensor."""
    pair = loaded.pair
    new = loaded.finetuned if loaded.base is None else loaded.added
    if new is not None:
        require_finite(new, pair.name, "fine-tuned")
    if loaded.base is None or not pair.finetuned.is_floating:
        same = loaded.base is not None and torch.equal(loaded.base, loaded.finetuned)
        return (OMITTED, 0, {}) if same else (VALUE, 0, {"value": loaded.finetuned})
    added = {} if loaded.added is None else {ADDED: loaded.added.contiguous()}
    delta = loaded.delta()
    if not bool(delta.any()):
        return OMITTED, 0, added
    settings = coding_of_delta(pair, delta, config)
    if settings is None:
        in_rows = delta.dim() == 2 and rows_bytes(delta) < 2 * delta.numel()
        codes = encode_rows(delta, pair.name) if in_rows else {"delta": encode_keep(delta, pair.name)}
        return ROWS if in_rows else KEEP, 0, {**codes, **added}
    on_device = delta.to(device)
    m, n = pair.shape

    def factors() -> Factors:
        found = stored(pair.name) if stored else None
        return found or factors_of(on_device, pair, config)

    projection = Projection(pair.name, (m, n), lambda: on_device, factors, inputs, scales)
    codes = METHODS.get(settings.method).encode(projection, settings)
    return settings.method, settings.seed, {**codes, **added}


def _encoded(pair: Pair, method: str, seed: int, codes: Codes) -> EncodedTensor:
    ours = pair.base.name if pair.base and pair.base.name != pair.name else None
    header = TensorHeader(
        method=method,
        role=pair.role,
        shape=pair.finetuned.shape,
        dtype=pair.finetuned.dtype,
        seed=seed,
        parts=tuple(sorted(codes)),
        base=ours,
    )
    return EncodedTensor(header=header, codes=codes)
