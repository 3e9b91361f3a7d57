"""The environment that libraries read: loopback is never proxied, and Prefect has a home."""

from pathlib import Path

import httpx
import pytest

from impart_flows.cli.surroundings import give_prefect_a_home, spare_loopback

LOOPBACK = "127.0.0.1,localhost,::1"


@pytest.mark.parametrize(
    ("given", "lower", "upper"),
    [
        ({}, LOOPBACK, LOOPBACK),
        ({"NO_PROXY": "corp.example"}, f"corp.example,{LOOPBACK}", f"corp.example,{LOOPBACK}"),
        ({"no_proxy": "a.example, ::1", "NO_PROXY": "b"}, "a.example,::1,127.0.0.1,localhost", f"b,{LOOPBACK}"),
        ({"no_proxy": "*"}, "*", "*"),
        ({"no_proxy": ""}, LOOPBACK, LOOPBACK),
    ],
)
def test_loopback_is_added_to_what_the_user_keeps_from_proxies(given: dict[str, str], lower: str, upper: str) -> None:
    environment = {"HTTPS_PROXY": "http://proxy.example:3128", **given}
    for _ in range(2):
        spare_loopback(environment)
        assert (environment["no_proxy"] if "*" not in lower else "*") == lower
        assert (environment["NO_PROXY"] if "*" not in upper else "*") == upper


def test_nothing_is_set_where_no_proxy_is() -> None:
    environment = {"PATH": "/bin", "NO_PROXY": "a.example"}
    spare_loopback(environment)
    assert environment == {"PATH": "/bin", "NO_PROXY": "a.example"}


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_client_reaches_loopback_beside_a_proxy(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    environment = {variable: "http://127.0.0.1:9"}
    spare_loopback(environment)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, environment[name])
    with httpx.Client() as client:
        assert client._transport_for_url(httpx.URL("http://127.0.0.1:4200/api")) is client._transport
        assert client._transport_for_url(httpx.URL("http://localhost:4200/api")) is client._transport
        assert client._transport_for_url(httpx.URL("http://example.org/")) is not client._transport


def test_prefect_gets_a_temporary_home_where_the_users_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "made by the first who writes"))
    environment: dict[str, str] = {}
    assert give_prefect_a_home(environment) is None
    assert environment == {}
    monkeypatch.setenv("HOME", "/dev/null")
    temporary = give_prefect_a_home(environment)
    assert temporary is not None
    assert not temporary.exists()
    assert environment == {"PREFECT_HOME": str(temporary)}
    assert give_prefect_a_home(environment) is None
