"""The page of a sweep: what it advises, what it draws, and that it is one file that a browser shows."""

import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import diffsolve as ds
from diffsolve import metrics
from diffsolve.metrics import Statistics, Table
from diffsolve.metrics.advice import advice, configurations, main_measure, pareto
from diffsolve.metrics.charts import SHAPES, Point, Series, chart, marker
from diffsolve.metrics.table import MARKERS, ResultRow

jinja2 = pytest.importorskip("jinja2")


def row(name, nfe, value, error=math.nan, seconds=0.01, **options):
    scores = {"FD": value} if math.isnan(error) else {"FD": value, "FD stderr": error}
    return ResultRow(name, "m", None, nfe, 0, float(nfe), seconds, scores, None, options or None)


def table_of(*rows, **about):
    return Table(rows, {"num": 10, **about})


def test_the_page_and_the_pictures_have_one_look():
    """The light page's colours and markers are those that matplotlib gets."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    page = (Path(metrics.__file__).parent / "report.html.j2").read_text()
    light = page[: page.index("prefers-color-scheme: dark")]
    with pyplot.style.context("diffsolve.common.look"):
        cycle = pyplot.rcParams["axes.prop_cycle"].by_key()["color"]
    assert cycle == re.findall(r"--c\d: (#\w{6});", light)
    assert len(MARKERS) == SHAPES == len({marker(i, 0, 0) for i in range(SHAPES)})


def test_the_front_is_what_nothing_beats():
    found = configurations(
        table_of(row("a", 4, 3.0), row("a", 8, 2.0), row("b", 4, 2.5), row("b", 8, 2.6), row("c", 9, 2))
    )
    assert [(c.solver, c.nfe) for c in pareto(found, "FD")] == [("b", 4), ("a", 8)]
    quick = configurations(table_of(row("a", 4, 3.0, seconds=3.0), row("a", 8, 2.0, seconds=1.0)))
    assert [c.nfe for c in pareto(quick, "FD", "seconds")] == [8]


def test_the_cheapest_within_a_standard_error_is_advised():
    """Against the definition, written out."""
    rows = [row("a", 4, 3.0, 0.3), row("a", 8, 2.0, 0.3), row("b", 6, 2.4, 0.3), row("b", 10, 1.9, 0.3)]
    told = advice(configurations(table_of(*rows)), "FD")
    assert [(a.budget, a.use.solver, a.use.nfe, a.best.solver, a.best.nfe) for a in told] == [
        (4, "a", 4, "a", 4),
        (6, "b", 6, "b", 6),
        (8, "b", 6, "a", 8),  # .4 apart, within .42
        (10, "a", 8, "b", 10),  # b at 6 is .5 away
    ]


def test_without_error_bars_the_best_is_advised():
    told = advice(configurations(table_of(row("a", 4, 2.01), row("a", 8, 2.0), row("a", 9, None))), "FD")
    assert [(a.budget, a.use.nfe) for a in told] == [(4, 4), (8, 8)]


def test_code_that_can_be_pasted():
    (one,) = configurations(table_of(row("mine", 4, 1.0, solver="heun", grid="karras")))
    assert one.code == "x = ds.sample(model, shape, solver='heun', grid='karras', nfe=4, seed=0)"
    names = {"ds": ds, "model": ds.load("mixture-2d"), "shape": (3, 2)}
    exec(one.code, names)
    assert names["x"].shape == (3, 2)


def test_the_deciding_measure():
    scores = [
        {"KID": 1.0, "ring FD": 1.0, "endpoint error": 1.0},
        {"precision(k=3)": 1.0, "KID": 1.0, "endpoint error": 1.0},
        {"vendi": 1.0, "endpoint error": 1.0},
        {"ring recall": 1.0},
    ]
    rows = [ResultRow("a", "m", None, 4, 0, 4.0, 0.1, score, None) for score in scores]
    assert [main_measure(table_of(one)) for one in rows] == ["ring FD", "KID", "endpoint error", None]


def test_a_chart_stands_where_its_numbers_say():
    points = [Point(4, 0.01, 0.005, "first"), Point(8, 0.1, math.nan, "second <b>"), Point(16, 1.0, 0.1, "third")]
    svg = chart([Series(9, points)], "network calls", "FD", points[:1], ticks=[4, 8, 16])
    (line,) = re.findall(r'<g class="series s1" data-series="9">\n<polyline points="([^"]*)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in line.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # both axes are logarithmic
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2
    assert svg.count('class="bar"') == 2
    assert "<title>second &lt;b&gt;</title>" in svg
    assert svg.count('<circle class="front"') == 1
    assert chart([], "x", "y") == ""
    assert "NaN" not in chart([Series(0, [Point(5, 0.0, 0.0, ""), Point(5, -1.0, 2.0, "")])], "x", "y").replace(
        "nan", "NaN"
    )
    assert len({marker(i, 0, 0) for i in range(6)}) == 6


class Page(HTMLParser):
    """The tags of a page, that are opened and closed in order, and where it would load something from."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "link", "br", "img", "input") and f"{tag}/" not in self.get_starttag_text():
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def table():
    images = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    return metrics.sweep(
        ds.load("mixture-2d"), (2,), reference=Statistics.of(images), solvers=["auto", "ddim(eta=0.5)"], nfe=[2, 3],
        num=12, seeds=2, exact=4, fine=10, strip=5,
    )  # fmt: skip


