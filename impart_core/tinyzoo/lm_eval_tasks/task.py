"""The zoo's tasks for lm-evaluation-harness: each item is answered greedily and its right answer is scored."""

import json
from collections.abc import Mapping
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from impart_core.tinyzoo.problems import PROBLEMS
from impart_core.tinyzoo.splits import items


def _dataset(problem: str, split: str) -> Any:
    rows = [
        {"problem": problem, "prompt": item.prompt, "answer": item.answer, "spec": json.dumps(item.spec)}
        for item in items(problem, "test" if split == "test" else "validation")
    ]
    return datasets.Dataset.from_list(rows)


class TinyZooTask(ConfigurableTask):  # type: ignore[misc]
    """A task whose items come from this package and need both a generation and a likelihood."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Make the task that a YAML file describes; its `dataset_kwargs` name the problem."""
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Make the validation and test items; nothing is downloaded."""
        problem = (dataset_kwargs or {})["problem"]
        self.dataset = {split: _dataset(problem, split) for split in ("validation", "test")}

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **kwargs: Any) -> list[Any]:
        """Ask for a greedy generation after the prompt, and for the likelihood of the right answer."""
        # lm-eval passes these for its own kinds of requests; an Instance does not take them.
        for unused in ("apply_chat_template", "chat_template"):
            kwargs.pop(unused, None)
        generate = (ctx, dict(self.config.generation_kwargs))
        score = (ctx, _scored(doc))
        return [
            Instance(request_type="generate_until", doc=doc, arguments=generate, idx=0, **kwargs),
            Instance(request_type="loglikelihood", doc=doc, arguments=score, idx=1, **kwargs),
        ]


def _scored(doc: Mapping[str, Any]) -> str:
    """Return the right answer as it follows the prompt, with the line feed that ends it."""
    return f" {doc['answer']}\n"


def process_results(doc: Mapping[str, Any], results: list[Any]) -> dict[str, float]:
    """Check one item.

    Args:
        doc: a row of the data set.
        results: the generated text, and the pair of log-likelihood (nats) and greediness of the right answer.

    Returns:
        `exact_match`, 1 when the task's checker accepts the generated text; `answer_loss`, the mean negative
        log-likelihood in nats per token of the right answer and its line feed (a character is a token).
    """
    generated, (log_likelihood, _) = results
    accepted = PROBLEMS.get(doc["problem"]).check(json.loads(doc["spec"]), generated)
    return {"exact_match": float(accepted), "answer_loss": -log_likelihood / len(_scored(doc))}
