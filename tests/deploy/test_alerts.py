"""Rules, runbook and Alertmanager configuration, checked with promtool and amtool."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from alerts import BURN_RATES, CAUSES

from alexnet_server.monitoring.__main__ import generated_files
from alexnet_server.monitoring.panels import ROWS
from alexnet_server.monitoring.slo import slo_rules

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))


GROUPS = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
GENERATED = generated_files(DEPLOY)
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", GENERATED)
def test_committed_files_equal_the_generated_ones(name):
    assert (DEPLOY / name).read_text() == GENERATED[name], "run `make monitoring` and commit its output"


@needs_promtool
def test_promtool_accepts_configuration_and_rules():
    assert "is valid prometheus config file syntax" in run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    assert run("promtool", "check", "rules", "--lint-fatal", *RULES).count("SUCCESS") == len(RULES)


@needs_promtool
@pytest.mark.parametrize(
    "scenario",
    [*CAUSES, *BURN_RATES],
    ids=lambda each: f"{each.alert}-{each.labels.get('window', each.labels['severity'])}",
)
@pytest.mark.slow  # together ten seconds of promtool
def test_an_alert_fires_exactly_at_its_threshold(scenario, tmp_path):
    assert scenario.problems(GROUPS, tmp_path) == ""


@needs_promtool
def test_a_scenario_with_a_wrong_time_fails(tmp_path):
    late = replace(CAUSES[0], fires_after_s=CAUSES[0].fires_after_s + CAUSES[0].step_s)
    assert late.alert in late.problems(GROUPS, tmp_path)


def test_every_alert_has_a_scenario():
    tested = {(each.alert, each.labels["severity"], each.labels.get("window")) for each in (*CAUSES, *BURN_RATES)}
    assert tested == {(rule["alert"], rule["labels"]["severity"], rule["labels"].get("window")) for rule in ALERTS}


def test_every_alert_has_a_summary_and_a_complete_runbook_section():
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL))
    for rule in ALERTS:
        assert rule["annotations"]["summary"], rule
        assert rule["annotations"]["runbook_url"] == f"deploy/RUNBOOK.md#{rule['alert'].lower()}"
    assert set(sections) == {rule["alert"] for rule in ALERTS}
    for name, text in sections.items():
        parts = re.findall(r"^\*\*(\w+):\*\*", text, re.MULTILINE)
        assert parts == ["Meaning", "Impact", "Diagnosis", "Mitigation"], name
    assert set(re.findall(r"\]\(#(\w+)\)", runbook)) <= {name.lower() for name in sections}
    titles = {panel.title for panels in ROWS.values() for panel in panels}
    assert set(re.findall(r"(?<!\*)\*(\w[^*]+)\*(?!\*)", runbook)) - titles == {"italics"}


def test_a_scale_changes_only_durations():
    scaled, normal = (re.sub(r"\b\d+(ms|[smhd])\b", "", str(slo_rules(scale=scale))) for scale in (1 / 120, 1))
    assert scaled == normal


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool (Debian: prometheus-alertmanager) is not installed")
@pytest.mark.parametrize(("severity", "receiver"), [("page", "pager"), ("ticket", "tickets")])
def test_alertmanager_routes_by_severity(severity, receiver):
    configuration = f"--config.file={PROMETHEUS}/alertmanager.yml"
    assert run("amtool", "config", "routes", "test", configuration, f"severity={severity}").strip() == receiver
