"""The charts of the reports, as SVG in the page's own colours. No file, no figure window, nothing of a run but figures."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from alexnet_load.knee import CurvePoint
from alexnet_load.summary import BEYOND, Summary

_TEXT, _GRID = "#010203", "#010204"
"""They become the page's own colours, so that dark and light both read well."""
BLUE, ORANGE, RED, GREEN = "#2f7fd1", "#e07a1f", "#d0453c", "#2a9d5c"
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
SIZE = (4.3, 3.0)
"""Inches at 10-point text: a chart is read at 400 pixels as well as beside others."""
NINES = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
STEPS = [1, 2, 5, 10]
BINS = 45
MOST_NAMES = 12
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), _GRID),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    "legend.fontsize": 9,
    "svg.hashsalt": "alexnet",
}


def throughput(summary: Summary, *, warm_up_s: float) -> str:
    """Requests sent, answered and failed a second, over time."""
    middle, seconds, end_s = _slices(summary, warm_up_s)
    with _drawing() as axes:
        rates = {name: [getattr(each, name) for each in summary.windows] / seconds for name in ("sent", "ok", "failed")}
        style = "." if len(middle) == 1 else ""
        axes.plot(middle, rates["sent"], style + ":", color=_TEXT, linewidth=1, label="sent")
        axes.plot(middle, rates["ok"], style + "-", color=BLUE, label="answered")
        if rates["failed"].any():
            axes.plot(middle, rates["failed"], style + "-", color=RED, label="failed")
        _warm_up(axes, warm_up_s)
        axes.set(xlabel="seconds", ylabel="requests a second", ylim=(0, None), xlim=(0, end_s))
        _legend(axes)
        return _svg(axes)


def latency_over_time(summary: Summary, *, warm_up_s: float, objective_ms: float | None) -> str:
    """p50 and p99 of the response time, over time; a slice without an answer is a gap, or a stall would look like a slope."""
    middle, _, end_s = _slices(summary, warm_up_s)
    with _drawing() as axes:
        for name, label, colour in (("p99_ms", "p99", ORANGE), ("p50_ms", "p50", BLUE)):
            values = np.array([getattr(each, name) for each in summary.windows], float)
            axes.plot(middle, values, ".-", color=colour, label=label, markersize=3)
        _objective(axes, objective_ms)
        _warm_up(axes, warm_up_s)
        axes.set(xlabel="seconds", ylabel="response time, ms", xlim=(0, end_s))
        _log_ms(axes, "y")
        _legend(axes)
        return _svg(axes)


def percentile_curve(summary: Summary, *, objective_ms: float | None) -> str:
    """Latency against percentile, the axis stretched towards 100 %: every nine takes as much room.

    Dotted where fewer than ``BEYOND`` requests lie beyond: chance decides there.
    """
    total = summary.response.total_count
    ends = [each for each in NINES if each == NINES[0] or total * (1 - each / 100) >= 1]
    along = np.geomspace(1, max(2.0, total), 160)
    shares = np.maximum(1e-6, 100 * (1 - 1 / along)).tolist()
    known = along <= max(2.0, total / BEYOND)
    kinds = [("response", ORANGE, 3.0), ("service", BLUE, 1.4)]  # both are seen where they are the same
    with _drawing() as axes:
        for name, colour, width in kinds:
            found_us = getattr(summary, name).get_percentile_to_value_dict(shares)  # in one pass
            values = np.array([found_us[each] / 1000 for each in shares])
            axes.plot(along, values, ":", color=colour, linewidth=width)
            axes.plot(along[known], values[known], color=colour, linewidth=width, label=name)
        _objective(axes, objective_ms)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([1 / (1 - each / 100) for each in ends]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"p{100 * (1 - 1 / value):.6g}"))
        axes.set(xlabel="share of requests that took less", ylabel="latency, ms", xlim=(1, along[-1]))
        _log_ms(axes, "y")
        _legend(axes)
        return _svg(axes)


def distribution(summary: Summary) -> str:
    """How many requests took how long, on a logarithmic axis."""
    found = [
        (each.value_iterated_to / 1000, each.count_added_in_this_iter_step)
        for each in summary.response.get_recorded_iterator()
    ]
    values, counts = (np.array(column, float) for column in zip(*found, strict=True))
    # Bins finer than the histogram's own three digits would show its buckets and not the latencies.
    bins = min(BINS, max(1, round(float(np.log(values.max() / values.min())) / 0.004)))
    edges = np.geomspace(values.min() / 1.02, values.max() * 1.02, bins + 1)
    with _drawing() as axes:
        axes.hist(values, bins=edges.tolist(), weights=counts, color=BLUE)
        axes.set_xlim(edges[0] / 1.1, edges[-1] * 1.1)
        axes.set(xlabel="response time, ms", ylabel="requests")
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=STEPS))
        _log_ms(axes, "x")
        axes.grid(visible=False, axis="x")
        return _svg(axes)


