"""How each tensor is coded: by a method at a ratio, or as it is, by its role and the request (DESIGN.md §4)."""

import torch

from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.pairing import VOCABULARY, Pair
from impart_core.codec.rows import rows_bytes
from impart_core.config import AUTO, KEEP, CompressConfig
from impart_core.sparsify import SPARSIFIERS
from impart_core.sparsify.base import Calibration
from impart_core.sparsify.depth import Depth, depth_of


def settings_for(role: Role, config: CompressConfig) -> CompressConfig | None:
    """Return the settings by which tensors of this role are coded by a method; None where they are kept."""
    if role is Role.PROJECTION:
        return config
    if role not in VOCABULARY or config.embeddings == KEEP:
        return None
    method = config.method if config.embeddings == AUTO else config.embeddings
    changed: dict[str, object] = {"method": method, "cr": config.embeddings_cr or config.cr}
    if method != config.method:
        changed["options"] = SPARSIFIERS.get(method).options_model()
    return config.model_copy(update=changed)


def calibration_of(config: CompressConfig) -> Calibration:
    """Return what is to be known of the model's activations; what codes embeddings and head is not calibrated."""
    return SPARSIFIERS.get(config.method).calibration(config)


def is_feasible(shape: tuple[int, ...], settings: CompressConfig) -> bool:
    """Return whether a method keeps anything of a matrix of this shape at its ratio."""
    m, n = shape[-2:]
    return SPARSIFIERS.get(settings.method).highest_cr(m, n, settings) >= settings.cr


def may_be_kept(pair: Pair, config: CompressConfig) -> bool:
    """Return whether a tensor that a method could code may be kept instead, if that is smaller."""
    return pair.role in VOCABULARY and config.embeddings == AUTO


def settings_of(pair: Pair, delta: torch.Tensor, config: CompressConfig) -> CompressConfig | None:
    """Return the settings by which one matrix is coded, None where it is kept, from its delta, which is not zero.

    A table of two token types or two labels has no room for a method at any ratio worth having: it is kept.
    """
    settings = settings_for(pair.role, config)
    if settings is None or pair.role not in VOCABULARY:
        return settings
    if not is_feasible(pair.shape, settings):
        return None
    if not may_be_kept(pair, config):
        return settings
    m, n = pair.shape
    coded = SPARSIFIERS.get(settings.method).expected_bytes(m, n, settings)
    return settings if coded < min(rows_bytes(delta), 2 * m * n) else None


def depth_for(pair: Pair, config: CompressConfig) -> Depth | None:
    """Return how deep the matrices of a tensor are decomposed; None where nothing is."""
    settings = settings_for(pair.role, config)
    if settings is None or pair.base is None:
        return None
    m, n = pair.shape[-2:]
    return depth_of(settings, m, n) if is_feasible((m, n), settings) else None
