"""Service level objectives and the rules that watch them, from two tables. Pure.

The alerts are those of "Alerting on SLOs" in The Site Reliability Workbook (Google, 2018): a budget of errors for 30 days,
alerts on how fast it burns, each over a long window, which says that it matters, and a short one, which says that it lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PERIOD_S = 30 * 86_400
LEAST_CALLS = 100
"""Calls in a long window below which its share of errors says nothing."""
UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
CALLS = "alexnet_client_calls_total"
SECONDS = "alexnet_client_call_duration_seconds"
SERVERS_FAULT = "overloaded|queue_full|deadline_exceeded|unavailable|server_fault"
"""Outcomes that are not the caller's doing. A wrong request, or a call that its caller gave up, is nobody's fault."""


@dataclass(frozen=True)
class Slo:
    """An objective.

    Attributes:
        name: as it stands in the label ``slo``.
        alert: the name of its alerts.
        objective: share of the calls that must be good.
        summary: for people, of a call that is not.
        calls: PromQL selector of a counter of all calls that count.
        good: PromQL selector of a counter of the good ones.
    """

    name: str
    alert: str
    objective: float
    summary: str
    calls: str
    good: str

    @property
    def budget(self) -> float:
        """Share of the calls that may be bad."""
        return round(1 - self.objective, 9)


SLOS = (
    Slo(
        "availability",
        "AvailabilityBudgetBurn",
        0.999,
        "calls fail by the servers' fault",
        calls=f'{CALLS}{{outcome=~"ok|{SERVERS_FAULT}"}}',
        good=f'{CALLS}{{outcome="ok"}}',
    ),
    Slo(
        "latency",
        "LatencyBudgetBurn",
        0.99,
        "answers take more than 100 ms",
        calls=f'{SECONDS}_count{{outcome="ok"}}',
        good=f'{SECONDS}_bucket{{outcome="ok",le="0.1"}}',
    ),
)


@dataclass(frozen=True)
class Burn:
    """An alert on a speed at which the budget burns; all durations in seconds.

    Attributes:
        speed: times the speed that uses up the budget in exactly 30 days.
        long_s, short_s: windows in which it must have burned so fast.
        for_s: how long both must say so.
        severity: page or ticket.
    """

    speed: float
    long_s: float
    short_s: float
    for_s: float
    severity: str


BURNS = (
    Burn(14.4, 3600, 300, 120, "page"),
    Burn(6, 6 * 3600, 1800, 900, "page"),
    Burn(3, 86_400, 2 * 3600, 3600, "ticket"),
    Burn(1, 3 * 86_400, 6 * 3600, 3 * 3600, "ticket"),
)


def slo_rules(slos: Sequence[Slo] = SLOS, burns: Sequence[Burn] = BURNS, *, scale: float = 1.0) -> dict[str, Any]:
    """Prometheus' rule file, as data: the share of bad calls in each window, the budget that is left, and the alerts.

    Args:
        slos: the objectives.
        burns: when to alert about each.
        scale: factor for all durations, for tests that cannot wait; the names keep the unscaled ones.
    """
    windows = sorted({each for burn in burns for each in (burn.long_s, burn.short_s)})
    ratios = [_ratio(slo, window_s, scale) for slo in slos for window_s in windows]
    calls = [_calls(slo, burn.long_s, scale) for slo in slos for burn in burns]
    alerts = [_alert(slo, burn, scale) for slo in slos for burn in burns]
    return {
        "groups": [
            # One group: the alerts read what was recorded at the same moment.
            {"name": "slo", "interval": duration(30 * scale), "rules": ratios + calls + alerts},
            {
                "name": "slo-budget",
                "interval": duration(60 * scale),
                "rules": [_budget_left(slo, scale) for slo in slos],
            },
        ]
    }


def duration(seconds: float) -> str:
    """Prometheus' notation, in the largest unit that divides it: 90 is "90s", 3600 is "1h", 0.5 is "500ms"."""
    milliseconds = max(1, round(1000 * seconds))
    return next(f"{milliseconds // size}{unit}" for unit, size in UNITS if milliseconds % size == 0)


def ratio_of(window_s: float) -> str:
    """Name of the recorded share of bad calls in a window."""
    return f"job:slo_errors:ratio_rate{duration(window_s)}"


def calls_of(window_s: float) -> str:
    """Name of the recorded number of calls in a window."""
    return f"job:slo_calls:increase{duration(window_s)}"


def _share_of_bad(slo: Slo, window: str) -> str:
    calls, good = (f"sum by (job) (rate({each}[{window}]))" for each in (slo.calls, slo.good))
    return f"1 - {good} / ({calls} > 0)"


def _ratio(slo: Slo, window_s: float, scale: float) -> dict[str, Any]:
    return {
        "record": ratio_of(window_s),
        "expr": _share_of_bad(slo, duration(window_s * scale)),
        "labels": {"slo": slo.name},
    }


def _calls(slo: Slo, window_s: float, scale: float) -> dict[str, Any]:
    return {
        "record": calls_of(window_s),
        "expr": f"sum by (job) (increase({slo.calls}[{duration(window_s * scale)}]))",
        "labels": {"slo": slo.name},
    }


def _budget_left(slo: Slo, scale: float) -> dict[str, Any]:
    return {
        "record": "job:slo_budget_left:ratio30d",
        "expr": f"1 - ({_share_of_bad(slo, duration(PERIOD_S * scale))}) / {slo.budget:g}",
        "labels": {"slo": slo.name},
    }


def _alert(slo: Slo, burn: Burn, scale: float) -> dict[str, Any]:
    threshold = round(burn.speed * slo.budget, 9)
    selector = f'{{slo="{slo.name}"}}'
    return {
        "alert": slo.alert,
        "expr": f"{ratio_of(burn.long_s)}{selector} > {threshold:g}\n"
        f"and {ratio_of(burn.short_s)}{selector} > {threshold:g}\n"
        f"and {calls_of(burn.long_s)}{selector} >= {LEAST_CALLS}",
        "for": duration(burn.for_s * scale),
        "labels": {"severity": burn.severity, "window": duration(burn.long_s)},
        "annotations": {
            "summary": f"{{{{ $value | humanizePercentage }}}} of {{{{ $labels.job }}}}'s {slo.summary}, over "
            f"{duration(burn.long_s)}; the objective allows {slo.budget:.1%}. At this speed the budget of 30 days is spent "
            f"in {duration(PERIOD_S // burn.speed // 3600 * 3600)}.",
            "runbook_url": f"deploy/RUNBOOK.md#{slo.alert.lower()}",
        },
    }
