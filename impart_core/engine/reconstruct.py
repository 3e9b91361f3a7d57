"""Rebuilding a checkpoint from a delta in a store."""

from collections.abc import Callable
from pathlib import Path

from impart_core.apply.dense import reconstruct as rebuild
from impart_core.artifacts.delta import open_delta
from impart_core.base.retry import Retried, patiently, recording
from impart_core.base.settings import Frozen
from impart_core.checkpoint.carried import code_elsewhere
from impart_core.checkpoint.spool import spooling
from impart_core.engine.preflight import open_side
from impart_core.engine.requests import ReconstructRequest
from impart_core.store.names import resolve
from impart_core.store.provenance import Stopwatch
from impart_core.store.store import Store


class Reconstruction(Frozen):
    """A checkpoint that was rebuilt.

    Attributes:
        artifact: the delta's id.
        out: the folder.
        bytes: of its weights.
        lossless: whether each tensor was found to have the fine-tune's bytes, by its digest; so it is where the delta
            is lossless.
        code: Python files that the delta brings.
        code_written: whether they were written, as was asked for.
        code_elsewhere: repositories of the Hub whose code its configurations name.
        retried: what was tried again.
        seconds: how long it took.
    """

    artifact: str
    out: Path
    bytes: int
    lossless: bool = False
    code: tuple[str, ...]
    code_written: bool
    code_elsewhere: tuple[str, ...]
    retried: tuple[Retried, ...]
    seconds: float


def reconstruct(request: ReconstructRequest, progress: Callable[[int, int], None] | None = None) -> Reconstruction:
    """Rebuild a fine-tuned checkpoint as an ordinary Hugging Face folder; equal inputs give equal bytes.

    Args:
        request: what to rebuild.
        progress: called with tensors done and their number.

    Raises:
        ImpartError: the request cannot be carried out; the message says what to change.
    """
    watch, store, out = Stopwatch(), Store(request.store), request.out.absolute()
    with recording() as ledger, spooling():
        delta = patiently("look for the delta", lambda: open_delta(store, resolve(store, request.ref)))
        base = patiently("open the base", lambda: open_side(request.base))
        written = patiently(
            "reconstruct",
            lambda: rebuild(
                delta,
                base,
                out,
                overwrite=request.overwrite,
                with_code=request.with_code,
                max_shard_bytes=request.max_shard_bytes,
                progress=progress,
            ),
        )
    return Reconstruction(
        artifact=delta.manifest.id,
        out=out,
        bytes=written,
        lossless=delta.is_lossless,
        code=delta.code,
        code_written=request.with_code,
        code_elsewhere=code_elsewhere(out),
        retried=ledger.retried,
        seconds=round(watch.seconds, 3),
    )
