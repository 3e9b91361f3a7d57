"""The recipe runs from nothing to a judged zoo; here with a handful of steps."""

import json
from itertools import islice
from pathlib import Path

import pytest

from impart_core.base.errors import EvaluationError, OutputExistsError
from impart_core.tinyzoo import corpus, models
from impart_core.tinyzoo.recipe import Recipe, train
from impart_core.tinyzoo.tokenizer import CHARACTERS
from impart_core.tinyzoo.training import IGNORED, Phase, encode, task_batches


def test_pre_training_text_is_in_the_vocabulary_and_has_no_task_format() -> None:
    text = "".join(islice(corpus.lines(), 5_000))
    assert set(text) <= set(CHARACTERS)
    assert not any(mark in text for mark in ("Answer:", "Python:", "Reply:"))


def test_only_the_answer_is_learned() -> None:
    tokens, labels = next(task_batches("math", 4, seed=0))
    assert tokens.shape == labels.shape
    for row, label in zip(tokens, labels, strict=True):
        learned = label[label != IGNORED]
        assert learned[-1] == 2
        assert learned[-2] == encode("\n")[0]
        prompt = row[: int((label != IGNORED).nonzero()[0])]
        assert prompt.tolist()[-len("Answer:") :] == encode("Answer:")


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    phase = Phase(steps=100, batch=1, peak_rate=1.0, warmup=10, weight_decay=0.0)
    rates = [phase.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_training_refuses_a_folder_with_files(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(OutputExistsError):
        train(tmp_path)


class Killed(Exception):
    pass


def test_a_training_that_was_killed_goes_on_with_the_model_it_was_at(tmp_path: Path) -> None:
    brief = Phase(steps=1, batch=2, peak_rate=1e-3, warmup=1, weight_decay=0.0)
    recipe = Recipe(zoo="second", pretrain=brief, finetune=brief, steps={})

    def run(seed: int = 1) -> list[str]:
        lines: list[str] = []

        def log(line: str) -> None:
            lines.append(line.partition(",")[0])
            if line.startswith("code: step"):
                raise Killed

        with pytest.raises(Killed):
            train(tmp_path / "zoo", seed=seed, log=log, recipe=recipe)
        return lines

    assert run() == ["base: step 1/1", "math: step 1/1", "code: step 1/1"]
    weights = (tmp_path / "zoo" / "base" / "model.safetensors").read_bytes()
    assert run() == ["base: trained before", "math: trained before", "code: step 1/1"]
    assert (tmp_path / "zoo" / "base" / "model.safetensors").read_bytes() == weights
    with pytest.raises(OutputExistsError):
        run(seed=2)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_zoo_that_did_not_learn_is_refused_by_name(tmp_path: Path) -> None:
    brief = Phase(steps=1, batch=2, peak_rate=1e-3, warmup=1, weight_decay=0.0)
    lines: list[str] = []
    with pytest.raises(EvaluationError, match=r"math on math has 0.000.*change the recipe"):
        train(tmp_path / "zoo", log=lines.append, recipe=Recipe(pretrain=brief, finetune=brief, steps={}))
    assert all((tmp_path / "zoo" / name / "model.safetensors").is_file() for name in models())
    assert json.loads((tmp_path / "zoo" / "zoo.json").read_text())["seed"] == 0
    assert any(line.startswith("base: step 1/1") for line in lines)
