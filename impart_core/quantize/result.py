"""What quantising a factor's rows returns, the checks before it, and rounding to nearest."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from impart_core.base.errors import TensorValueError
from impart_core.base.settings import Frozen
from impart_core.quantize.curvature import Curvature, output_error
from impart_core.quantize.grid import HALF, RowRange, column_groups, dequantize, row_grids

logger = logging.getLogger(__name__)


class GridOptions(Frozen):
    """How grids are laid.

    Attributes:
        static_groups: groups are columns that lie together, and their grids are those of the weights as given. Else
            they follow the order of quantisation, as in the paper, and decoding needs that order.
        scale_dtype: `float16` as scales are stored, or `float32`.
    """

    static_groups: bool = False
    scale_dtype: Literal["float16", "float32"] = "float16"

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of scales."""
        return torch.float16 if self.scale_dtype == "float16" else torch.float32

    def order(self, curvature: Curvature) -> torch.Tensor | None:
        """Return the columns in the order that groups follow; None: as they lie."""
        return curvature.order if curvature.act_order and not self.static_groups else None


@dataclass(frozen=True)
class RangeCodes:
    """The codes of one range of rows.

    Attributes:
        rows: which rows, their bits and group size.
        codes: uint8, (rows, columns); a masked entry has the code of zero. At 16 bits the values, float16.
        scales: float16 or float32, (rows, groups); no groups at 16 bits.
        zeros: uint8, (rows, groups).
    """

    rows: RowRange
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def dequantize(self, order: torch.Tensor | None) -> torch.Tensor:
        """Return the values, float32, (rows, columns); `order` as in `Quantized`."""
        if self.rows.bits == HALF:
            return self.codes.float()
        columns = self.codes.shape[1]
        groups = column_groups(columns, self.rows.width(columns), order).to(self.codes.device)
        return dequantize(self.codes, self.scales, self.zeros, groups)


@dataclass(frozen=True)
class Quantized:
    """A quantised factor.

    Attributes:
        ranges: the codes of each range of rows.
        weight: what they stand for, float32, (rows, columns); masked entries are exactly zero.
        error: ½·tr(Δ·H·Δᵀ) with the damped H; under a mask Algorithm 2's own count, which leaves out what masked
            entries would have made up for (see `output_error` for the whole).
        order: the columns in the order that groups follow, int64, (columns,); None: as they lie.
        damping: the curvature's; None: H was of no use, and the values are rounded to nearest.
    """

    ranges: tuple[RangeCodes, ...]
    weight: torch.Tensor
    error: float
    order: torch.Tensor | None
    damping: float | None


def masked_weight(
    weight: torch.Tensor, mask: torch.Tensor, curvature: Curvature, ranges: Sequence[RowRange], name: str
) -> torch.Tensor:
    """Return the weight with its masked entries zero, float32, (rows, columns), having checked what goes with it.

    Raises:
        TensorValueError: a weight is NaN, infinite, or beyond float16.
        ValueError: shapes do not fit each other, or the ranges are not the rows one after the other.
    """
    rows, columns = weight.shape
    if mask.shape != weight.shape or curvature.hessian.shape != (columns, columns):
        raise ValueError(f"{name!r}: {mask.shape} mask and {curvature.hessian.shape} Hessian for {weight.shape} weight")
    if [span.start for span in ranges] + [rows] != [0] + [span.stop for span in ranges]:
        raise ValueError(f"{name!r}: ranges {ranges} are not its {rows} rows")
    values = weight.float()
    reach = max(float(bound.abs()) for bound in values.aminmax()) if values.numel() else 0.0
    if not math.isfinite(reach):
        raise TensorValueError(f"{name!r} holds NaN or infinity and cannot be quantised. Check both checkpoints.")
    limit = torch.finfo(torch.float16).max
    if reach > limit:
        raise TensorValueError(
            f"{name!r} reaches {reach:g}, beyond the {limit:g} that 16-bit scales are made for. "
            "Check that the base is the right one."
        )
    return torch.where(mask.bool(), values, 0.0)


def static_grids(
    values: torch.Tensor, ranges: Sequence[RowRange], options: GridOptions, order: torch.Tensor | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each range's scales and zero points, (rows, groups), from the values themselves, (rows, columns)."""
    placed = values if order is None else values[:, order]
    return [row_grids(placed[span.rows], span, options.dtype) for span in ranges]


def round_to_nearest(
    weight: torch.Tensor,
    mask: torch.Tensor,
    curvature: Curvature,
    ranges: Sequence[RowRange],
    name: str,
    options: GridOptions | None = None,
) -> Quantized:
    """Round every entry to its grid by itself; arguments and errors as for `gptq.sparse_gptq`."""
    options = options or GridOptions()
    values, order = masked_weight(weight, mask, curvature, ranges, name), options.order(curvature)
    found = []
    for span, (scales, zeros) in zip(ranges, static_grids(values, ranges, options, order), strict=True):
        part = values[span.rows]
        if span.bits == HALF:
            codes = part.half()
        else:
            groups = column_groups(part.shape[1], span.width(part.shape[1]), order).to(part.device)
            steps = torch.round(part / scales.float()[:, groups]) + zeros.float()[:, groups]
            codes = steps.clamp(0, span.levels).to(torch.uint8)
        found.append(RangeCodes(span, codes, scales, zeros))
    quantized = gather(found, values, order)
    return Quantized(tuple(found), quantized, output_error(values, quantized, curvature.hessian), order, None)


def rounded_instead(
    weight: torch.Tensor,
    mask: torch.Tensor,
    curvature: Curvature,
    ranges: Sequence[RowRange],
    name: str,
    options: GridOptions,
) -> Quantized:
    """Round to nearest because the Hessian is of no use, and say so."""
    warn_of_rounding(name)
    return round_to_nearest(weight, mask, curvature, ranges, name, options)


def warn_of_rounding(name: str) -> None:
    """Say that the Hessian of a tensor's inputs is of no use."""
    logger.warning(
        "%s: the Hessian of its inputs is not positive definite, or too near to that, with any damping; "
        "its values are rounded to nearest. More calibration text may help.",
        name,
    )


def gather(found: Sequence[RangeCodes], values: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Return what the codes stand for, float32, like `values` (rows, columns)."""
    parts = [codes.dequantize(order) for codes in found]
    return torch.cat(parts) if parts else torch.zeros_like(values)
