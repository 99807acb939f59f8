"""Grafana's dashboard as code: ``panels.ROWS`` in the JSON model that Grafana 9 and later import. Pure."""

from __future__ import annotations

from typing import Any

from alexnet_server.monitoring.panels import RELEASES, ROWS, Panel

UID = "alexnet-serving"
SOURCE = {"type": "prometheus", "uid": "${source}"}
COLUMNS, HEIGHT = 24, 8


def dashboard() -> dict[str, Any]:
    """The dashboard, as data for ``json.dump``."""
    return {
        "uid": UID,
        "title": "AlexNet on Triton",
        "tags": ["triton"],
        "schemaVersion": 38,
        "editable": False,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,  # one crosshair for all
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "annotations": {
            "list": [
                {
                    "name": "Releases",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "purple",
                    "expr": RELEASES.expr,
                    "titleFormat": RELEASES.legend,
                    "step": "60s",
                }
            ]
        },
        "panels": _panels(),
    }


def _panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS.items():
        found.append(
            {
                "id": len(found) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }
        )
        y += 1
        for start in range(0, len(panels), 4):  # no more than four side by side
            line = panels[start : start + 4]
            for place, panel in enumerate(line):
                width = COLUMNS // len(line)
                grid = {"x": place * width, "y": y, "w": width, "h": HEIGHT}
                found.append({"id": len(found) + 1, "gridPos": grid, **_panel(panel)})
            y += HEIGHT
    return found


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.kind == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
        options: dict[str, Any] = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        steps = [{"color": "red", "value": None}, {"color": "orange", "value": 0}, {"color": "green", "value": 0.5}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    return {
        "type": panel.kind,
        "title": panel.title + (" (GPU hosts)" if panel.gpu else ""),
        "description": panel.text,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": each.expr, "legendFormat": each.legend}
            for place, each in enumerate(panel.queries)
        ],
    }
