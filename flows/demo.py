"""Flow: the demo. Each fine-tune of the tiny zoo at several ratios: compressed, rebuilt, measured."""

from collections.abc import Sequence

from prefect import Flow
from prefect.runtime import flow_run

from impart_core import tinyzoo
from impart_core.base.settings import Frozen
from impart_core.blocks.request import CompressConfig
from impart_core.checkpoint.index import open_checkpoint
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
            jobs = [job for name in tinyzoo.FINE_TUNES for job in _jobs(name, ratios, compressed, shared, limit)]
            results = evaluate_all(jobs, executor, progress)
            for job, result in zip(jobs, results, strict=True):
                run.tell(
                    [result.entry],
                    [job.base.location if job.base else job.model],
                    store,
                    [] if result.cached else [result.id],
                )
        return DemoReport(
            rows=tuple(_rows(ratios, compressed, results)),
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


def _jobs(
    name: str,
    ratios: Sequence[float],
    compressed: dict[tuple[str, float], CompressReport],
    run: Run,
    limit: int | None,
) -> list[EvaluationJob]:
    base, opened = str(tinyzoo.path("base")), open_checkpoint(tinyzoo.path("base"))
    deltas = [(f"{name} at CR {cr:g}", compressed[name, cr].artifact, opened) for cr in ratios]
    models = [("base", base, None), (name, str(tinyzoo.path(name)), None), *deltas]
    return [EvaluationJob(run, label, model, of, (f"tinyzoo_{name}",), limit=limit) for label, model, of in models]


def _rows(
    ratios: Sequence[float],
    compressed: dict[tuple[str, float], CompressReport],
    results: Sequence[EvaluationResult],
) -> list[DemoRow]:
    rows = []
    measured = iter(results)
    for name in tinyzoo.FINE_TUNES:
        whole = open_checkpoint(tinyzoo.path(name)).nbytes
        for model, cr in [("base", None), ("fine-tuned", None), *((f"CR {cr:g}", cr) for cr in ratios)]:
            metrics = next(measured).metrics[f"tinyzoo_{name}"]
            made = None if cr is None else compressed[name, cr]
            rows.append(
                DemoRow(
                    task=name,
                    model=model,
                    cr=cr,
                    exact_match=metrics["exact_match"],
                    answer_loss=metrics["answer_loss"],
                    bytes=made.bytes if made else whole if model == "fine-tuned" else None,
                    cr_projection=made.cr_projection if made else None,
                    cr_model=made.cr_model if made else None,
                )
            )
    return rows
