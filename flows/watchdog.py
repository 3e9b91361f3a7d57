"""Runs that were left behind: closed by the Prefect server once they have given no sign of life for a while.

A run whose process is killed stays RUNNING in Prefect for ever, as nobody is left to say otherwise. Runs of deployments
send a heartbeat, and so do those of commands where the server watches; an automation of the server, Prefect's own means
against this, closes those that have stopped, or that never sent one. A server that is killed forgets what it has just
heard: what the automation misses so, the next run of the zoo closes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta

import httpx
from prefect import tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Crashed

TAG = "impart"  # of every run that is watched, sub-flows among them; all of them send heartbeats
NAME = "impart: close runs without a heartbeat"
HEARTBEAT_SECONDS = 30  # the least that Prefect takes
SILENCE = timedelta(seconds=100)  # three heartbeats, and time for the last to arrive
VARIABLES = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
_BEGUN, _BEAT = "prefect.flow-run.Running", "prefect.flow-run.heartbeat"
_ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "Paused", "Suspended")


def watchdog(silence: timedelta = SILENCE) -> AutomationCore:
    """Return the automation: a run that began, or sent a heartbeat, and then neither ends nor sends one has crashed."""
    return AutomationCore(
        name=NAME,
        description="Made by `impart zoo deploy`.",
        trigger=EventTrigger(
            after={_BEGUN, _BEAT},
            expect={_BEAT, *(f"prefect.flow-run.{end}" for end in _ENDS)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification({"prefect.resource.id": [f"prefect.tag.{TAG}"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No heartbeat for {silence.seconds} s: the process was killed, or its machine is gone. "
                "What was finished is kept; the next run goes on from there.",
            )
        ],
    )


def set_watchdog(silence: timedelta = SILENCE) -> None:
    """Have the server watch runs; an automation that another version made is replaced.

    Args:
        silence: how long a run may send no heartbeat.
    """
    wanted = watchdog(silence)
    with get_client(sync_client=True) as client:
        found = client.read_automations_by_name(NAME)
        same = [
            one for one in found if (one.trigger, one.actions, one.enabled) == (wanted.trigger, wanted.actions, True)
        ]
        if same:  # what it has seen so far would be forgotten with it
            return
        for old in found:
            client.delete_automation(old.id)
        client.create_automation(wanted)


@contextmanager
def heartbeats() -> Iterator[None]:
    """Have runs of this process that begin within the block be watched, where the server closes those left behind.

    Elsewhere nobody would miss a heartbeat, and every run would wait up to a second for the last.
    """
    if not _watches():
        yield
        return
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: HEARTBEAT_SECONDS}), tags(TAG):
        yield


def _watches() -> bool:
    """Return whether the server has the automation; one that cannot say so closes nothing."""
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        return any(one.enabled for one in client.read_automations_by_name(NAME))
    return False


def watched() -> AbstractContextManager[object]:
    """Have sub-flows that begin within the block be watched, where they send heartbeats."""
    return tags(TAG) if PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() else nullcontext()


def close_earlier_runs() -> int:
    """Close other runs of this run's deployment that are open, where one runs at a time; return their number.

    This run would not have begun while another one keeps the deployment's only slot: their processes are gone.
    """
    if not deployment.id or not flow_run.id:
        return 0
    with get_client(sync_client=True) as client:
        limit = client.read_deployment(deployment.id).global_concurrency_limit
        if limit is None or limit.limit != 1:
            return 0
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                id=FlowRunFilterId(not_any_=[flow_run.id]),
                deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])),
            )
        )
        for run in found:
            told = "It gave no sign of life, and the next run of its deployment has begun."
            client.set_flow_run_state(run.id, Crashed(message=told), force=True)
    return len(found)


def close_sub_flows() -> int:
    """Close sub-flows of runs that have ended, which the automation has missed; return their number."""
    closed = 0
    with get_client(sync_client=True) as client:
        tagged = FlowRunFilter(
            tags=FlowRunFilterTags(all_=[TAG]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])),
        )
        for run in client.read_flow_runs(flow_run_filter=tagged):
            if run.parent_task_run_id is None:
                continue
            task = client.read_task_run(run.parent_task_run_id)
            parent = client.read_flow_run(task.flow_run_id) if task.flow_run_id else None
            if parent and parent.state and parent.state.is_final():
                client.set_flow_run_state(run.id, Crashed(message="The run that it is part of has ended."), force=True)
                closed += 1
    return closed
