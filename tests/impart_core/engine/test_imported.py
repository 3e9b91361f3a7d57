"""What was imported: ids are of recipes, so that whoever made it may have published anything under them."""

from pathlib import Path

import pytest
import torch

from impart_core.artifacts.delta import Delta, open_delta
from impart_core.artifacts.factors import FACTORS_FILE
from impart_core.checkpoint.header import read_header
from impart_core.checkpoint.local import local_file
from impart_core.checkpoint.reader import read_tensor
from impart_core.checkpoint.writer import write_tensors
from impart_core.codec.format import CODES_FILE, BlockFile, EncodedTensor, write_block
from impart_core.engine.compress import CompressReport
from impart_core.engine.compress import compress as compress_model
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.requests import CompressRequest, Trust
from impart_core.share.transfer import Record, TransferSettings, transfer
from impart_core.store.manifest import Manifest
from impart_core.store.names import set_ref
from impart_core.store.publish import made_or_found
from impart_core.store.store import IMPORTED, Store, file_entry
from impart_core.store.verify import verify_store
from tests.impart_core.pipeline import compress, config_of
from tests.impart_core.store.samples import evaluation_of

Pair = tuple[Path, Path]


def run(store: Store, pair: Pair, trust: Trust = Trust(), *, keep_factors: bool = True) -> CompressReport:  # noqa: B008
    request = CompressRequest(
        base=str(pair[0]),
        finetuned=str(pair[1]),
        config=config_of(4),
        store=store.url,
        device="cpu",
        workers=1,
        keep_factors=keep_factors,
        trust=trust,
    )
    with ThreadExecutor(1) as executor:
        return compress_model(request, executor).report


def codes_of(store: Store, delta: str) -> list[str]:
    return [block.file(CODES_FILE).sha256 for block in open_delta(store, delta).blocks]


def twice(code: torch.Tensor) -> torch.Tensor:
    return code * 2 if code.is_floating_point() else code


def poison(store: Store, manifest: Manifest, scratch: Path) -> None:
    """Replace an artifact's file by one of twice the values, with a manifest that fits it."""
    (entry,) = manifest.files
    path = scratch / entry.name
    with store.local_file(manifest, entry.name) as whole:
        if entry.name == FACTORS_FILE:
            write_tensors(
                path, {name: twice(read_tensor(one)) for name, one in read_header(local_file(whole))[0].items()}
            )
        else:
            file = BlockFile(whole)
            codes = {name: {part: twice(code) for part, code in file.codes(name).items()} for name in file.headers}
            write_block(path, {name: EncodedTensor(file.headers[name], codes[name]) for name in codes})
    made = manifest.model_copy(update={"files": (file_entry(entry.name, path),)}).sealed()
    store.publish(made, {entry.name: path}, replace=True)


@pytest.fixture
def honest(pair: Pair, tmp_path: Path) -> Delta:
    return compress(Store(tmp_path / "honest"), *pair, config_of(4), keep_factors=True)


@pytest.fixture
def poisoned(honest: Delta, tmp_path: Path) -> Store:
    """A store of somebody else's that is whole, and whose blocks and factors are not what their recipes make."""
    theirs = Store(tmp_path / "theirs")
    transfer(honest.store, theirs, [honest.id], TransferSettings(factors=True))
    for artifact in theirs.ids():
        manifest = theirs.manifest(artifact)
        if manifest.content.kind in ("block", "factors") and manifest.nbytes:
            poison(theirs, manifest, tmp_path)
    set_ref(theirs, "gift", honest.id)
    assert verify_store(theirs).faults == ()
    assert codes_of(theirs, honest.id) != codes_of(honest.store, honest.id)
    return theirs


@pytest.mark.parametrize("trust", [Trust(), Trust(reread=True)], ids=["as usual", "verify cache"])
@pytest.mark.parametrize("keep_factors", [True, False])
def test_a_compression_reuses_nothing_that_was_imported(
    keep_factors: bool, trust: Trust, honest: Delta, poisoned: Store, pair: Pair, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    transfer(poisoned, store, [honest.id], TransferSettings(factors=True, record=Record.IMPORTED))
    report = run(store, pair, trust, keep_factors=keep_factors)
    assert (report.artifact, report.cached_blocks, report.reused_factors) == (honest.id, 0, 0)
    assert report.remade == (IMPORTED,)
    assert report.changed
    assert codes_of(store, honest.id) == codes_of(honest.store, honest.id)
    assert not [block for block in open_delta(store, honest.id).blocks if block.provenance.imported]
    again = run(store, pair, trust, keep_factors=keep_factors)
    assert (again.cached_blocks, again.remade) == (again.blocks, ())
    assert verify_store(store).faults == ()


def test_what_is_trusted_is_reused(honest: Delta, poisoned: Store, pair: Pair, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    transfer(poisoned, store, [honest.id], TransferSettings(factors=True, record=Record.IMPORTED))
    report = run(store, pair, Trust(imported=True))
    assert (report.cached_blocks, report.remade) == (report.blocks, ())
    assert codes_of(store, honest.id) == codes_of(poisoned, honest.id)


def test_an_import_never_takes_the_place_of_what_was_made_here_and_is_replaced_by_it(
    honest: Delta, poisoned: Store, pair: Pair, tmp_path: Path
) -> None:
    before = {made: honest.store.manifest(made) for made in honest.store.ids()}
    report = transfer(poisoned, honest.store, [honest.id], TransferSettings(factors=True, record=Record.IMPORTED))
    assert report.copied.artifacts == {}
    assert {made: honest.store.manifest(made) for made in honest.store.ids()} == before
    store = Store(tmp_path / "store")
    transfer(
        honest.store, store, [honest.id], TransferSettings(record=Record.IMPORTED)
    )  # the same bytes as are made here
    assert all(store.manifest(made).provenance.imported for made in store.ids())
    run(store, pair)
    assert not any(store.manifest(made).provenance.imported for made in store.ids())


def test_an_export_of_an_import_stays_one(honest: Delta, tmp_path: Path) -> None:
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second")
    transfer(honest.store, first, [honest.id], TransferSettings(record=Record.IMPORTED))
    transfer(first, second, [honest.id])
    assert all(second.manifest(made).provenance.imported for made in second.ids())
    assert not any(honest.store.manifest(made).provenance.imported for made in honest.store.ids())


def test_evaluations_are_reused_no_more_than_deltas(tmp_path: Path) -> None:
    theirs, ours = Store(tmp_path / "theirs"), Store(tmp_path / "ours")
    lie = evaluation_of(theirs, {"checkpoint": "f" * 64}, metrics={"exact_match": (1.0, 0.0)})
    transfer(theirs, ours, [lie.id], TransferSettings(record=Record.IMPORTED))

    def measure() -> Manifest:
        return evaluation_of(ours, {"checkpoint": "f" * 64}, metrics={"exact_match": (0.25, 0.125)})

    outcome = made_or_found(ours, lie.id, measure)
    assert (outcome.cached, outcome.changed, outcome.fault) == (False, True, IMPORTED)
    assert ours.manifest(lie.id).content.measurements() == {"task": {"exact_match": (0.25, 0.125)}}
