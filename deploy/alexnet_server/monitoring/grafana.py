"""The Grafana dashboard: ``panels.ROWS`` in the JSON model that Grafana 9 and later import. Performs no I/O."""

from __future__ import annotations

from typing import Any

from alexnet_server.monitoring.panels import RELEASES, ROWS, Panel

UID = "alexnet-serving"
DATA_SOURCE = {"type": "prometheus", "uid": "${source}"}
COLUMNS, HEIGHT, PANELS_PER_LINE = 24, 8, 4


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
        "graphTooltip": 1,  # all panels share one crosshair
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "annotations": {
            "list": [
                {
                    "name": "Releases",
                    "datasource": DATA_SOURCE,
                    "enable": True,
                    "iconColor": "purple",
                    "expr": RELEASES.expr,
                    "titleFormat": RELEASES.legend,
                    "step": "60s",
                }
            ]
        },
        "panels": _rows(),
    }


def _rows() -> list[dict[str, Any]]:
    placed: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS.items():
        placed.append(
            {
                "id": len(placed) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            }
        )
        y += 1
        for start in range(0, len(panels), PANELS_PER_LINE):
            line = panels[start : start + PANELS_PER_LINE]
            width = COLUMNS // len(line)
            for column, panel in enumerate(line):
                position = {"x": column * width, "y": y, "w": width, "h": HEIGHT}
                placed.append({"id": len(placed) + 1, "gridPos": position, **_panel(panel)})
            y += HEIGHT
    return placed


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
        "description": panel.description,
        "datasource": DATA_SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATA_SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }
