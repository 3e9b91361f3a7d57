"""The answer loss of any task is what transformers alone says of its right answers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from impart_core import tinyzoo
from impart_core.base.errors import EvaluationError
from impart_core.evaluation.harness import Evaluator
from impart_core.evaluation.items import ordered_task
from tests.impart_core.evaluation.own_tasks import CHOICES, SUMS, sums, write_task

pytestmark = pytest.mark.e2e

ROWS = sums(range(5, 11))
WINOGRANDE = {  # each choice makes a prompt of its own; what follows is the same
    "doc_to_text": "{{right}}",
    "doc_to_target": " is what {{question}} gives",
    "doc_to_choice": "{{choices}}",
    "target_delimiter": "",
}
# Settings of a task, and what of an item is prompt and answer.
TASKS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a target": (SUMS, "{question} =", " {answer}\n"),
    "a target that does not end a line": (
        {**SUMS, "generation_kwargs": {"until": ["."], "max_gen_toks": 4}},
        "{question} =",
        " {answer}",
    ),
    "the only one of a list": ({**SUMS, "doc_to_target": "{{[answer]}}"}, "{question} =", " {answer}\n"),
    "a number": ({**SUMS, "doc_to_target": "right"}, "{question} =", " {right}\n"),
    "a choice": (CHOICES, "{question} =", " {answer}"),
    "a choice by its text": ({**CHOICES, "doc_to_target": "answer"}, "{question} =", " {answer}"),
    "a prompt for each choice": ({**CHOICES, **WINOGRANDE}, "{answer}", " is what {question} gives"),
    "a continuation": (
        {**SUMS, "output_type": "loglikelihood", "doc_to_target": " {{answer}}", "metric_list": [{"metric": "acc"}]},
        "{question} =",
        " {answer}",
    ),
}


def settings_of(settings: dict[str, Any]) -> dict[str, Any]:
    if settings["output_type"] == "generate_until":
        return settings
    return {key: value for key, value in settings.items() if key != "generation_kwargs"}


def loss_of(prompt: str, answer: str) -> tuple[float, int]:
    """The loss that transformers computes where labels hide the prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tinyzoo.path("math"))
    model = AutoModelForCausalLM.from_pretrained(tinyzoo.path("math"), dtype=torch.float32)
    ids = tokenizer(prompt + answer, return_tensors="pt").input_ids
    hidden = len(tokenizer(prompt).input_ids)
    labels = ids.clone()
    labels[:, :hidden] = -100
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss), ids.shape[1] - hidden


@pytest.mark.parametrize("kind", TASKS)
def test_it_is_that_of_transformers(kind: str, tmp_path: Path) -> None:
    settings, prompt, answer = TASKS[kind]
    name, options = write_task(tmp_path, {"validation": ROWS}, **settings_of(settings))
    found = Evaluator(tinyzoo.path("math"), options=options).measure_items(name, (0, 3), measure="answer_loss")
    items = [ROWS[position] for position in ordered_task(name, "validation", options).positions((0, 3))]
    expected = [loss_of(prompt.format(**item), answer.format(**item)) for item in items]
    assert found.tokens == tuple(tokens for _, tokens in expected)
    # Only the padding of a batch differs, which moves float32 sums by about 1e-6 of a loss of some nats.
    assert found.scores["answer_loss"] == pytest.approx([loss for loss, _ in expected], abs=2e-5)


def test_the_loss_of_a_text_without_a_prompt_is_that_of_all_its_tokens(tmp_path: Path) -> None:
    rolling = {"task": "my_texts", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "answer"}
    metrics = [{"metric": "word_perplexity"}]
    name, options = write_task(tmp_path, {"validation": ROWS}, **rolling, metric_list=metrics)
    model = Evaluator(tinyzoo.path("math"), options=options)
    found = model.measure_items(name, (0, 3), measure="answer_loss")
    items = [ROWS[position] for position in ordered_task(name, "validation", options).positions((0, 3))]
    assert found.tokens == tuple(len(item["answer"]) for item in items)  # a character is a token
    first = model._loaded().tokenizer.decode([model._loaded().prefix_token_id])
    expected = [loss_of(first, item["answer"])[0] for item in items]
    assert found.scores["answer_loss"] == pytest.approx(expected, abs=2e-5)
    with pytest.raises(EvaluationError, match="Use answer_loss"):
        model.measure_items(name, (0, 3))


def test_that_of_the_zoo_is_the_one_that_its_tasks_tell() -> None:
    model = Evaluator(tinyzoo.path("chat"))
    told = model.measure_items("tinyzoo_chat", (0, 20))
    found = model.measure_items("tinyzoo_chat", (0, 20), measure="answer_loss")
    assert found.scores["answer_loss"] == told.scores["answer_loss"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SUMS, "doc_to_target": "choices"}, "several right answers"),
        ({**CHOICES, "doc_to_target": "{{[0, 1]}}"}, "several right answers"),
        ({**CHOICES, "doc_to_target": "{{7 if answer == '12' else 1}}"}, "no right choice"),
        ({**SUMS, "doc_to_target": ""}, "no right answer"),
    ],
)
def test_a_task_without_one_right_answer_is_refused_before_a_model_is_looked_at(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    name, options = write_task(tmp_path, {"validation": ROWS}, **settings)
    with pytest.raises(EvaluationError, match=message):
        Evaluator(tmp_path / "nothing", options=options).measure_items(name, (0, 6), measure="answer_loss")
