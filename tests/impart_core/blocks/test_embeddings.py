"""How embeddings and heads are coded, by the request's policy and by what changed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from impart_core.apply.dense import reconstruct
from impart_core.artifacts.block import BlockContent, TensorEntry
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import ConfigError, InfeasibleBudgetError
from impart_core.checkpoint.index import open_checkpoint
from impart_core.engine.plan import check_request, make_plan
from impart_core.store.store import Store
from tests.impart_core.pipeline import compress, config_of
from tests.support import decaying_delta, finetune, llama_shapes, random_tensors, save_checkpoint

EMBEDDING, HEAD, TYPES = "model.embed_tokens.weight", "lm_head.weight", "token_type_embeddings.weight"
ROWS, WIDTH = 512, 64
SHAPES = {**llama_shapes(1, hidden=WIDTH, intermediate=96, key_value=32, vocab=ROWS), TYPES: (2, WIDTH)}
BASE = random_tensors(SHAPES)
LAYERS = {name: tensor for name, tensor in finetune(BASE).items() if name not in (EMBEDDING, HEAD, TYPES)}
DENSE_BYTES = 2 * ROWS * WIDTH


def few_rows() -> torch.Tensor:
    changed = BASE[EMBEDDING].clone()
    changed[[3, 77, 510]] += 0.25
    return changed


def every_row(name: str = EMBEDDING) -> torch.Tensor:
    """Return a tensor changed by a delta of rank 1, of which every method here keeps the most part."""
    return (BASE[name].float() + decaying_delta(ROWS, 1) @ decaying_delta(1, WIDTH, scale=1)).bfloat16()


def compressed(root: Path, changed: dict[str, torch.Tensor], **settings: Any) -> Delta:
    """Compress a fine-tune at CR 4 whose layers, and of the rest these tensors, changed."""
    base = save_checkpoint(root / "base", BASE)
    finetuned = save_checkpoint(root / "finetuned", {**BASE, **LAYERS, **changed})
    return compress(Store(root / "store"), base, finetuned, config_of(4, **settings))


def entries(delta: Delta) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for block in delta.blocks:
        assert isinstance(block.content, BlockContent)
        found.update(block.content.tensors)
    return found


def embedding_bytes(delta: Delta) -> int:
    return entries(delta)[EMBEDDING].bytes


def rebuilt(delta: Delta, root: Path) -> dict[str, torch.Tensor]:
    reconstruct(delta, open_checkpoint(root / "base"), root / "out")
    return load_file(root / "out" / "model.safetensors")


def test_kept_embeddings_of_which_few_rows_changed_are_these_rows(tmp_path: Path) -> None:
    delta = compressed(tmp_path, {EMBEDDING: few_rows()})
    assert {name: entries(delta)[name].method for name in (EMBEDDING, HEAD)} == {EMBEDDING: "rows", HEAD: "omitted"}
    assert embedding_bytes(delta) == 3 * (4 + 2 * WIDTH) + 1  # an exponent
    assert torch.equal(rebuilt(delta, tmp_path)[EMBEDDING], few_rows())


def test_kept_embeddings_of_which_every_row_changed_are_whole(tmp_path: Path) -> None:
    delta = compressed(tmp_path, {EMBEDDING: every_row()})
    assert (entries(delta)[EMBEDDING].method, embedding_bytes(delta)) == ("keep", DENSE_BYTES + 1)


@pytest.mark.parametrize("method", ["impart", "lowrank"])
@pytest.mark.parametrize("cr", [None, 8, 24])
def test_a_method_codes_them_at_their_own_ratio(method: str, cr: float | None, tmp_path: Path) -> None:
    changed = {EMBEDDING: every_row(), HEAD: every_row(HEAD)}
    delta = compressed(tmp_path, changed, embeddings=method, embeddings_cr=cr)
    for name in changed:
        assert entries(delta)[name].method == method
        assert DENSE_BYTES / entries(delta)[name].bytes >= (cr or 4)
    assert entries(delta)["model.layers.0.self_attn.q_proj.weight"].method == "impart"
    found = rebuilt(delta, tmp_path)
    for name, theirs in changed.items():
        assert torch.dist(found[name].float(), theirs.float()) < torch.dist(BASE[name].float(), theirs.float())


@pytest.mark.parametrize(
    ("embedding", "cr", "method"),
    [(few_rows, 8, "rows"), (every_row, 8, "impart"), (every_row, 1, "keep")],
    ids=["few rows changed", "all changed", "no ratio to speak of"],
)
def test_auto_takes_the_fewest_bytes(embedding: Any, cr: float, method: str, tmp_path: Path) -> None:
    changed = {EMBEDDING: embedding()}
    auto = compressed(tmp_path, changed, embeddings="auto", embeddings_cr=cr, options={"beta": 0.4})
    kept = compressed(tmp_path, changed)
    coded = compressed(tmp_path, changed, embeddings="impart", embeddings_cr=cr, options={"beta": 0.4})
    assert entries(auto)[EMBEDDING].method == method
    least = min(embedding_bytes(kept), embedding_bytes(coded))
    assert embedding_bytes(auto) in (least, least + (method == "keep"))  # for an exponent's byte nothing is lost


@pytest.mark.parametrize("policy", ["impart", "auto"])
def test_the_projections_ratio_knows_nothing_of_the_policy_and_the_models_gains(policy: str, tmp_path: Path) -> None:
    changed = {EMBEDDING: every_row(), HEAD: every_row(HEAD)}
    kept, coded = compressed(tmp_path, changed), compressed(tmp_path, changed, embeddings=policy, embeddings_cr=16)
    assert coded.content.cr_projection == kept.content.cr_projection
    assert coded.cr_model > 1.5 * kept.cr_model


@pytest.mark.parametrize("policy", ["impart", "lowrank", "dare", "magnitude"])
def test_a_table_too_small_for_the_ratio_is_kept_beside_one_that_is_not(policy: str, tmp_path: Path) -> None:
    changed = {EMBEDDING: every_row(), TYPES: BASE[TYPES] + 1}
    delta = compressed(
        tmp_path, changed, embeddings=policy, embeddings_cr=100 if policy in ("dare", "magnitude") else 24
    )
    assert entries(delta)[EMBEDDING].method == policy
    assert entries(delta)[TYPES].bytes <= 2 * 2 * WIDTH
    if policy in ("impart", "lowrank"):
        assert entries(delta)[TYPES].method == "keep"


@pytest.mark.parametrize("policy", ["auto", "impart", "lowrank", "dare", "magnitude"])
def test_added_rows_and_a_head_of_one_label_are_as_they_were_beside_what_a_method_codes(
    policy: str, tmp_path: Path
) -> None:
    added = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    score = {"score.weight": added[:1].clone()}
    base = save_checkpoint(tmp_path / "base", {**BASE, **score})
    tuned = {**BASE, **LAYERS, "score.weight": added[1:2].clone(), EMBEDDING: torch.cat([every_row(), added])}
    folder = save_checkpoint(tmp_path / "finetuned", tuned)
    delta = compress(Store(tmp_path / "store"), base, folder, config_of(4, embeddings=policy, embeddings_cr=8))
    expected = "impart" if policy == "auto" else policy
    assert entries(delta)[EMBEDDING].method == expected
    assert entries(delta)[EMBEDDING].bytes <= DENSE_BYTES / 8 + 2 * 3 * WIDTH
    found = rebuilt(delta, tmp_path)
    assert torch.equal(found[EMBEDDING][ROWS:], added)
    if policy not in ("dare", "magnitude"):  # which have room for an entry of a single row
        assert entries(delta)["score.weight"].bytes == 2 * WIDTH


def test_a_ratio_that_is_too_high_for_every_table_is_refused_with_the_largests_limit(tmp_path: Path) -> None:
    base = open_checkpoint(save_checkpoint(tmp_path, BASE))
    with pytest.raises(InfeasibleBudgetError, match="CR 100 is too high") as caught:
        check_request(base, base, config_of(4, embeddings="impart", embeddings_cr=100))
    limit = float(str(caught.value).split("settings is ")[1].split(". ")[0])
    assert limit == int(100 * DENSE_BYTES / (2 * (ROWS + WIDTH) + 6)) / 100
    check_request(base, base, config_of(4, embeddings="impart", embeddings_cr=limit))


def test_plans_are_upper_bounds_under_every_policy(tmp_path: Path) -> None:
    changed = {EMBEDDING: every_row(), HEAD: few_rows(), TYPES: BASE[TYPES] + 1}
    for policy in ("keep", "auto", "impart", "lowrank", "dare", "magnitude"):
        delta = compressed(tmp_path, changed, embeddings=policy)
        plan = make_plan(
            *(open_checkpoint(tmp_path / side) for side in ("base", "finetuned")), config_of(4, embeddings=policy)
        )
        outside = entries(delta)
        assert sum(outside[name].bytes for name in changed) <= plan.blocks[-1].kept_bytes


def test_a_ratio_for_embeddings_that_are_kept_is_refused() -> None:
    with pytest.raises(ConfigError, match="no effect while embeddings are kept"):
        config_of(4, embeddings_cr=8)
