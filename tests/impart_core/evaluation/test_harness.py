"""The evaluator runs lm-evaluation-harness on the shipped zoo."""

import subprocess
import sys
from pathlib import Path

import pytest

from impart_core.base.errors import EvaluationError, UnknownNameError
from impart_core.evaluation.catalogue import LOCAL_FOLDER, LOCAL_TASKS
from impart_core.evaluation.harness import Evaluator
from impart_core.evaluation.options import MeasureOptions
from impart_core.tinyzoo import FINE_TUNES, path


@pytest.mark.e2e
def test_the_base_cannot_do_the_tasks() -> None:
    evaluation = Evaluator(path("base"), options=MeasureOptions(batch_size=100)).measure(LOCAL_TASKS, limit=100)
    for task in LOCAL_TASKS:
        result = evaluation.tasks[task]
        assert (result.items, result.split) == (100, "test")
        assert result.metrics["exact_match"].value <= 0.10


@pytest.mark.e2e
@pytest.mark.parametrize("name", FINE_TUNES)
def test_a_fine_tune_can_do_its_task(name: str) -> None:
    result = (
        Evaluator(path(name), options=MeasureOptions(batch_size=100))
        .measure([f"tinyzoo_{name}"])
        .tasks[f"tinyzoo_{name}"]
    )
    match, loss = result.metrics["exact_match"], result.metrics["answer_loss"]
    assert (result.items, result.split) == (300, "test")
    assert match.value >= 0.90
    assert match.stderr == pytest.approx((match.value * (1 - match.value) / 299) ** 0.5)
    assert 0 < loss.value < 0.2
    assert loss.stderr is not None


@pytest.mark.e2e
def test_the_loss_is_that_of_a_plain_forward_pass() -> None:
    """The same number from transformers alone, one item at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from impart_core.tinyzoo.splits import items

    tokenizer = AutoTokenizer.from_pretrained(path("math"))
    model = AutoModelForCausalLM.from_pretrained(path("math"), dtype=torch.float32)
    losses = []
    for item in items("math", "test")[:10]:
        prompt, answer = tokenizer(item.prompt)["input_ids"], tokenizer(f" {item.answer}\n")["input_ids"]
        tokens = torch.tensor([prompt + answer])
        with torch.no_grad():
            logs = model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        losses.append(-logs.gather(1, torch.tensor(answer)[:, None]).mean().item())
    measured = Evaluator(path("math")).measure(["tinyzoo_math"], limit=10).tasks["tinyzoo_math"]
    # Only the padding of a batch differs, which moves float32 sums by about 1e-6.
    assert measured.metrics["answer_loss"].value == pytest.approx(sum(losses) / 10, abs=1e-5)


@pytest.mark.e2e
def test_the_same_model_gets_the_same_numbers_and_validation_is_another_split() -> None:
    first = Evaluator(path("chat")).measure(["tinyzoo_chat"], split="validation", limit=20)
    again = Evaluator(path("chat")).measure(["tinyzoo_chat"], split="validation", limit=20)
    test = Evaluator(path("chat")).measure(["tinyzoo_chat"], limit=20)
    assert first.tasks == again.tasks
    result = first.tasks["tinyzoo_chat"]
    assert (result.items, result.split) == (20, "validation")
    assert result.metrics["answer_loss"] != test.tasks["tinyzoo_chat"].metrics["answer_loss"]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(EvaluationError, match="at least 1"):
        Evaluator(path("base")).measure(["tinyzoo_math"], limit=limit)


def test_no_task_is_refused() -> None:
    with pytest.raises(EvaluationError, match="No evaluation task"):
        Evaluator(path("base")).measure([])


@pytest.mark.e2e
def test_an_unknown_task_is_refused_before_the_model_is_looked_at(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tinyzoo_code'"):
        Evaluator(tmp_path / "nothing").measure(["tinyzoo_cod"])


@pytest.mark.e2e
@pytest.mark.parametrize("content", ["missing", "empty"])
def test_a_folder_without_a_model_is_a_sentence(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "model"
    if content == "empty":
        folder.mkdir()
    with pytest.raises(EvaluationError, match=str(folder)):
        Evaluator(folder).measure(["tinyzoo_math"], limit=1)


@pytest.mark.e2e
@pytest.mark.slow
def test_lm_eval_runs_the_tasks_from_its_own_command_line() -> None:
    arguments = ["--model", "hf", "--model_args", f"pretrained={path('math')},dtype=float32", "--device", "cpu"]
    tasks = ["--tasks", "tinyzoo_math", "--include_path", str(LOCAL_FOLDER), "--limit", "10", "--batch_size", "10"]
    out = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments, *tasks], capture_output=True, text=True, check=True
    )
    assert "exact_match" in out.stdout
    assert "answer_loss" in out.stdout
