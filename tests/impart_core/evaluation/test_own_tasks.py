"""Tasks of a user's own: by name or by the path of their YAML file, measured as lm-eval would, told in ids."""

import json
from pathlib import Path
from typing import Any

import pytest

from impart_core import tinyzoo
from impart_core.base.errors import EvaluationError, UnknownNameError
from impart_core.evaluation.catalogue import check_tasks, named_tasks, task_fingerprint
from impart_core.evaluation.harness import Evaluator
from impart_core.evaluation.options import MeasureOptions
from impart_core.evaluation.prepared import load_tasks
from impart_core.storage.objects import STORE_FOLDERS
from impart_core.store.gc import SIDE_FOLDERS
from impart_core.store.pins import pin
from impart_core.store.store import Store

pytestmark = pytest.mark.e2e

TASK: dict[str, Any] = {
    "task": "my_sums",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}} =",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a task and its data."""
    splits = {"train": range(8), "test": range(8, 12)}
    for split, numbers in splits.items():
        items = ({"question": f"{number} + {number}", "answer": str(2 * number)} for number in numbers)
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, items)))
    write(tmp_path, training_split="train")
    return tmp_path


def write(folder: Path, **settings: Any) -> None:
    data = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    task = {**TASK, "dataset_kwargs": {"data_files": data}, **settings}
    (folder / "sums.yaml").write_text(json.dumps(task))  # JSON is YAML


def test_a_task_is_known_by_its_file_and_by_its_folder(folder: Path) -> None:
    by_file = named_tasks([str(folder / "sums.yaml")], MeasureOptions())
    by_name = named_tasks(["my_sums"], MeasureOptions(include_path=(str(folder),)))
    assert by_file == by_name == (("my_sums",), MeasureOptions(include_path=(str(folder),)))
    check_tasks(*by_file)
    with pytest.raises(UnknownNameError, match="Did you mean 'my_sums'"):
        check_tasks(["my_sum"], by_file[1])


@pytest.mark.parametrize("change", ["sums.yaml", "train.jsonl", "helper.py"])
def test_what_lies_in_its_folder_is_told_by_its_digest(change: str, folder: Path) -> None:
    names, options = named_tasks([str(folder / "sums.yaml")], MeasureOptions())
    before = task_fingerprint(names, options)
    assert task_fingerprint(names, options) == before
    with (folder / change).open("a") as file:
        file.write("\n")
    assert task_fingerprint(names, options) != before


def test_a_store_beside_a_task_is_no_part_of_it(folder: Path) -> None:
    names, options = named_tasks([str(folder / "sums.yaml")], MeasureOptions())
    before = task_fingerprint(names, options)
    store = Store(folder / "stores" / "own")
    for _ in range(2):  # what a run pins comes and goes; so it was looked for, and was gone
        with pin(store, ["0" * 64]):
            assert [*folder.glob("stores/own/pins/*.json")]
            assert task_fingerprint(names, options) == before
    store.require_writable()
    assert {*SIDE_FOLDERS, "artifacts"} == STORE_FOLDERS


def test_the_same_folder_elsewhere_is_the_same_task(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere")
    digests = []
    for place in (folder, other):
        for file in folder.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        (place / "sums.yaml").write_text(json.dumps({**TASK, "dataset_kwargs": {"data_files": "test.jsonl"}}))
        digests.append(task_fingerprint(*named_tasks([str(place / "sums.yaml")], MeasureOptions())))
    assert digests[0] == digests[1]


def test_examples_generation_and_samples_are_as_asked_for(folder: Path) -> None:
    wanted = MeasureOptions(num_fewshot=2, gen_kwargs={"max_gen_toks": 3}, log_samples=True)
    names, options = named_tasks([str(folder / "sums.yaml")], wanted)
    measured = Evaluator(tinyzoo.path("math"), options=options).measure(names)
    samples = measured.samples["my_sums"]
    assert len(samples) == measured.tasks["my_sums"].items == 4
    (prompt, settings), *_ = samples[0]["arguments"]
    assert prompt.count(" =") == 3
    assert prompt.endswith("8 + 8 =")
    assert settings["max_gen_toks"] == 3
    assert samples == Evaluator(tinyzoo.path("math"), options=options).measure(names).samples["my_sums"]


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ({"num_fewshot": 0}, {"num_fewshot": 2}, "sets num_fewshot to 0 itself"),
        ({"training_split": None}, {"num_fewshot": 2}, "no items to take examples from"),
        ({"output_type": "loglikelihood"}, {"gen_kwargs": {"temperature": 1}}, "None of my_sums generates text"),
    ],
)
def test_an_option_that_does_not_suit_the_task_is_refused(
    task: dict[str, Any], settings: dict[str, Any], message: str, folder: Path
) -> None:
    write(folder, **task)
    names, options = named_tasks([str(folder / "sums.yaml")], MeasureOptions(**settings))
    with pytest.raises(EvaluationError, match=message):
        load_tasks(names, "test", options)


def test_no_chat_template_is_a_sentence(folder: Path) -> None:
    options = MeasureOptions(apply_chat_template=True)
    with pytest.raises(EvaluationError, match="has no chat template"):
        Evaluator(tinyzoo.path("math"), options=options).measure(["tinyzoo_math"], limit=1)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("missing.yaml", None, "There is no .*missing.yaml"),
        ("odd.yaml", "just: this", "defines no task or group"),
        ("broken.yaml", "task: [", "lm-eval"),
    ],
)
def test_a_file_that_is_no_task_is_refused(file: str, text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(EvaluationError, match=message):
        named_tasks([str(tmp_path / file)], MeasureOptions())


def test_a_file_that_was_changed_is_read_again(folder: Path) -> None:
    names, options = named_tasks([str(folder / "sums.yaml")], MeasureOptions())
    write(folder, task="their_sums")
    with pytest.raises(UnknownNameError, match="Unknown evaluation task 'my_sums'"):
        check_tasks(names, options)
