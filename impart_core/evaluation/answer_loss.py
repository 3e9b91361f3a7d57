"""Answer loss: the mean negative log-likelihood per token of an item's right answer, given its prompt.

It is the least noisy measure of a model on a task: it moves with every change of the weights, where a share of right
answers moves by whole items.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from impart_core.base.errors import EvaluationError
from impart_core.evaluation.options import MeasureOptions

_LINE_END = "\n"


def check_answers(name: str, task: Any, documents: Sequence[Any]) -> None:
    """Check that each item has one right answer with a text, before a model is loaded.

    Args:
        name: the task's name.
        task: lm-eval's task, loaded.
        documents: its items.

    Raises:
        EvaluationError: an item has none, or several.
    """
    for document in documents:
        if not _answer(name, task, document):
            raise EvaluationError(f"An item of task {name!r} has no right answer. Use one of the task's own metrics.")


def answer_losses(
    model: Any, name: str, task: Any, positions: Sequence[int], options: MeasureOptions
) -> tuple[list[float], list[int]]:
    """Return the answer loss of items.

    The prompt is what lm-eval gives the model, few-shot examples and chat template included. The answer follows it
    as few-shot answers do: of tasks that generate, the target, with the line feed that ends it where the task stops
    at one; of multiple-choice tasks, the right choice; of texts without a prompt, the whole text.

    Args:
        model: lm-eval's model.
        name: the task's name.
        task: lm-eval's task, in a state of its own.
        positions: of the items in the task's split, ascending.
        options: how it is measured.

    Returns:
        For each item the loss in nats per token, and the number of tokens of its answer.

    Raises:
        EvaluationError: an item has no right answer, or several.
    """
    chat = options.apply_chat_template
    task.build_all_requests(
        samples=list(positions),
        rank=0,
        world_size=1,
        system_instruction=options.system_instruction,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        chat_template=model.apply_chat_template if chat else None,
        tokenizer_name=model.tokenizer_name if chat else "",
    )
    by_item: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        by_item[instance.doc_id].append(instance)
    pairs = [_scored(name, task, sorted(by_item[item], key=lambda one: one.idx), chat) for item in sorted(by_item)]
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        likelihoods = model.loglikelihood_rolling([_request("loglikelihood_rolling", text) for _, text in pairs])
        tokens = [len(model.tok_encode(text)) for _, text in pairs]
    else:
        likelihoods = [found for found, _ in model.loglikelihood([_request("loglikelihood", *pair) for pair in pairs])]
        tokens = [_tokens(model, *pair) for pair in pairs]
    return [-float(nats) / number for nats, number in zip(likelihoods, tokens, strict=True)], tokens


def _request(kind: str, *arguments: str) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def _tokens(model: Any, prompt: str, answer: str) -> int:
    """Return how many tokens `loglikelihood` scores."""
    if prompt:
        return len(model._encode_pair(prompt, answer)[1])
    ids = model.tok_encode(answer, add_special_tokens=False)
    return len(ids) - int(ids[0] == model.prefix_token_id)


def _scored(name: str, task: Any, instances: Sequence[Any], chat: bool) -> tuple[str, str]:
    """Return an item's prompt and right answer from the requests that lm-eval makes of it."""
    first = instances[0]
    answer = _answer(name, task, first.doc)
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return "", first.args[0]
    if task.OUTPUT_TYPE == "loglikelihood":
        return first.args[0], first.args[1]
    if task.OUTPUT_TYPE == "multiple_choice":
        prompt, choice = instances[_right_choice(name, task, first.doc)].args[:2]
        return prompt, choice
    prompt, settings = first.args[:2]
    prefix = task.get_config("gen_prefix")
    joined = chat and (not prefix or prefix[-1:].isspace())
    until = settings.get("until") or []
    end = _LINE_END if _LINE_END in ([until] if isinstance(until, str) else until) else ""
    return prompt, f"{'' if joined else task.get_config('target_delimiter')}{answer}{end}"


def _answer(name: str, task: Any, document: Any) -> str:
    """Return the text of an item's right answer."""
    if task.OUTPUT_TYPE == "multiple_choice":
        right = _right_choice(name, task, document)
        return str(task.doc_to_target(document) if task.multiple_input else task.doc_to_choice(document)[right])
    target = task.doc_to_target(document)
    if isinstance(target, list | tuple):
        if len(target) != 1:
            raise _several(name)
        (target,) = target
    if isinstance(target, int) and task.get_config("doc_to_choice") is not None:
        target = task.doc_to_choice(document)[target]
    return "" if target is None else str(target)


def _right_choice(name: str, task: Any, document: Any) -> int:
    """Return the number of a multiple-choice item's right choice."""
    right = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    if isinstance(right, list | tuple):
        if len(right) != 1:
            raise _several(name)
        (right,) = right
    choices = task.doc_to_choice(document)
    if isinstance(right, str):
        right = choices.index(right) if right in choices else -1
    if not 0 <= right < len(choices):
        raise EvaluationError(f"An item of task {name!r} has no right choice. Use one of the task's own metrics.")
    return int(right)


def _several(name: str) -> EvaluationError:
    return EvaluationError(
        f"Items of task {name!r} have several right answers; answer_loss needs one. Use one of the task's own metrics."
    )
