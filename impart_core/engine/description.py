"""Bytes of what describes a delta: manifests and headers of files, at most.

They are made as a run makes them, with digests of zeros and with numbers as wide as any can be, and measured.
"""

import math
import uuid

from impart_core.artifacts.block import BlockContent, QuantizedEntry, TensorEntry, block_recipe
from impart_core.artifacts.delta import Delta, DeltaContent, delta_recipe, own_files, pointers_to
from impart_core.artifacts.factors import factors_recipe
from impart_core.blocks.coding import calibration_of, coding_of_role, is_feasible, matrices_of, needs_text
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.carried import stored_name
from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.layout import Block, Role
from impart_core.checkpoint.pairing import Pair, Pairs
from impart_core.checkpoint.writer import TensorSpec, header_bytes
from impart_core.codec.exact import EXACT_PARTS
from impart_core.codec.format import ADDED, CODES_FILE, KEEP, RESIDUAL, ROWS, VALUE, TensorHeader, metadata_of
from impart_core.delta.fidelity import Fidelity
from impart_core.methods import METHODS, QUANTIZING, Coding
from impart_core.quantization.ladder import Ladder
from impart_core.quantization.streams import MOST_ROWS
from impart_core.store.manifest import Content, FileEntry, Manifest, Pointer
from impart_core.store.provenance import Provenance, Stopwatch
from impart_core.store.recipe import Recipe

_ID = "0" * 64
_WIDEST = Fidelity(1.2345e-05, -1.2345e-05)
_KEPT_PARTS = {KEEP: ("delta", "exponent"), ROWS: ("rows", "values", "exponent"), VALUE: ("value",)}
_ELSEWHERE = 256  # by which another machine's user, system and libraries may be longer than this one's
_SECONDS, _PEAK_BYTES, _RATIO = 9_999_999.999, 10**14, 1e6 / 7
_CALIBRATED_BY = {
    "none": (),
    "inputs": ("calibration", "model", "activations"),
    "gradients": ("calibration", "model", "sensitivity"),
}
_DISTILLED_BY = ("calibration", "scales")


def block_description_bytes(
    sides: tuple[Checkpoint, Checkpoint],
    pairs: Pairs,
    block: Block,
    config: CompressConfig,
    codes: int,
    *,
    residual: bool,
) -> int:
    """Return the bytes of a block's manifest, and of its file but for the codes, at most.

    Args:
        sides: the base and the fine-tuned checkpoint.
        pairs: the tensors' pairs by name.
        block: which of them.
        config: the request.
        codes: bytes of the block's codes, at most.
        residual: whether residuals to a lossy block are stored.
    """
    headers = {name: _header(pairs[name], config, residual=residual) for name in block.tensors}
    text = header_bytes(
        [
            TensorSpec(f"{name}:{part}", "BF16", _widest_shape(header, codes))
            for name, header in headers.items()
            for part in header.parts
        ],
        metadata_of(headers),
    )
    digests = {pair.base.name: _ID for name in block.tensors if (pair := pairs[name]).base}, dict.fromkeys(headers, _ID)
    by = (*_CALIBRATED_BY[calibration_of(config)], *(_DISTILLED_BY if config.distils else ()))
    calibration = dict.fromkeys(by, _ID)
    more = {**calibration, **({"over": _ID, "over_files": {CODES_FILE: _ID}} if residual else {})}
    recipe = block_recipe(pairs, block, config, digests, factors_recipe(pairs, block, config, digests), more)
    content = BlockContent(
        name=block.name,
        tensors={name: _entry(pairs[name], header, config, codes) for name, header in headers.items()},
        projection_bytes=codes,
        projection_dense_bytes=sum(2 * pairs[name].finetuned.numel for name in block.tensors),
    )
    parents = 1 + len(calibration) + residual  # its factors, what it was calibrated with, the lossy block
    return len(text) + _manifest_bytes(sides, recipe, content, {CODES_FILE: codes + len(text)}, parents)


def delta_own_bytes(
    sides: tuple[Checkpoint, Checkpoint], blocks: dict[str, int], config: CompressConfig, over: Delta | None = None
) -> int:
    """Return the bytes of a delta's own manifest and of the files that it carries, at most.

    Args:
        sides: the base and the fine-tuned checkpoint. What is carried of both is read.
        blocks: bytes of the blocks by name, at most.
        config: the request.
        over: the lossy delta that residuals are against, if any.
    """
    base, finetuned = sides
    calibration = _ID if needs_text(config) else None
    recipe = delta_recipe(base, finetuned, config, ({}, {}), calibration, over)
    files = {name: finetuned.carried[name].size for name in own_files(recipe)}
    total = sum(blocks.values()) + sum(files.values()) + (over.bytes if over else 0)
    content = DeltaContent(
        blocks=tuple(Pointer(name=name, id=_ID, bytes=size) for name, size in blocks.items()),
        over=pointers_to(over) if over else (),
        base=_ID,
        finetuned=_ID,
        finetuned_bytes=finetuned.nbytes,
        carried=recipe.inputs["finetuned_files"],
        projection_bytes=total,
        projection_dense_bytes=sum(2 * info.numel for info in finetuned.tensors.values()),
        data_bytes=total,
        cr_projection=_RATIO,
    )
    return sum(files.values()) + _manifest_bytes(sides, recipe, content, files, len(blocks) + (over is not None))


