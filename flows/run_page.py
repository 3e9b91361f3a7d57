"""The page of a flow run in Prefect: what it made, as Prefect artifacts whose keys keep a history by name.

Prefect calls both its own notes and ours artifacts; here they are pages and artifacts. A page takes one call.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from impart_core.base.text import without_secrets
from impart_core.engine.compress import CompressReport
from impart_core.engine.merge import MergeReport
from impart_core.engine.references import EvaluationResult
from impart_core.lineage.events import public_url
from impart_core.store.manifest import Pointer

_OTHER = re.compile(r"[^a-z0-9]+")
_SHORT = 12  # digits of an id that tell artifacts apart


def page_key(kind: str, name: str) -> str:
    """Return the key of a page, valid in Prefect and the same for the same name: `delta-math-cr16`."""
    return f"{kind}-{_OTHER.sub('-', name.lower()).strip('-')}"


def show_compression(report: CompressReport, blocks: Sequence[Pointer], made: Collection[str]) -> None:
    """Put what a compression made on its run's page: a text with its blocks, and a link to its place.

    Args:
        report: the run's report, all of which is shown.
        blocks: the delta's blocks.
        made: ids of the blocks that this run made; it found the others in the store.
    """
    name = report.name or report.artifact[:_SHORT]
    place = f"{public_url(report.store)}/artifacts/{report.artifact}"
    with never_failing():
        create_markdown_artifact(
            _compression_text(report, blocks, made, place),
            page_key("delta", name),
            f"The delta {name}, as of this run.",
        )
        create_link_artifact(place, f"artifact {name}", page_key("place", name), f"Where the delta {name} lies.")


def show_merge(report: MergeReport) -> None:
    """Put what a merge made on its run's page: its models, what came of it, and a link to where the record lies."""
    name = report.name or report.artifact[:_SHORT]
    place = f"{public_url(report.store)}/artifacts/{report.artifact}"
    shown = {**report.model_dump(mode="json"), "store": public_url(report.store)}
    facts = [
        [key.replace("_", " "), _text(value)]
        for key, value in shown.items()
        if key not in ("models", "sparsified", "delta")
    ]
    kept = [*report.sparsified, *([report.delta] if report.delta else [])]
    rows = [[one.artifact, _ratio(one.cr_projection), f"{one.bytes:,}"] for one in kept]
    parts = [f"# {name}", f"[{place}]({place})", markdown_table(["", ""], facts)]
    parts += ["## Models", markdown_table(["model"], [[without_secrets(model)] for model in report.models])]
    if rows:
        parts += ["## Deltas", markdown_table(["artifact", "cr_projection", "bytes"], rows)]
    with never_failing():
        create_markdown_artifact("\n\n".join(parts), page_key("merge", name), f"The merge {name}, as of this run.")
        create_link_artifact(place, f"merge {name}", page_key("place", name), f"Where the merge {name} is recorded.")


def _ratio(value: float | None) -> str:
    """Return a ratio for people."""
    return "no change" if value is None else f"{value:.2f}"


def show_evaluation(label: str, results: Sequence[EvaluationResult], how: Mapping[str, Any]) -> None:
    """Put an evaluation's metrics on its run's page, as a table, and how they were measured."""
    told = "".join(f", {key} {value}" for key, value in how.items())
    rows: list[dict[str, Any]] = [
        {
            "task": task,
            "metric": metric,
            "value": value,
            "standard error": error,
            "items": result.items[task],
            "artifact": result.id,
            "from": "reused" if result.cached else "this run",
        }
        for result in results
        for task, metrics in result.metrics.items()
        for metric, (value, error) in metrics.items()
    ]
    with never_failing():
        create_table_artifact(rows, page_key("evaluation", label), f"What was measured of {label}{told}.")


def _compression_text(report: CompressReport, blocks: Sequence[Pointer], made: Collection[str], place: str) -> str:
    shown = {**report.model_dump(mode="json"), "store": public_url(report.store)}
    facts = [[key.replace("_", " "), _text(value)] for key, value in shown.items()]
    rows = [[block.name, block.id, f"{block.bytes:,}", "made" if block.id in made else "reused"] for block in blocks]
    title = f"# {report.name or f'Delta {report.artifact[:_SHORT]}'}"
    parts = [
        title,
        f"[{place}]({place})",
        markdown_table(["", ""], facts),
        "## Blocks",
        markdown_table(["block", "artifact", "bytes", "this run"], rows),
    ]
    return "\n\n".join(parts)


def _text(value: object) -> str:
    """Return a report's value for people: counts in groups of three, ratios with two decimals."""
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "none"
    return "—" if value is None else " ".join(str(value).split())


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


@contextmanager
def never_failing() -> Iterator[None]:
    """Turn whatever Prefect's server raises into a warning: the artifact itself is published."""
    try:
        yield
    except Exception as error:
        why = without_secrets(f"{type(error).__name__}: {error}")
        get_run_logger().warning("The run's page is not complete, for Prefect's server did not take it: %s", why)
