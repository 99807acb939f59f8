"""Scenarios in which each alert fires, for promtool: input series, and the time at which the alert starts to fire."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alexnet_server.monitoring.slo import BURN_RATE_ALERTS, SLOS, BurnRateAlert, Slo, duration

STEP_S = 15
CHANGED_S = 41 * STEP_S
"""In most scenarios the values change after the 40th value; this is the first evaluation that sees the change."""


@dataclass(frozen=True)
class Scenario:
    """Input series and the expected alert; see ``alert_scenarios.yml``."""

    alert: str
    series: dict[str, str]
    fires_after_s: float
    labels: dict[str, str]
    slack: int = 0
    step_s: float = STEP_S
    changed_s: float = CHANGED_S

    def test(self) -> dict[str, Any]:
        """Entry of promtool's ``tests``: the alert is silent one step before it fires, and firing afterwards."""
        fixed = {"alertname": self.alert, "alertstate": "firing"}
        # Alerts with the same name differ in these labels.
        chosen = {name: self.labels[name] for name in ("window", "severity") if name in self.labels}
        expr, expected = _series("ALERTS", fixed | chosen), _series("ALERTS", fixed | self.labels)
        fires_s = self.changed_s + self.fires_after_s
        before, after = fires_s - self.step_s, fires_s + self.slack * self.step_s
        return {
            "name": f"{self.alert} {self.labels}",
            "interval": duration(self.step_s),
            "input_series": [{"series": name, "values": values} for name, values in self.series.items()],
            "promql_expr_test": [
                {"eval_time": duration(before), "expr": expr, "exp_samples": []},
                {"eval_time": duration(after), "expr": expr, "exp_samples": [{"labels": expected, "value": 1}]},
            ],
        }

    def problems(self, groups: Iterable[dict[str, Any]], directory: Path) -> str:
        """Output of promtool if the alert of these rule groups does not fire as expected, otherwise ""."""
        needed = [  # without the rules of other alerts, which would take most of the time
            {**group, "rules": [rule for rule in group["rules"] if rule.get("alert", self.alert) == self.alert]}
            for group in groups
            if group["name"].startswith("slo") == ("slo" in self.labels)
        ]
        return promtool_problems(needed, self.test(), directory, self.step_s)


def promtool_problems(
    groups: Iterable[dict[str, Any]], test: dict[str, Any], directory: Path, step_s: float = STEP_S
) -> str:
    """Output of ``promtool test rules`` if the test fails, otherwise ""; ``test`` is an entry of promtool's ``tests``."""
    content = {"rule_files": ["rules.yml"], "evaluation_interval": duration(step_s), "tests": [test]}
    (directory / "rules.yml").write_text(yaml.safe_dump({"groups": list(groups)}))
    (directory / "test.yml").write_text(yaml.safe_dump(content))
    command = ["promtool", "test", "rules", "test.yml"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def _series(name: str, labels: dict[str, str]) -> str:
    shown = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{shown}}}"


def _client(metric: str, **labels: str) -> str:
    return _series(f"alexnet_client_{metric}", {"job": "alexnet-client", "instance": "c:8003", **labels})


def _burn_rate_scenario(slo: Slo, alert: BurnRateAlert) -> Scenario:
    """No bad calls for a long window, then twice the share of bad calls at which the alert fires."""
    step_s = max(60, alert.short_s / 6)
    steps, calls = round(alert.long_s / step_s), 1_000_000
    # Half a window with bad calls stays just below the threshold; one step more exceeds it.
    bad = round(alert.burn_rate * slo.budget * calls * steps / (steps / 2 + 0.5))
    later = 2 * steps + round(alert.for_s / step_s)
    good = f"0+{calls}x{steps} {(steps + 1) * calls - bad}+{calls - bad}x{later}"
    if slo.name == "latency":
        series = {
            _client("call_duration_seconds_count", outcome="ok"): f"0+{calls}x{steps + later}",
            _client("call_duration_seconds_bucket", outcome="ok", le="0.1"): good,
        }
    else:
        series = {
            _client("calls_total", outcome="ok"): good,
            _client("calls_total", outcome="overloaded"): f"0x{steps} {bad}+{bad}x{later}",
        }
    exceeds_s = alert.long_s + (steps / 2 + 1) * step_s
    labels = {"severity": alert.severity, "window": duration(alert.long_s), "slo": slo.name, "job": "alexnet-client"}
    return Scenario(slo.alert, series, alert.for_s, labels, step_s=step_s, changed_s=exceeds_s)


_CONTENT = yaml.safe_load(Path(__file__).with_name("alert_scenarios.yml").read_text())
CAUSES, CLUSTER = (tuple(Scenario(**fields) for fields in _CONTENT[name]) for name in ("causes", "cluster"))
BURN_RATES = tuple(_burn_rate_scenario(slo, alert) for slo in SLOS for alert in BURN_RATE_ALERTS)