def _header(pair: Pair, config: CompressConfig, *, residual: bool) -> TensorHeader:
    """Return the header of a tensor whose name and parts take the most bytes of those that it may be stored as."""
    coding = coding_of_role(pair.role, config)
    if config.is_lossless:
        ways = {RESIDUAL: EXACT_PARTS[RESIDUAL]} if residual else {VALUE: _KEPT_PARTS[VALUE], **EXACT_PARTS}
    elif pair.base is None or not pair.finetuned.is_floating:
        ways = {VALUE: _KEPT_PARTS[VALUE]}
    else:
        ways = {way: _KEPT_PARTS[way] for way in ((ROWS, KEEP) if len(pair.shape) == 2 else (KEEP,))}
        if coding is not None and is_feasible(pair.shape, coding):
            parts, matrices = METHODS.get(coding.method).parts, matrices_of(pair, config)
            numbered = [f"{index}.{part}" for index in range(len(matrices)) for part in parts]
            ways = {} if pair.role is Role.PROJECTION else ways
            ways[coding.method] = tuple(numbered if pair.is_stack else parts)
    method = max(ways, key=lambda way: (len(ways[way]), sum(map(len, ways[way]))))
    grown = (ADDED,) if pair.base and pair.shape != pair.finetuned.shape else ()
    return TensorHeader(
        method=method,
        role=pair.role,
        shape=pair.finetuned.shape,
        dtype=pair.finetuned.dtype,
        seed=config.seed,
        parts=(*ways[method], *grown),
        base=pair.base.name if pair.base and pair.base.name != pair.name else None,
        over=_ID if residual else None,
    )


def _widest_shape(header: TensorHeader, most: int) -> tuple[int, ...]:
    """Return a shape that is written in at least as many digits as any of a part with so many bytes."""
    return (*[10] * (max(2, len(header.shape)) - 1), max(most, 10))


def _entry(pair: Pair, header: TensorHeader, config: CompressConfig, most: int) -> TensorEntry:
    coding = coding_of_role(pair.role, config)
    return TensorEntry(
        method=header.method,
        role=header.role,
        shape=header.shape,
        dtype=header.dtype,
        bytes=most,
        quantized=_quantized(pair, coding, most) if coding and header.method in QUANTIZING else None,
        fidelity=(_WIDEST,) * len(matrices_of(pair, config)) if coding and header.method in METHODS else (),
    )


def _quantized(pair: Pair, coding: Coding, most: int) -> QuantizedEntry:
    ladder = getattr(coding.options, "ladder", None)
    ranges = max(len(ladder.groups) if isinstance(ladder, Ladder) else 1, math.ceil(pair.shape[-2] / MOST_ROWS))
    return QuantizedEntry(
        bits=",".join([f"16x{MOST_ROWS}"] * ranges),
        group_size=MOST_ROWS,
        parts=dict.fromkeys(("codes", "scales", "zeros", "sigma", "other"), most),
        packed=100 * most,  # what an entropy coder made smaller
    )


def _manifest_bytes(
    sides: tuple[Checkpoint, Checkpoint], recipe: Recipe, content: Content, files: dict[str, int], parents: int
) -> int:
    manifest = Manifest.make(
        recipe,
        content=content,
        files=tuple(
            FileEntry(name=stored, path=f"{stored}.{_ID[:16]}", size=size, sha256=_ID)
            for name, size in files.items()
            if (stored := stored_name(name))
        ),
        parents=(_ID,) * parents,
        provenance=_provenance(sides),
    )
    return len(manifest.to_json()) + _ELSEWHERE


def _provenance(sides: tuple[Checkpoint, Checkpoint]) -> Provenance:
    places = {role: side.location for role, side in zip(("base", "finetuned"), sides, strict=True)}
    watch = Stopwatch(places, run=str(uuid.UUID(int=0)))
    wide = {"seconds": _SECONDS, "peak_rss_bytes": _PEAK_BYTES, "imported": True}
    return watch.provenance().model_copy(update=wide)
