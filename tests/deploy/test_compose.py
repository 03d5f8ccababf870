"""compose.yaml: what is pinned, mounted, open to whom, and that a stop leaves time to drain."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from redraft.server.cli import serve
from redraft.server.settings import ServerSettings


@pytest.fixture(scope="module")
def compose(repository: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((repository / "deploy" / "compose.yaml").read_text())
    return loaded


def test_one_command_brings_three_services(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"redraft", "prometheus", "grafana"}
    assert all("profiles" not in service for service in compose["services"].values())


def test_what_is_passed_on_is_the_operators_alone(compose: dict[str, Any], repository: Path) -> None:
    """A variable that compose passes on and nobody has set is taken from the container, the image's value with it."""
    passed = compose["services"]["redraft"]["environment"]
    assert all("=" not in name for name in passed)
    dockerfile = (repository / "Dockerfile").read_text()
    assert [name for name in passed if f" {name}=" in dockerfile] == []


def test_other_peoples_images_are_pinned(compose: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana"):
        image, _, tag = compose["services"][name]["image"].rpartition(":")
        assert image.startswith("docker.io/")
        assert tag.lstrip("v").count(".") == 2


def test_only_this_machine_reaches_the_ports(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert [port for port in service["ports"] if not port.startswith("127.0.0.1:")] == []


def test_folders_of_the_checkout_are_there_and_read_only(compose: dict[str, Any], repository: Path) -> None:
    mounts = [mount.split(":") for service in compose["services"].values() for mount in service["volumes"]]
    named = [mount[0] for mount in mounts if not mount[0].startswith(".")]
    assert sorted(named) == sorted(compose["volumes"])
    ours = [mount for mount in mounts if mount[0].startswith(".")]
    assert len(ours) == 3
    assert all(mount[2:] == ["ro"] for mount in ours)
    assert [mount[0] for mount in ours if not (repository / "deploy" / mount[0]).is_dir()] == []


def test_stopping_leaves_time_to_drain(compose: dict[str, Any]) -> None:
    grace = int(compose["services"]["redraft"]["stop_grace_period"].removesuffix("s"))
    # ten more: what still runs then is told, and the engine ends
    assert grace >= ServerSettings("any").drain_seconds + 10
    assert inspect.signature(serve).parameters["drain_seconds"].default == ServerSettings("any").drain_seconds


def test_the_server_cannot_write_but_to_its_cache(compose: dict[str, Any], repository: Path) -> None:
    redraft = compose["services"]["redraft"]
    assert redraft["read_only"] is True
    assert redraft["tmpfs"] == ["/tmp"]
    (mount,) = redraft["volumes"]
    assert f'VOLUME ["{mount.partition(":")[2]}"]' in (repository / "Dockerfile").read_text()


def test_the_gpu_variant_changes_the_build_and_reserves_a_device(repository: Path) -> None:
    over = yaml.safe_load((repository / "deploy" / "compose.gpu.yaml").read_text())["services"]["redraft"]
    assert over["build"]["args"] == {"DEVICE": "cuda"}
    (device,) = over["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
