"""How checkpoints and artifacts are named in OpenLineage events, and what stages say they read and made."""

from pathlib import Path

import pytest

from impart_core.base.settings import build_config
from impart_core.blocks.request import CompressConfig
from impart_core.calibrate.text import CalibrationText
from impart_core.checkpoint.layout import Block
from impart_core.store.catalog import CatalogEntry
from impart_core.store.recipe import Recipe
from impart_tasks.datasets import (
    Dataset,
    artifact_dataset,
    checkpoint_dataset,
    inputs_of,
    outputs_of,
    parents_of,
    public_url,
    without_secrets,
)
from impart_tasks.references import (
    BlockJob,
    BlockResult,
    DeltaJob,
    DeltaResult,
    DistilJob,
    EvaluationJob,
    FactorsResult,
    LayerJob,
    MadeText,
    ScalesResult,
    TextJob,
)

COMMIT = "1" * 40


@pytest.mark.parametrize(
    ("location", "namespace", "name"),
    [
        ("/models/a b", "file", "/models/a b"),
        ("file:///models/base", "file", "/models/base"),
        ("s3://bucket/models/base/", "s3://bucket", "models/base"),
        ("s3://bucket", "s3://bucket", "/"),
        ("s3://bucket/a#b", "s3://bucket", "a#b"),
        ("gs://bucket/base", "gs://bucket", "base"),
        ("abfss://container@account.dfs.core.windows.net/a", "abfss://container@account.dfs.core.windows.net", "a"),
        ("simplecache::s3://bucket/base", "s3://bucket", "base"),
        (f"hf://org/name@{COMMIT}", "hf://org", f"name@{COMMIT}"),
        ("org/name@v1", "hf://org", "name@v1"),
        ("https://user:p@ss@host:8080/base?token=x", "https://host:8080", "base"),
    ],
)
def test_a_checkpoint_is_named_by_where_it_lies(location: str, namespace: str, name: str) -> None:
    assert checkpoint_dataset(location) == Dataset(namespace, name)


def test_an_artifact_is_named_by_its_store_and_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for store in (str(tmp_path / "store"), "store", f"file://{tmp_path}/store"):
        assert artifact_dataset(store, "ab", "delta").namespace == f"file://{tmp_path}/store"
    assert artifact_dataset("s3://bucket/store/", "ab", "delta") == Dataset(
        "s3://bucket/store", "artifacts/ab", kind="delta"
    )


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("ftp://me:secret@host/a is gone", "ftp://host/a is gone"),
        ("https://TOKEN@host/a?sig=secret is gone", "https://host/a is gone"),
        ("abfs://key:secret@host/a", "abfs://host/a"),
        ("simplecache::ftp://me:secret@host/a", "simplecache::ftp://host/a"),
        ("Is there a folder? name@home", "Is there a folder? name@home"),
    ],
)
def test_secrets_in_urls_are_left_out(text: str, clean: str) -> None:
    assert without_secrets(text) == clean
    assert "secret" not in public_url(text)


def test_calibrated_stages_read_their_text_and_their_scales() -> None:
    """A layer, a block with distilled scales, the scales, and the text itself."""
    inputs = {"calibration": "cc", "scales": "ss", "factors": "ff"}
    recipe = Recipe(operation="compress-block", version=1, config={}, inputs=inputs)
    block, config = Block("layer 0", ("w",)), build_config(CompressConfig, cr=4.0)
    places = {"base": "/m/b", "finetuned": "/m/f", "store": "s3://b/s"}
    own = BlockJob(block=block, recipe=recipe, config=config, **places)
    layer = LayerJob(job=own, calibration="cc", model="m", outside=(), before=(), last=True)
    models = (Dataset("file", "/m/b"), Dataset("file", "/m/f"))
    text = Dataset("s3://b/s", "artifacts/cc", "calibration")
    assert inputs_of(own) == models
    assert inputs_of(layer) == (*models, text)
    assert layer.store == "s3://b/s"  # where its outputs are looked for
    scales = Dataset("s3://b/s", "artifacts/ss", "scales")
    assert inputs_of(own.model_copy(update={"scales": recipe})) == (*models, text, scales)
    distil = DistilJob(label="bitdelta", recipe=recipe, calibration="cc", config=config, **places)
    assert inputs_of(distil) == (*models, text)
    read = TextJob(text=CalibrationText(source="tinyzoo:math"), finetuned="/m/f", store="s3://b/s")
    assert inputs_of(read) == models[1:]
    entry = CatalogEntry(id="cc", kind="calibration")
    made = MadeText(entry=entry, cached=False, sequences=1, length=2, seconds=1)
    assert outputs_of(made, "s3://b/s") == (Dataset("s3://b/s", "artifacts/cc", "calibration", None, False),)
    found = ScalesResult(entry=CatalogEntry(id="ss", kind="scales"), cached=True, seconds=1)
    assert outputs_of(found, "s3://b/s") == (Dataset("s3://b/s", "artifacts/ss", "scales", None, True),)


def test_a_stage_reads_what_its_job_names_and_makes_what_it_returns() -> None:
    recipe = Recipe(operation="compress", version=1, config={}, inputs={})
    made = tuple(
        CatalogEntry(id=name, kind=kind) for name, kind in (("aa", "block"), ("bb", "block"), ("ff", "factors"))
    )
    gather = DeltaJob(base="/m/b", finetuned="/m/f", recipe=recipe, made=made, store="s3://b/s")
    assert [found.name for found in inputs_of(gather)] == ["/m/b", "/m/f", "artifacts/aa", "artifacts/bb"]
    assert [found.name for found in inputs_of("/m/f")] == ["/m/f"]
    rebuilt = EvaluationJob(label="x", model="dd", base="/m/b", task="t", store="s3://b/s")
    assert [found.name for found in inputs_of(rebuilt)] == ["/m/b", "artifacts/dd"]
    folder = EvaluationJob(label="x", model="/m/f", task="t", store="s3://b/s")
    assert inputs_of(folder) == (Dataset("file", "/m/f"),)
    entry = CatalogEntry(id="aa", kind="block", parents=("ff",))
    block = BlockResult(name="layer 0", entry=entry, cached=False, bytes=7, seconds=1)
    assert outputs_of(block, "s3://b/s") == (Dataset("s3://b/s", "artifacts/aa", "block", 7, False),)
    assert parents_of(block, "s3://b/s") == (Dataset("s3://b/s", "artifacts/ff", "factors"),)
    entry = CatalogEntry(id="ff", kind="factors")
    factors = FactorsResult(name="layer 0", entry=entry, cached=True, matrices=7, fallbacks=0, seconds=1)
    assert outputs_of(factors, "s3://b/s") == (Dataset("s3://b/s", "artifacts/ff", "factors", None, True),)
    delta = DeltaResult(id="dd", bytes=9)
    assert outputs_of(delta, "s3://b/s") == (Dataset("s3://b/s", "artifacts/dd", "delta", 9),)
    assert outputs_of(DeltaResult(), "s3://b/s") == ()


@pytest.mark.parametrize("unknown", [None, 1, {"a": "b"}, object()])
def test_what_is_not_known_reads_and_makes_nothing(unknown: object) -> None:
    assert inputs_of(unknown) == outputs_of(unknown, "") == parents_of(unknown, "") == ()
