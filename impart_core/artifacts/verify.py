"""Verifying a published artifact: every file re-read, every number in the manifests held against it."""

from collections.abc import Callable
from contextlib import ExitStack

from impart_core.artifacts.delta import Delta, open_delta
from impart_core.artifacts.factors import FACTORS_FILE, locate_factors
from impart_core.artifacts.manifest import BlockContent, DeltaContent, FactorsContent, Manifest
from impart_core.artifacts.store import Store
from impart_core.codec.format import CODES_FILE, BlockFile, decode_delta, decode_stack
from impart_core.config import Frozen
from impart_core.errors import CorruptArtifactError, ImpartError
from impart_core.numerics import one_thread_per_kernel

Progress = Callable[[int, int], None]


class VerifyReport(Frozen):
    """What verification found: artifacts and files read, their bytes, and a sentence for each fault."""

    artifact: str
    artifacts: int
    files: int
    bytes: int
    faults: tuple[str, ...]


def verify(store: Store, artifact_id: str, progress: Progress | None = None) -> VerifyReport:
    """Re-read an artifact and, for a delta, its blocks: sizes, digests, headers, and that all codes decode.

    Raises:
        ArtifactNotFoundError: it does not exist. Damage is reported, not raised.
    """
    faults: list[str] = []
    manifests: list[Manifest] = []
    try:
        manifests.append(store.manifest(artifact_id))
    except CorruptArtifactError as error:
        faults.append(str(error))
    pointers = [pointer for top in manifests if isinstance(top.content, DeltaContent) for pointer in top.content.blocks]
    for pointer in pointers:
        _collect(faults, lambda pointer=pointer: manifests.append(store.manifest(pointer.id)))  # type: ignore[misc]
    for number, manifest in enumerate(manifests, 1):
        _collect(faults, lambda manifest=manifest: _verify_one(store, manifest))  # type: ignore[misc]
        if progress:
            progress(number, len(manifests))
    if not faults and pointers:
        _collect(faults, lambda: _verify_totals(open_delta(store, artifact_id)))
    files = [entry for manifest in manifests for entry in manifest.files]
    return VerifyReport(
        artifact=artifact_id,
        artifacts=len(manifests),
        files=len(files),
        bytes=sum(entry.size for entry in files),
        faults=tuple(faults),
    )


def _collect(faults: list[str], check: Callable[[], object]) -> None:
    try:
        check()
    except ImpartError as error:
        faults.append(str(error))


def _verify_one(store: Store, manifest: Manifest) -> None:
    for entry in manifest.files:
        store.verify_file(manifest, entry)
    if isinstance(manifest.content, BlockContent):
        with store.local_file(manifest, CODES_FILE) as path, one_thread_per_kernel():
            _verify_block(BlockFile(path), manifest.content)
    if isinstance(manifest.content, FactorsContent):
        with store.local_file(manifest, FACTORS_FILE) as path:
            locate_factors(path, manifest.content)


def _verify_block(file: BlockFile, content: BlockContent) -> None:
    for name, entry in content.tensors.items():
        header = file.headers.get(name)
        if header is None or (header.method, header.shape, header.dtype) != (
            entry.method,
            entry.shape,
            entry.dtype,
        ):
            raise CorruptArtifactError(f"{file.path} stores {name!r} otherwise than its manifest says.")
        if file.code_bytes([name]) != entry.bytes:
            raise CorruptArtifactError(f"{file.path}: the codes of {name!r} are not as long as its manifest says.")
        if header.is_stack:
            for _ in decode_stack(file, name):
                pass
        else:
            decode_delta(name, header, file.codes(name))


def _verify_totals(delta: Delta) -> None:
    with ExitStack() as stack:
        blocks = delta.open_blocks(stack)
        projections = [name for name, file in blocks.items() if file.headers[name].role == "projection"]
        codes = sum(blocks[name].code_bytes([name]) for name in projections)
    if codes != delta.content.projection_bytes:
        raise CorruptArtifactError(
            f"The delta {delta.manifest.id[:12]} records {delta.content.projection_bytes:,} bytes of projections; "
            f"its blocks hold {codes:,}."
        )
