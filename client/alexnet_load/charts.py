"""The charts of the HTML reports, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from alexnet_load.summary import MIN_REQUESTS_ABOVE, Summary
from alexnet_load.svg import BLUE, GREEN, GRID, ORANGE, RED, TEXT, styled_figure, to_svg
from alexnet_load.sweep import CurvePoint

PHASE_COLOURS = {
    "client queue": "#8d6cc9",
    "encode": "#b9a5e0",
    "network and front end": BLUE,
    "server queue": ORANGE,
    "input": "#f0b67f",
    "infer": GREEN,
    "output": "#8fceab",
    "decode": "#9aa4ae",
}
WIDTH, HEIGHT = 4.3, 3.0
"""Inches; the text is readable at a width of 400 pixels."""
TICK_PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
STEPS = [1, 2, 5, 10]
MAX_BINS = 45
MAX_BAR_LABELS = 12


def throughput(summary: Summary, *, warm_up_s: float) -> str:
    """Chart of the requests sent, answered and failed per second, over time."""
    middle, seconds, end_s = _windows(summary, warm_up_s)
    with _axes() as axes:
        rates = {name: [getattr(each, name) for each in summary.windows] / seconds for name in ("sent", "ok", "failed")}
        style = "." if len(middle) == 1 else ""
        axes.plot(middle, rates["sent"], style + ":", color=TEXT, linewidth=1, label="sent")
        axes.plot(middle, rates["ok"], style + "-", color=BLUE, label="answered")
        if rates["failed"].any():
            axes.plot(middle, rates["failed"], style + "-", color=RED, label="failed")
        _warm_up(axes, warm_up_s)
        axes.set(xlabel="seconds", ylabel="requests/s", ylim=(0, None), xlim=(0, end_s))
        _legend(axes)
        return to_svg(axes.figure)


def latency_over_time(summary: Summary, *, warm_up_s: float, slo_ms: float | None) -> str:
    """Chart of the p50 and p99 of the response time, over time; a window without answers is a gap."""
    middle, _, end_s = _windows(summary, warm_up_s)
    with _axes() as axes:
        for name, label, colour in (("p99_ms", "p99", ORANGE), ("p50_ms", "p50", BLUE)):
            values = np.array([getattr(each, name) for each in summary.windows], float)
            axes.plot(middle, values, ".-", color=colour, label=label, markersize=3)
        _slo_line(axes, slo_ms)
        _warm_up(axes, warm_up_s)
        axes.set(xlabel="seconds", ylabel="response time, ms", xlim=(0, end_s))
        _log_ms(axes, "y")
        _legend(axes)
        return to_svg(axes.figure)


def percentile_curve(summary: Summary, *, slo_ms: float | None) -> str:
    """Chart of latency against percentile; the axis is logarithmic in the share of slower requests.

    The line is dotted where fewer than ``MIN_REQUESTS_ABOVE`` requests are above the percentile.
    """
    total = summary.response.total_count
    ticks = [each for each in TICK_PERCENTILES if each == TICK_PERCENTILES[0] or total * (1 - each / 100) >= 1]
    x = np.geomspace(1, max(2.0, total), 160)
    shares = np.maximum(1e-6, 100 * (1 - 1 / x)).tolist()
    reliable = x <= max(2.0, total / MIN_REQUESTS_ABOVE)
    kinds = [
        ("response", ORANGE, 3.0),
        ("service", BLUE, 1.4),
    ]  # the widths differ, so that equal lines are both visible
    with _axes() as axes:
        for name, colour, width in kinds:
            found_us = getattr(summary, name).get_percentile_to_value_dict(shares)  # in one pass
            values = np.array([found_us[each] / 1000 for each in shares])
            axes.plot(x, values, ":", color=colour, linewidth=width)
            axes.plot(x[reliable], values[reliable], color=colour, linewidth=width, label=name)
        _slo_line(axes, slo_ms)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([1 / (1 - each / 100) for each in ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"p{100 * (1 - 1 / value):.6g}"))
        axes.set(xlabel="percentile", ylabel="latency, ms", xlim=(1, x[-1]))
        _log_ms(axes, "y")
        _legend(axes)
        return to_svg(axes.figure)


def distribution(summary: Summary) -> str:
    """Histogram of the response times on a logarithmic axis."""
    found = [
        (each.value_iterated_to / 1000, each.count_added_in_this_iter_step)
        for each in summary.response.get_recorded_iterator()
    ]
    values, counts = (np.array(column, float) for column in zip(*found, strict=True))
    # Narrower bins would show the buckets of the HdrHistogram, which have three digits, instead of the latencies.
    bins = min(MAX_BINS, max(1, round(float(np.log(values.max() / values.min())) / 0.004)))
    edges = np.geomspace(values.min() / 1.02, values.max() * 1.02, bins + 1)
    with _axes() as axes:
        axes.hist(values, bins=edges.tolist(), weights=counts, color=BLUE)
        axes.set_xlim(edges[0] / 1.1, edges[-1] * 1.1)
        axes.set(xlabel="response time, ms", ylabel="requests")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=STEPS))
        _log_ms(axes, "x")
        axes.grid(visible=False, axis="x")
        return to_svg(axes.figure)


def batch_sizes(client: Mapping[int, int], server: Mapping[int, int]) -> str:
    """Bar chart of the batch sizes of the client and of the server, as shares of all batches."""
    sizes = sorted({*client, *server})
    places = np.arange(len(sizes))
    shown = [each for each in ((client, "client", BLUE), (server, "server", ORANGE)) if each[0]]
    width = 0.8 / len(shown)
    with _axes() as axes:
        for number, (counts, label, colour) in enumerate(shown):
            shares = [100 * counts.get(size, 0) / sum(counts.values()) for size in sizes]
            axes.bar(places + (number - (len(shown) - 1) / 2) * width, shares, width, color=colour, label=label)
        step = -(-len(sizes) // MAX_BAR_LABELS)  # more labels would overlap
        axes.set_xticks(places[::step], [str(size) for size in sizes[::step]])
        axes.set(xlabel="batch size, images", ylabel="share, %", xlim=(-0.6, max(len(sizes), 3) - 0.4))
        axes.grid(visible=False, axis="x")
        _legend(axes)
        return to_svg(axes.figure)


def stacked_phases(phases_s: Mapping[str, float]) -> str:
    """Bar chart of the mean time of an image by phase."""
    left_ms = 0.0
    with _axes(height=2.6) as axes:
        for name, seconds in phases_s.items():
            label = f"{name} {1000 * seconds:.3g} ms"
            axes.barh(0, 1000 * seconds, left=left_ms, color=PHASE_COLOURS.get(name, BLUE), label=label, height=0.6)
            left_ms += 1000 * seconds
        axes.set(xlabel="milliseconds", yticks=[], xlim=(0, max(left_ms, 1e-3) * 1.02))
        axes.grid(visible=False, axis="y")
        axes.figure.legend(loc="outside lower left", ncols=2, columnspacing=1)
        return to_svg(axes.figure)


def curve(points: Sequence[CurvePoint], *, slo_ms: float | None, knee: int | None) -> str:
    """Chart of latency against throughput for the rates of a sweep, without rates that have no answers."""
    known = [each for each in points if np.isfinite(each.p99_ms)]
    with _axes(4.8, 3.5) as axes:
        for name, label, colour in (("p99_ms", "p99", ORANGE), ("p50_ms", "p50", BLUE)):
            values = [getattr(each, name) for each in known]
            axes.plot([each.image_rate for each in known], values, "o-", color=colour, label=label, markersize=4)
        if failing := [(each.image_rate, each.p99_ms) for each in known if each.errors]:
            axes.plot(*zip(*failing, strict=True), "x", color=RED, label="with errors", markersize=8, markeredgewidth=2)
        if knee is not None:
            place = [points[knee].image_rate], [points[knee].p99_ms]
            axes.plot(*place, "o", markersize=12, color=TEXT, fillstyle="none", label="knee")
        _slo_line(axes, slo_ms)
        axes.set(xlabel="answered images/s", ylabel="response time, ms", xlim=(0, None))
        _log_ms(axes, "y")
        _legend(axes, columns=5)
        return to_svg(axes.figure)


def _windows(summary: Summary, warm_up_s: float) -> tuple[Any, Any, float]:
    """Middle and length of each window, and the end of the last one; its length is cut to the end of the run."""
    end_s = warm_up_s + summary.seconds
    starts_s = np.array([each.start_s for each in summary.windows])
    seconds = np.clip(end_s - starts_s, 1e-3, [each.seconds for each in summary.windows])
    return starts_s + seconds / 2, seconds, end_s


def _log_ms(axes: Any, which: str) -> None:
    """A logarithmic axis with at least two plain numbers as labels."""
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    spread = max(1.0, 1.5 * low / high) ** 0.5  # a minimum range, so that small variations look small
    low, high = low / spread, high * spread
    axis, decades = getattr(axes, f"{which}axis"), np.log10(high / low)
    if decades < 0.7:
        axis.set_major_locator(
            FixedLocator([each for each in MaxNLocator(5, steps=STEPS).tick_values(low, high) if each > 0])
        )
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.2 else (1, 3) if decades < 4 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    getattr(axes, f"set_{which}lim")(low, high)


def _warm_up(axes: Any, warm_up_s: float) -> None:
    if warm_up_s > 0:
        axes.axvspan(0, warm_up_s, color=GRID, alpha=0.5, linewidth=0, label="warm-up")


def _slo_line(axes: Any, slo_ms: float | None) -> None:
    if slo_ms is not None:
        axes.axhline(slo_ms, color=GREEN, linestyle="--", linewidth=1.2, label=f"SLO {slo_ms:g} ms")


def _legend(axes: Any, *, columns: int = 4) -> None:
    """Above the chart, where it does not cover a line."""
    axes.figure.legend(loc="outside upper left", ncols=columns, columnspacing=1, handlelength=1.4, handletextpad=0.5)


@contextmanager
def _axes(width: float = WIDTH, height: float = HEIGHT) -> Iterator[Any]:
    with styled_figure(width, height) as figure:
        yield figure.subplots()
