"""`python -m tests.bench.distil`: what distillation keeps of a fine-tune, and how far past its text it carries.

Share of the gap in answer loss between base and fine-tune that a delta keeps, on the tiny zoo's test items, without and
with distillation, in as many bytes. Text is that of the task's train split, of another task's, or the base's own
corpus, which has none of the tasks' formats; methods that are calibrated get the same for that, without distillation
the task's. Errors are standard errors: over seeds where there are several, else over items.

Results go to a JSON file as they come; a run again measures what is missing.
"""

import argparse
import json
import re
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from impart_core import tinyzoo
from impart_core.apply.dense import reconstruct
from impart_core.artifacts.delta import Delta
from impart_core.artifacts.scales import ScalesContent
from impart_core.calibrate.text import CalibrationText, read_tokens
from impart_core.checkpoint.index import open_checkpoint
from impart_core.evaluation.harness import Evaluator
from impart_core.store.store import Store
from impart_core.tinyzoo import corpus
from tests.bench.arguments import at_least_one, read_figures, require_place, write_figures
from tests.impart_core.pipeline import compress, config_of

OTHER = {"math": "chat", "chat": "math", "code": "math"}
# Method, ratio, and the texts that it is distilled on.
ROWS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("ecsq", 256, ("own", "other", "none")),
    ("ecsq", 512, ("own",)),
    ("ecsq", 128, ("own",)),
    ("dare", 32, ("own",)),
    ("impart-qt", 64, ("own",)),
    ("impart-qt", 32, ("own",)),
)
CALIBRATED = ("impart-qt",)


@dataclass(frozen=True)
class Run:
    """One delta to make and to measure; `text` is none of these for one without distillation: ``""``."""

    method: str
    cr: float
    task: str
    text: str
    seed: int
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """The run in the output file."""
        more = f" {json.dumps(dict(self.options))}" if self.options else ""
        return f"{self.method} {self.cr:g} {self.task} {self.text or 'plain'} {self.seed}{more}"


def main() -> None:
    """Measure what is not yet in the output file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("distil.json"), help="where the results go")
    parser.add_argument("--only", default="", help="only runs whose key has this pattern")
    parser.add_argument("--seeds", type=at_least_one, default=1, help="how many seeds")
    parser.add_argument("--option", action="append", default=[], help="KEY=VALUE of distillation, as distil_steps=200")
    parser.add_argument("--split", choices=["validation", "test"], default="test", help="which items are measured")
    arguments = parser.parse_args()
    options = tuple((key, json.loads(value)) for key, _, value in (each.partition("=") for each in arguments.option))
    require_place(parser, arguments.out)
    found = read_figures(parser, arguments.out)
    for run in _runs(arguments.seeds, options):
        key = f"{run.key} {arguments.split}"
        if key not in found and re.search(arguments.only, run.key):
            result = _measure(run, arguments.split)
            found = {**read_figures(parser, arguments.out), key: result}  # several may run at once
            write_figures(arguments.out, found)
            print(key, result, flush=True)
    print(_table(found, arguments.split, arguments.seeds, options))


def _runs(seeds: int, options: tuple[tuple[str, Any], ...]) -> Iterator[Run]:
    for task in tinyzoo.FINE_TUNES:
        yield from (Run(model, 1, task, "", 0) for model in ("base", "fine-tuned"))
    for seed in range(seeds):
        for method, cr, texts in ROWS:
            for text in ("", *texts):
                for task in tinyzoo.FINE_TUNES:
                    yield Run(method, cr, task, text, seed, options if text else ())


def _measure(run: Run, split: Any) -> dict[str, Any]:
    """Return answer loss and its standard error over items, bytes of the projections, and what training says."""
    torch.set_num_threads(1)
    base, finetuned = tinyzoo.path("base"), tinyzoo.path(run.task)
    if run.method in ("base", "fine-tuned"):
        return {"loss": _loss(base if run.method == "base" else finetuned, run.task, split)}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        store = Store(scratch / "store")
        options = {"distil": True, **dict(run.options)} if run.text else {}
        config = config_of(run.cr, method=run.method, seed=run.seed, options=options)
        needed = run.text or ("own" if run.method in CALIBRATED else "")
        tokens = _tokens(run.task, needed, scratch) if needed else None
        delta = compress(store, base, finetuned, config, tokens=tokens)
        reconstruct(delta, open_checkpoint(base), scratch / "model")
        content = delta.manifest.content
        result = {"loss": _loss(scratch / "model", run.task, split), "bytes": content.projection_bytes}
        return {**result, **_told(store, delta)}


def _told(store: Store, delta: Delta) -> dict[str, Any]:
    """Return what the manifest of a delta's gains says, where it has some."""
    parents = {parent for block in delta.blocks for parent in block.parents}
    for content in (store.manifest(parent).content for parent in sorted(parents)):
        if isinstance(content, ScalesContent):
            return {"untrained": content.untrained, "trained": content.trained}
    return {}


def _tokens(task: str, text: str, scratch: Path) -> torch.Tensor:
    source = source_of(task, text, scratch)
    return read_tokens(CalibrationText(source=source), open_checkpoint(tinyzoo.path(task)))


def source_of(task: str, text: str, scratch: Path) -> str:
    """Return the source of a task's `own` text, of the `other` task's, or of `none`: the base's corpus."""
    if text != "none":
        return f"tinyzoo:{OTHER[task] if text == 'other' else task}"
    path = scratch / "corpus.txt"
    path.write_text("".join(islice(corpus.lines(0), 4000)))
    return str(path)


def _loss(folder: Path, task: str, split: Any) -> tuple[float, float]:
    name = f"tinyzoo_{task}"
    metric = Evaluator(folder).measure([name], split=split).tasks[name].metrics["answer_loss"]
    return metric.value, metric.stderr or 0.0


def _table(found: dict[str, Any], split: str, seeds: int, options: tuple[tuple[str, Any], ...]) -> str:
    """Return shares of the gap as a table, "0.912 ± 0.004"."""
    names = {"": "without", "own": "the task's text", "other": "another task's", "none": "the base's corpus"}
    head = " | ".join(tinyzoo.FINE_TUNES)
    lines = [f"| method | CR | distilled on | {head} | mean |", "|---|--:|---|" + "--:|" * 4]
    for method, cr, texts in ROWS:
        for text in ("", *texts):
            cells, means = [], []
            for task in tinyzoo.FINE_TUNES:
                runs = [Run(method, cr, task, text, seed, options if text else ()) for seed in range(seeds)]
                share = _share(found, runs, split)
                cells.append(f"{share[0]:.3f} ± {share[1]:.3f}" if share else "—")
                means += share[:1]
            whole = f"{statistics.mean(means):.3f}" if len(means) == len(tinyzoo.FINE_TUNES) else "—"
            lines.append(f"| {method} | {cr:g} | {names[text]} | " + " | ".join([*cells, whole]) + " |")
    return "\n".join(lines)


def _share(found: dict[str, Any], runs: list[Run], split: str) -> tuple[float, ...]:
    """Return the mean share of the gap that runs of one task keep, and its standard error; else nothing."""
    ends = [found.get(f"{Run(model, 1, runs[0].task, '', 0).key} {split}") for model in ("base", "fine-tuned")]
    results = [one for run in runs if (one := found.get(f"{run.key} {split}"))]
    if not results or not all(ends):
        return ()
    high, low = (end["loss"][0] for end in ends)
    shares = [(high - result["loss"][0]) / (high - low) for result in results]
    over_items = results[0]["loss"][1] / (high - low)
    error = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else over_items
    return statistics.mean(shares), error


if __name__ == "__main__":
    main()
