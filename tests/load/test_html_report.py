"""The HTML reports: complete in one file, at any width, in light and dark colours, for all kinds of runs."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from alexnet_load import charts
from alexnet_load.bottleneck import Bottleneck, phases_s
from alexnet_load.html_report import write_run_page, write_sweep_page
from alexnet_load.run import OK, ClientStatistics, Plan, ServerStatistics
from alexnet_load.summary import percentiles, summarize
from alexnet_load.sweep import CurvePoint

BOTTLENECK = Bottleneck("queue", "An image spent 60% of its time in the server queue.", ("a fact",))
HOSTILE = """<script>alert(1)</script>"'&{{ plan }}"""
POINTS = (
    CurvePoint(50, 60.0, 12.0, 20.0, 0.0),
    CurvePoint(100, 120.0, 13.0, 24.0, 0.0),
    CurvePoint(200, 190, 15, 90, 0.02),
    CurvePoint(400, 0.0, float("inf"), float("inf"), 1.0),
)
EXTERNAL = "https?://|<script|<link|<img|@import|url[(]"


@pytest.fixture(scope="module")
def build(make_records, make_run):
    def make(count=3000, *, failing=0.02, lag_s=0.0002, **plan):
        rng = np.random.default_rng(0)
        planned_s = np.sort(rng.uniform(0, 20, count))
        records = make_records(
            planned_s,
            sent_s=planned_s + rng.exponential(lag_s, count),
            took_s=0.005 + rng.gamma(3, 0.004, count),
            outcome=(rng.uniform(size=count) < failing).astype(np.int16),
        )
        ok = int((records.outcome == 0).sum())
        client = ClientStatistics(
            attempts={OK: ok, "deadline_exceeded": len(records) - ok, "overloaded": 7},
            batches={1: 900, 4: 300, 16: 50},
            images=ok,
            served_s=0.012 * ok,
            errors={"deadline_exceeded": "no answer within 10 s", "overloaded": "Exceeds maximum queue size"},
        )
        times = {"queue_s": 0.004 * ok, "infer_s": 0.006 * ok}
        server = ServerStatistics(success=ok, failure=7, inferences=ok - 3, batches={2: 400, 8: 200}, **times)
        plan = {"arrivals": "poisson:150", "warm_up_s": 2.0} | plan
        return make_run(records, client=client, server=server, **plan)

    return make


@pytest.fixture(scope="module")
def run(build):
    return build()


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), run, slo_ms=50.0)


@pytest.fixture
def no_charts(monkeypatch):
    """Drawing the charts takes most of the time of a page."""
    names = ("throughput", "latency", "percentiles", "distribution", "batches", "phases")
    monkeypatch.setattr("alexnet_load.html_report._charts", lambda *_: dict.fromkeys(names, "<svg></svg>"))


def written(directory, run, **options):
    write_run_page(directory / "index.html", run, summarize(run), BOTTLENECK, **options)
    return (directory / "index.html").read_text()


def text_of(page):
    """Visible text on one line."""
    page = re.sub(r"<style.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", page)).split())


