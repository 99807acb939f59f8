"""Service level objectives (SLOs) and their recording and alerting rules. Performs no I/O.

The method is "Alerting on SLOs" in The Site Reliability Workbook (Google, 2018): each SLO has an error budget for 30 days, and
alerts evaluate the burn rate of that budget in two windows. The long window shows that the burn is significant, the short one
that it continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PERIOD_S = 30 * 86_400
MIN_CALLS = 100
"""With fewer calls in the long window, the share of errors is not significant and no alert fires."""
BUDGET_REMAINING = "job_slo:error_budget_remaining:ratio30d"
UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
CALLS = "alexnet_client_calls_total"
LATENCY = "alexnet_client_call_duration_seconds"
FAILURES = "overloaded|queue_full|deadline_exceeded|unavailable|server_fault"
"""Outcomes that count against the availability SLO. Invalid requests and calls that the caller cancelled do not."""


@dataclass(frozen=True)
class Slo:
    """A service level objective.

    Attributes:
        name: value of the label ``slo``.
        alert: name of its alerts.
        objective: share of calls that must be good.
        violation: what a bad call did, as the end of "1 % of the calls ...".
        calls: PromQL selector of the counter of all calls.
        good: PromQL selector of the counter of good calls.
    """

    name: str
    alert: str
    objective: float
    violation: str
    calls: str
    good: str

    @property
    def budget(self) -> float:
        """Error budget: share of calls that may be bad."""
        return round(1 - self.objective, 9)

    def error_ratio(self, window: str) -> str:
        """PromQL expression for the share of bad calls in a window such as "5m"."""
        calls, good = (f"sum by (job) (rate({counter}[{window}]))" for counter in (self.calls, self.good))
        return f"1 - {good} / ({calls} > 0)"


SLOS = (
    Slo(
        "availability",
        "AvailabilityBudgetBurn",
        0.999,
        "failed",
        calls=f'{CALLS}{{outcome=~"ok|{FAILURES}"}}',
        good=f'{CALLS}{{outcome="ok"}}',
    ),
    Slo(
        "latency",
        "LatencyBudgetBurn",
        0.99,
        "took longer than 100 ms",
        calls=f'{LATENCY}_count{{outcome="ok"}}',
        good=f'{LATENCY}_bucket{{outcome="ok",le="0.1"}}',
    ),
)


@dataclass(frozen=True)
class BurnRateAlert:
    """An alert on the burn rate of an error budget; all durations in seconds.

    Attributes:
        burn_rate: threshold; a burn rate of 1 uses up the error budget in exactly 30 days.
        long_s, short_s: windows in which the burn rate must exceed the threshold.
        for_s: how long both windows must exceed it.
        severity: page or ticket.
    """

    burn_rate: float
    long_s: float
    short_s: float
    for_s: float
    severity: str


BURN_RATE_ALERTS = (
    BurnRateAlert(14.4, 3600, 300, 120, "page"),
    BurnRateAlert(6, 6 * 3600, 1800, 900, "page"),
    BurnRateAlert(3, 86_400, 2 * 3600, 3600, "ticket"),
    BurnRateAlert(1, 3 * 86_400, 6 * 3600, 3 * 3600, "ticket"),
)


def slo_rules(*, scale: float = 1.0) -> dict[str, Any]:
    """Prometheus rule file, as data: error ratios, numbers of calls, remaining error budgets and alerts.

    Args:
        scale: factor for all durations, for tests with short windows; names of series keep the unscaled durations.
    """
    windows = sorted({window_s for alert in BURN_RATE_ALERTS for window_s in (alert.long_s, alert.short_s)})
    ratios = [
        _record(error_ratio_series(window_s), slo, slo.error_ratio(duration(window_s * scale)))
        for slo in SLOS
        for window_s in windows
    ]
    calls = [
        _record(
            _calls_series(alert.long_s),
            slo,
            f"sum by (job) (increase({slo.calls}[{duration(alert.long_s * scale)}]))",
        )
        for slo in SLOS
        for alert in BURN_RATE_ALERTS
    ]
    alerts = [_alert(slo, alert, scale) for slo in SLOS for alert in BURN_RATE_ALERTS]
    period = duration(PERIOD_S * scale)
    budgets = [_record(BUDGET_REMAINING, slo, f"1 - ({slo.error_ratio(period)}) / {slo.budget:g}") for slo in SLOS]
    return {
        "groups": [
            # Alerts are in the group of their recording rules, so both are evaluated at the same time.
            {"name": "slo", "interval": duration(30 * scale), "rules": ratios + calls + alerts},
            {"name": "slo-budget", "interval": duration(60 * scale), "rules": budgets},
        ]
    }


def duration(seconds: float) -> str:
    """Duration in PromQL notation, in the largest unit that divides it: 90 is "90s", 3600 is "1h", 0.5 is "500ms"."""
    milliseconds = max(1, round(1000 * seconds))
    return next(f"{milliseconds // size}{unit}" for unit, size in UNITS if milliseconds % size == 0)


def error_ratio_series(window_s: float) -> str:
    """Name of the recorded share of bad calls in a window."""
    return f"job_slo:call_errors:ratio_rate{duration(window_s)}"


def _calls_series(window_s: float) -> str:
    return f"job_slo:calls:increase{duration(window_s)}"


def _record(series: str, slo: Slo, expr: str) -> dict[str, Any]:
    return {"record": series, "expr": expr, "labels": {"slo": slo.name}}


def _alert(slo: Slo, alert: BurnRateAlert, scale: float) -> dict[str, Any]:
    threshold = round(alert.burn_rate * slo.budget, 9)
    selector = f'{{slo="{slo.name}"}}'
    window = duration(alert.long_s)
    return {
        "alert": slo.alert,
        "expr": f"{error_ratio_series(alert.long_s)}{selector} > {threshold:g}\n"
        f"and {error_ratio_series(alert.short_s)}{selector} > {threshold:g}\n"
        f"and {_calls_series(alert.long_s)}{selector} >= {MIN_CALLS}",
        "for": duration(alert.for_s * scale),
        "labels": {"severity": alert.severity, "window": window},
        "annotations": {
            "summary": f"{{{{ $value | humanizePercentage }}}} of the calls of {{{{ $labels.job }}}} {slo.violation} in the last "
            f"{window}. The SLO allows {100 * slo.budget:g} %. The 30-day error budget lasts "
            f"{duration(round(PERIOD_S / alert.burn_rate))} at a burn rate of {alert.burn_rate:g}.",
            "runbook_url": f"deploy/RUNBOOK.md#{slo.alert.lower()}",
        },
    }