def batch_sizes(client: Mapping[int, int], server: Mapping[int, int]) -> str:
    """Images in the client's requests and in the server's executions, as shares of each."""
    sizes = sorted({*client, *server})
    places = np.arange(len(sizes))
    shown = [each for each in ((client, "client's requests", BLUE), (server, "server's executions", ORANGE)) if each[0]]
    width = 0.8 / len(shown)
    with _drawing() as axes:
        for number, (counts, label, colour) in enumerate(shown):
            shares = [100 * counts.get(size, 0) / sum(counts.values()) for size in sizes]
            axes.bar(places + (number - (len(shown) - 1) / 2) * width, shares, width, color=colour, label=label)
        step = -(-len(sizes) // MOST_NAMES)  # more names would run into each other
        axes.set_xticks(places[::step], [str(size) for size in sizes[::step]])
        axes.set(xlabel="images", ylabel="share, %", xlim=(-0.6, max(len(sizes), 3) - 0.4))
        axes.grid(visible=False, axis="x")
        _legend(axes)
        return _svg(axes)


def stacked_phases(phases_s: Mapping[str, float]) -> str:
    """Where the time of the mean image went: one bar, and its parts named below."""
    left_ms = 0.0
    with _drawing((SIZE[0], 2.6)) as axes:
        for name, seconds in phases_s.items():
            label = f"{name} {1000 * seconds:.3g} ms"
            axes.barh(0, 1000 * seconds, left=left_ms, color=PHASE_COLOURS.get(name, BLUE), label=label, height=0.6)
            left_ms += 1000 * seconds
        axes.set(xlabel="milliseconds", yticks=[], xlim=(0, max(left_ms, 1e-3) * 1.02))
        axes.grid(visible=False, axis="y")
        axes.figure.legend(loc="outside lower left", ncols=2, columnspacing=1)
        return _svg(axes)


def curve(points: Sequence[CurvePoint], *, objective_ms: float | None, knee: int | None) -> str:
    """Latency against throughput over the rates of a sweep; rates at which nothing was answered are left out."""
    known = [each for each in points if np.isfinite(each.p99_ms)]
    with _drawing((4.8, 3.5)) as axes:
        for name, label, colour in (("p99_ms", "p99", ORANGE), ("p50_ms", "p50", BLUE)):
            values = [getattr(each, name) for each in known]
            axes.plot([each.image_rate for each in known], values, "o-", color=colour, label=label, markersize=4)
        if failing := [(each.image_rate, each.p99_ms) for each in known if each.errors]:
            axes.plot(*zip(*failing, strict=True), "x", color=RED, label="with errors", markersize=8, markeredgewidth=2)
        if knee is not None:
            place = [points[knee].image_rate], [points[knee].p99_ms]
            axes.plot(*place, "o", markersize=12, color=_TEXT, fillstyle="none", label="knee")
        _objective(axes, objective_ms)
        axes.set(xlabel="images a second, answered", ylabel="response time, ms", xlim=(0, None))
        _log_ms(axes, "y")
        _legend(axes, columns=5)
        return _svg(axes)


def _slices(summary: Summary, warm_up_s: float) -> tuple[Any, Any, float]:
    """Middle and length of each window, and the end of all; the last may be cut, and would seem slow if it counted whole."""
    end_s = warm_up_s + summary.seconds
    starts_s = np.array([each.start_s for each in summary.windows])
    seconds = np.clip(end_s - starts_s, 1e-3, [each.seconds for each in summary.windows])
    return starts_s + seconds / 2, seconds, end_s


def _log_ms(axes: Any, which: str) -> None:
    """A logarithmic axis with plain numbers: as many as there is room for, and never fewer than two."""
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    spread = max(1.0, 1.5 * low / high) ** 0.5  # what hardly varies must not look as if it did
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
        axes.axvspan(0, warm_up_s, color=_GRID, alpha=0.5, linewidth=0, label="warm-up")


def _objective(axes: Any, objective_ms: float | None) -> None:
    if objective_ms is not None:
        axes.axhline(objective_ms, color=GREEN, linestyle="--", linewidth=1.2, label=f"SLO {objective_ms:g} ms")


def _legend(axes: Any, *, columns: int = 4) -> None:
    """Above the chart, where no line can run through it."""
    axes.figure.legend(loc="outside upper left", ncols=columns, columnspacing=1, handlelength=1.4, handletextpad=0.5)


@contextmanager
def _drawing(size: tuple[float, float] = SIZE) -> Iterator[Any]:
    """Axes of their own figure, which pyplot does not know: nothing is left behind, and no other code is disturbed."""
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=size, layout="constrained").subplots()


def _svg(axes: Any) -> str:
    """What a page can hold: colours and size are the page's, and nothing refers to anything outside the chart."""
    buffer = io.StringIO()
    axes.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_TEXT, "currentColor").replace(_GRID, "var(--line)")
    text = re.sub("<metadata>.*?</metadata>|<clipPath.*?</clipPath>", "", text, flags=re.DOTALL)
    text = re.sub(r' clip-path="[^"]*"|(?<=<g) id="[^"]*"', "", text)  # all lies within the axes; ids would be double
    head, rest = text.split(">", 1)
    kept = [part for part in head.split() if not part.startswith(("width=", "height=", "xmlns"))]
    return " ".join(kept) + ">" + rest
