"""The manifests: valid by Kubernetes' own schemas, and consistent with the server and its image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from redraft.server.limits import FLUSH_SECONDS

CORE = ("deployment", "service", "disruption", "hpa")
Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "deploy" / "kubernetes"


@pytest.fixture(scope="module")
def manifests(folder: Path) -> dict[str, Manifest]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}


@pytest.fixture(scope="module")
def pod(manifests: dict[str, Manifest]) -> Manifest:
    template: Manifest = manifests["deployment"]["spec"]["template"]
    return template


@pytest.fixture(scope="module")
def container(pod: Manifest) -> Manifest:
    (only,) = pod["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("name", CORE)
def test_kubernetes_schema_takes_it(manifests: dict[str, Manifest], name: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    version = validator.latest_version()
    validator.validate(manifests[name], version, strict=True)
    with pytest.raises(validator.ValidationError):
        validator.validate(manifests[name] | {"spec": {"nonsense": 1}}, version, strict=True)


def test_every_manifest_is_applied(manifests: dict[str, Manifest]) -> None:
    resources = set(manifests["kustomization"]["resources"])
    assert resources == {f"{name}.yaml" for name in manifests} - {"kustomization.yaml"}


def test_everything_selects_the_pods(manifests: dict[str, Manifest], pod: Manifest) -> None:
    labels = pod["metadata"]["labels"]
    assert manifests["service"]["spec"]["selector"] == labels
    for name in ("deployment", "disruption", "podmonitor"):
        assert manifests[name]["spec"]["selector"]["matchLabels"] == labels
    target = manifests["hpa"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", manifests["deployment"]["metadata"]["name"])


def test_ports_are_the_images(manifests: dict[str, Manifest], container: Manifest, repository: Path) -> None:
    (port,) = container["ports"]
    assert f"EXPOSE {port['containerPort']}" in (repository / "Dockerfile").read_text()
    (endpoint,) = manifests["podmonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == manifests["service"]["spec"]["ports"][0]["targetPort"] == port["name"]


def test_the_job_is_the_one_that_alerts_name(
    manifests: dict[str, Manifest], pod: Manifest, rules: list[dict[str, Any]]
) -> None:
    (alert,) = (rule for rule in rules if rule.get("alert") == "RedraftServerDown")
    (job,) = re.findall(r'up\{job="(.+)"\}', alert["expr"])
    assert pod["metadata"]["labels"][manifests["podmonitor"]["spec"]["jobLabel"]] == job


def test_service_links_do_not_set_the_servers_variables(manifests: dict[str, Manifest], pod: Manifest) -> None:
    """A service called redraft would set REDRAFT_PORT, which the server reads, to an address."""
    assert manifests["service"]["metadata"]["name"] == "redraft"
    assert pod["spec"]["enableServiceLinks"] is False


def test_there_is_time_to_drain(pod: Manifest, container: Manifest) -> None:
    drain = float(next(entry["value"] for entry in container["env"] if entry["name"] == "REDRAFT_DRAIN_SECONDS"))
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    readiness = container["readinessProbe"]
    # longer than a readiness probe takes to fail, and then for balancers to hear of it
    assert int(pause) >= 2 * readiness["periodSeconds"] * readiness["failureThreshold"]
    assert pod["spec"]["terminationGracePeriodSeconds"] >= int(pause) + drain + FLUSH_SECONDS + 5


def test_probes_ask_what_they_are_for(container: Manifest) -> None:
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 900


def test_nothing_is_written_but_to_the_volumes(pod: Manifest, container: Manifest, repository: Path) -> None:
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    user = pod["spec"]["securityContext"]
    assert user["runAsNonRoot"] is True
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in (repository / "Dockerfile").read_text()
    (volume,) = re.findall(r'VOLUME \["(.*)"\]', (repository / "Dockerfile").read_text())
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume, "/tmp"}
    assert set(mounts) == {entry["name"] for entry in pod["spec"]["volumes"]}


def test_the_autoscaler_asks_for_gauges_that_are_there(manifests: dict[str, Manifest], repository: Path) -> None:
    wanted = [metric["pods"]["metric"]["name"] for metric in manifests["hpa"]["spec"]["metrics"]]
    assert wanted == ["redraft_requests_waiting", "redraft_tokens_per_second"]
    gauges = (repository / "server" / "gauges.py").read_text()
    assert [name for name in wanted if f'"{name.removeprefix("redraft_")}"' not in gauges] == []
