"""Merging by the library: folders, deltas, sparsifiers, stages, and what the store tells afterwards."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import impart_core as impart
from impart_core import tinyzoo
from impart_core.artifacts.merged import MergedContent
from impart_core.base.errors import ConfigError, ImpartError, OutputExistsError, TensorValueError, WrongBaseError
from impart_core.checkpoint.digest import checkpoint_id, tensor_digests
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.lineage.graph import lineage_of
from impart_core.merging.merged import Merge
from impart_core.store.gc import collect
from impart_core.store.names import resolve
from tests.impart_core.store.samples import NO_GRACE

# Half a unit in the last place of bfloat16, and as much again where deltas were rounded before.
ROUNDED: dict[str, float] = {"rtol": 2**-7, "atol": 1e-4}
BASE, MATH, CODE = (tinyzoo.path(name) for name in ("base", "math", "code"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> impart.Store:
    return impart.Store(str(tmp_path_factory.mktemp("merges") / "store"))


@pytest.fixture(scope="module")
def math(store: impart.Store) -> impart.Delta:
    return impart.compress(BASE, MATH, 8, store=store, name="math", workers=1, keep_factors=False)


def tensors_of(place: Path | Checkpoint) -> dict[str, torch.Tensor]:
    opened = place if isinstance(place, Checkpoint) else open_checkpoint(place)
    return {name: read_tensor(info) for name, info in opened.tensors.items()}


def unreached(store: impart.Store) -> set[str]:
    """Return what nothing leads to."""
    found = collect(store, NO_GRACE).artifacts
    return {artifact for ids in found.values() for artifact in ids}


def test_a_folder_is_made_that_says_how(store: impart.Store, tmp_path: Path) -> None:
    report = impart.merge([MATH, CODE], weights=[0.6, 0.4], base=BASE, out=tmp_path / "out", store=store)
    merged, base, math, code = (tensors_of(one) for one in (tmp_path / "out", BASE, MATH, CODE))
    for name, tensor in merged.items():
        added = 0.6 * (math[name].double() - base[name].double()) + 0.4 * (code[name].double() - base[name].double())
        torch.testing.assert_close(tensor.double(), base[name].double() + added, **ROUNDED)
    assert (report.method, report.tensors) == ("task_arithmetic", len(base))
    (written,) = yaml.safe_load_all((tmp_path / "out" / "merge.yaml").read_text())
    again = impart.merge(tmp_path / "out" / "merge.yaml", out=tmp_path / "again", store=store)
    assert written["models"][0]["model"] == str(MATH)
    assert again.artifact == report.artifact
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "out" / weights).read_bytes()


def test_bytes_are_the_same_for_any_number_of_workers(store: impart.Store, tmp_path: Path) -> None:
    for workers in (1, 3):
        impart.merge([MATH, CODE], base=BASE, out=tmp_path / str(workers), store=store, workers=workers)
    one, three = (tmp_path / str(workers) / "model.safetensors" for workers in (1, 3))
    assert one.read_bytes() == three.read_bytes()


def test_deltas_know_their_base(store: impart.Store, math: impart.Delta, tmp_path: Path) -> None:
    report = impart.merge([math], out=tmp_path / "out", store=store)
    rebuilt = impart.load_state_dict(math, BASE)
    for name, tensor in tensors_of(tmp_path / "out").items():
        assert torch.equal(tensor, rebuilt[name])  # added before the one cast
    manifest = store.manifest(report.artifact)
    assert set(manifest.parents) == {math.id}


def test_a_sparsifier_is_a_compression_that_is_kept(store: impart.Store, math: impart.Delta, tmp_path: Path) -> None:
    config = impart.CompressConfig(cr=8)
    report = impart.merge([MATH, CODE], weights=0.5, base=BASE, sparsify=config, out=tmp_path / "out", store=store)
    assert report.sparsified[0].artifact == math.id
    assert report.sparsified[0].cached_blocks == report.sparsified[0].blocks
    rebuilt = [impart.load_state_dict(made.artifact, BASE, store=store) for made in report.sparsified]
    base = tensors_of(BASE)
    for name, tensor in tensors_of(tmp_path / "out").items():
        exact = base[name] + sum(0.5 * (one[name].double() - base[name].double()) for one in rebuilt)
        torch.testing.assert_close(tensor.double(), exact, **ROUNDED)


def test_the_result_is_compressed_again_and_lineage_leads_to_every_input(
    store: impart.Store, math: impart.Delta, tmp_path: Path
) -> None:
    compress = impart.CompressConfig(method="dare", cr=4)
    report = impart.merge([math, CODE], weights=0.5, base=BASE, compress=compress, name="both", store=store)
    assert report.delta is not None and report.out is None
    assert resolve(store, "both") == report.delta.artifact
    nodes = {node.id: node for node in lineage_of(store, report.delta.artifact).nodes}
    assert {report.artifact, math.id} <= nodes.keys()
    code = checkpoint_id(tensor_digests(open_checkpoint(CODE)))
    assert nodes[code].location == str(CODE)
    merged = store.manifest(report.artifact).content
    assert isinstance(merged, MergedContent)
    edges = set(lineage_of(store, report.delta.artifact).edges)
    assert {(report.artifact, merged.merged), (merged.merged, report.delta.artifact), (code, report.artifact)} <= edges
    assert report.artifact not in unreached(store)


def test_stages_feed_each_other(store: impart.Store, tmp_path: Path) -> None:
    first: dict[str, Any] = {
        "name": "first",
        "merge_method": "task_arithmetic",
        "base_model": str(BASE),
        "models": [{"model": str(MATH), "parameters": {"weight": 0.5}}],
    }
    second = {**first, "models": [{"model": "first", "parameters": {"weight": 0.5}}]}
    del second["name"]
    path = tmp_path / "stages.yaml"
    path.write_text(yaml.safe_dump_all([first, second]))
    report = impart.merge(path, out=tmp_path / "out", store=store)
    assert report.models[1] == "first"
    base, math = tensors_of(BASE), tensors_of(MATH)
    for name, tensor in tensors_of(tmp_path / "out").items():
        exact = base[name].double() + 0.25 * (math[name].double() - base[name].double())
        torch.testing.assert_close(tensor.double(), exact, **ROUNDED)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"out": None}, "Nothing would become of the merged model"),
        ({"weights": [1.0]}, "1 weights are given for 2 models"),
        ({"nme": "x"}, "Did you mean 'name'"),
        ({"name": "no/slash"}, "name"),
        ({"sparsify": {"cr": 1e9}}, "too high"),
        ({"sparsify": {"cr": 8, "options": {"distil": True}}}, "'impart' with distil=true needs calibration text, and"),
        ({"compress": {"cr": 32, "method": "impart-qt"}}, "'impart-qt' needs calibration text, and a merge has none"),
        ({"options": {"weigth": 1}}, "Did you mean 'weight'"),
        ({"base": "nowhere"}, "nowhere"),
        ({"base": None}, "needs base_model"),
    ],
)
def test_mistakes_cost_nothing(settings: dict[str, Any], told: str, store: impart.Store, tmp_path: Path) -> None:
    before = sorted(store.objects.names("artifacts"))
    request = {"base": BASE, "out": tmp_path / "out", "store": store, **settings}
    with pytest.raises(ImpartError, match=told):
        impart.merge([MATH, CODE], **request)
    assert not (tmp_path / "out").exists()
    assert sorted(store.objects.names("artifacts")) == before


def test_a_delta_of_another_base_is_refused(store: impart.Store, math: impart.Delta, tmp_path: Path) -> None:
    with pytest.raises(WrongBaseError, match="made against another base"):
        impart.merge([math], base=CODE, out=tmp_path / "out", store=store)


def test_deltas_of_different_bases_are_refused(store: impart.Store, math: impart.Delta, tmp_path: Path) -> None:
    other = impart.compress(CODE, MATH, 64, store=store, method="magnitude", keep_factors=False)
    with pytest.raises(WrongBaseError, match=f"{other.id[:12]} was made against another base"):
        impart.merge([math, other], out=tmp_path / "out", store=store)


@pytest.mark.parametrize("change", ["altered", "gone"])
def test_a_base_whose_tokenizer_is_not_the_one_a_delta_shares_with_it_is_refused(
    change: str, store: impart.Store, math: impart.Delta, tmp_path: Path
) -> None:
    base = shutil.copytree(BASE, tmp_path / "base")
    file = base / "tokenizer.json"
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ImpartError, match=r"tokenizer\.json"):
        impart.merge([math], base=base, out=tmp_path / "out", store=store)
    assert not (tmp_path / "out").exists()


def test_a_delta_is_not_sparsified_again(store: impart.Store, math: impart.Delta, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be sparsified"):
        impart.merge([math], sparsify={"cr": 4}, out=tmp_path / "out", store=store)


def test_models_and_store_are_not_written_over(store: impart.Store, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError):
        impart.merge([MATH], base=BASE, out=MATH, overwrite=True, store=store)
    with pytest.raises(OutputExistsError, match="inside the store"):
        impart.merge([MATH], base=BASE, out=Path(store.url) / "out", store=store)


@pytest.mark.parametrize("lost", ["base", "math", "code"])
def test_none_of_the_models_is_written_over(lost: str, store: impart.Store, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("base", "math", "code")}
    for name, place in places.items():
        shutil.copytree(tinyzoo.path(name), place)
    before = (places[lost] / "model.safetensors").read_bytes()
    for out in (places[lost], places[lost] / "inside"):
        with pytest.raises(OutputExistsError, match="the model"):
            impart.merge([places["math"], places["code"]], base=places["base"], out=out, overwrite=True, store=store)
    assert (places[lost] / "model.safetensors").read_bytes() == before


def artifact_of(store: impart.Store, out: Path, *stages: dict[str, Any]) -> str:
    """Merge a file of these stages; return the id."""
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump_all(stages, sort_keys=False))
    return impart.merge(path, out=out, store=store).artifact


def test_modules_and_tokens_in_another_order_are_another_merge(store: impart.Store, tmp_path: Path) -> None:
    parts = {"mlp": {"models": [weighted(MATH)]}, "layers.0": {"models": [weighted(CODE)]}}
    swapped = dict(reversed(parts.items()))
    file = {"merge_method": "linear", "base_model": str(BASE)}
    ids = [
        artifact_of(store, tmp_path / f"modules{number}", {**file, "modules": modules})
        for number, modules in enumerate((parts, swapped))
    ]
    tokens = {token: {"source": {"kind": "zero"}} for token in ("<A>", "<B>")}
    for number, ordered in enumerate((tokens, dict(reversed(tokens.items())))):
        own = {**file, "models": [weighted(MATH)], "tokenizer": {"source": "base", "tokens": ordered}}
        ids.append(artifact_of(store, tmp_path / f"tokens{number}", own))
    assert len(set(ids)) == 4


@pytest.mark.parametrize("listed", ["folders", "base", "delta"])
def test_one_model_under_two_names_is_refused(
    listed: str, store: impart.Store, math: impart.Delta, tmp_path: Path
) -> None:
    for name, place in (("math", MATH), ("base", BASE)):
        (tmp_path / name).symlink_to(place)
    models: dict[str, list[Any]] = {
        "folders": [MATH, tmp_path / "math"],
        "base": [MATH, tmp_path / "base"],
        "delta": [math, "math"],
    }
    with pytest.raises(ConfigError, match="are one model under two names"):
        impart.merge(models[listed], base=BASE, out=tmp_path / "out", store=store)


def weighted(place: Path) -> dict[str, Any]:
    return {"model": str(place), "parameters": {"weight": 1.0}}


def test_what_is_written_beside_a_merge_makes_it_again(store: impart.Store, tmp_path: Path) -> None:
    own = {"sparsify": {"method": "magnitude", "cr": 8}, "models": {str(CODE): {"sparsify": None}}}
    file = {"merge_method": "linear", "base_model": str(BASE), "models": [weighted(MATH), weighted(CODE)]}
    first = artifact_of(store, tmp_path / "out", {**file, "impart": own})
    again = impart.merge(tmp_path / "out" / "merge.yaml", out=tmp_path / "again", store=store)
    assert again.artifact == first
    assert len(again.sparsified) == 1


def test_an_adapter_needs_a_checkpoint(store: impart.Store, math: impart.Delta, tmp_path: Path) -> None:
    stage = {"name": "one", "merge_method": "linear", "models": [weighted(MATH)]}
    for place in ("math+no/adapter", "one+no/adapter"):
        last = {"merge_method": "task_arithmetic", "base_model": str(BASE), "models": [weighted(Path(place))]}
        with pytest.raises(ConfigError, match="an adapter is merged into a checkpoint"):
            artifact_of(store, tmp_path / "out", stage, last)


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ({"name": None}, "needs a name"),
        ({"name": "two"}, "Two merges of the file are called two"),
        ({"impart": {"name": "x"}}, "belong in the last merge"),
        ({"name": "folder"}, "so is what lies at"),
    ],
)
def test_stages_that_none_could_tell_apart_are_refused(
    first: dict[str, Any], told: str, store: impart.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    stage = {"merge_method": "linear", "models": [weighted(MATH)]}
    with pytest.raises(ConfigError, match=told):
        artifact_of(store, tmp_path / "out", {**stage, "name": "one", **first}, {**stage, "name": "two"})


def test_a_model_of_infinities_is_not_written(store: impart.Store, tmp_path: Path) -> None:
    with pytest.raises(TensorValueError, match="NaN or infinity"):
        impart.merge([MATH], weights=1e300, base=BASE, out=tmp_path / "out", store=store)
    assert not (tmp_path / "out").exists()


def test_a_tensor_is_merged_once_for_the_folder_and_once_to_be_compressed(
    store: impart.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: Counter[str] = Counter()
    compute = Merge.compute

    def counted(self: Merge, name: str) -> torch.Tensor:
        computed[name] += 1
        return compute(self, name)

    monkeypatch.setattr(Merge, "compute", counted)
    config = impart.CompressConfig(method="dare", cr=4)
    impart.merge([MATH, CODE], weights=[0.31, 0.47], base=BASE, out=tmp_path / "out", compress=config, store=store)
    assert set(computed.values()) == {2}
