"""The Grafana dashboard, its provisioning, and the status page."""

from __future__ import annotations

from pathlib import Path

import yaml

from alexnet_server.monitoring.grafana import dashboard
from alexnet_server.monitoring.panels import ROWS
from alexnet_server.monitoring.prometheus import status_page

GRAFANA = Path(__file__).parents[2] / "deploy/grafana"
PANELS = [panel for panels in ROWS.values() for panel in panels]
DASHBOARD = dashboard()


def test_panels_do_not_overlap():
    occupied = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        columns, rows = range(grid["x"], grid["x"] + grid["w"]), range(grid["y"], grid["y"] + grid["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert not cells & occupied, panel["title"]
        assert columns.stop <= 24
        occupied |= cells


def test_every_panel_has_a_unique_id_a_title_and_all_its_queries():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    graphs = [graph for graph in DASHBOARD["panels"] if graph["type"] != "row"]
    for panel, graph in zip(PANELS, graphs, strict=True):
        assert graph["title"] == (f"{panel.title} (GPU hosts)" if panel.gpu else panel.title)
        assert panel.gpu == any("nv_gpu_" in query.expr or "triton_gpu" in query.expr for query in panel.queries)
        assert [target["expr"] for target in graph["targets"]] == [query.expr for query in panel.queries]
        assert len({target["refId"] for target in graph["targets"]}) == len(graph["targets"])
        assert {target["datasource"]["uid"] for target in graph["targets"]} == {"${source}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["source"]


def test_the_provisioning_contains_the_data_source_and_the_dashboard_directory():
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "$PROMETHEUS_URL")
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/alexnet.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_the_status_page_loads_nothing_from_other_hosts():
    page = status_page()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "<link" not in page
    assert " src=" not in page
