"""Small tasks with data of their own, as a user writes them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from impart_core.evaluation.catalogue import named_tasks
from impart_core.evaluation.options import MeasureOptions

SPLITS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}
SUMS: dict[str, Any] = {
    "task": "my_sums",
    "output_type": "generate_until",
    "doc_to_text": "{{question}} =",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CHOICES: dict[str, Any] = {
    "task": "my_choices",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}} =",
    "doc_to_target": "{{right}}",
    "doc_to_choice": "{{choices}}",
}


def sums(numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Return an item for each number: its double, and a choice of three."""
    return [
        {
            "question": f"{number} + {number}",
            "answer": str(2 * number),
            "choices": [str(2 * number + 1), str(2 * number), str(number)],
            "right": 1,
        }
        for number in numbers
    ]


def write_task(
    folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], **settings: Any
) -> tuple[str, MeasureOptions]:
    """Write a task with items by split; return its name and the options with its place."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {split: str(folder / f"{split}.jsonl") for split in splits}
    for split, items in splits.items():
        Path(data[split]).write_text("\n".join(map(json.dumps, items)))
    task = {"dataset_path": "json", "dataset_kwargs": {"data_files": data}, **{SPLITS[one]: one for one in splits}}
    file = folder / f"{settings['task']}.yaml"
    file.write_text(json.dumps({**task, **settings}))  # JSON is YAML
    (name,), options = named_tasks([str(file)], MeasureOptions())
    return name, options
