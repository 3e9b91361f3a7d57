"""Flow: the demo. Each fine-tune of the tiny zoo at several ratios: compressed, rebuilt, measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefect import Flow
from prefect.runtime import flow_run

from impart_core import tinyzoo
from impart_core.base.settings import Frozen
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.index import Checkpoint, open_checkpoint
from impart_core.engine.compress import CompressReport, compress
from impart_core.engine.evaluate import evaluate_all
from impart_core.engine.executor import Progress
from impart_core.engine.references import EvaluationJob, EvaluationResult, Run
from impart_core.engine.requests import CompressRequest
from impart_core.store.provenance import Stopwatch
from impart_flows.events import observed_run
from impart_tasks.executor import PrefectExecutor

RATIOS = (4.0, 8.0, 16.0, 32.0)


class DemoRow(Frozen):
    """One measured model: which fine-tune's task, at which ratio (none: as it is), and what was found."""

    task: str
    model: str
    cr: float | None
    exact_match: tuple[float, float | None]
    answer_loss: tuple[float, float | None]
    bytes: int | None
    cr_projection: float | None
    cr_model: float | None


class DemoReport(Frozen):
    """The demo's table, and what was reused of an earlier run."""

    rows: tuple[DemoRow, ...]
    store: str
    items: int
    compressions: int
    compressions_reused: int
    evaluations: int
    evaluations_reused: int
    seconds: float


def flow_of(progress: Progress | None = None) -> "Flow[..., DemoReport]":
    """Return the flow; a run of this process is handed who listens to its progress."""
    tell = progress or (lambda *_: None)

    def demo(
        store: str, ratios: Sequence[float] = RATIOS, device: str = "auto", limit: int | None = None
    ) -> DemoReport:
        """Compress, rebuild and evaluate the tiny zoo's fine-tunes at each ratio; everything is published."""
        watch, executor, run_id = Stopwatch(), PrefectExecutor(), str(flow_run.id or "")
        pairs = [(name, cr) for name in tinyzoo.FINE_TUNES for cr in ratios]
        compressed: dict[tuple[str, float], CompressReport] = {}
        with observed_run() as run:
            for done, (name, cr) in enumerate(pairs, 1):
                made = compress(_request(name, cr, store, device), executor, progress=progress, run_id=run_id)
                compressed[name, cr] = made.report
                run.tell(made.entries, made.sources, store, made.new)
                tell("models", done, len(pairs), f"{name} at CR {cr:g}")
            shared = Run(store, device, id=run_id)
            models = [model for name in tinyzoo.FINE_TUNES for model in _models(name, compressed, shared, limit)]
            results = evaluate_all([model.job for model in models], executor, progress)
            for model, result in zip(models, results, strict=True):
                source = model.job.base.location if model.job.base else model.job.model
                run.tell([result.entry], [source], store, [] if result.cached else [result.id])
        return DemoReport(
            rows=tuple(map(_row, models, results)),
            store=store,
            items=results[0].items[results[0].task],
            compressions=len(compressed),
            compressions_reused=sum(made.cached_blocks == made.blocks for made in compressed.values()),
            evaluations=len(results),
            evaluations_reused=sum(result.cached for result in results),
            seconds=round(watch.seconds, 1),
        )

    return Flow(demo, name="demo", flow_run_name="demo in {store}")


demo = flow_of()


def _request(name: str, cr: float, store: str, device: str) -> CompressRequest:
    return CompressRequest(
        base=str(tinyzoo.path("base")),
        finetuned=str(tinyzoo.path(name)),
        config=CompressConfig(cr=cr),
        store=store,
        name=f"tinyzoo-{name}@cr{cr:g}",
        device=device,
    )


@dataclass(frozen=True)
class _Model:
    """A model to measure: which fine-tune's task, what it is called, its bytes, and how it was compressed, if it was.

    The base takes no bytes of its own.
    """

    task: str
    name: str
    job: EvaluationJob
    bytes: int | None = None
    cr: float | None = None
    made: CompressReport | None = None


def _models(
    task: str, compressed: Mapping[tuple[str, float], CompressReport], run: Run, limit: int | None
) -> Iterator[_Model]:
    """Give the base, a fine-tune, and each of its compressions."""
    base, finetuned = (open_checkpoint(tinyzoo.path(name)) for name in ("base", task))

    def job(label: str, model: str, whole: Checkpoint | None, of: Checkpoint | None) -> EvaluationJob:
        return EvaluationJob(run, label, model, whole, of, (f"tinyzoo_{task}",), limit=limit)

    yield _Model(task, "base", job("base", base.location, base, None))
    yield _Model(task, "fine-tuned", job(task, finetuned.location, finetuned, None), finetuned.nbytes)
    for cr in (cr for name, cr in compressed if name == task):
        made = compressed[task, cr]
        delta = job(f"{task} at CR {cr:g}", made.artifact, None, base)
        yield _Model(task, f"CR {cr:g}", delta, made.bytes, cr, made)


def _row(model: _Model, result: EvaluationResult) -> DemoRow:
    metrics = result.metrics[result.task]
    return DemoRow(
        task=model.task,
        model=model.name,
        cr=model.cr,
        exact_match=metrics["exact_match"],
        answer_loss=metrics["answer_loss"],
        bytes=model.bytes,
        cr_projection=model.made.cr_projection if model.made else None,
        cr_model=model.made.cr_model if model.made else None,
    )
