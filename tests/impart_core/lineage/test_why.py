"""Why an artifact is what it is: all of it from manifests, none of it from weights."""

from pathlib import Path

import pytest

from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CorruptArtifactError
from impart_core.lineage.why import Input, explain, flatten
from impart_core.store.names import set_ref
from impart_core.store.store import Store
from tests.impart_core.pipeline import compress, config_of, flip
from tests.impart_core.store.samples import sample
from tests.support import llama_shapes

Pair = tuple[Path, Path]


@pytest.fixture
def delta(pair: Pair, tmp_path: Path) -> Delta:
    return compress(Store(tmp_path / "store"), *pair, config_of(4, seed=7), keep_factors=True)


def test_a_delta_names_inputs_settings_seeds_parents_and_names(delta: Delta) -> None:
    set_ref(delta.store, "math@prod", delta.manifest.id)
    for file in Path(delta.store.url).rglob("*.safetensors"):
        file.unlink()
    found = explain(delta.store, delta.manifest.id)
    assert (found.kind, found.operation, found.operation_version) == ("delta", "compress", 1)
    tensors = len(llama_shapes())
    assert [(given.role, given.id, given.tensors, given.files) for given in found.inputs] == [
        ("base", delta.content.base, tensors, 1),
        ("finetuned", delta.content.finetuned, tensors, 1),
    ]
    assert (found.config["cr"], found.config["options.beta"], found.seeds) == (4.0, None, {"seed": 7})
    assert found.parents == tuple(block.id for block in delta.blocks)
    assert found.names == ("math@prod",)
    assert found.provenance == delta.manifest.provenance


def test_a_block_counts_its_tensors_and_names_its_factors(delta: Delta) -> None:
    found = explain(delta.store, delta.blocks[0].id)
    given = {one.role: one for one in found.inputs}
    assert given["base"].tensors == given["finetuned"].tensors == len(delta.blocks[0].recipe.inputs["base"])
    assert given["factors"].id == found.parents[0]
    assert found.seeds == {"methods.projection.seed": 7}


def test_where_a_block_is_gone_the_tensors_are_not_counted(delta: Delta) -> None:
    (Path(delta.store.url) / "artifacts" / delta.blocks[0].id / "manifest.json").unlink()
    assert {given.tensors for given in explain(delta.store, delta.manifest.id).inputs} == {None}


def test_an_evaluation_tells_its_metrics(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    found = explain(store, store.publish(*sample(tmp_path / "scratch")).id)
    assert (found.kind, found.metrics, found.items) == ("evaluation", {"task": {"acc": (0.5, None)}}, {"task": 4})


def test_the_base_that_a_measured_delta_was_rebuilt_on_is_known_by_its_place(tmp_path: Path) -> None:
    manifest, files = sample(tmp_path / "scratch")
    made = manifest.provenance.model_copy(update={"sources": {"base": "/models/base"}})
    fields = {name: getattr(manifest, name) for name in ("files", "content")}
    store = Store(tmp_path / "store")
    published = store.publish(type(manifest).make(manifest.recipe, provenance=made, **fields), files)
    assert explain(store, published.id).inputs == (Input(role="base", location="/models/base"),)


def test_a_damaged_manifest_explains_nothing(delta: Delta) -> None:
    flip(Path(delta.store.url) / "artifacts" / delta.manifest.id / "manifest.json", 50)
    with pytest.raises(CorruptArtifactError, match="not a valid manifest"):
        explain(delta.store, delta.manifest.id)


def test_flatten_gives_leaves_under_dotted_keys() -> None:
    assert dict(flatten({"a": {"b": [1], "c": {}}, "d": None})) == {"a.b": [1], "d": None}
