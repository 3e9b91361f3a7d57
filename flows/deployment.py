"""A zoo as a deployment of a Prefect server: run by its schedule on a work pool, one run at a time; and the server."""

from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType

from impart_core.base.errors import ConfigError
from impart_core.base.settings import Frozen
from impart_core.engine.zoo_jobs import ZooRequest
from impart_flows.embedded import ServerError, silent_server
from impart_flows.gpu_limit import Slots, set_limit
from impart_flows.watchdog import SILENCE, TAG, VARIABLES, set_watchdog
from impart_flows.zoo import zoo


class Deployed(Frozen):
    """A deployment.

    Attributes:
        id: its id.
        name: what `prefect deployment run` takes.
        pool: the work pool.
        cron: its schedule; None: it runs when somebody asks for it.
        timezone: of the schedule.
    """

    id: str
    name: str
    pool: str
    cron: str | None
    timezone: str | None


class Prepared(Frozen):
    """A Prefect server that runs of impart can rely on.

    Attributes:
        server: its address.
        silence_seconds: how long a run may give no sign of life until it is closed.
        slots: the limit of GPUs; None: it was not asked for.
    """

    server: str
    silence_seconds: float
    slots: Slots | None = None


def deploy_zoo(request: ZooRequest, pool: str, queue: str | None = None) -> Deployed:
    """Make, or change, the deployment of a zoo; workers of the pool need impart installed, and no source tree.

    The file is part of the deployment: after a change it is deployed again. A run that is due while another one is
    under way is left out. The server closes runs that are left behind; see `watchdog`.

    Args:
        request: the zoo, checked.
        pool: the work pool.
        queue: a queue of the pool; None: its default.

    Raises:
        ConfigError: there is no server to deploy to, or no such pool.
        ServerError: the server refuses it.
    """
    _require_pool(pool)
    file = request.zoo
    schedule = Cron(file.schedule.cron, timezone=file.schedule.timezone) if file.schedule else None
    made = zoo.to_deployment(
        file.zoo,
        schedule=schedule,
        parameters={"request": request.model_copy(update={"store": request.place}).model_dump(mode="json")},
        tags=[TAG, f"zoo:{file.zoo}"],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        work_pool_name=pool,
        work_queue_name=queue,
        entrypoint_type=EntrypointType.MODULE_PATH,
        job_variables={"env": VARIABLES},
    )
    try:
        set_watchdog()
        found: Any = made.apply()  # type: ignore[union-attr]
    except (PrefectHTTPStatusError, httpx.HTTPError) as error:
        raise ServerError(f"The Prefect server refuses the deployment: {' '.join(str(error).split())[:300]}") from error
    return Deployed(
        id=str(found),
        name=f"{zoo.name}/{file.zoo}",
        pool=pool,
        cron=file.schedule.cron if file.schedule else None,
        timezone=file.schedule.timezone if file.schedule else None,
    )


def prepare_server(gpus: int | None = None) -> Prepared:
    """Have a Prefect server close runs that are left behind, and let at most so many runs use a GPU at once.

    Args:
        gpus: so many; None: the limit stays as it is.

    Raises:
        ConfigError: there is no server that stays.
        ServerError: the server refuses it.
    """
    _require_server()
    try:
        set_watchdog()
        slots = set_limit(gpus) if gpus is not None else None
    except (PrefectHTTPStatusError, httpx.HTTPError) as error:
        raise ServerError(f"The Prefect server refuses it: {' '.join(str(error).split())[:300]}") from error
    return Prepared(server=str(PREFECT_API_URL.value()), silence_seconds=SILENCE.total_seconds(), slots=slots)


def _require_server() -> None:
    if not PREFECT_API_URL.value():
        raise ConfigError(
            "A zoo is deployed to a Prefect server that stays: set PREFECT_API_URL to its address "
            "(infra/README.md says how to start one)."
        )


def _require_pool(pool: str) -> None:
    _require_server()
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except httpx.HTTPError as error:
            raise silent_server(error) from error
        except ObjectNotFound:
            known = ", ".join(sorted(found.name for found in client.read_work_pools())) or "none"
            raise ConfigError(
                f"There is no work pool {pool!r} (there are: {known}). Start a worker, which makes it: "
                f"prefect worker start --pool {pool} --type process"
            ) from None
