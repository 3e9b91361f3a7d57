"""GPUs that a team shares: at most so many runs work at once, held by a global concurrency limit of the server.

A pool whose workers have GPUs names the limit in IMPART_GPU_LIMIT, and every run of the pool takes one of its slots
while it works on models. Slots are leased: that of a killed process comes free by itself.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    Operator,
)
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, State, StateType
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Running

from impart_core.base.errors import ConfigError
from impart_core.base.settings import Frozen
from impart_flows.embedded import ServerError, silent_server

VARIABLE = "IMPART_GPU_LIMIT"
DEFAULT_NAME = "impart-gpu"
HOLDERS = ("zoo-entry", "compress", "evaluate", "merge", "search")  # flows whose runs hold a slot
WAITS = "WaitingForSlot"  # what the state of a run is called that has waited for longer than a lease lasts
# A killed process's slot is free after a lease and a round of the server's (15 s). Prefect takes no shorter one than
# 60 s; it is renewed after three quarters, and should outlast a restart of the server.
LEASE = "IMPART_GPU_LEASE_SECONDS"
LEASE_SECONDS = 120.0
_AWAY_SECONDS = 600.0  # a server that is away for longer ends runs that wait for it
_TRY_SECONDS = 5.0
_ROUND_SECONDS = 15.0  # of the server's, in which it looks for leases that are over
_SECOND_LOOK_SECONDS = 5.0
_ANSWERED_SECONDS = 120.0  # whoever waited for longer was answered: the client by itself asks again for a minute


class Slots(Frozen):
    """A limit as the server has it.

    Attributes:
        name: what it is called.
        limit: how many runs may work at once.
        held: slots that are taken.
    """

    name: str
    limit: int
    held: int


@contextmanager
def gpu_slot(device: str) -> Iterator[None]:
    """Hold a slot of the limit that IMPART_GPU_LIMIT names around the block; wait for one as long as it takes.

    Without the variable, and where the CPU is asked for by name, nothing is held.

    Args:
        device: where the request says that models are worked on.

    Raises:
        ConfigError: there is no such limit.
        ServerError: the server gives no slot.
    """
    name = limit_name(device)
    if name is None:
        yield
        return
    slots = require_limit(name)
    if slots.held >= slots.limit:
        get_run_logger().info("All %d slots of %s are taken: this run waits for one.", slots.limit, name)
    stack = ExitStack()
    _take(name, stack)
    try:
        yield
    finally:
        _give_back(name, stack)


def _give_back(name: str, stack: ExitStack) -> None:
    """Give a slot back; a server that is away is no reason to lose what was done: the slot comes free by itself."""
    try:
        stack.close()
    except httpx.HTTPError as error:
        why = " ".join((str(error) or type(error).__name__).split())[:200]
        get_run_logger().warning(
            "The slot of %s was not given back, as the Prefect server does not answer: %s. It comes free by itself in "
            "%.0f s at most.",
            name,
            why,
            lease_seconds() + _ROUND_SECONDS,
        )


def _take(name: str, stack: ExitStack) -> None:
    """Wait for a slot, also while the server is away for a short while, and hold it as long as the stack."""
    holder = ConcurrencyLeaseHolder(type="flow_run", id=flow_run.id)
    away, waits = 0.0, False
    while True:
        asked = monotonic()
        # A lease that is lost while the server is away is no reason to lose the work that was done.
        held = concurrency(
            name,
            strict=True,
            lease_duration=lease_seconds(),
            holder=holder,
            timeout_seconds=_patience(),
            raise_on_lease_renewal_failure=False,
        )
        try:
            stack.enter_context(held)
            if waits:
                _tell(Running())
            return
        except TimeoutError:
            waits = True
            _look_for_lost(name)
        except ConcurrencySlotAcquisitionError as error:
            cause = error.__cause__
            passing = isinstance(cause, httpx.TransportError) or (
                isinstance(cause, httpx.HTTPStatusError) and cause.response.is_server_error
            )
            if not away or monotonic() - asked > _ANSWERED_SECONDS:
                away = monotonic()
            if not passing or monotonic() - away > _AWAY_SECONDS:
                raise ServerError(f"The Prefect server gives no slot of {name!r}: {cause or error}.") from error
            sleep(_TRY_SECONDS)


def _look_for_lost(name: str) -> None:
    """Free slots that nobody holds, as one that waits for them would do so for ever."""
    _tell(Running(name=WAITS))
    try:
        lost = free_lost_slots(name)
    except httpx.HTTPError:  # the server is away; there is another look
        return
    if lost:
        get_run_logger().warning("%d slots of %s were taken, and held by no run: they are free again.", lost, name)


def _tell(state: State) -> None:
    """Tell the server whether this run waits; one that is away learns it later, and takes it for a holder meanwhile."""
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, state, force=True)


def _patience() -> float:
    """Return how long, in seconds, what a killed run held may go on to be taken, with a margin."""
    return 2 * lease_seconds()


def limit_name(device: str = "auto") -> str | None:
    """Return the name of the limit that work on a device has to keep; None: of none."""
    return (os.environ.get(VARIABLE) or None) if device != "cpu" else None


def lease_seconds() -> float:
    """Return how long a slot is kept without a sign of life, as IMPART_GPU_LEASE_SECONDS says: 60 at least."""
    text = os.environ.get(LEASE) or str(LEASE_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 60 <= seconds <= 86_400:
        raise ConfigError(f"{LEASE} is {text!r}. Give seconds, from 60 to 86400.")
    return seconds


def require_limit(name: str) -> Slots:
    """Return the limit of a name, which has slots.

    Raises:
        ConfigError: there is no such limit, or it has no slot.
        ServerError: the server does not answer.
    """
    advice = f"Make it: {VARIABLE}={name} impart zoo setup --gpus N."
    try:
        with get_client(sync_client=True) as client:
            found = client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        raise ConfigError(
            f"{VARIABLE} says that runs hold a slot of {name!r}, but the Prefect server has no such limit. {advice}"
        ) from None
    except httpx.HTTPError as error:
        raise silent_server(error) from error
    if not found.active or found.limit < 1:
        raise ConfigError(f"The limit {name!r} lets nobody work: it is off, or has no slots. {advice}")
    return Slots(name=name, limit=found.limit, held=found.active_slots)


def set_limit(gpus: int) -> Slots:
    """Have at most so many runs work at once; return the limit, with lost slots freed."""
    name = limit_name() or DEFAULT_NAME
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, gpus)
    free_lost_slots(name)
    return require_limit(name)


def free_lost_slots(name: str) -> int:
    """Free slots that no run can hold, as there are fewer runs; return their number.

    A server that loses its leases (its folder, or by a restart with leases in memory), or that is killed between taking
    a slot and noting the lease, would never free them. Runs that ended a short while ago count as well: the leases of
    those that were killed may still be there. Runs that say that they wait do not. One of these alone frees slots where
    there are any, as two that look at once would free one slot twice.
    """
    lost = _lost_slots(name) if _waits_first() else 0
    if lost:
        sleep(_SECOND_LOOK_SECONDS)  # a run that has just got a slot may not have told that it waits no more
        lost = min(lost, _lost_slots(name)) if _waits_first() else 0
    if lost:
        with get_client(sync_client=True) as client:
            client.release_concurrency_slots([name], lost, occupancy_seconds=1)
    return lost


def _waits_first() -> bool:
    """Return whether no other run waits, or this one is the first of those that do, by their ids."""
    waiting = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=[WAITS])))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=waiting)
    return not runs or str(min(run.id for run in runs)) == str(flow_run.id)


def _lost_slots(name: str) -> int:
    """Return how many more slots are taken than there are runs that may hold one."""
    states = FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING]),
        name=FlowRunFilterStateName(not_any_=[WAITS]),
    )
    ended = FlowRunFilterEndTime(after_=datetime.now(UTC) - timedelta(seconds=_patience()))
    flows = FlowFilter(name=FlowFilterName(any_=list(HOLDERS)))
    holders = FlowRunFilter(operator=Operator.or_, state=states, end_time=ended)  # type: ignore[call-arg]
    with get_client(sync_client=True) as client:
        before = client.read_global_concurrency_limit_by_name(name).active_slots
        runs = client.count_flow_runs(flow_filter=flows, flow_run_filter=holders)
        after = client.read_global_concurrency_limit_by_name(name).active_slots
    return max(0, min(before, after) - runs)
