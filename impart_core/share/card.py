"""The model card of a delta on the Hugging Face Hub, made from manifests alone.

Whatever a manifest says is shown in code spans and quoted in the front matter, so that no name in it can break out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from impart_core.artifacts.delta import Delta
from impart_core.artifacts.evaluation import EvaluationContent, how_measured
from impart_core.blocks.request import LOSSLESS
from impart_core.checkpoint.hub import parse_hub_id
from impart_core.methods import METHODS
from impart_core.store.manifest import Manifest

_LONGEST = 200
_FIRST_METRICS = ("exact_match", "answer_loss")
_OF_MODELS = ("base", "fine-tuned", "this delta")
_NOT_SETTINGS = {"format", "method_version"}


@dataclass(frozen=True)
class Measured:
    """What evaluations found, each by the model that they measured: the base, the fine-tuned one and the delta."""

    base: Sequence[Manifest] = ()
    finetuned: Sequence[Manifest] = ()
    delta: Sequence[Manifest] = ()


@dataclass(frozen=True)
class _Row:
    """One metric of one task under the same conditions: the items, and each model's value and standard error."""

    items: int
    values: dict[str, tuple[float, float | None]] = field(default_factory=dict)


def model_card(
    delta: Delta, repo: str, name: str, measured: Measured | None = None, sources: Mapping[str, str] | None = None
) -> str:
    """Return the README.md of a Hub repository that is a store with one delta.

    Args:
        delta: the delta.
        repo: the repository (`org/name`).
        name: what the delta is called in the store: one of its names, else its id.
        measured: evaluations to show.
        sources: where `base` and `finetuned` lay when it was made.
    """
    sources = sources or {}
    base = _hub_location(sources.get("base", ""))
    parts = [
        _front_matter(delta, base),
        f"# {repo.partition('/')[2]}",
        _introduction(delta, base, _hub_location(sources.get("finetuned", ""))),
        f"## Rebuild the model\n\n{_commands(repo, name, base)}",
        f"## How it was made\n\n{_facts(delta)}",
        *_evaluations(measured or Measured()),
        f"## Lineage\n\n{_lineage(delta)}",
        f"## Versions\n\n{_versions(delta.manifest)}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(delta: Delta, base: str | None) -> str:
    method = delta.manifest.recipe.config.get("method")
    tags = ["impart", "delta-compression", *([str(method)] if method in (*METHODS, LOSSLESS) else [])]
    lines = ["library_name: impart"]  # ids of the Hub and names of methods: as JSON strings they are YAML
    if base:
        lines += [f"base_model: {json.dumps(base.partition('@')[0])}", "base_model_relation: adapter"]
    return "\n".join(["---", *lines, "tags:", *(f"- {json.dumps(tag)}" for tag in dict.fromkeys(tags)), "---"])


def _introduction(delta: Delta, base: str | None, finetuned: str | None) -> str:
    of = f"[{finetuned}](https://huggingface.co/{finetuned.partition('@')[0]})" if finetuned else "a fine-tuned model"
    against = f"its base, [{base}](https://huggingface.co/{base.partition('@')[0]})" if base else "its base"
    return (
        f"The compressed difference between {of} and {against}: {delta.bytes:,} bytes instead of "
        f"{delta.content.finetuned_bytes:,}. It holds no whole model; with the base, `impart` rebuilds one, the same "
        "bytes each time."
    )


def _commands(repo: str, name: str, base: str | None) -> str:
    model = base or "BASE"
    lines = [
        f"hf download {repo} --local-dir delta",
        f"impart verify {name} --store delta",
        f"impart reconstruct {name} --store delta --base {model} --out rebuilt",
    ]
    note = "" if base else "`BASE` is the checkpoint that the delta was made against; another one is refused.\n\n"
    keep = f"`impart import {name} --from delta` copies it into a store of your own."
    return "\n".join(["```", *lines, "```", "", note + keep])


def _facts(delta: Delta) -> str:
    content = delta.content
    ratio = "no projection changed" if content.cr_projection is None else f"{content.cr_projection:.2f}×"
    settings = {key: value for key, value in delta.manifest.recipe.config.items() if key not in _NOT_SETTINGS}
    rows = [
        *([code(key), _setting(value)] for key, value in settings.items()),
        ["projections, against 16 bits (cr_projection)", ratio],
        ["every byte, against the fine-tuned checkpoint (cr_model)", f"{delta.cr_model:.2f}×"],
        ["bytes", f"{delta.bytes:,} in {len(delta.blocks)} blocks"],
        ["bytes of the fine-tuned checkpoint", f"{content.finetuned_bytes:,}"],
    ]
    return _table(["", ""], rows)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return code(", ".join(f"{key}={item}" for key, item in value.items()) or "none")
    return code(value)


def _evaluations(measured: Measured) -> list[str]:
    rows: dict[tuple[str, ...], _Row] = {}
    models = zip(_OF_MODELS, (measured.base, measured.finetuned, measured.delta), strict=True)
    for model, manifests in models:
        for manifest in manifests:
            for key, items, value in _metrics(manifest):
                rows.setdefault(key, _Row(items)).values[model] = value
    rows = {key: row for key, row in rows.items() if set(row.values) != {_OF_MODELS[0]}}  # other models' tasks
    if not rows:
        return []
    table = [
        [code(key[0]), code(key[1]), str(rows[key].items), code(key[-1])]
        + [_value(rows[key].values.get(model)) for model in _OF_MODELS]
        for key in sorted(rows, key=lambda key: (*key[:-1], _order(key[-1])))
    ]
    columns = ["task", "split", "items", "metric", *_OF_MODELS]
    return [f"## Evaluations\n\n{_table(columns, table)}\n\nValues are means over items ± their standard error."]


def _metrics(manifest: Manifest) -> list[tuple[tuple[str, ...], int, tuple[float, float | None]]]:
    """Return each metric of an evaluation under a key that only what was measured alike shares."""
    content, config = manifest.content, manifest.recipe.config
    if not isinstance(content, EvaluationContent):
        return []
    alike = tuple(str(config.get(what)) for what in ("limit", "seed", "definition", "options"))
    return [
        ((task, how_measured(manifest.recipe), *alike, metric), content.items.get(task, 0), value)
        for task, metrics in content.metrics.items()
        for metric, value in metrics.items()
    ]


def _order(metric: str) -> tuple[int, str]:
    return (_FIRST_METRICS.index(metric) if metric in _FIRST_METRICS else len(_FIRST_METRICS), metric)


def _value(found: tuple[float, float | None] | None) -> str:
    if found is None:
        return "—"
    value, error = found
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _lineage(delta: Delta) -> str:
    rows = [
        ["this delta", code(delta.manifest.id)],
        ["base checkpoint", code(delta.content.base)],
        ["fine-tuned checkpoint", code(delta.content.finetuned)],
        *([f"block {code(pointer.name)}", code(pointer.id)] for pointer in delta.content.blocks),
    ]
    about = "Ids are digests of content and settings: the same inputs give the same id on any machine."
    return f"{_table(['', 'id'], rows)}\n\n{about}"


def _versions(manifest: Manifest) -> str:
    made = manifest.provenance
    rows = [["`impart`", code(made.code_version)], ["system", code(made.system)]]
    rows += [[code(library), code(version)] for library, version in made.libraries.items()]
    return _table(["", ""], [*rows, ["made", code(made.started)]])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _hub_location(location: str) -> str | None:
    """Return `org/name` or `org/name@revision` where a location is on the Hub and can stand in a command."""
    found = parse_hub_id(location)
    if found is None or any(not (c.isascii() and (c.isalnum() or c in "._-/")) for c in found.revision or ""):
        return None
    return f"{found.repo}@{found.revision}" if found.revision else found.repo


def code(text: object) -> str:
    """Return text as a code span in a table: on one line, nothing in it ends the span or the cell."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)).replace("`", "'").strip()
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
    return f"`{shown.replace('|', '/')}`" if shown else "—"
