"""What a compression is foretold to keep: as from its manifest, and refused where data decides."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from impart_core import tinyzoo
from impart_core.base.errors import ConfigError
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.delta.quality import Kept, flatness_of, foretold
from impart_core.engine.executor import ThreadExecutor
from impart_core.engine.foretell import foretell, foretell_by
from impart_core.engine.preflight import check_compress
from impart_core.engine.requests import CompressRequest
from impart_core.store.store import Store
from tests.e2e.here import impart
from tests.impart_core.pipeline import compress, config_of

BASE, MATH = tinyzoo.path("base"), tinyzoo.path("math")


@pytest.fixture(scope="module")
def sides() -> tuple[Checkpoint, Checkpoint]:
    return open_checkpoint(BASE), open_checkpoint(MATH)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose factors all of these tests share."""
    return Store(tmp_path_factory.mktemp("store"))


def test_of_a_model_of_few_layers_it_is_what_its_manifest_gives(
    sides: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    config = config_of(256, method="ecsq")
    delta = compress(Store(tmp_path), BASE, MATH, config)
    base, math = (load_file(place / "model.safetensors") for place in (BASE, MATH))
    entries = {name: entry for block in delta.blocks for name, entry in block.content.tensors.items()}
    measured = foretold(
        [
            Kept(entry.fidelity[0], flatness_of(math[name].float() - base[name].float()))
            for name, entry in entries.items()
            if entry.fidelity
        ]
    )
    found = foretell(*sides, config)
    assert found is not None
    assert measured is not None
    # The samples' budgets count less of what their files would say.
    assert found.kept == pytest.approx(measured.kept, abs=0.01)


def test_a_higher_ratio_is_foretold_to_keep_less(sides: tuple[Checkpoint, Checkpoint]) -> None:
    low, high = (foretell(*sides, config_of(cr, method="dare")) for cr in (4, 64))
    assert low is not None
    assert high is not None
    assert high.kept < low.kept <= 1.0


def test_bit_for_bit_keeps_all(sides: tuple[Checkpoint, Checkpoint]) -> None:
    found = foretell(*sides, config_of(None, method="lossless"))
    assert found is not None
    assert (found.kept, found.error) == (1.0, 0.0)


@pytest.mark.parametrize("method", ["impart", "dare", "ecsq"])
def test_by_stages_and_from_stored_factors_it_is_the_same(
    sides: tuple[Checkpoint, Checkpoint], method: str, store: Store
) -> None:
    config = config_of(32, method=method)
    request = CompressRequest(base=str(BASE), finetuned=str(MATH), config=config, store=store.url)
    told: list[str] = []
    with ThreadExecutor(1) as executor:
        found = foretell_by(executor, request, check_compress(request, sides), lambda stage, *_: told.append(stage))
    assert found == foretell(*sides, config)
    assert set(told) == {"foretell"}


def test_what_calibration_decides_is_refused(sides: tuple[Checkpoint, Checkpoint]) -> None:
    with pytest.raises(ConfigError, match=r"depends on calibration text.*set solver to nearest"):
        foretell(*sides, config_of(64, method="impart-qt"))
    with pytest.raises(ConfigError, match=r"when it is distilled.*Leave --quality or distil out"):
        foretell(*sides, config_of(64, method="ecsq", options={"distil": True}))


def test_plan_says_it_when_asked() -> None:
    code, said, _ = impart("plan", str(BASE), str(MATH), "--cr", "64", "--method", "dare", "--quality")
    assert code == 0
    assert "share kept     about 0." in said
    code, said, _ = impart("plan", str(BASE), str(MATH), "--cr", "64", "--method", "dare")
    assert "share kept" not in said


def test_plan_says_what_is_not_foretold(tmp_path: Path) -> None:
    options = ("--cr", "64", "--method", "ecsq", "--quality")
    assert "not foretold" not in "".join(impart("plan", str(BASE), str(MATH), *options)[1:])
    _, said, noted = impart("plan", str(BASE), str(MATH), *options, "--embeddings", "auto")
    assert "share kept" in said
    assert "What embeddings and head lose is not foretold" in noted
    _, said, noted = impart("plan", str(BASE), str(shutil.copytree(BASE, tmp_path / "same")), *options)
    assert "share kept" not in said
    assert "no share is foretold" in noted
