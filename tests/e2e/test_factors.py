"""Factors through the command line: decomposed once for every setting of a sweep, looked at, verified, left out."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from impart_core.engine.compress import CompressReport
from impart_core.engine.requests import CompressRequest
from impart_flows.compress import run_compress
from tests.impart_core.pipeline import config_of
from tests.support import Environment, data_files, make_pair, manifests, run_impart, run_json, run_together

pytestmark = pytest.mark.e2e

Pair = tuple[Path, Path]
MATRICES = 2 * 7  # two layers of seven projections
SWEEP: list[dict[str, Any]] = [
    *({"cr": cr, "options": {"beta": beta, "c": c}} for cr, beta, c in product((4, 8, 16, 32), (0.6, 0.8), (0.5, 1.0))),
    *({"cr": cr, "method": "lowrank"} for cr in (4, 8, 16, 32)),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base and a fine-tune with projections large enough for CR 32."""
    return make_pair(tmp_path_factory.mktemp("models"), hidden=128, intermediate=192, key_value=64)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the sweep."""
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def reports(models: Pair, store: Path, environment: Environment) -> list[CompressReport]:
    """What each setting of the sweep reported, one after the other into one store."""
    made = []
    for settings in SWEEP:
        base, finetuned = map(str, models)
        request = CompressRequest(base=base, finetuned=finetuned, config=config_of(**settings), store=str(store))
        made.append(run_compress(request))
    return made


def compress(models: Pair, store: Path, *options: str) -> list[str]:
    """Return the arguments of a compression."""
    return ["compress", *map(str, models), "--store", str(store), *options]


def factors_bytes(store: Path) -> int:
    """Return the bytes of all factors in a store."""
    return sum(entry["size"] for made in manifests(store, "factors").values() for entry in made["files"])


def test_a_sweep_decomposes_every_matrix_once(reports: list[CompressReport], store: Path) -> None:
    assert len(reports) == len({report.artifact for report in reports}) == 20
    assert [(report.decompositions, report.reused_factors) for report in reports] == [
        (MATRICES, 0),
        *[(0, MATRICES)] * 19,
    ]
    matrices = [name for made in manifests(store, "factors").values() for name in made["content"]["matrices"]]
    assert len(matrices) == len(set(matrices)) == MATRICES
    assert len(manifests(store, "delta")) == 20
    assert len(manifests(store, "block")) == 20 * 2 + 1  # what is outside the layers is the same for all


def test_the_factors_take_less_than_the_model_that_they_serve_it_for(
    reports: list[CompressReport], store: Path, models: Pair
) -> None:
    weights = load_file(models[1] / "model.safetensors")
    dense = sum(2 * tensor.numel() for name, tensor in weights.items() if "_proj." in name)
    assert factors_bytes(store) < dense


@pytest.mark.parametrize("number", [0, 7, 12, 18])
def test_each_setting_gets_the_bytes_that_it_gets_alone(
    number: int, reports: list[CompressReport], models: Pair, store: Path, tmp_path: Path, environment: Environment
) -> None:
    settings = SWEEP[number]
    flags = [f"--option={key}={value}" for key, value in settings.get("options", {}).items()]
    typed = ["--cr", str(settings["cr"]), "--method", settings.get("method", "impart"), *flags]
    report = run_json(*compress(models, tmp_path, *typed, "--no-keep-factors"), environment=environment)
    assert report["artifact"] == reports[number].artifact
    assert (report["decompositions"], report["reused_factors"]) == (0, 0)
    assert manifests(tmp_path, "factors") == {}
    blocks = data_files(tmp_path)
    assert len(blocks) == 3
    assert blocks.items() <= data_files(store).items()


def test_factors_for_a_higher_ratio_take_fewer_bytes(
    reports: list[CompressReport], models: Pair, store: Path, tmp_path: Path, environment: Environment
) -> None:
    first, second = run_together(
        compress(models, tmp_path / "one", "--cr", "32", "--factors-for", "32"),
        compress(models, tmp_path / "two", "--cr", "32", "--factors-for", "16"),
        environment=environment,
    )
    assert first["decompositions"] == second["decompositions"] == MATRICES
    assert factors_bytes(tmp_path / "one") < factors_bytes(tmp_path / "two") < factors_bytes(store)
    # The codes are those from deeper factors, as long as both come from the exact decomposition of a small matrix.
    codes = [set(data_files(place, "block").values()) for place in (tmp_path / "one", tmp_path / "two", store)]
    assert codes[0] == codes[1] <= codes[2]


def test_unusual_settings_have_whole_factors_of_their_own(
    reports: list[CompressReport], models: Pair, tmp_path: Path, environment: Environment
) -> None:
    made = [
        run_json(*compress(models, tmp_path, "--cr", "8", "--option", typed), environment=environment)
        for typed in ("beta=0.5", "allocation=uniform")
    ]
    assert [(report["decompositions"], report["reused_factors"]) for report in made] == [(MATRICES, 0), (0, MATRICES)]
    contents = [made["content"]["matrices"] for made in manifests(tmp_path, "factors").values()]
    assert all(entry["rank"] == min(entry["shape"]) for matrices in contents for entry in matrices.values())


def test_embeddings_that_are_coded_are_decomposed_with_the_rest(
    models: Pair, tmp_path: Path, environment: Environment
) -> None:
    typed = ["--embeddings", "impart", "--embeddings-cr", "5"]
    first = run_json(*compress(models, tmp_path, "--cr", "8", *typed), environment=environment)
    again = run_json(*compress(models, tmp_path, "--cr", "16", *typed), environment=environment)
    assert (first["decompositions"], again["reused_factors"]) == (MATRICES + 2, MATRICES)
    assert again["cached_blocks"] == 1  # embedding and head have the same settings in both


def test_a_method_without_factors_publishes_none(models: Pair, tmp_path: Path, environment: Environment) -> None:
    report = run_json(*compress(models, tmp_path, "--cr", "8", "--method", "dare"), environment=environment)
    assert (report["decompositions"], report["reused_factors"]) == (0, 0)
    assert manifests(tmp_path, "factors") == {}


def test_people_are_told_what_was_decomposed_and_what_reused(
    reports: list[CompressReport], models: Pair, store: Path, environment: Environment
) -> None:
    done = run_impart(*compress(models, store, "--cr", "9"), environment=environment)
    assert done.returncode == 0, done.stderr
    assert "decomposed     0 matrices; 14 reused" in done.stdout


def layer_factors(store: Path) -> tuple[str, dict[str, Any]]:
    """Return the id and the content of the first layer's factors."""
    ((made, manifest),) = (
        (made, found)
        for made, found in manifests(store, "factors").items()
        if found["content"]["name"] == "model.layers.0"
    )
    return made, manifest["content"]


