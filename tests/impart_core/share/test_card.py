"""The model card: what the manifests say, and nothing in them that breaks out of it."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from impart_core.artifacts.delta import Delta
from impart_core.share.card import Measured, code, model_card
from impart_core.store.manifest import Manifest
from impart_core.store.store import Store
from tests.impart_core.pipeline import compress, config_of
from tests.impart_core.store.samples import evaluation_of

HOSTILE = "evil` | <script>\n---\n# [x](http://x) \u2028\u202e\x85\\"
CONTROLS = ("\u2028", "\u202e", "\x85", "\x00", "\r")


@pytest.fixture(scope="module")
def delta(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Delta:
    return compress(Store(tmp_path_factory.mktemp("card") / "store"), *pair, config_of(8, seed=3))


def front_matter(card: str) -> dict[str, object]:
    """Return the front matter as the Hub reads it."""
    first, matter, _ = card.split("---\n", 2)
    assert first == ""
    found = yaml.safe_load(matter)
    assert isinstance(found, dict)
    return found


def test_a_card_says_what_it_is_how_it_was_made_and_how_to_rebuild_it(delta: Delta) -> None:
    card = model_card(delta, "team/math-delta", "math@prod")
    assert front_matter(card) == {"library_name": "impart", "tags": ["impart", "delta-compression"]}
    for said in (
        "# math-delta\n",
        f"{delta.bytes:,} bytes instead of {delta.content.finetuned_bytes:,}",
        "hf download team/math-delta --local-dir delta",
        "impart reconstruct math@prod --store delta --base BASE --out rebuilt",
        "`impart import math@prod --from delta`",
        "| `method` | `impart` |",
        "| `cr` | `8.0` |",
        "| `seed` | `3` |",
        f"{delta.content.cr_projection:.2f}×",
        f"{delta.cr_model:.2f}×",
        f"`{delta.manifest.id}`",
        f"`{delta.content.base}`",
        f"`{delta.content.finetuned}`",
        *(f"| block `{pointer.name}` | `{pointer.id}` |" for pointer in delta.content.blocks),
        f"| `torch` | `{delta.manifest.provenance.libraries['torch']}` |",
    ):
        assert said in card
    assert "Evaluations" not in card


@pytest.mark.parametrize("location", ["hf://org/base@" + "1" * 40, "org/base", "org/base@main"])
def test_a_base_on_the_hub_is_named_and_stands_in_the_command(location: str, delta: Delta) -> None:
    card = model_card(delta, "team/x", "x", sources={"base": location, "finetuned": "org/tuned"})
    assert front_matter(card)["base_model"] == "org/base"
    assert f"--base {location.removeprefix('hf://')} --out" in card
    assert "https://huggingface.co/org/tuned)" in card


@pytest.mark.parametrize(
    "location", ["/home/me/base", "s3://bucket/base", "org/base@$(rm)", "org/base@`x`", HOSTILE, ""]
)
def test_any_other_place_of_the_base_is_not_told(location: str, delta: Delta) -> None:
    card = model_card(delta, "team/x", "x", sources={"base": location, "finetuned": location})
    assert "base_model" not in front_matter(card)
    assert "--base BASE --out" in card
    assert not location or location not in card


def test_evaluations_stand_side_by_side_where_they_measured_alike(delta: Delta, tmp_path: Path) -> None:
    store = Store(tmp_path)

    def measured(who: str, value: float, error: float | None, task: str = "task") -> Manifest:
        metrics = {"answer_loss": (value, error), "exact_match": (value / 2, error)}
        return evaluation_of(store, {"checkpoint": who}, metrics=metrics, task=task)

    found = Measured(
        base=[measured("b", 2.5, 0.125), measured("b", 2.5, 0.125, "of another fine-tune")],
        finetuned=[measured("f", 0.5, None)],
        delta=[measured("d", 1.0, 0.25, "own")],
    )
    card = model_card(delta, "team/x", "x", found)
    table = [line for line in card.splitlines() if "`exact_match`" in line or "`answer_loss`" in line]
    assert table == [
        "| `own` | `test` | 4 | `exact_match` | — | — | 0.5000 ± 0.2500 |",
        "| `own` | `test` | 4 | `answer_loss` | — | — | 1.0000 ± 0.2500 |",
        "| `task` | `test` | 4 | `exact_match` | 1.2500 ± 0.1250 | 0.2500 | — |",
        "| `task` | `test` | 4 | `answer_loss` | 2.5000 ± 0.1250 | 0.5000 | — |",
    ]


def hostile(manifest: Manifest) -> Manifest:
    """Return a manifest in which whatever may be any text is hostile."""
    config = {**manifest.recipe.config, "method": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}}
    made = manifest.provenance.model_copy(
        update={"code_version": HOSTILE, "system": HOSTILE, "started": HOSTILE, "libraries": {HOSTILE: HOSTILE}}
    )
    recipe = manifest.recipe.model_copy(update={"config": config})
    return manifest.model_copy(update={"recipe": recipe, "provenance": made})


def test_hostile_manifests_break_out_of_nothing(delta: Delta, tmp_path: Path) -> None:
    pointers = tuple(pointer.model_copy(update={"name": HOSTILE}) for pointer in delta.content.blocks)
    content = delta.content.model_copy(update={"blocks": pointers})
    attacked = Delta(store=delta.store, manifest=hostile(delta.manifest), content=content, blocks=delta.blocks)
    metrics: dict[str, tuple[float, float | None]] = {HOSTILE: (1.0, None)}
    evaluation = evaluation_of(Store(tmp_path), {"delta": "x"}, metrics=metrics, task=HOSTILE)
    card = model_card(attacked, "team/x", "x", Measured(delta=[evaluation]))
    plain = model_card(delta, "team/x", "x", Measured(delta=[evaluation]))
    assert front_matter(card) == front_matter(plain)
    assert not [mark for mark in CONTROLS if mark in card]
    columns = {line.count("|") for line in card.splitlines() if "evil" in line}
    assert columns == {3, 8}
    for line in card.replace("```", "").splitlines():
        assert line.count("`") % 2 == 0
        outside = "".join(line.split("`")[::2])
        assert "evil" not in outside
        assert "<" not in outside


@given(st.text())
def test_any_text_is_one_code_span_in_one_cell(text: str) -> None:
    shown = code(text)
    assert shown == "—" or (shown[0] == shown[-1] == "`" and "`" not in shown[1:-1])
    assert "|" not in shown
    assert shown.isprintable()
    assert len(shown) <= 202
