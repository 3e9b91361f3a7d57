"""OpenLineage events of stages and flows: what started, what came of it, what it read and made.

Nothing is sent, and nothing of OpenLineage is loaded, unless the user configured a receiver.
"""

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from typing import Any, Literal, ParamSpec, TypeVar
from uuid import UUID

from impart_tasks.datasets import Dataset, inputs_of, outputs_of, parents_of, without_secrets
from impart_tasks.receiver import Event, Receiver, is_configured
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

P = ParamSpec("P")
R = TypeVar("R")

_LONGEST_ERROR = 2000
# Of the flow runs of this process; one that was given up stays, so that a straggling task does not try again.
_receivers: dict[UUID, Receiver] = {}


@dataclass
class Observation:
    """A flow run that is observed.

    Attributes:
        inputs: what it reads, to be filled in.
        outputs: what it made, to be filled in.
        sent: how many events of it and of its tasks were sent; right once it has ended.
        lost: how many were not.
    """

    inputs: list[Dataset] = field(default_factory=list)
    outputs: list[Dataset] = field(default_factory=list)
    sent: int = 0
    lost: int = 0


@contextmanager
def observed_run() -> Iterator[Observation]:
    """Send the start and the end of the flow run around the block, and its tasks' events with them."""
    seen, context = Observation(), FlowRunContext.get()
    if context is None or context.flow_run is None or not is_configured():
        yield seen
        return
    run = context.flow_run.id
    event = partial(Event, kind="FLOW", run=run, job=context.flow.name if context.flow else context.flow_run.name)
    receiver = _receivers[run] = Receiver()
    receiver.send(event("START"))
    try:
        try:
            yield seen
        except BaseException as error:
            receiver.send(event(_end_by(error), inputs=tuple(seen.inputs), error=_message(error)))
            raise
        receiver.send(event("COMPLETE", inputs=tuple(seen.inputs), outputs=tuple(seen.outputs)))
    finally:
        receiver.close()
        if not receiver.failed:
            del _receivers[run]
        seen.sent, seen.lost = receiver.sent, receiver.lost
        _warn_once(receiver)


def observed(function: Callable[P, R]) -> Callable[P, R]:
    """Return a stage's function that also sends the start and the end of its task run.

    A task that Prefect runs several times over starts once, and fails only when it is not tried again.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        context = TaskRunContext.get()
        if context is None or not is_configured():
            return function(*args, **kwargs)
        job = next(iter((*args, *kwargs.values())), None)
        store, inputs = str(getattr(job, "store", "")), _found(inputs_of, job)
        send = partial(_send, context, inputs=inputs)
        if context.task_run.run_count <= 1:
            send("START")
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            if not _is_tried_again(context, error):
                send(_end_by(error), error=_message(error))
            raise
        named = {(given.namespace, given.name) for given in inputs}
        parents = [one for one in _found(parents_of, result, store) if (one.namespace, one.name) not in named]
        send("COMPLETE", inputs=(*inputs, *parents), outputs=_found(outputs_of, result, store))
        return result

    return run


def _found(find: Callable[..., tuple[Dataset, ...]], *about: object) -> tuple[Dataset, ...]:
    """Return the datasets that are found, none where looking fails: an event must not fail its stage."""
    try:
        return find(*about)
    except Exception:
        return ()


def _send(context: TaskRunContext, type: Literal["START", "COMPLETE", "FAIL", "ABORT"], **fields: Any) -> None:
    flow_run, flow_context = context.task_run.flow_run_id, FlowRunContext.get()
    flow = flow_context.flow if flow_context else None
    parent = (flow_run, flow.name) if flow_run and flow else None
    receiver = (_receivers.get(flow_run) if flow_run else None) or _receiver_of_process()
    receiver.send(Event(type, kind="TASK", run=context.task_run.id, job=context.task.name, parent=parent, **fields))
    _warn_once(receiver)


@cache
def _receiver_of_process() -> Receiver:
    """Return the receiver of tasks whose flow is not observed in this process: it runs elsewhere, or has ended."""
    receiver = Receiver()
    atexit.register(receiver.close)
    return receiver


def _is_tried_again(context: TaskRunContext, error: BaseException) -> bool:
    """Return whether Prefect will run the task again after this error; it never does after what is no Exception."""
    task, run = context.task, context.task_run
    if not isinstance(error, Exception) or run.run_count > task.retries:
        return False
    condition = task.retry_condition_fn
    return condition is None or bool(condition(task, run, State(type=StateType.FAILED, data=error)))


def _end_by(error: BaseException) -> Literal["FAIL", "ABORT"]:
    return "FAIL" if isinstance(error, Exception) else "ABORT"


def _message(error: BaseException) -> str:
    return without_secrets(f"{type(error).__name__}: {error}")[:_LONGEST_ERROR]


def _warn_once(receiver: Receiver) -> None:
    if complaint := receiver.complaint():
        get_run_logger().warning(complaint)
