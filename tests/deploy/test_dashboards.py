"""Dashboards: what was generated, asks for what there is, and tells what it shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from redraft.server.metric_docs import ours
from redraft.server.metric_table import TABLE

Json = dict[str, Any]
UNITS = {"short", "s", "percentunit"}
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
KNOWN = {ours(metric) + suffix: metric for metric in TABLE for suffix in SUFFIXES[metric.kind]}
NAME = re.compile(r"\b(?:redraft|vllm)[_:][a-z0-9_:]+")
NAMES = ("serving", "speculation")


LATER = {"definition", "mode"}
"""Fields that these models, of Grafana 10, do not have: of variables, and of a heat map's tooltip."""


def targets(board: Json) -> Iterator[tuple[Json, Json]]:
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel, target


def test_they_are_what_the_script_makes(deploy: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, deploy / "grafana/build.py", tmp_path], check=True)
    for name in NAMES:
        assert (deploy / f"grafana/dashboards/{name}.json").read_text() == (tmp_path / f"{name}.json").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in (deploy / "grafana/dashboards").iterdir()
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_exists_and_has_the_labels_asked_for(dashboards: dict[str, Json], name: str) -> None:
    for panel, target in targets(dashboards[name]):
        found = NAME.findall(target["expr"])
        assert found, panel["title"]
        for metric in found:
            assert metric in KNOWN, (panel["title"], metric)
        for metric, selector in re.findall(r"(redraft_[a-z0-9_]+)\{([^}]*)\}", target["expr"]):
            labels = set(re.findall(r"(\w+)(?==)", selector))
            assert "model_name" in labels
            assert ("draft" in labels) == KNOWN[metric].by_draft, (panel["title"], metric)
        # nothing is asked for without the variables
        assert len(re.findall(r"redraft_[a-z0-9_]+\{", target["expr"])) == len(found)


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_shows(dashboards: dict[str, Json], name: str) -> None:
    board = deepcopy(dashboards[name])
    titles = [panel["title"] for panel in board["panels"]]
    assert len(titles) == len(set(titles)) >= 14
    for panel in board["panels"]:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for panel, target in targets(board):
        assert target["legendFormat"], panel["title"]
        assert target["datasource"] == panel["datasource"]
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert re.search(rf"\b{label}\b", target["expr"]) or label == "instance", (panel["title"], label)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    assert all(x + w <= 24 for x, _, w, _ in places)


@pytest.mark.parametrize("name", NAMES)
def test_variables(dashboards: dict[str, Json], name: str) -> None:
    variables = {each["name"]: each for each in dashboards[name]["templating"]["list"]}
    assert list(variables) == ["datasource", "model", "draft"]
    asked = [each["definition"] for each in variables.values() if each["type"] == "query"]
    assert [NAME.findall(definition)[0] in KNOWN for definition in asked] == [True, True]
    used = {word for _, target in targets(dashboards[name]) for word in re.findall(r"\$(\w+)", target["expr"])}
    assert used == {"model", "draft", "__rate_interval"}


def test_units_are_the_metrics(dashboards: dict[str, Json]) -> None:
    for name in NAMES:
        for panel, target in targets(dashboards[name]):
            if "histogram_quantile" in target["expr"]:
                (metric,) = {KNOWN[found] for found in NAME.findall(target["expr"])}
                assert panel["fieldConfig"]["defaults"]["unit"] == metric.unit, panel["title"]


def test_dashboards_are_provisioned(deploy: Path, dashboards: dict[str, Json]) -> None:
    (source,) = yaml.safe_load((deploy / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = yaml.safe_load((deploy / "grafana/provisioning/dashboards/redraft.yml").read_text())["providers"]
    assert (provider["type"], Path(provider["options"]["path"]).name) == ("file", "dashboards")
    assert len({board["uid"] for board in dashboards.values()}) == len(dashboards) == 2


def lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Where ``after`` has not what ``before`` has."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after[key], f"{path}.{key}") if key in after else [f"{path}.{key}"]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{path}[{number}]")
    elif before != after:
        yield path


def through_grafanas_models(board: Json) -> Json:
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's models are not installed")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    made: Json = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    return made


@pytest.mark.parametrize("name", NAMES)
def test_every_field_means_something_to_grafana(dashboards: dict[str, Json], name: str) -> None:
    board = deepcopy(dashboards[name])
    assert {path.rpartition(".")[2] for path in lost(board, through_grafanas_models(board))} <= LATER
    board["panels"][0]["fieldConfig"]["defaults"]["unti"] = "s"
    assert ".panels[0].fieldConfig.defaults.unti" in lost(board, through_grafanas_models(board)), "none of ours would"
