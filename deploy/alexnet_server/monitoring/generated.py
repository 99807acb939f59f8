"""The files that are made of ``slo.py``, ``panels.py`` and the handwritten rules. They are committed; a test compares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from alexnet_server.monitoring.grafana import dashboard
from alexnet_server.monitoring.kubernetes import dashboard_config_map, prometheus_rule
from alexnet_server.monitoring.slo import slo_rules

HANDWRITTEN = ("causes.yml", "recording.yml")


class _Blocks(yaml.SafeDumper):
    """Writes text of several lines as it is."""


_Blocks.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def files(deploy: Path) -> dict[str, str]:
    """Contents by path below ``deploy``."""
    slo = slo_rules()
    board = json.dumps(dashboard(), indent=1) + "\n"
    groups = [
        group
        for name in HANDWRITTEN
        for group in yaml.safe_load((deploy / "prometheus/rules" / name).read_text())["groups"]
    ]
    rule, config_map = prometheus_rule([*groups, *slo["groups"]]), dashboard_config_map(board)
    return {
        "prometheus/rules/slo.yml": _text("the tables in alexnet_server/monitoring/slo.py", slo),
        "grafana/dashboards/alexnet.json": board,
        "kubernetes/monitoring/rules.yaml": _text("prometheus/rules and alexnet_server/monitoring/kubernetes.py", rule),
        "kubernetes/monitoring/dashboard.yaml": _text("alexnet_server/monitoring/panels.py", config_map),
    }


def _text(sources: str, content: dict[str, Any]) -> str:
    header = f"# Made by `make monitoring` of {sources}: change those.\n"
    return header + yaml.dump(content, Dumper=_Blocks, sort_keys=False, width=120)
