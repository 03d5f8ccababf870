"""Recording rules and alerts: sound by promtool, about metrics that exist, and raised when they should be."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from redraft.server.metric_docs import ours
from redraft.server.metric_table import TABLE

Json = dict[str, Any]


def test_promtool_finds_them_sound(deploy: Path, tool: Callable[[str], str]) -> None:
    command = [tool("promtool"), "check", "config", "--lint-fatal", str(deploy / "prometheus/prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("SUCCESS")) == (0, 4), done.stdout + done.stderr


def test_alerts_are_raised_when_they_should_be(deploy: Path, tool: Callable[[str], str]) -> None:
    command = [tool("promtool"), "test", "rules", str(deploy / "prometheus/alerts_test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_test_of_alerts_can_fail(deploy: Path, tool: Callable[[str], str], tmp_path: Path) -> None:
    cases = yaml.safe_load((deploy / "prometheus/alerts_test.yml").read_text())
    cases["rule_files"] = [str(deploy / "prometheus" / name) for name in cases["rule_files"]]
    engine = next(case for case in cases["tests"] if case["name"] == "the engine is gone")
    engine["input_series"][0]["values"] = "1x20"
    changed = tmp_path / "changed.yml"
    changed.write_text(yaml.safe_dump(cases))
    done = subprocess.run([tool("promtool"), "test", "rules", str(changed)], capture_output=True, check=False)
    assert done.returncode == 1


def test_every_metric_exists(rules: list[Json]) -> None:
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    known = {ours(metric) + suffix for metric in TABLE for suffix in suffixes.get(metric.kind, ("",))}
    known |= {rule["record"] for rule in rules if "record" in rule}
    for rule in rules:
        found = re.findall(r"\bredraft[_:][a-z0-9_:]+", re.sub(r'"[^"]*"', "", rule["expr"]))
        assert found or rule["alert"] == "RedraftServerDown"
        assert set(found) <= known, rule


def test_every_alert_says_what_to_do_and_is_tested(deploy: Path, rules: list[Json]) -> None:
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    assert alerts.keys() == {
        "RedraftServerDown",
        "RedraftEngineDead",
        "RedraftAcceptanceCollapsed",
        "RedraftSlowerThanPlain",
        "RedraftQueueGrowing",
        "RedraftKvExhausted",
    }
    for rule in alerts.values():
        assert rule["annotations"].keys() == {"summary", "runbook"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert "for" in rule
    cases = yaml.safe_load((deploy / "prometheus/alerts_test.yml").read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    for name in alerts:
        assert {bool(check.get("exp_alerts")) for check in checks if check["alertname"] == name} == {True, False}


def test_rules_ask_for_our_names(rules: list[Json]) -> None:
    assert not [rule for rule in rules if "vllm:" in rule["expr"]]
