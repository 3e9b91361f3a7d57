"""What a run is spread over: addresses that fit the runner, and devices that another machine has."""

import pytest

from impart_core.base.errors import ConfigError
from impart_core.base.spread import Spread


@pytest.mark.parametrize(
    ("runner", "address"),
    [
        ("ray", "ray://head:10001"),
        ("ray", "10.0.0.1:6379"),
        ("ray", "auto"),
        ("dask", "tcp://scheduler:8786"),
        ("dask", "tls://scheduler:8786"),
        ("dask", "scheduler:8786"),
    ],
)
def test_an_address_comes_from_the_request_or_else_from_the_environment(
    runner: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMPART_CLUSTER", raising=False)
    assert Spread(runner=runner).address is None  # type: ignore[arg-type]
    monkeypatch.setenv("IMPART_CLUSTER", address)
    assert Spread(runner=runner).address == address  # type: ignore[arg-type]
    assert Spread(runner=runner, cluster="other:1").address == "other:1"  # type: ignore[arg-type]
    assert Spread().address is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cluster": "ray://head:10001"}, "threads have no cluster"),
        ({"runner": "ray", "cluster": "tcp://head:8786"}, "no address of a ray cluster"),
        ({"runner": "dask", "cluster": "ray://head:10001"}, "no address of a dask cluster"),
        ({"runner": "dask", "cluster": "auto"}, "no address of a dask cluster"),
        ({"runner": "dask", "cluster": "tcp://me:pw@head:8786"}, "cluster holds a user or password"),
        ({"runner": "ray", "cluster": "ray://me:pw@head:10001"}, "cluster holds a user or password"),
        ({"runner": "slurm"}, "must be 'threads', 'ray' or 'dask'"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Spread(**settings)  # type: ignore[arg-type]


def test_a_wrong_address_in_the_environment_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPART_CLUSTER", "http://head")
    with pytest.raises(ConfigError, match="IMPART_CLUSTER is 'http://head'"):
        _ = Spread(runner="ray").address


def test_only_threads_need_their_device_here() -> None:
    here = Spread()
    assert [here.device_here(one) for one in ("auto", "cpu", "cuda", "cuda:1")] == ["auto", "cpu", "cuda", "cuda:1"]
    there = Spread(runner="dask")
    assert [there.device_here(one) for one in ("auto", "cpu", "cuda")] == ["auto", "cpu", "auto"]
    with pytest.raises(ConfigError, match="up to the cluster"):
        there.device_here("cuda:1")
    with pytest.raises(ConfigError, match="Unknown device"):
        there.device_here("gpu")
