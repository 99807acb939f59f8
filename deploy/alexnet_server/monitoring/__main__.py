"""``make monitoring``: writes the files that are made of ``slo.py`` and ``panels.py``. Committed; a test compares them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from alexnet_server.monitoring.grafana import dashboard
from alexnet_server.monitoring.slo import slo_rules

HEADER = "# Made by `make monitoring` of the tables in alexnet_server/monitoring/slo.py: change those.\n"


def files() -> dict[str, str]:
    """Contents by path below ``deploy``."""
    return {
        "prometheus/rules/slo.yml": HEADER + yaml.safe_dump(slo_rules(), sort_keys=False, width=120),
        "grafana/dashboards/alexnet.json": json.dumps(dashboard(), indent=1) + "\n",
    }


def main(deploy: Path) -> None:
    for name, content in files().items():
        path = deploy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
