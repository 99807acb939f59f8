"""Every alert is silent just before, and fires just after, its cause. By the real promtool and amtool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from alerts import BURN_STORIES, CAUSES, Story

from alexnet_server.monitoring.generated import files
from alexnet_server.monitoring.slo import duration, slo_rules

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus): no rule is tested"
)
needs_amtool = pytest.mark.skipif(
    shutil.which("amtool") is None, reason="amtool is not installed (apt-get install prometheus-alertmanager)"
)


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> list[dict]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize("name", files(DEPLOY))
def test_what_is_committed_is_what_the_tables_make(name):
    assert (DEPLOY / name).read_text() == files(DEPLOY)[name], "run `make monitoring` and commit what it writes"


@needs_promtool
def test_promtool_finds_no_fault_with_configuration_and_rules():
    assert "is valid prometheus config file syntax" in run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    assert run("promtool", "check", "rules", "--lint-fatal", *RULES).count("SUCCESS") == len(RULES)


def test_every_alert_has_a_story():
    told = {(story.alert, story.labels.get("window")) for story in (*CAUSES, *BURN_STORIES)}
    assert told == {(rule["alert"], rule["labels"].get("window")) for rule in alerts()}


def promtool_test(story: Story, path: Path) -> str:
    """What promtool says of a story; it fails if the story is not so."""
    content = {
        "rule_files": [str(each) for each in RULES if ("slo" in each.name) == ("slo" in story.labels)],
        "evaluation_interval": duration(story.step_s),
        "tests": [story.promtool()],
    }
    path.write_text(yaml.safe_dump(content))
    return run("promtool", "test", "rules", path)


@needs_promtool
@pytest.mark.parametrize("story", CAUSES, ids=lambda story: story.alert)
def test_a_cause_alert_is_silent_just_before_and_fires_just_after(story, tmp_path):
    assert "SUCCESS" in promtool_test(story, tmp_path / "test.yml")


@needs_promtool
@pytest.mark.parametrize("story", BURN_STORIES, ids=lambda story: f"{story.alert}-{story.labels['window']}")
def test_a_burning_budget_alerts_when_half_the_window_burns_twice_too_fast(story, tmp_path):
    assert "SUCCESS" in promtool_test(story, tmp_path / "test.yml")


@needs_promtool
def test_promtool_would_say_if_a_story_were_wrong(tmp_path):
    story = CAUSES[0]
    wrong = Story(story.alert, story.series, story.fires_s + story.step_s, story.labels)
    with pytest.raises(AssertionError, match=story.alert):
        promtool_test(wrong, tmp_path / "test.yml")


def test_every_alert_says_how_bad_it_is_and_where_to_read_on():
    runbook = (DEPLOY / "RUNBOOK.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n+(.*?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL))
    for rule in alerts():
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule
        assert rule["annotations"]["summary"], rule
        assert rule["annotations"]["runbook_url"] == f"deploy/RUNBOOK.md#{rule['alert'].lower()}"
        assert len(sections[rule["alert"]].split()) >= 30, f"{rule['alert']}: the runbook does not say what to do"
    assert set(sections) == {rule["alert"] for rule in alerts()}, "a section of the runbook belongs to no alert"


def test_shorter_windows_of_the_same_table_differ_in_their_durations_alone():
    whole, short = slo_rules(), slo_rules(scale=1 / 120)
    durations = re.compile(r"\b\d+(ms|[smhd])\b")
    for made in (whole, short):
        for group in made["groups"]:
            group["interval"] = ""
            for rule in group["rules"]:
                rule["expr"] = re.sub(r"\[\w+\]", "[]", rule["expr"])
                rule["for"] = ""
    assert durations.sub("", str(short)) == durations.sub("", str(whole))


@needs_amtool
def test_pages_go_to_the_pager_and_tickets_to_the_tracker():
    path = PROMETHEUS / "alertmanager.yml"
    run("amtool", "check-config", path)
    for severity, receiver in (("page", "pager"), ("ticket", "tickets")):
        found = run("amtool", "config", "routes", "test", f"--config.file={path}", f"severity={severity}")
        assert found.strip() == receiver
