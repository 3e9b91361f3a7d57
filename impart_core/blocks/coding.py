"""How each tensor is coded: by a method at a ratio, or as it is, by its role and the request."""

import math
from collections.abc import Iterable
from functools import lru_cache

import torch

from impart_core.blocks.request import AUTO, KEEP, CompressConfig
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.pairing import VOCABULARY, Pair
from impart_core.codec.format import FORMAT_VERSION, PACKED_VERSION
from impart_core.codec.rows import rows_bytes
from impart_core.methods import METHODS, Coding
from impart_core.methods.base import Calibration
from impart_core.methods.depth import Depth, depth_of


@lru_cache(maxsize=256)
def coding_of_role(role: Role, config: CompressConfig) -> Coding | None:
    """Return how a method codes tensors of this role; None where they are kept, or stored bit for bit."""
    if config.is_lossless:
        return None
    if role is Role.PROJECTION:
        return config.projections
    if role not in VOCABULARY or config.embeddings == KEEP:
        return None
    method = config.method if config.embeddings == AUTO else config.embeddings
    changed: dict[str, object] = {"method": method, "cr": config.embeddings_cr or config.cr}
    if method != config.method:
        changed["options"] = METHODS.get(method).options_model()
    return config.projections.model_copy(update=changed)


def format_of(roles: Iterable[Role], config: CompressConfig) -> int:
    """Return the format of the file of a block with tensors of these roles."""
    codings = (coding_of_role(role, config) for role in roles)
    packed = any(METHODS.get(coding.method).packed for coding in codings if coding)
    return PACKED_VERSION if packed else FORMAT_VERSION


def calibration_of(config: CompressConfig) -> Calibration:
    """Return what calibration the method of the projections needs; embeddings and head are never calibrated."""
    return "none" if config.is_lossless else METHODS.get(config.method).calibration(config)


def needs_text(config: CompressConfig) -> bool:
    """Return whether a request needs calibration text: for its method, or to distil."""
    return config.distils or calibration_of(config) != "none"


def least_tokens(config: CompressConfig) -> int:
    """Return how many tokens a sequence of calibration text needs: 2 where predictions are held against the text."""
    return 2 if config.distils or calibration_of(config) == "gradients" else 1


def is_feasible(shape: tuple[int, ...], coding: Coding) -> bool:
    """Return whether a method keeps anything of a matrix of this shape at its ratio."""
    m, n = shape[-2:]
    return METHODS.get(coding.method).highest_cr(m, n, coding) >= coding.cr


def rounded_down(ratio: float) -> str:
    """Return the highest possible ratio as it is told, to a hundredth: what is told is possible."""
    return f"{math.floor(ratio * 100) / 100:.2f}".rstrip("0").rstrip(".")


def matrices_of(pair: Pair, config: CompressConfig) -> tuple[Pair, ...]:
    """Return what of a tensor is coded by itself: each matrix of a stack, or the tensor; one that is kept is whole."""
    coding = coding_of_role(pair.role, config)
    return pair.matrices() if coding and is_feasible(pair.shape, coding) else (pair,)


def may_be_kept(pair: Pair, config: CompressConfig) -> bool:
    """Return whether a tensor that a method could code may be kept instead, if that is smaller."""
    return pair.role in VOCABULARY and config.embeddings == AUTO


def kept_instead(pairs: Iterable[Pair], config: CompressConfig) -> tuple[str, ...]:
    """Return a note where the method of `auto` keeps nothing of any embedding or head at its ratio."""
    coding = coding_of_role(Role.EMBEDDING, config)
    shapes = [pair.shape[-2:] for pair in pairs if pair.base and may_be_kept(pair, config)]
    if coding is None or not shapes or any(is_feasible(shape, coding) for shape in shapes):
        return ()
    highest = max(METHODS.get(coding.method).highest_cr(m, n, coding) for m, n in shapes)
    return (
        f"At CR {coding.cr:g} {coding.method} keeps nothing of embeddings and head: where they changed, they are kept "
        f"at 16 bits instead. The highest possible embeddings_cr is {rounded_down(highest)}.",
    )


def coding_of_delta(pair: Pair, delta: torch.Tensor, config: CompressConfig) -> Coding | None:
    """Return how one matrix is coded, None where it is kept, from its delta, which is not zero.

    A table of two token types or two labels, or a gate of few rows, has no room for a method at any ratio worth having:
    it is kept. That such projections are few is checked beforehand.
    """
    coding = coding_of_role(pair.role, config)
    if coding is None or not is_feasible(pair.shape, coding):
        return None
    if pair.role not in VOCABULARY:
        return coding
    if not may_be_kept(pair, config):
        return coding
    m, n = pair.shape
    coded = METHODS.get(coding.method).expected_bytes(m, n, coding)
    return coding if coded < min(rows_bytes(delta), 2 * m * n) else None


def depth_of_pair(pair: Pair, config: CompressConfig) -> Depth | None:
    """Return how deep the matrices of a tensor are decomposed; None where nothing is."""
    coding = coding_of_role(pair.role, config)
    if coding is None or pair.base is None:
        return None
    m, n = pair.shape[-2:]
    return depth_of(coding, m, n, config.factors_for) if is_feasible((m, n), coding) else None
