"""Runs that were left behind: closed by the Prefect server once they have given no sign of life for a while.

A run whose worker is killed stays RUNNING in Prefect for ever, as nobody is left to say otherwise. Runs of the zoo send
a heartbeat; an automation of the server, Prefect's own means against this, closes those that have stopped.
"""

from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.states import Crashed

TAG = "impart"  # of every run that is watched, sub-flows among them
NAME = "impart: close runs without a heartbeat"
HEARTBEAT_SECONDS = 30  # the least that Prefect takes
SILENCE = timedelta(seconds=100)  # three heartbeats, and time for the last to arrive
VARIABLES = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
_BEAT = "prefect.flow-run.heartbeat"
_ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "Paused", "Suspended")


def watchdog(silence: timedelta = SILENCE) -> AutomationCore:
    """Return the automation: a run that sent a heartbeat, and then neither ends nor sends another one, has crashed."""
    return AutomationCore(
        name=NAME,
        description="Made by `impart zoo deploy`.",
        trigger=EventTrigger(
            after={_BEAT},
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


def close_sub_flows() -> int:
    """Close sub-flows of runs that have ended, which were killed before their first heartbeat; return their number."""
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
