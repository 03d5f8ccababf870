"""Dashboards and panels as the JSON that Grafana 10.4 and newer reads.

Plain dictionaries: grafana-foundation-sdk has a release line for each version of Grafana, named by epochs that
constraints.txt does not take, and of its many types a dozen keys are needed here, which the tests check.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 8, 8
"""Of a panel; a dashboard is 24 wide."""


def query(expr: str, legend: str) -> tuple[str, str]:
    """A PromQL expression, in which MODEL and DRAFT stand for what the variables select, and its legend."""
    model = 'model_name=~"$model"'
    return expr.replace("DRAFT", f'{model}, draft=~"$draft"').replace("MODEL", model), legend


def lines(title: str, about: str, unit: str, *queries: tuple[str, str], stack: bool = False) -> Json:
    """A panel of lines over time."""
    custom = {"fillOpacity": 10, "showPoints": "never", "stacking": {"mode": "normal" if stack else "none"}}
    return {
        **_panel("timeseries", title, about, queries),
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def number(title: str, about: str, unit: str, *queries: tuple[str, str]) -> Json:
    """A panel with the newest value and a spark line."""
    return {
        **_panel("stat", title, about, queries),
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {
            "colorMode": "none",
            "graphMode": "area",
            "textMode": "value_and_name",
            "reduceOptions": {"calcs": ["lastNotNull"]},
        },
    }


def heat(title: str, about: str, unit: str, of: tuple[str, str], *, buckets: bool = True) -> Json:
    """A heat map over time, of a histogram's buckets or of one series a row."""
    panel = _panel("heatmap", title, about, [of])
    # "heatmap" takes what lies at or below each edge apart
    panel["targets"][0]["format"] = "heatmap" if buckets else "time_series"
    return {
        **panel,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Viridis", "steps": 64},
            "rowsFrame": {"layout": "auto"},
            "yAxis": {"unit": "short"},
            "tooltip": {"mode": "single", "yHistogram": buckets},
        },
    }


def _panel(kind: str, title: str, about: str, queries: Sequence[tuple[str, str]]) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": expr, "legendFormat": legend, "range": True}
            for place, (expr, legend) in enumerate(queries)
        ],
    }


def dashboard(uid: str, title: str, about: str, panels: Sequence[Json]) -> Json:
    """Panels in rows of three, with the variables that their queries use."""
    places = [
        {
            "id": number + 1,
            "gridPos": {"x": number % 3 * WIDTH, "y": number // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT},
            **panel,
        }
        for number, panel in enumerate(panels)
    ]
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["redraft"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["redraft"], "title": "Redraft", "asDropdown": False}],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _choice("model", "Model", "label_values(redraft_engine_up, model_name)"),
                _choice("draft", "Draft", 'label_values(redraft_draft_info{model_name=~"$model"}, draft)'),
            ]
        },
        "panels": places,
    }


def _choice(name: str, label: str, values: str) -> Json:
    """A variable with several values, all by default, read anew when the time range changes."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "definition": values,
        "query": {"query": values, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }
