"""The page of a run: it shows the summary's figures by itself, at any width, in dark and light, whatever the run was."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from alexnet_client.errors import BadInput
from alexnet_load import charts
from alexnet_load.knee import CurvePoint
from alexnet_load.page import write_curve, write_page
from alexnet_load.run import OK, ClientSide, Plan, Records, Run, ServerSide
from alexnet_load.summary import percentiles, summarize
from alexnet_load.verdict import Verdict, phases_s
from alexnet_load.warn import warnings

VERDICT = Verdict(
    "queue", "An image spent 60% of its time in the server queue.", ("2.5 requests in the server on average",)
)
HOSTILE = """<script>alert(1)</script>"'&{{ plan }}"""
POINTS = (
    CurvePoint(50, 60.0, 12.0, 20.0, 0.0),
    CurvePoint(100, 120.0, 13.0, 24.0, 0.0),
    CurvePoint(200, 190, 15, 90, 0.02),
)
SILENT = CurvePoint(400, 0.0, float("inf"), float("inf"), 1.0)


def records(count=3000, seconds=20.0, *, failing=0.02, late_s=0.0002):
    dice = np.random.default_rng(0)
    planned = np.sort(dice.uniform(0, seconds, count))
    late = dice.exponential(late_s, count) if late_s else np.zeros(count)
    sent = planned + late
    outcome = (dice.uniform(size=count) < failing).astype(np.int16)
    return Records(
        planned,
        sent,
        sent + 0.005 + dice.gamma(3, 0.004, count),
        late,
        np.ones(count, np.int32),
        outcome,
        (OK, "deadline_exceeded"),
    )


def a_run(found=None, **plan):
    found = records() if found is None else found
    ok = int((found.outcome == 0).sum())
    client = ClientSide(
        wall_s=20.0,
        cpu_s=(4.0,),
        attempts={OK: ok, "deadline_exceeded": len(found) - ok, "overloaded": 7},
        batches={1: 900, 4: 300, 16: 50},
        images=ok,
        queued_s=0.002 * ok,
        encoded_s=0.0004 * ok,
        served_s=0.012 * ok,
        decoded_s=0.0001 * ok,
        retries={"overloaded": 7},
        errors={"deadline_exceeded": "no answer within 10 s", "overloaded": "Exceeds maximum queue size"},
    )
    server = ServerSide(
        success=ok,
        failure=7,
        inferences=ok - 3,
        executions=700,
        rejected=7,
        queue_s=0.004 * ok,
        input_s=0.0003 * ok,
        infer_s=0.006 * ok,
        output_s=0.0002 * ok,
        request_s=0.011 * ok,
        busy_s=9.0,
        batches={2: 400, 8: 200, 16: 100},
        wall_s=20.0,
    )
    asked = Plan(**{"arrivals": "poisson:150", "duration_s": 20.0, **plan})
    return Run(asked, found, client, server, "", "two processors", "2026-01-02T03:04:05+00:00", "1.2.3")


def written(path, run, **options):
    write_page(path, run, summarize(run), VERDICT, **options)
    return path.read_text()


def as_text(page):
    """What a reader sees, on one line."""
    page = re.sub(r"<style.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", page)).split())


@pytest.fixture(scope="module")
def run():
    return a_run()


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return written(tmp_path_factory.mktemp("page") / "index.html", run, objective_ms=50.0)


def test_the_page_asks_nobody_for_anything(page):
    assert not re.findall("https?://|<script|<link|<img|@import|url[(]", page)


def test_every_part_is_there(page):
    titles = re.findall("<h[23]>(.*?)</h", page)
    assert titles == [
        "What held it back",
        "Latency and throughput",
        "Latency by percentile",
        "Response time",
        "Throughput",
        "Distribution",
        "Where the time goes",
        "Batches",
        "In figures",
        "Percentiles",
        "Do both sides agree?",
        "Errors",
        "What was run",
    ]


def test_every_chart_is_named_for_those_who_cannot_see_it_and_says_how_to_read_it(page):
    figures = re.findall("<figure.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == 6
    assert all(re.search(r'^<figure role="img" aria-label="[^"]{15,}"', each) for each in figures)
    assert all(re.search(r"<figcaption>[^<]{30,}[.]</figcaption>", each) for each in figures)


def test_the_figures_are_those_of_the_summary(run, page):
    summary, text = summarize(run), as_text(page)
    response, lag = percentiles(summary.response), percentiles(summary.lag)
    assert f"{summary.ok_rate:.1f} requests answered a second, of {summary.planned_rate:.1f} planned" in text
    assert f"{summary.image_rate:.1f} images a second" in text
    assert f"{response['p50']:.1f} ms p50 response time" in text
    assert f"{response['p99']:.1f} ms p99 response time" in text
    assert f"{summary.errors['deadline_exceeded']} failed of" in text
    assert re.search(rf"p99 {response['p99']:.1f} ms \S+ ms {lag['p99']:.3f} ms", text), "the table has them too"


def test_what_was_run_is_said_in_words(page):
    text = as_text(page)
    assert "Open loop, 150 requests a second on average, at random times (Poisson), for 20 s, to 127.0.0.1:8001" in text
    assert "on 2026-01-02 at 03:04" in text
    assert "1 on two processors" in text


@pytest.mark.parametrize(
    ("arrivals", "words"),
    [
        ("constant:20", "Open loop, 20 requests a second, evenly spaced"),
        ("ramp:0-40", "from 0 to 40 requests a second"),
        ("steps:10,20,30", "10,20,30 requests a second in turn"),
        ("burst:5/0.5", "5 requests at once every 0.5 s"),
        ("trace:day.csv", "requests as recorded in day.csv"),
        ("closed:16", "Closed loop, 16 callers who each wait for the answer"),
        ("of {tomorrow}", "Open loop, of {tomorrow}"),
    ],
)
def test_every_kind_of_arrivals_has_words(tmp_path, arrivals, words):
    assert words in as_text(written(tmp_path / "index.html", a_run(records(50), arrivals=arrivals)))


def test_totals_of_both_sides_stand_beside_each_other_with_their_difference(run, page):
    text, ok = as_text(page), run.client.attempts[OK]
    spaced = f"{ok:,}".replace(",", " ")
    assert f"requests answered {spaced} {spaced} 0" in text
    assert re.search(r"requests failed \d+ 7 [+]\d+", text)
    assert re.search(r"images answered .{5} .{5} [+]3", text)


def test_each_kind_of_error_is_counted_and_has_an_example(run, page):
    failed = summarize(run).errors["deadline_exceeded"]
    text = as_text(page)
    assert (
        f"deadline exceeded : {failed} requests, {run.client.attempts['deadline_exceeded']} attempts no answer within 10 s"
        in text
    )
    assert "overloaded : 0 requests, 7 attempts Exceeds maximum queue size" in text, "attempts that a retry healed"


def test_texts_from_outside_are_text_and_never_markup(tmp_path):
    base = a_run(target=HOSTILE, model=HOSTILE, images=HOSTILE)
    client = replace(base.client, errors={"deadline_exceeded": HOSTILE})
    run = replace(base, client=client, server=None, server_missing=HOSTILE, machine=HOSTILE, version=HOSTILE)
    page = written(tmp_path / "index.html", run)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7
    assert "{{ plan }}" in page


def test_warnings_stand_above_all_figures(tmp_path):
    run = a_run(records(late_s=0.5))
    run = replace(run, client=replace(run.client, interrupted=True))
    page = written(tmp_path / "index.html", run)
    found = [html.unescape(each) for each in re.findall('<p class="warning">(.*?)</p>', page)]
    assert [each[:22] for each in found] == ["The sender was the lim", "The run was broken off"]
    assert page.index('<p class="warning">') < page.index('<ul class="tiles">')


def test_more_than_is_answered_in_time_is_called_overload():
    planned = np.arange(2000) / 100
    nothing = np.zeros(2000, np.int16)
    swamped = Records(planned, planned, 0.02 + 1.6 * planned, 0 * planned, np.ones(2000, np.int32), nothing)
    run = a_run(swamped, arrivals="constant:100")
    assert any(
        each.startswith("Overload: 100.0 requests a second came, 62.5 were answered")
        for each in warnings(run, summarize(run))
    )
    as_failed = replace(run, records=replace(swamped, outcome=np.ones(2000, np.int16), outcomes=(OK, "overloaded")))
    assert not any(each.startswith("Overload") for each in warnings(as_failed, summarize(as_failed))), (
        "refused is no queue"
    )
    fine = a_run()
    assert warnings(fine, summarize(fine)) == []


def test_a_closed_loop_says_what_it_cannot_see(tmp_path):
    run = a_run(records(late_s=0), arrivals="closed:4")
    page = written(tmp_path / "index.html", run)
    assert "coordinated omission" in page
    assert "planned" not in as_text(page).split("What held it back")[0]


def test_without_an_answer_the_page_says_so(tmp_path):
    page = written(tmp_path / "index.html", a_run(records(failing=2.0)))
    text = as_text(page)
    assert "No request was answered, so there are no latencies." in text
    assert "– p50 response time" in text  # noqa: RUF001  as it is printed
    assert "<h3>Throughput</h3>" in page
    assert "<h3>Distribution</h3>" not in page


def test_one_request_is_a_page_too(tmp_path):
    one = Records(*(np.array([each]) for each in (2.5, 2.5, 2.52, 0)), np.array([1], np.int32), np.array([0], np.int16))
    text = as_text(written(tmp_path / "index.html", a_run(one)))
    assert "20.0 ms p50 response time" in text
    assert "20.0 ms max response time; p99 takes 1,000 answers" in text, "no percentile is made of one request"


def test_no_request_at_all_is_a_page_too(tmp_path):
    none = Records(*(np.array([]) for _ in range(4)), np.array([], np.int32), np.array([], np.int16))
    text = as_text(written(tmp_path / "index.html", replace(a_run(none), client=ClientSide(), server=None)))
    assert "0 failed of 0 requests" in text
    assert "No request was answered, so there are no latencies." in text
    assert "Errors None." in text
    assert "cut off" in written(tmp_path / "index.html", replace(a_run(none), client=None, server=None))


def test_what_the_server_did_not_tell_is_named_and_not_drawn(run, tmp_path):
    alone = replace(run, server=None, server_missing="its statistics are closed to this user")
    page = written(tmp_path / "index.html", alone)
    assert "The server's side is missing: its statistics are closed to this user" in as_text(page)
    assert "network and server" in page
    assert "server queue" not in re.search("<h3>Where the time goes.*?</figure>", page, flags=re.DOTALL)[0]
    assert "server's executions" not in re.search("<h3>Batches.*?</svg>", page, flags=re.DOTALL)[0]


def test_a_run_that_was_cut_off_has_what_its_records_tell(run, tmp_path):
    page = written(
        tmp_path / "index.html", replace(run, client=None, server=None, server_missing="the run was cut off")
    )
    assert "The run's file was cut off" in html.unescape(page)
    assert "timed out" in as_text(page), "errors are known from the records"
    assert "<h3>Latency by percentile</h3>" in page
    assert "Do both sides agree?" not in page


def test_phases_are_drawn_in_their_order_with_their_time(run):
    names = re.findall(r">([a-z ]+?) ([0-9.]+) ms<", charts.stacked_phases(phases_s(run.client, run.server)))
    assert dict(names) == {name: f"{1000 * seconds:.3g}" for name, seconds in phases_s(run.client, run.server).items()}


def test_time_without_an_answer_is_a_gap_in_the_latency(run):
    """Drawn through, a stall would look like a slope."""

    def strokes(summary):
        drawn = charts.latency_over_time(summary, warm_up_s=0, objective_ms=None)
        return max(path.count("M ") for path in re.findall(r'<path d="([^"]*)"', drawn) if "L " in path)

    summary = summarize(run)
    windows = list(summary.windows)
    windows[10] = replace(windows[10], p50_ms=None, p99_ms=None)
    assert strokes(summary) == 1
    assert strokes(replace(summary, windows=tuple(windows))) == 2


def test_the_colours_of_text_and_lines_are_the_page_s(page):
    assert "currentColor" in page
    assert "var(--line)" in page
    assert "#01020" not in page


@pytest.mark.parametrize("knee", [1, None])
def test_the_sweep_shows_its_objective_its_knee_and_every_rate(tmp_path, knee):
    write_curve(tmp_path / "sweep.html", (*POINTS, SILENT), Plan(model=HOSTILE), objective_ms=50.0, knee=knee)
    page = (tmp_path / "sweep.html").read_text()
    assert not re.findall("https?://|<script|<link|<img|@import|url[(]", page)
    assert "SLO 50 ms" in page
    assert (">knee<" in page) == ("100 (knee)" in page) == (knee is not None)
    assert '<td class="bad">90.0 ms</td>' in page
    assert all(f"<td>{point.rate:g}" in page for point in (*POINTS, SILENT))


def test_directories_are_made_and_an_older_page_is_replaced_without_a_trace(run, tmp_path):
    path = tmp_path / "of/today/index.html"
    written(path, run)
    path.write_text("old")
    assert written(path, run) != "old"
    assert [each.name for each in path.parent.iterdir()] == ["index.html"]


@pytest.mark.parametrize("place", ["file/index.html", "directory"])
def test_a_place_that_cannot_be_written_is_named_with_the_reason(run, tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    with pytest.raises(BadInput, match=rf"{place}: the page cannot be written \(.+\); name another place"):
        written(tmp_path / place, run)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["directory", "file"]


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAPER = {"light": "251, 250, 248", "dark": "20, 23, 26"}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize(("width", "columns"), [(400, 1), (1400, 3)])
def test_no_layout_breaks(run, page, tmp_path, width, columns, colours):
    """In a frame of that width neither the page nor a card is wider than its place, and the colours are those asked for."""
    write_curve(tmp_path / "sweep.html", POINTS, run.plan, objective_ms=50.0, knee=1)
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
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={int(colours == 'light')}",
        ),
        *(
            "--allow-file-access-from-files",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (tmp_path / "probe.html").as_uri(),
        ),
    ]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = sorted(re.search(r'id="found">([^<]*);<', dumped)[1].split(";"))
    expected = f"{width}|{width}|0"
    assert found == [f"Load |{expected}|{columns}|rgb({PAPER[colours]})", f"Sweep|{expected}|0|rgb({PAPER[colours]})"]
