"""Small models to merge."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import impart_core as impart
from impart_core import tinyzoo
from impart_core.artifacts.delta import Delta
from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.reader import read_tensor
from impart_core.merging.file import MergeFile, ModelReference, merge_of
from impart_core.merging.merged import Merge
from impart_core.merging.planning import plan_merge
from impart_core.merging.sources import Source
from tests.support import finetune, llama_shapes, random_tensors, save_checkpoint

Tensors = dict[str, torch.Tensor]
Models = dict[str, Tensors]
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def zoo() -> Models:
    """A base and three fine-tunes of a small Llama."""
    base = random_tensors(llama_shapes(layers=3))
    return {"base": base, **{name: finetune(base, seed=seed) for seed, name in enumerate("abc", 1)}}


@pytest.fixture
def planned(tmp_path: Path, zoo: Models) -> Callable[..., Merge]:
    """Plan a merge of models that are saved first: those of the zoo, unless others are given."""

    def plan(file: Mapping[str, Any], models: Models | None = None, **configs: Mapping[str, Any]) -> Merge:
        models = models or zoo
        for name, tensors in models.items():
            save_checkpoint(tmp_path / name, tensors, dict(configs.get(name, {})))
        merge = merge_of(_placed(dict(file), tmp_path))
        return plan_merge(merge, sources_of(merge), CPU)

    return plan


def sources_of(merge: MergeFile) -> dict[ModelReference, Source]:
    """Open the models of a file, the base first."""
    references = dict.fromkeys([*([merge.base_model] if merge.base_model else []), *merge.references(), *merge.bases()])
    return {one: Source(Path(one.place).name, open_checkpoint(one.place)) for one in references}


def _placed(value: Any, folder: Path) -> Any:
    """Put the folder before every model of a file."""
    if isinstance(value, Mapping):
        return {
            key: str(folder / part) if key in ("model", "base_model") and part else _placed(part, folder)
            for key, part in value.items()
        }
    return [_placed(part, folder) for part in value] if isinstance(value, list) else value


def tensors_of(merge: Merge) -> Tensors:
    """Compute all of a merged model, through its checkpoint."""
    return {name: read_tensor(info) for name, info in merge.checkpoint().tensors.items()}


@pytest.fixture(scope="session")
def math_delta(tmp_path_factory: pytest.TempPathFactory) -> Delta:
    """The tiny zoo's math model, compressed."""
    store = tmp_path_factory.mktemp("merging") / "store"
    return impart.compress(tinyzoo.path("base"), tinyzoo.path("math"), 8, store=store, workers=1, keep_factors=False)
