"""The page of a run in Prefect: what it made, read back from a real server."""

import json
import re
from base64 import b64decode
from contextvars import copy_context
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from prefect import flow
from prefect.client.orchestration import get_client

import impart_core as impart
from impart_core import tinyzoo
from impart_core.base.units import human_bytes
from impart_core.blocks.request import CompressConfig
from impart_core.engine.compress import CompressReport
from impart_core.engine.references import EvaluationResult
from impart_core.engine.requests import CompressRequest, MergeRequest
from impart_core.engine.search import SearchReport, SearchRequest
from impart_core.merging.file import merge_of
from impart_core.searching.file import parse_search
from impart_core.store.catalog import CatalogEntry
from impart_flows import merge as merging
from impart_flows import run_page
from impart_flows.compress import run_compress
from impart_flows.search import run_search
from impart_flows.study_picture import draw_study
from tests.impart_core.evaluation.own_tasks import SUMS, sums, write_task
from tests.support import manifests

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def request_(pair: tuple[Path, Path], prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> CompressRequest:
    """A request with a name, on a store of its own."""
    return CompressRequest(
        base=str(pair[0]),
        finetuned=str(pair[1]),
        config=CompressConfig(cr=4.0),
        store=str(tmp_path_factory.mktemp("page") / "store"),
        name="Paged@cr4",
    )


@pytest.fixture(scope="module")
def reports(request_: CompressRequest) -> list[CompressReport]:
    """The request carried out twice."""
    return [run_compress(request_), run_compress(request_)]


def pages(key: str) -> list[dict[str, Any]]:
    """Return the pages under a key, the oldest first."""
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": [key]}}}).json()
    return sorted(found, key=lambda page: page["created"])


def test_each_run_adds_a_text_and_a_link_under_the_names_keys(reports: list[CompressReport]) -> None:
    texts, links = pages("delta-paged-cr4"), pages("place-paged-cr4")
    assert [page["type"] for page in texts + links] == ["markdown"] * 4
    runs = [page["flow_run_id"] for page in texts]
    assert len(set(runs)) == 2
    assert [page["flow_run_id"] for page in links] == runs
    with get_client(sync_client=True) as client:
        ours = {"artifacts": {"flow_run_id": {"any_": runs}}}
        assert client.request("POST", "/artifacts/count", json=ours).json() == 4


def test_the_text_holds_all_that_was_reported_and_every_block(
    reports: list[CompressReport], request_: CompressRequest
) -> None:
    first, again = (page["data"] for page in pages("delta-paged-cr4"))
    report, store = reports[0], Path(request_.store)
    assert first.startswith("# Paged@cr4\n")
    for line in (
        f"| artifact | {report.artifact} |",
        f"| cr projection | {report.cr_projection:.2f} |",
        f"| cr model | {report.cr_model:.2f} |",
        f"| bytes | {report.bytes:,} |",
        "| cached blocks | 0 |",
        f"| store | {store.as_uri()} |",
    ):
        assert line in first
    for block, manifest in manifests(store, "block").items():
        size = sum(path.stat().st_size for path in (store / "artifacts" / block).iterdir())
        row = f"| {manifest['content']['name']} | {block} | {size:,} |"
        assert f"{row} made |" in first
        assert f"{row} reused |" in again


def test_the_link_is_the_artifacts_place(reports: list[CompressReport], request_: CompressRequest) -> None:
    place = f"{Path(request_.store).as_uri()}/artifacts/{reports[0].artifact}"
    assert pages("place-paged-cr4")[0]["data"] == f"[artifact Paged@cr4]({place})"


def test_an_evaluation_is_a_table(prefect_api: str) -> None:
    metrics = {"exact_match": (0.5, 0.1), "loss": (1.5, None)}
    entry = CatalogEntry(id="ab" * 32, kind="evaluation")
    measured = {"task": "sums", "metrics": {"sums": metrics}, "items": {"sums": 8}}
    result = EvaluationResult(entry=entry, cached=True, seconds=1, **measured)

    @flow(name="shows")
    def shows() -> None:
        run_page.show_evaluation("Math.v2", [result], {"split": "test", "num_fewshot": 2})

    shows()
    (page,) = pages("evaluation-math-v2")
    assert page["type"] == "table"
    assert page["description"] == "What was measured of Math.v2, split test, num_fewshot 2."
    common = {"task": "sums", "items": 8, "artifact": "ab" * 32, "from": "reused"}
    assert json.loads(page["data"]) == [
        {**common, "metric": "exact_match", "value": 0.5, "standard error": 0.1},
        {**common, "metric": "loss", "value": 1.5, "standard error": None},
    ]


@pytest.fixture(scope="module")
def searched(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchReport, list[str]]:
    """A search over two methods at two ratios, and what its run's page told of how far it was."""
    folder = tmp_path_factory.mktemp("searched")
    write_task(folder, {"validation": sums(range(10, 22)), "test": sums(range(30, 38))}, **SUMS)
    template = {
        **{"base": str(tinyzoo.path("base")), "finetuned": str(tinyzoo.path("math"))},
        **{"method": {"choose": ["magnitude", "lowrank"]}, "cr": {"choose": [8, 64]}},
    }
    usual = {"sampler": "grid", "items": [4, 12], "starts": [], "name": "Paged@best"}
    file = parse_search(
        {"compress": template, "tasks": {str(folder / "my_sums.yaml"): "answer_loss"}, "objectives": ["mean", "bytes"]}
        | usual
    )
    shown: list[str] = []

    def look(*_: object) -> None:
        shown.extend(page["description"] for page in pages("search-progress-paged-best")[-1:])

    report = run_search(SearchRequest(file=file, store=str(folder / "store"), device="cpu", workers=1), None, look)
    look()
    return report, shown


def test_a_search_shows_how_far_it_is(searched: tuple[SearchReport, list[str]]) -> None:
    (page,) = pages("search-progress-paged-best")
    assert (page["type"], float(page["data"])) == ("progress", 100.0)
    shown = searched[1]  # after the next call, which the page is told after the listener
    assert shown[0] == "search: 0 of 4 trials"
    quantities = r"mean [0-9.]+, bytes [0-9.e+]+"
    assert re.fullmatch(rf"search: 1 of 4 trials, best 0: {quantities}, about [0-9.]+ m?s left", shown[1])
    assert re.fullmatch(rf"search: 4 of 4 trials, best [0-3]: {quantities}", shown[-1])


def test_a_search_shows_winner_trials_and_importance(searched: tuple[SearchReport, list[str]]) -> None:
    report, _ = searched
    (page,) = pages("search-paged-best")
    text, study = page["data"], report.record.study
    assert text.startswith("# Paged@best\n\n4 trials: every candidate was tried.")
    assert report.record.verdict is not None
    for name, standing in report.record.verdict.test.items():
        value, error = standing.metrics["my_sums"]["answer_loss"]
        assert f"| {name} | {value:.4f} ± {error:.4f} |" in text
    for trial in study.trials:
        mark = " (best)" if trial.number == study.best else " (front)" if trial.number in study.front else ""
        row = f"| {trial.number}{mark} | {trial.values['method']} | {trial.values['cr']} | "
        assert row + f"{trial.quantities['mean']:.5g} | {trial.quantities['bytes']:.5g} | {trial.state}" in text
    for name, share in study.importance.items():
        assert f"| {name} | {share:.2f} |" in text


def test_a_search_shows_its_picture(searched: tuple[SearchReport, list[str]]) -> None:
    """History, quality against bytes with its front, bars beside base, default and expert, importance."""
    record = searched[0].record
    (page,) = pages("search-picture-paged-best")
    assert page["type"] == "image"
    head, _, data = page["data"].partition(",")
    assert head == "data:image/png;base64"
    assert b64decode(data) == draw_study(record, "png")
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters as letters
        drawn = ElementTree.fromstring(draw_study(record, "svg"))
    words = {"".join(element.itertext()).strip() for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {"best so far", "complete", "mean on validation items"} <= words  # the history
    assert {"Pareto front", "bytes"} <= words
    assert {"winner", "default", "base", "math", "my_sums", "on the test split, with standard errors"} <= words
    assert {"method", "cr", "share in the variance of mean"} <= words
    assert len(record.study.front) > 1


def test_a_merge_shows_how_far_it_is(
    prefect_api: str, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From whatever thread merges a tensor: tensor k of n, bytes, time left."""
    monkeypatch.setattr(merging, "SECONDS_BETWEEN_UPDATES", 0.0)
    base, finetuned = map(str, pair)
    models = [{"model": finetuned, "parameters": {"weight": 0.5}}]
    file = {"merge_method": "task_arithmetic", "base_model": base, "models": models}
    request = MergeRequest(stages=(merge_of(file),), store=str(tmp_path / "store"), out=tmp_path / "out", workers=2)
    shown: list[str] = []
    here = copy_context()  # which knows the server; the threads that merge do not

    def look(*_: object) -> None:
        shown.extend(page["description"] for page in here.copy().run(pages, "merge-progress-halves")[-1:])

    report = merging.run_merge(request.model_copy(update={"name": "halves"}), None, look)
    (page,), (text,) = pages("merge-progress-halves"), pages("merge-halves")
    assert (page["type"], float(page["data"]), page["flow_run_id"]) == ("progress", 100.0, text["flow_run_id"])
    size = re.escape(human_bytes(report.bytes))
    whole = f"{report.tensors} tensors"
    assert re.fullmatch(rf"merge: {report.tensors} of {whole}, \S+, {size} of {size}", page["description"])
    told = rf"merge: ([0-9]+) of {whole}, \S+, [0-9.]+ k?B of {size}, about [0-9.]+ m?s left"
    counts = [int(found[1]) for one in dict.fromkeys(shown) if (found := re.fullmatch(told, one))]
    assert counts and counts == sorted(counts)


def test_a_merge_that_is_written_nowhere_tells_how_far_it_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    report = impart.merge(
        [str(pair[1])],
        base=str(pair[0]),
        compress={"cr": 4.0},
        store=tmp_path,
        progress=lambda stage, done, total, what: told.append((stage, done, total)),
    )
    whole = report.tensors
    assert [one for one in told if one[0] == "merge"] == [("merge", done, whole) for done in range(1, whole + 1)]


def test_a_page_that_is_not_taken_fails_no_run(
    request_: CompressRequest, reports: list[CompressReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_page, "page_key", lambda kind, name: "Not a Key!")
    assert run_compress(request_).artifact == reports[0].artifact
