"""Runs lm-evaluation-harness in this process on a model folder."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from impart_core.base.errors import EvaluationError, ModelError
from impart_core.base.foreign import explained_failures
from impart_core.base.numerics import release_memory
from impart_core.evaluation.answer_loss import answer_losses, check_answers
from impart_core.evaluation.catalogue import USUAL, check_tasks
from impart_core.evaluation.code_tasks import check_code_tasks, code_metrics_allowed, scored_in_sandbox
from impart_core.evaluation.item_scores import joined, require_finite, scores_of
from impart_core.evaluation.items import ItemRange, OrderedTask, item_digest, ordered_task, pieces
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.result import Evaluation, ItemScores, Measure, Metric, RunCode, Split, TaskResult


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
        self.folder, self._device, self._options = model_dir, device, options
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
            EvaluationError: no tasks, a limit below 1, no such split, data that cannot be loaded, or code that may
                not be run.
            ModelError: a model that cannot be loaded or fails on the text, or a metric that is not finite.
        """
        options = self._options
        check_request(tasks, limit, options, self._run_code)
        started = time.perf_counter()
        from impart_core.evaluation.language_model import hush
        from impart_core.evaluation.prepared import load_tasks, split_of

        hush()
        with code_metrics_allowed(self._run_code):
            loaded = load_tasks(tasks, split, options)
            with scored_in_sandbox(tasks, loaded["tasks"], options, self._run_code):
                results = self._run(tasks, loaded, limit=limit, log_samples=options.log_samples)
        splits = {name: split_of(task) for name, task in loaded["tasks"].items()}
        measured = {name: _task_result(name, results, splits.get(name)) for name in results["results"]}
        seconds = round(time.perf_counter() - started, 3)
        samples = {name: tuple(found) for name, found in results.get("samples", {}).items()}
        return Evaluation(tasks=measured, lm_eval_version=version("lm_eval"), seconds=seconds, samples=samples)

    def measure_items(
        self, task: str, items: ItemRange, *, split: Split = "validation", measure: Measure = "metrics"
    ) -> ItemScores:
        """Score the model on each item of a range of one task.

        Items are in an order that is drawn from the task's name and the seed, the same for all models: see `items`.
        Few-shot examples are drawn for each item by itself, so that a score does not depend on the range. What the
        batch does to its last bits depends on the piece of the range that it is in alone; see `pieces`.

        Args:
            task: name of one task.
            items: from the first to before the second, by place in the order.
            split: which split.
            measure: the task's own metrics, or `answer_loss`.

        Raises:
            EvaluationError: no such split or items, data that cannot be loaded, code that may not be run, no metric
                that is a number for each item, or no single right answer for `answer_loss`.
            ModelError: the model cannot be loaded or fails on the text, or a score is not finite.
            UnknownNameError: there is no such task.
        """
        from impart_core.evaluation.language_model import hush

        hush()
        with code_metrics_allowed(self._run_code):
            ordered = check_items(task, items, split, measure, self._options, self._run_code)
            parts = [self._measure_piece(ordered, piece, measure) for piece in pieces(items)]
        return joined(parts)

    def _measure_piece(self, ordered: OrderedTask, items: ItemRange, measure: Measure) -> ItemScores:
        name, task, positions = ordered.name, ordered.fresh(), ordered.positions(items)
        ascending = sorted(positions)  # lm-eval takes items in the order of the split, whatever is asked for
        scores: dict[str, dict[int, float]]
        tokens: dict[int, int] = {}
        with _seeded(self._options.seed):
            if measure == "answer_loss":
                model = self._loaded()
                with self._explained([name]):
                    losses, numbers = answer_losses(model, name, task, ascending, self._options)
                scores = {measure: dict(zip(ascending, losses, strict=True))}
                tokens = dict(zip(ascending, numbers, strict=True))
                better: Mapping[str, Any] = {measure: False}
            else:
                with scored_in_sandbox([name], {name: task}, self._options, self._run_code):
                    loaded, asked = {"tasks": {name: task}, "groups": {}}, {"samples": {name: ascending}}
                    results = self._run([name], loaded, log_samples=True, bootstrap_iters=0, **asked)
                scores, better = scores_of(name, results["samples"][name]), task.higher_is_better()
        require_finite(name, scores)
        told = {metric: better.get(metric.partition(",")[0]) for metric in scores}
        return ItemScores(
            task=name,
            items=items,
            scores={metric: tuple(found[position] for position in positions) for metric, found in scores.items()},
            higher_is_better={metric: bool(up) for metric, up in told.items() if up is not None},
            tokens=tuple(tokens[position] for position in positions) if tokens else (),
            digests=tuple(item_digest(ordered.task, document) for document in ordered.documents(positions)),
        )

    def unload(self) -> None:
        """Give back the memory that the model takes; it is loaded again when it is next needed."""
        self._model = None
        release_memory()

    def _loaded(self) -> Any:
        from impart_core.evaluation.language_model import open_model

        if self._model is None:
            self._model = open_model(self.folder, self._device, self._options)
        return self._model

    def _explained(self, tasks: Sequence[str]) -> AbstractContextManager[None]:
        from impart_core.evaluation.language_model import misfit

        doing = f"The model in {self.folder} failed on {', '.join(tasks)}"
        settings = "Settings of generation and model can be given: --gen-kwargs, --model-args."
        return explained_failures(doing, lambda: misfit(self._model) or settings, ModelError)

    def _run(self, names: Sequence[str], loaded: Mapping[str, Any], **asked: Any) -> Mapping[str, Any]:
        """Run lm-eval on loaded tasks."""
        import lm_eval

        options, model = self._options, self._loaded()
        with self._explained(names):
            results: Mapping[str, Any] = lm_eval.evaluate(
                lm=model,
                task_dict=loaded,
                system_instruction=options.system_instruction,
                apply_chat_template=options.apply_chat_template,
                fewshot_as_multiturn=options.apply_chat_template,
                confirm_run_unsafe_code=self._run_code != "never",
                **asked,
            )
        return results


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what generation draws by, which lm-eval leaves as it is, and leave the CPU's generator as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


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


def check_items(
    task: str, items: ItemRange, split: Split, measure: Measure, options: MeasureOptions, run_code: RunCode
) -> OrderedTask:
    """Load a task and check what `Evaluator.measure_items` is asked for, without a model.

    Raises:
        EvaluationError: the items cannot be measured as asked.
        UnknownNameError: there is no such task.
    """
    check_request([task], None, options, run_code)
    with code_metrics_allowed(run_code):
        ordered = ordered_task(task, split, options)
    positions = ordered.positions(items)
    if measure == "answer_loss":
        check_answers(ordered.name, ordered.task, ordered.documents(positions))
    return ordered


def _task_result(name: str, results: Mapping[str, Any], split: Split | None) -> TaskResult:
    """Sort one task's flat results ("exact_match,none", "exact_match_stderr,none") into metrics."""
    flat: Mapping[str, Any] = results["results"][name]
    metrics: dict[str, Metric] = {}
    for key, value in flat.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise ModelError(f"Task {name!r} gave {metric} = {value}: the model's outputs are not finite.")
        error = flat.get(f"{metric}_stderr,{filtered}")
        stderr = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
        metrics[metric if filtered == "none" else key] = Metric(value=float(value), stderr=stderr)
    counted = results.get("n-samples", {}).get(name, {})
    return TaskResult(metrics=metrics, items=int(counted.get("effective", flat.get("sample_len", 0))), split=split)
