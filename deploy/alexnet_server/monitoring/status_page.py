"""The main graphs as one page that Prometheus itself serves: no Grafana, no outside scripts."""

from __future__ import annotations

import json
from dataclasses import asdict

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alexnet_server.monitoring.panels import ROWS


def status_page() -> str:
    """A console template of Prometheus, which runs it through Go's templates: it must hold no two braces in a row."""
    panels = [asdict(panel) for panels in ROWS.values() for panel in panels if panel.main]
    environment = Environment(
        loader=PackageLoader("alexnet_server.monitoring", "."), autoescape=True, undefined=StrictUndefined
    )
    shown = Markup(json.dumps(panels).replace("<", "\\u003c").replace("{{", "\\u007b{"))  # noqa: S704  our own table
    page = environment.get_template("status.html.j2").render(panels=shown)
    assert "{{" not in page
    return page
