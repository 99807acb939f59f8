"""The dashboard that Grafana is given, and what provisions it."""

from __future__ import annotations

from pathlib import Path

import yaml

from alexnet_server.monitoring.grafana import dashboard
from alexnet_server.monitoring.panels import ROWS
from alexnet_server.monitoring.status_page import status_page

GRAFANA = Path(__file__).parents[2] / "deploy/grafana"


def test_panels_lie_side_by_side_and_none_on_another():
    taken = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_panel_has_a_number_of_its_own_and_asks_the_chosen_prometheus():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    shown = [panel for panel in panels if panel["type"] != "row"]
    assert len(shown) == sum(map(len, ROWS.values()))
    for panel in shown:
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["expr"]
            assert target["datasource"]["uid"] == "${source}"
    assert [each["name"] for each in dashboard()["templating"]["list"]] == ["source"]


def test_what_only_a_gpu_shows_says_so():
    titles = {panel["title"] for panel in dashboard()["panels"]}
    for panel in (panel for panels in ROWS.values() for panel in panels):
        assert (f"{panel.title} (GPU hosts)" if panel.gpu else panel.title) in titles
        assert panel.gpu == any("nv_gpu_" in query.expr or "triton_gpu" in query.expr for query in panel.queries)


def test_the_provisioning_names_a_prometheus_and_the_dashboards_directory():
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "$PROMETHEUS_URL")
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/alexnet.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_the_status_page_needs_nothing_from_outside():
    page = status_page()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "<link" not in page
    assert " src=" not in page
