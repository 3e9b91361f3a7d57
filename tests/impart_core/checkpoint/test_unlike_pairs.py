"""What a fine-tuned tensor is a delta against where its base has it under another name, in another shape or not."""

from pathlib import Path

import pytest

from impart_core.checkpoint.index import open_checkpoint
from impart_core.checkpoint.layout import Role
from impart_core.checkpoint.pairing import pair_tensors
from tests.support import random_tensors, save_checkpoint

Shapes = dict[str, tuple[int, ...]]
Q, EMBEDDING, HEAD = "h.0.q_proj.weight", "embed_tokens.weight", "lm_head.weight"
BODY: Shapes = {
    Q: (8, 8),
    EMBEDDING: (40, 8),
    "embed_positions.weight": (64, 8),
    "token_type_embeddings.weight": (2, 8),
    "norm.weight": (8,),
}


def paired(root: Path, base: Shapes, finetuned: Shapes) -> dict[str, tuple[str | None, Role]]:
    """Return what each fine-tuned tensor is a delta against, by name, and its role."""
    for side, shapes in (("base", base), ("finetuned", finetuned)):
        save_checkpoint(root / side, random_tensors(shapes))
    pairs = pair_tensors(open_checkpoint(root / "base"), open_checkpoint(root / "finetuned"))
    return {name: (pair.base.name if pair.base else None, pair.role) for name, pair in pairs.items()}


def prefixed(shapes: Shapes) -> Shapes:
    return {f"transformer.{name}": shape for name, shape in shapes.items()}


def test_tensors_of_one_name_are_pairs(tmp_path: Path) -> None:
    assert {name: base for name, (base, _) in paired(tmp_path, BODY, BODY).items()} == {name: name for name in BODY}


@pytest.mark.parametrize("base_has_prefix", [False, True])
def test_a_body_saved_alone_pairs_with_the_one_below_a_head(base_has_prefix: bool, tmp_path: Path) -> None:
    plain, below = BODY, {**prefixed(BODY), "score.weight": (2, 8)}
    found = paired(tmp_path, below, plain) if base_has_prefix else paired(tmp_path, plain, below)
    body = {name: f"transformer.{name}" for name in BODY}
    if not base_has_prefix:
        body = {theirs: ours for ours, theirs in body.items()}
        assert found.pop("score.weight") == (None, Role.HEAD)
    assert {name: base for name, (base, _) in found.items()} == body


def test_an_untied_head_is_a_delta_against_the_embedding_that_its_base_ties_it_to(tmp_path: Path) -> None:
    assert paired(tmp_path, BODY, {**BODY, HEAD: (40, 8)})[HEAD] == (EMBEDDING, Role.HEAD)


def test_it_may_have_grown_with_the_vocabulary(tmp_path: Path) -> None:
    assert paired(tmp_path, BODY, {**BODY, EMBEDDING: (43, 8), HEAD: (43, 8)})[HEAD] == (EMBEDDING, Role.HEAD)


def test_layers_of_the_bases_head_before_the_tied_one_are_no_reason_against_it(tmp_path: Path) -> None:
    base = {**BODY, "lm_head.dense.weight": (8, 8)}
    found = paired(tmp_path, base, {**base, "lm_head.decoder.weight": (40, 8)})
    assert found["lm_head.decoder.weight"] == (EMBEDDING, Role.HEAD)
    assert found["lm_head.dense.weight"] == ("lm_head.dense.weight", Role.HEAD)


@pytest.mark.parametrize("rows", [2, 39, 41, 64])
def test_a_head_of_another_shape_than_the_vocabularys_is_new(rows: int, tmp_path: Path) -> None:
    assert paired(tmp_path, BODY, {**BODY, "score.weight": (rows, 8)})["score.weight"] == (None, Role.HEAD)


def test_a_head_beside_an_untied_one_is_new(tmp_path: Path) -> None:
    base = {**BODY, HEAD: (40, 8)}
    assert paired(tmp_path, base, {**BODY, "other_head.weight": (40, 8)})["other_head.weight"] == (None, Role.HEAD)


@pytest.mark.parametrize(("labels", "pairs"), [(2, False), (3, True), (5, True)])
def test_a_head_with_fewer_labels_than_its_bases_is_new(labels: int, pairs: bool, tmp_path: Path) -> None:
    def classifier(labels: int) -> Shapes:
        return {**BODY, "score.weight": (labels, 8), "score.bias": (labels,)}

    found = paired(tmp_path, classifier(3), classifier(labels))
    for name in ("score.weight", "score.bias"):
        assert found[name][0] == (name if pairs else None)


def test_a_matrix_outside_of_layers_that_the_base_lacks_is_no_projection(tmp_path: Path) -> None:
    name = "pooler.dense.weight"
    with_pooler = {**BODY, name: (8, 8)}
    assert paired(tmp_path / "new", BODY, with_pooler)[name] == (None, Role.OTHER)
    assert paired(tmp_path / "both", with_pooler, with_pooler)[name] == (name, Role.PROJECTION)
