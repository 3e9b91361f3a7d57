"""Runs lm-evaluation-harness in this process on a model folder."""

import math
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from impart_core.base.errors import EvaluationError
from impart_core.base.foreign import explained_failures
from impart_core.evaluation.catalogue import USUAL, check_tasks
from impart_core.evaluation.code_tasks import check_code_tasks, code_metrics_allowed, scored_in_sandbox
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Evaluation, Metric, RunCode, Split, TaskResult


class Evaluator:
    """Measures one model, which is loaded once, when it is first needed."""

    def __init__(
        self, model_dir: Path, device: str = "cpu", options: MeasureOptions = USUAL, run_code: RunCode = "never"
    ) -> None:
        """Name a model; nothing is loaded yet.

        Args:
            model_dir: a Hugging Face folder with a tokenizer.
            device: a torch device.
            options: how it is measured.
            run_code: whether tasks may run code that the model writes, and whether in a sandbox.
        """
        self._folder, self._device, self._options = model_dir, device, options
        self._run_code = run_code
        self._model: Any = None

    def measure(self, tasks: Sequence[str], *, split: Split = "test", limit: int | None = None) -> Evaluation:
        """Measure the model on lm-eval tasks.

        Args:
            tasks: names of the zoo's tasks or of any lm-eval task, group or tag.
            split: `validation`, or `test`, which for a task without a test split is its validation split.
            limit: number of items a task, from its first on; None for all.

        Returns:
            The metrics with their standard errors.

        Raises:
            UnknownNameError: a task does not exist.
            EvaluationError: no tasks, a limit below 1, no such split, data or a model that cannot be loaded, code
                that may not be run, a model that fails on the text, or a metric that is not finite.
        """
        options = self._options
        check_request(tasks, limit, options, self._run_code)
        started = time.perf_counter()
        import lm_eval

        from impart_core.evaluation.language_model import hush, misfit, open_model
        from impart_core.evaluation.prepared import load_tasks, split_of

        hush()
        with code_metrics_allowed(self._run_code):
            loaded = load_tasks(tasks, split, options)
            with scored_in_sandbox(tasks, loaded["tasks"], options, self._run_code):
                if self._model is None:
                    self._model = open_model(self._folder, self._device, options)
                with explained_failures(
                    f"The model in {self._folder} failed on {', '.join(tasks)}",
                    lambda: misfit(self._model),
                    EvaluationError,
                ):
                    results: Mapping[str, Any] = lm_eval.evaluate(
                        lm=self._model,
                        task_dict=loaded,
                        limit=limit,
                        log_samples=options.log_samples,
                        system_instruction=options.system_instruction,
                        apply_chat_template=options.apply_chat_template,
                        fewshot_as_multiturn=options.apply_chat_template,
                        confirm_run_unsafe_code=self._run_code != "never",
                    )
        splits = {name: split_of(task) for name, task in loaded["tasks"].items()}
        measured = {name: _task_result(name, results, splits.get(name)) for name in results["results"]}
        seconds = round(time.perf_counter() - started, 3)
        samples = {name: tuple(found) for name, found in results.get("samples", {}).items()}
        return Evaluation(tasks=measured, lm_eval_version=version("lm_eval"), seconds=seconds, samples=samples)


def check_request(
    tasks: Sequence[str], limit: int | None, options: MeasureOptions = USUAL, run_code: RunCode = "never"
) -> None:
    """Check a request without loading a model or any data.

    Raises:
        EvaluationError: there is no task, the limit is below 1, or a task runs code that may not be run.
        UnknownNameError: a task does not exist.
    """
    if not tasks:
        raise EvaluationError("No evaluation task was named. Name at least one, for example tinyzoo_math.")
    if limit is not None and limit < 1:
        raise EvaluationError(f"The limit is {limit} items; it must be at least 1. Leave it out to take all.")
    check_tasks(tasks, options)
    check_code_tasks(tasks, run_code, options)


def _task_result(name: str, results: Mapping[str, Any], split: Split | None) -> TaskResult:
    """Sort one task's flat results ("exact_match,none", "exact_match_stderr,none") into metrics."""
    flat: Mapping[str, Any] = results["results"][name]
    metrics: dict[str, Metric] = {}
    for key, value in flat.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise EvaluationError(f"Task {name!r} gave {metric} = {value}: the model's outputs are not finite.")
        error = flat.get(f"{metric}_stderr,{filtered}")
        stderr = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
        metrics[metric if filtered == "none" else key] = Metric(value=float(value), stderr=stderr)
    counted = results.get("n-samples", {}).get(name, {})
    return TaskResult(metrics=metrics, items=int(counted.get("effective", flat.get("sample_len", 0))), split=split)