def test_the_page_has_all_of_it(table, tmp_path):
    metrics.report(table, tmp_path / "r.html", "A <title>")
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert page.open == []
    assert set(page.links) <= {"data:,"}
    assert not re.search(r"https?://|@import|url\(", text)
    assert "A &lt;title&gt;" in text
    assert re.search(r"x = ds.sample\(model, shape, solver='(auto|ddim\(eta=0.5\))', nfe=[23], seed=0\)", page.text)
    assert [text.count(f"<figure><h3>{name} against") for name in table.measures] == [
        2,
        *[1] * (len(table.measures) - 1),
    ]
    assert len([tag for tag, attrs in page.tags if tag == "tr" and "data-series" in attrs]) == 4 + 4  # results, strips
    assert text.count('class="scatter"') == 4
    assert torch.__version__ in page.text
    assert f"{table.cell('FD', 'auto', 3)[0]:.4g}" in page.text


def test_images_are_shown_as_they_are(tmp_path):
    x = torch.tensor([[[[-1.0, 1.0], [0.0, math.nan]]]])
    images = Table((row("a", 4, 1.0),), {}, {("a", 4): x.repeat(3, 1, 1, 1)})
    metrics.report(images, tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_text())
    shown = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(shown) == 3
    assert (shown[0]["width"], shown[0]["height"]) == ("64", "64")
    assert shown[0]["src"].startswith("data:image/png;base64,")


def test_strips_are_the_first_samples_of_the_first_seed(table):
    assert set(table.strips) == {(solver, nfe) for solver in ("auto", "ddim(eta=0.5)") for nfe in (2, 3)}
    x = ds.sample(ds.load("mixture-2d"), (5, 2), solver="ddim(eta=0.5)", nfe=3, seed=0)
    assert torch.allclose(table.strips["ddim(eta=0.5)", 3], x)


def test_a_table_without_a_result(tmp_path):
    metrics.report(table_of(row("<script>", 4, None)), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "No configuration has a finite result" in text
    assert "&lt;script&gt;" in text
    assert text.count("<script>") == 1


def test_without_jinja2(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"diffsolve\[report\]"):
        metrics.report(table_of(row("a", 4, 1.0)), tmp_path / "r.html")


@pytest.mark.slow
def test_in_a_browser(table, tmp_path):
    """By the keyboard alone: a heading sorts, a box hides a solver; nothing is loaded, no error is logged."""
    playwright = pytest.importorskip("playwright.sync_api")
    metrics.report(table, tmp_path / "r.html")
    with playwright.sync_playwright() as p:
        try:
            browser = p.chromium.launch(args=["--no-sandbox"], executable_path=__import__("shutil").which("chromium"))
        except playwright.Error as error:
            pytest.skip(f"no browser: {error}")
        page, seen = browser.new_page(viewport={"width": 400, "height": 800}), []
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url) if request.url.startswith("http") else None)
        page.goto(f"file://{tmp_path}/r.html")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        values = "rows => rows.map(row => Number(row.cells[4].dataset.sort))"
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.innerText") == "FD":
                break
        for falling in (False, True):
            page.keyboard.press("Enter")
            found = page.eval_on_selector_all("table.sortable tbody tr", values)
            assert found == sorted(found, reverse=falling)
        page.focus("input[data-toggle='1']")
        page.keyboard.press("Space")
        hidden = page.evaluate("[...document.querySelectorAll('.off')].every(part => part.dataset.series === '1')")
        assert hidden
        assert page.evaluate("document.querySelectorAll('tr.off').length") == 4
        assert seen == []
        browser.close()
