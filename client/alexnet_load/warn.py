"""What a reader of a run must know before any figure. Pure."""

from __future__ import annotations

from alexnet_load.run import Run
from alexnet_load.summary import Summary

BEHIND = 0.05
"""Share of the planned requests that may be neither answered nor failed at the end: more is a queue that grew."""


def warnings(run: Run, summary: Summary) -> list[str]:
    """Sentences for the top of a report; none if all is well."""
    found = []
    if summary.sender_limited:
        found.append(f"The sender was the limit, so these figures are not the server's: {summary.sender_limited}.")
    ended = summary.ok_rate * summary.seconds + sum(summary.errors.values())
    if not run.plan.closed_loop and ended < (1 - BEHIND) * summary.requests:
        found.append(
            f"Overload: {summary.planned_rate:.1f} requests a second came, {summary.ok_rate:.1f} were answered; response times "
            "tell how long the run was, not how fast the server is."
        )
    if summary.unsteady:
        found.append(f"Not steady: {summary.unsteady}.")
    if run.client is None:
        found.append("The run's file was cut off: what both sides counted is missing.")
    elif run.client.interrupted:
        found.append("The run was broken off before its time.")
    return found