def test_the_page_is_complete_in_one_file_and_can_be_read_by_a_screen_reader(page):
    assert not re.findall(EXTERNAL, page)
    assert "currentColor" in page
    assert "#01020" not in page, "all placeholders of colours are replaced"
    headings = re.findall("<h[23]>(.*?)</h", page)
    assert headings[:2] == ["Bottleneck", "Latency and throughput"]
    assert headings[-5:] == ["Results", "Percentiles", "Client and server counts", "Errors", "Plan"]
    figures = re.findall("<figure.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == len(headings) - 7 == 6
    assert all(re.search(r'^<figure role="img" aria-label="[^"]{15,}"', each) for each in figures)
    assert all(re.search(r"<figcaption>[^<]{30,}[.]</figcaption>", each) for each in figures)


def test_the_page_shows_the_plan_and_the_results(run, page):
    summary, text, ok = summarize(run), text_of(page), run.client.attempts[OK]
    response, lag = percentiles(summary.response), percentiles(summary.lag)
    assert "Open loop, poisson:150, for 20 s, to 127.0.0.1:8001 on 2026-01-02 at 03:04" in text
    assert "1 on 2 CPUs" in text
    assert f"{summary.ok_rate:.1f} answered requests/s, {summary.planned_rate:.1f} planned" in text
    assert f"{summary.image_rate:.1f} images/s" in text
    assert f"{response['p50']:.1f} ms p50 response time" in text
    assert f"{response['p99']:.1f} ms p99 response time" in text
    assert re.search(rf"p99 {response['p99']:.1f} ms \S+ ms {lag['p99']:.3f} ms", text), "the row of the table"
    spaced = f"{ok:,}".replace(",", " ")
    assert f"requests answered {spaced} {spaced} 0" in text
    assert re.search(r"requests failed \d+ 7 [+]\d+", text)
    assert re.search(r"images answered .{5} .{5} [+]3", text)
    requests, attempts = summary.errors["deadline_exceeded"], run.client.attempts["deadline_exceeded"]
    assert f"{requests} failed of" in text
    assert f"deadline exceeded : {requests} requests, {attempts} attempts no answer within 10 s" in text
    assert "overloaded : 0 requests, 7 attempts Exceeds maximum queue size" in text, "attempts with a successful retry"


def test_external_texts_are_escaped(tmp_path, build, no_charts):
    run = build(model=HOSTILE, target=HOSTILE, images=HOSTILE)
    client = replace(run.client, errors={"deadline_exceeded": HOSTILE})
    run = replace(run, client=client, server=None, server_missing=HOSTILE, machine=HOSTILE, version=HOSTILE)
    page = written(tmp_path, run)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7
    assert "{{ plan }}" in page


def test_warnings_and_the_explanation_of_a_closed_loop_are_shown(tmp_path, build, no_charts):
    run = build(lag_s=0.5)
    page = written(tmp_path, replace(run, client=replace(run.client, interrupted=True)))
    found = [html.unescape(each) for each in re.findall('<p class="warning">(.*?)</p>', page)]
    assert [each[:22] for each in found] == ["The load generator was", "The run was interrupte"]
    assert page.index('<p class="warning">') < page.index('<ul class="tiles">')
    closed = written(tmp_path, build(arrivals="closed:4"))
    assert "Closed loop, closed:4" in closed
    assert "coordinated omission" in closed
    assert "planned" not in text_of(closed).split("Bottleneck")[0]


@pytest.mark.parametrize(
    ("planned_s", "changes", "shown", "hidden"),
    [
        ([2.5], {}, ["20.0 ms p50 response time", "20.0 ms max response time; p99 needs 1,000 answers"], []),
        (
            [],
            {"server": None, "server_missing": "no permission"},
            ["0 failed of 0 requests", "No server statistics: no permission", "Client and server counts"],
            ["Response time distribution"],
        ),
        ([], {"client": None}, ["The run file is incomplete"], ["Client and server counts", "Time by phase"]),
    ],
    ids=["one request", "no request and no server statistics", "incomplete"],
)
def test_a_page_omits_what_is_not_known(tmp_path, run, make_records, planned_s, changes, shown, hidden):
    text = text_of(written(tmp_path, replace(run, records=make_records(planned_s, took_s=0.02), **changes)))
    assert all(each in text for each in shown)
    assert not any(each in text for each in hidden)


def test_a_run_without_answers_has_a_page_without_latencies(tmp_path, build):
    page = written(tmp_path, build(failing=2.0))
    assert "No request was answered, so there are no latencies." in text_of(page)
    assert "– p50 response time" in text_of(page)  # noqa: RUF001  an en dash is what the page shows
    assert "<h3>Throughput</h3>" in page
    assert "<h3>Response time distribution</h3>" not in page


def test_the_charts_contain_the_known_phases_and_batch_sizes(run):
    for server, names in ((run.server, {"server queue", "infer"}), (None, {"network and server"})):
        phases = phases_s(run.client, server)
        shown = dict(re.findall(r">([a-z ]+?) ([0-9.]+) ms<", charts.stacked_phases(phases)))
        assert shown == {name: f"{1000 * seconds:.3g}" for name, seconds in phases.items()}
        assert names <= set(shown)
    assert ">server<" not in charts.batch_sizes(run.client.batches, {})


def test_the_latency_has_a_gap_where_a_window_has_no_answers(run):
    def strokes(summary):
        svg = charts.latency_over_time(summary, warm_up_s=0, slo_ms=None)
        return max(path.count("M ") for path in re.findall(r'<path d="([^"]*)"', svg) if "L " in path)

    summary = summarize(run)
    windows = list(summary.windows)
    windows[10] = replace(windows[10], p50_ms=None, p99_ms=None)
    assert strokes(summary) == 1
    assert strokes(replace(summary, windows=tuple(windows))) == 2


def test_the_page_of_a_sweep_shows_slo_knee_and_all_rates_and_replaces_an_existing_one(tmp_path):
    path = tmp_path / "new/directory/sweep.html"
    for knee in (1, None):
        write_sweep_page(path, POINTS, Plan(model=HOSTILE), slo_ms=50.0, knee=knee)
        page = path.read_text()
        assert not re.findall(EXTERNAL, page)
        assert "SLO 50 ms" in page
        assert (">knee<" in page) == ("100 (knee)" in page) == (knee is not None)
        assert '<td class="bad">90.0 ms</td>' in page
        assert all(f"<td>{point.rate:g}" in page for point in POINTS)
    assert [each.name for each in path.parent.iterdir()] == ["sweep.html"]


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAPER = {"light": "251, 250, 248", "dark": "20, 23, 26"}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.slow
@pytest.mark.parametrize(("width", "columns", "colours"), [(400, 1, "light"), (1400, 3, "dark")])
def test_the_layout_fits_narrow_and_wide_windows_and_follows_the_colour_scheme(
    run, page, tmp_path, width, columns, colours
):
    """In a frame of this width, neither the page nor a card overflows."""
    write_sweep_page(tmp_path / "sweep.html", POINTS, run.plan, slo_ms=50.0, knee=1)
    probe = """<script>onload = () => { const root = document.documentElement, charts = document.querySelector('.charts')
        parent.postMessage([document.title.slice(0, 5), root.scrollWidth, root.clientWidth,
        [...document.querySelectorAll('.scroll')].filter(card => card.scrollWidth > card.clientWidth).length,
        charts ? getComputedStyle(charts).gridTemplateColumns.split(' ').length : 0,
        getComputedStyle(document.body).backgroundColor].join('|'), '*') }</script></body>"""
    for name, content in (("page", page), ("sweep", (tmp_path / "sweep.html").read_text())):
        (tmp_path / f"{name}.html").write_text(content.replace("</body>", probe))
    frames = "".join(
        f'<iframe src="{name}.html" style="width:{width}px;height:900px;border:0"></iframe>'
        for name in ("page", "sweep")
    )
    (tmp_path / "probe.html").write_text(
        f'<meta name="color-scheme" content="light dark">{frames}<p id="found"></p>'
        "<script>onmessage = event => document.getElementById('found').textContent += event.data + ';'</script>"
    )
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}",
        f"--blink-settings=preferredColorScheme={int(colours == 'light')}", "--allow-file-access-from-files",
        "--virtual-time-budget=5000", "--dump-dom",
    ]  # fmt: skip
    command = [BROWSER, *options, (tmp_path / "probe.html").as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = sorted(re.search(r'id="found">([^<]*);<', dumped)[1].split(";"))
    expected = f"{width}|{width}|0"
    assert found == [f"Load |{expected}|{columns}|rgb({PAPER[colours]})", f"Sweep|{expected}|0|rgb({PAPER[colours]})"]
