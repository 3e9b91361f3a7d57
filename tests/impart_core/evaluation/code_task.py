"""A task of lm-eval like HumanEval, whose data is here: what the model writes is run in a process of its own."""

import json
from pathlib import Path
from typing import Any

from impart_core.tinyzoo.splits import items

_YAML = """
task: NAME
dataset_path: json
dataset_kwargs:
  data_files: {test: DATA}
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: prompt
doc_to_target: " "
process_results: !function NAME.process_results
generation_kwargs:
  until: ["\\n"]
  do_sample: false
  max_gen_toks: 28
metric_list:
  - metric: passed
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""
_UTILS = """
import multiprocessing


def run(program, passed):
    exec(program, {})
    passed.append(True)


def process_results(doc, results):
    with multiprocessing.Manager() as manager:
        passed = manager.list()
        program = f"{doc['before']}\\nf = lambda x: {results[0].strip()}\\n{doc['after']}"
        if not results[0]:
            return {"passed": 0.0}
        process = multiprocessing.Process(target=run, args=(program, passed))
        process.start()
        process.join()
        return {"passed": float(len(passed))}
"""


def write(folder: Path, name: str, programs: list[tuple[str, str]], utils: str = _UTILS) -> None:
    """Write a task's files.

    Args:
        folder: where they go.
        name: the task's name.
        programs: for each item, the code before and after the line that the model writes.
        utils: the code that scores an item.
    """
    prompts = [item.prompt for item in items("code", "test")]
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "before": before, "after": after}
        for prompt, (before, after) in zip(prompts, programs, strict=False)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.py").write_text(utils)
    text = _YAML.replace("DATA", str(folder / f"{name}.jsonl")).replace("NAME", name)
    (folder / f"{name}.yaml").write_text(text)
