"""Compressing one decoder layer with the inputs of its matrices at hand: calibration in forward order.

The layer runs on what the layers before it give once they are compressed. Matrices that are fed by the same inputs are
coded together, and at once put in the place of the layer's own, so that those after them see what they will see when
the model is used.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from impart_core.base.numerics import one_thread_per_kernel
from impart_core.blocks.coding import is_feasible
from impart_core.blocks.encode import Encoder, Made, assembled
from impart_core.calibrate.hessian import Hessian, shrink, shrink_together
from impart_core.calibrate.layer import Batch, Layer, Site
from impart_core.calibrate.model import CausalModel
from impart_core.checkpoint.header import DTYPES, TensorInfo
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.pairing import Pair, Pairs
from impart_core.checkpoint.reader import read_tensor
from impart_core.codec.format import VALUE, EncodedTensor, TensorHeader
from impart_core.delta.extract import add_delta
from impart_core.methods.decode import decode_delta
from impart_core.quantization.curvature import Inputs

logger = logging.getLogger(__name__)

Emit = Callable[[int, torch.Tensor], None]


def compress_layer(
    encoder: Encoder, pairs: Pairs, block: Block, model: CausalModel, batches: Sequence[Batch]
) -> dict[str, EncodedTensor]:
    """Compress the tensors of one decoder layer, whose matrices are told their inputs.

    Memory: the layer in float32, the Hessians of one group of matrices, and the activations of one batch, or of as
    many as `parallel.at_once` says.

    Args:
        encoder: encodes its tensors.
        pairs: the tensors' pairs by name.
        block: the layer.
        model: the fine-tuned model.
        batches: what the layer is given; read once for each group of matrices.

    Returns:
        Header and codes of each tensor by name.

    Raises:
        TensorValueError: a tensor, or what the model makes of the text, holds NaN or infinity.
        CheckpointError: a tensor's content is not what its digest says.
        CalibrationError: the layer cannot be run.
    """
    coded = tuple(name for name in block.tensors if _is_coded(pairs[name], encoder))
    kept = Block(block.name, tuple(name for name in block.tensors if name not in coded))
    tensors = encoder.block(pairs, kept)
    infos = {name: _base_of(pairs[name]) for name in coded}
    ours = {name: read_tensor(info, encoder.digests[0].get(info.name)) for name, info in infos.items()}
    weights = ours | {name: _rebuilt(pairs[name], item) for name, item in tensors.items()}
    matrices = {matrix.name: (pairs[name], matrix) for name in coded for matrix in pairs[name].matrices()}
    made: dict[str, Made] = {}

    def encode(name: str, inputs: Inputs | None, layer: Layer) -> None:
        pair, matrix = matrices[name]
        made[name] = encoder.matrix(pair, matrix, inputs)
        layer.set(name, _with_delta(matrix, read_tensor(_base_of(matrix)), made[name]))

    with one_thread_per_kernel(), model.layer(block.name, weights) as layer:
        del weights, ours
        groups, unseen = layer.groups(batches, list(matrices))
        short: dict[str, tuple[int, int]] = {}  # tokens and columns
        for group in groups:
            hessians = layer.hessians(group, batches)
            short |= {site.names[0]: (h.tokens, len(h.matrix)) for site, h in hessians.items() if h.is_short}
            _shrink(hessians)
            for site in group.sites:
                inputs = Inputs(hessians.pop(site).matrix.to(encoder.device), site.of_rows, site.names[0])
                for name in site.names:
                    encode(name, inputs, layer)
        for name in unseen:
            logger.warning("%s: what it is fed cannot be seen; it is quantised without calibration.", name)
            encode(name, None, layer)
    if short:
        _warn_of_few_tokens(block.name, short)
    parts = {name: [made[matrix.name] for matrix in pairs[name].matrices()] for name in coded}
    return tensors | {name: assembled(pairs[name], found) for name, found in parts.items()}


def _shrink(hessians: Mapping[Site, Hessian]) -> None:
    """Shrink Hessians of few tokens: those of experts towards that of all their tokens, others to the diagonal."""
    experts = [hessian for site, hessian in hessians.items() if site.of_expert]
    if experts:
        shrink_together(experts)
    for site, hessian in hessians.items():
        if not site.of_expert:
            shrink(hessian)


def _warn_of_few_tokens(block: str, short: Mapping[str, tuple[int, int]]) -> None:
    least = min(short, key=lambda name: short[name][0])
    tokens, columns = short[least]
    logger.warning(
        "%s: %d groups of matrices are calibrated by fewer tokens than they have columns (%s: %d of %d), which says "
        "little of them. Give more text (--calibration-sequences).",
        *(block, len(short), least, tokens, columns),
    )


def run_layer(
    model: CausalModel, name: str, weights: Mapping[str, torch.Tensor], batches: Sequence[Batch], emit: Emit
) -> None:
    """Run one layer on everything it is given.

    Args:
        model: the model.
        name: the layer's block.
        weights: its tensors by name.
        batches: what it is given.
        emit: takes each batch's number and result, (B, L, H), float32.
    """
    with one_thread_per_kernel(), model.layer(name, weights) as layer:
        for number, found in enumerate(layer.outputs(batches)):
            emit(number, found)


def _is_coded(pair: Pair, encoder: Encoder) -> bool:
    """Whether a tensor is a projection that both have, and not too small for the ratio, so that a method codes it."""
    in_both = pair.role is Role.PROJECTION and pair.base is not None and pair.finetuned.is_floating
    return in_both and is_feasible(pair.shape, encoder.config.projections)


def _base_of(pair: Pair) -> TensorInfo:
    assert pair.base is not None
    return pair.base


def _rebuilt(pair: Pair, item: EncodedTensor) -> torch.Tensor:
    """Return what a tensor is rebuilt to, in the fine-tuned checkpoint's dtype."""
    if item.header.method == VALUE or pair.base is None:
        return item.codes["value"]
    delta = decode_delta(pair.name, item.header, item.codes)
    return add_delta(read_tensor(pair.base), delta, DTYPES[item.header.dtype])


def _with_delta(matrix: Pair, ours: torch.Tensor, made: Made) -> torch.Tensor:
    """Return what one matrix is rebuilt to, likewise."""
    info = matrix.finetuned
    header = TensorHeader(method=made.method, role=matrix.role, shape=info.shape, dtype=info.dtype, seed=made.seed)
    return add_delta(ours, decode_delta(matrix.name, header, made.codes), DTYPES[info.dtype])
