"""Runs lm-evaluation-harness in this process on a model folder."""

import math
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from impart_core.base.errors import EvaluationError
from impart_core.evaluation.catalogue import check_tasks
from impart_core.evaluation.result import Evaluation, Metric, Split, TaskResult


class Evaluator:
    """Measures one model, which is loaded once, when it is first needed."""

    def __init__(self, model_dir: Path, device: str = "cpu", batch_size: int = 64, seed: int = 0) -> None:
        """Name a model; nothing is loaded yet.

        Args:
            model_dir: a Hugging Face folder with a tokenizer.
            device: a torch device.
            batch_size: sequences a forward pass.
            seed: seed of everything that lm-eval draws.
        """
        self._folder, self._device, self._batch_size, self._seed = model_dir, device, batch_size, seed
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
            EvaluationError: no tasks, a limit below 1, no such split, data or a model that cannot be loaded, or a
                metric that is not finite.
        """
        check_request(tasks, limit)
        started = time.perf_counter()
        import lm_eval

        from impart_core.evaluation.language_model import hush, open_model
        from impart_core.evaluation.prepared import load_tasks, split_of

        hush()
        loaded = load_tasks(tasks, split, self._seed)
        if self._model is None:
            self._model = open_model(self._folder, self._device, self._batch_size)
        results: Mapping[str, Any] = lm_eval.evaluate(lm=self._model, task_dict=loaded, limit=limit, log_samples=False)
        splits = {name: split_of(task) for name, task in loaded["tasks"].items()}
        measured = {name: _task_result(name, results, splits.get(name)) for name in results["results"]}
        seconds = round(time.perf_counter() - started, 3)
        return Evaluation(tasks=measured, lm_eval_version=version("lm_eval"), seconds=seconds)


def check_request(tasks: Sequence[str], limit: int | None) -> None:
    """Check a request without loading a model or any data.

    Raises:
        EvaluationError: there is no task, or the limit is below 1.
        UnknownNameError: a task does not exist.
    """
    if not tasks:
        raise EvaluationError("No evaluation task was named. Name at least one, for example tinyzoo_math.")
    if limit is not None and limit < 1:
        raise EvaluationError(f"The limit is {limit} items; it must be at least 1. Leave it out to take all.")
    check_tasks(tasks)


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
