"""What a run is spread over, as its request says: threads of one machine, or the nodes of a cluster."""

import os
import re
from typing import Literal, Self

from pydantic import model_validator

from impart_core.base.errors import ConfigError
from impart_core.base.numerics import require_device_name
from impart_core.base.settings import Frozen

RunnerName = Literal["threads", "ray", "dask"]
CLUSTER_VARIABLE = "IMPART_CLUSTER"
_ADDRESSES = {
    "ray": (re.compile(r"auto|ray://\S+|[^\s/:]+:\d+"), "ray://HOST:10001, HOST:6379 or auto"),
    "dask": (re.compile(r"(tcp|tls|ws|wss)://\S+|[^\s/:]+:\d+"), "tcp://HOST:8786"),
}


class Spread(Frozen):
    """What a run is spread over; no part of any id, as bytes do not depend on it.

    Attributes:
        runner: `threads` of this machine, or a `ray` or `dask` cluster.
        cluster: address of the running cluster; None: IMPART_CLUSTER, else one of this machine's cores is started for
            the run.
    """

    runner: RunnerName = "threads"
    cluster: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.cluster is not None:
            self._require_address(self.cluster, "cluster")
        return self

    @property
    def address(self) -> str | None:
        """The address of the cluster, None where there is none yet.

        Raises:
            ConfigError: IMPART_CLUSTER is no address of such a cluster.
        """
        if self.cluster is not None or self.runner == "threads":
            return self.cluster
        found = os.environ.get(CLUSTER_VARIABLE) or None
        if found:
            self._require_address(found, CLUSTER_VARIABLE)
        return found

    def device_here(self, device: str) -> str:
        """Return the device that this machine needs: whichever it has, where another one does the work.

        Raises:
            ConfigError: it names one GPU of a cluster, or is no device.
        """
        if self.runner == "threads":
            return device
        require_device_name(device)
        if device.startswith("cuda:"):
            raise ConfigError(f"Which GPU a block gets is up to the cluster: give the device cuda, not {device}.")
        return "cpu" if device == "cpu" else "auto"

    def _require_address(self, address: str, name: str) -> None:
        if self.runner == "threads":
            raise ConfigError(f"{name} is {address!r}, but threads have no cluster. Give the runner ray or dask.")
        pattern, example = _ADDRESSES[self.runner]
        if "@" in address:  # it is not quoted: requests end in lists of runs and logs
            raise ConfigError(f"{name} holds a user or password, and no {self.runner} cluster takes one: {example}.")
        if not pattern.fullmatch(address):
            raise ConfigError(f"{name} is {address!r}, which is no address of a {self.runner} cluster: {example}.")