def test_inspect_shows_factors_matrix_by_matrix(reports: list[CompressReport], store: Path) -> None:
    made, content = layer_factors(store)
    done = run_impart("inspect", made, "--store", str(store))
    assert done.returncode == 0, done.stderr
    assert made in done.stdout
    assert "decompose-block (block=model.layers.0)" in done.stdout
    for name, entry in content["matrices"].items():
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(name))
        shape, size = "×".join(map(str, entry["shape"])), f"{entry['bytes']:,}"
        assert line.split() == [name, shape, "from", "CR", "4", str(entry["rank"]), "exact", "0", size]
    total = sum(entry["bytes"] for entry in content["matrices"].values())
    assert re.search(rf"\(7 matrices\) +\d+ +0 +{total:,}$", done.stdout, re.MULTILINE)
    shown = run_json("inspect", made[:10], "--store", str(store))
    assert (shown["id"], shown["content"]) == (made, content)


def test_the_blocks_of_a_delta_name_their_factors(reports: list[CompressReport], store: Path) -> None:
    blocks = run_json("inspect", reports[5].artifact, "--store", str(store))["blocks"]
    assert [block["factors"] in manifests(store, "factors") for block in blocks] == [True, True, False]
    assert blocks[0]["factors"] == layer_factors(store)[0]
    assert blocks[2]["factors"] is None


def test_verify_reads_factors(reports: list[CompressReport], store: Path) -> None:
    made, _ = layer_factors(store)
    report = run_json("verify", made, "--store", str(store))
    (entry,) = manifests(store)[made]["files"]
    assert report["ok"]
    assert (report["artifacts"], report["files"], report["bytes"]) == (1, 1, entry["size"])


def test_ls_lists_deltas_and_not_what_they_were_made_from(reports: list[CompressReport], store: Path) -> None:
    listed = run_json("ls", "--store", str(store))["artifacts"]
    assert {entry["kind"] for entry in listed} == {"delta"}
    assert {report.artifact for report in reports} <= {entry["id"] for entry in listed}
