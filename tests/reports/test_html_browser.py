"""The page in a real browser: what a reader sees, clicks and types."""

import json
from dataclasses import replace

import numpy as np
import pytest

from protocols.rules import parse_rule
from reports import html
from reports.facts import load_facts
from reports.table import sheet
from results.store import Store
from tests.protocols import toy
from tests.reports.browser import NAMES, Browser, installed

pytestmark = pytest.mark.skipif(
    installed() is None, reason=f"no browser: none of {', '.join(NAMES)} is on the PATH"
)

METHODS = {"mt": 0.80, "tcseg": 0.84, "supervised": 0.72}
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\"'" + "long" * 60


@pytest.fixture(scope="module")
def browser():
    browser = Browser(installed())
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    store = Store.open(tmp_path_factory.mktemp("browser") / "store", create=True)
    rng = np.random.default_rng(0)
    toy.fill(store, rng, methods=METHODS, seeds=3, datasets=("la", "pancreas"), n_cases=4)
    for seed, labelled in ((0, 16), (1, 16)):
        run = toy.run_id("mt", seed, tag="more")
        spec = toy.spec("mt", seed=seed, labelled=labelled)
        toy.add(store, toy.cases(run, {1000: (0.9, 0.8), 2000: (0.8, 0.7)}), spec, commit="c0ffee")
    run = toy.run_id("tcseg", 3)
    toy.add(store, toy.cases(run, {1000: (0.5,)}), toy.spec("tcseg", seed=3), state="failed")
    return load_facts(store, "last", "tcseg")


@pytest.fixture(scope="module")
def url(facts, tmp_path_factory):
    (path,) = html.write_html(facts, tmp_path_factory.mktemp("page"))
    return path.as_uri()


@pytest.fixture
def open_page(browser, url):
    """Opens the page; at the end, nothing may have gone wrong and nothing been asked for."""
    pages = []

    def opened(state="", *, of=url, **look):
        page = browser.open(of + (f"#{state}" if state else ""), **look)
        pages.append((page, of))
        return page

    yield opened
    for page, of in pages:
        page.run("0")
        told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        assert page.events(*told) == []
        asked = [e["request"]["url"] for e in page.events("Network.requestWillBeSent")]
        assert {a for a in asked if a != "data:,"} == {of}
        page.close()


def texts(page, selector):
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)")


def first(page):
    """Names in the first setting, in the order of the screen."""
    return texts(page, "#table tbody:nth-of-type(1) tr.row th")


def table(page):
    """By setting and method, the texts of the row."""
    return page.run(
        "[...document.querySelectorAll('#table tbody')].flatMap(body => "
        "[...body.querySelectorAll('tr.row')].map(row => [body.rows[0].innerText, "
        "...[...row.cells].map(cell => cell.innerText)]))"
    )


def address(page):
    return page.run("decodeURIComponent(location.hash)")


def choose(page, name, value):
    page.click(f"#{name} input[value='{value}']")


def type_into(page, selector, text):
    page.run(f"document.querySelector({json.dumps(selector)}).focus()")
    for letter in text:
        page.press(letter, letter)


# The table


@pytest.mark.parametrize("protocol", ["last", "best"])
def test_the_screen_shows_the_numbers_of_the_table(open_page, facts, protocol):
    lines = sheet(replace(facts, rule=parse_rule(protocol)))
    names = [name for _, name in lines.columns]
    at = [names.index(n) for n in ("runs", "median", "interval", "mean ± std", "min")]
    expected = [
        [section.heading.split("; distances")[0], row[0], *(row[i] for i in at)]
        for section in lines.sections
        for row in section.rows
    ]
    page = open_page(f"protocol={protocol}")
    head = texts(page, "#table thead th")
    place = [head.index(n) + 1 for n in ("Runs", "Median", "Interval", "Mean ± std", "Lowest")]
    shown = [[row[0], row[1], *(row[i] for i in place)] for row in table(page)]
    assert sorted(shown) == sorted(expected)
    assert len(shown) == 7


def test_a_click_switches_the_protocol_and_the_metric_and_the_address_keeps_them(open_page):
    page = open_page()
    last = table(page)
    choose(page, "protocol", "best")
    assert address(page) == "#protocol=best"
    assert table(page) != last
    assert "Best − last" in texts(page, "#table thead th")
    assert "upper bound" in page.run("document.getElementById('protocol-meaning').innerText")
    choose(page, "metric", "hd95")
    assert address(page) == "#protocol=best&metric=hd95"
    assert texts(page, "#table caption")[0].startswith("HD95, lower is better")
    again = open_page("protocol=best&metric=hd95")
    assert table(again) == table(page)


def test_rows_begin_best_first_under_either_metric(open_page):
    for state in ("", "metric=asd"):
        assert first(open_page(state)) == ["tcseg", "mt", "supervised"]


def test_sorted_by_what_a_protocol_lacks_rows_are_best_first_again(open_page):
    page = open_page("protocol=best&sort=gap&dir=ascending")
    choose(page, "protocol", "last")
    assert first(page) == ["tcseg", "mt", "supervised"]


def test_headings_sort_by_click_and_by_key(open_page):
    page = open_page()
    page.click("#sort-method")
    assert first(page) == ["mt", "supervised", "tcseg"]
    page.run("document.getElementById('sort-method').focus()")
    page.press("Enter", "\r")
    assert first(page) == ["tcseg", "supervised", "mt"]
    assert page.run("document.activeElement.id") == "sort-method"
    sorts = (
        "[...document.querySelectorAll('#table [aria-sort]')].map(e => [e.innerText, e.ariaSort])"
    )
    assert page.run(sorts) == [["Method", "descending"]]
    assert address(page) == "#sort=method&dir=descending"


def test_a_failed_run_sorts_as_the_worst_and_no_number_as_last(open_page):
    assert first(open_page("sort=minimum&dir=descending"))[-1] == "tcseg"
    assert first(open_page("sort=minimum&dir=ascending"))[0] == "tcseg"
    for way in ("ascending", "descending"):
        assert first(open_page(f"sort=mean&dir={way}"))[-1] == "tcseg"


def test_filters_by_name_dataset_and_labelled_volumes(open_page):
    page = open_page()
    type_into(page, "#find", "MT")
    assert {row[1] for row in table(page)} == {"mt"}
    assert len(table(page)) == 3
    assert texts(page, "#status")[0].startswith("3 of 7 rows")
    assert set(texts(page, "#legend button")) == {"mt"}
    page.run("const s = document.getElementById('labelled'); s.value = '16'; "
             "s.dispatchEvent(new Event('change'))")  # fmt: skip
    assert [row[0].split(",")[1] for row in table(page)] == [" 16 labelled / 72 unlabelled"]
    assert address(page) == "#find=MT&labelled=16"
    page.click("button[type=reset]")
    assert len(table(page)) == 7
    assert {row[0].split(",")[0] for row in table(open_page("dataset=pancreas"))} == {"pancreas"}
    nothing = open_page("find=nobody")
    assert table(nothing) == []
    assert "No row matches" in texts(nothing, "#status")[0]


def test_an_address_that_means_nothing_falls_back(open_page):
    page = open_page("protocol=none&metric=__proto__&sort=x&dir=y&row=z&order=q")
    assert first(page) == ["tcseg", "mt", "supervised"]


# Where a number is from


def test_enter_on_a_row_opens_what_it_was_made_of_and_escape_leads_back(open_page):
    page = open_page("find=tcseg&dataset=la")
    page.run("document.querySelector('tr.row button').focus()")
    page.press("Enter", "\r")
    assert page.run("document.getElementById('details').matches(':modal')")
    page.run("document.querySelectorAll('details.run').forEach(run => { run.open = true; })")
    (said,) = texts(page, "#details")
    for seed in range(4):
        assert toy.run_id("tcseg", seed) in said
    for text in ("loss is NaN at step 7", "f" * 64, "decay = 0.99", "cpu", "step 3000"):
        assert text in said
    assert "row=" in address(page)
    page.press("Escape")
    page.wait("!document.getElementById('details').open")
    page.wait("document.activeElement.id.startsWith('row-')")
    assert "row=" not in address(page)


def test_a_link_opens_a_row_and_it_names_the_commit(open_page):
    page = open_page("find=mt&labelled=16")
    page.click("tr.row")
    linked = open_page(address(page)[1:])
    linked.run("document.querySelectorAll('details.run').forEach(run => { run.open = true; })")
    assert "c0ffee" in texts(linked, "#details")[0]
    linked.click("#details .close")
    linked.wait("!document.getElementById('details').open")


# Plots and cases


def test_every_run_is_a_pair_and_every_method_has_a_median(open_page):
    page = open_page("dataset=la&labelled=8")
    count = "document.querySelectorAll('{}').length".format
    assert page.run(count("#pairs svg .best")) == page.run(count("#pairs svg .last")) == 9
    assert texts(page, "#pairs details td:last-child").count("failed") == 0
    assert page.run("document.querySelectorAll('#pairs svg .failed').length") == 1
    assert page.run(count("#curves svg .thick")) == 3
    assert page.run(count("#curves svg .thin")) == 9
    page.click("#legend button")
    assert page.run(count("#curves svg .behind")) == 2


@pytest.mark.parametrize("plot", ["pairs", "curves"])
def test_arrow_keys_walk_over_the_marks_of_a_plot(open_page, facts, plot):
    page = open_page("find=mt&dataset=la&labelled=8")
    page.run(f"document.querySelector('#{plot} svg').focus()")
    page.press("ArrowRight")
    (told,) = texts(page, "#tip")
    assert told.startswith("mt, ")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert texts(page, "#tip") != [told]
    page.press("Escape")
    assert page.run("document.getElementById('tip').hidden")


def test_the_worst_case_comes_first_for_all_or_for_one_method(open_page, facts):
    content = html.content(facts)
    place = next(i for i, s in enumerate(content["settings"]) if s["name"].startswith("la, 8"))
    setting = content["settings"][place]
    rows = {r["label"]: r["cases"][0]["dsc"] for r in content["rows"] if r["setting"] == place}
    for order, values in (("", setting["means"][0]["dsc"]), ("mt", rows["mt"])):
        page = open_page(f"dataset=la&labelled=8&order={order}")
        expected = [setting["cases"][i] for i in np.argsort(values)]
        assert texts(page, "#cases tbody th") == expected


def test_names_of_many_methods_are_not_broken_inside_words(open_page, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    names = [f"supervised{letter}" for letter in "abcdefghijkl"]
    for name in names:
        toy.add(store, toy.cases(toy.run_id(name), {1000: (0.5, 0.6)}), toy.spec(name))
    (path,) = html.write_html(load_facts(store, "last", "tcseg"), tmp_path / "page")
    page = open_page(of=path.as_uri())
    assert texts(page, "#cases thead .clip") == names
    lines = "e => { const own = document.createRange(); own.selectNodeContents(e);"
    lines += " return own.getClientRects().length; }"
    heads = "[...document.querySelectorAll('#cases thead .clip')]"
    assert page.run(f"{heads}.map({lines})") == [1] * len(names)


# Everywhere


@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_never_scrolls_sideways(open_page, width):
    page = open_page("protocol=best", width=width, height=812)
    assert page.run("document.documentElement.scrollWidth") == width
    page.click("tr.row button")
    page.run("document.querySelectorAll('details.run').forEach(run => { run.open = true; })")
    assert page.run("document.getElementById('details').scrollWidth") <= width


def test_a_phone_shows_the_median_without_scrolling(open_page):
    page = open_page("protocol=best", width=390, height=844)
    ends = "(e => [e.innerText, e.getBoundingClientRect().right])"
    (shown,) = (
        right
        for text, right in page.run(
            f"[...document.querySelectorAll('#table thead th')].map({ends})"
        )
        if text.startswith("Median")
    )
    assert shown <= 390


def test_it_is_dark_where_the_reader_is_and_by_a_button(open_page):
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = open_page(), open_page(dark=True)
    colours = [light.run(colour), dark.run(colour)]
    assert colours[0] != colours[1]
    light.click("#theme")
    assert light.run(colour) == colours[1]
    dark.click("#theme")
    assert dark.run(colour) == colours[0]


def test_text_is_readable_in_both_lights(open_page):
    """WCAG 2.2, 1.4.3: 4.5 : 1 for text."""
    script = """(() => {
      const often = { willReadFrequently: true };
      const canvas = document.createElement("canvas").getContext("2d", often);
      const rgb = (colour) => {
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
      };
      const paper = getComputedStyle(document.body).backgroundColor;
      const texts = ["body", ".quiet", ".meaning", "thead button", ".failed", "#pairs .name"];
      return texts.flatMap((selector) => [...document.querySelectorAll(selector)].map((e) => {
        const style = getComputedStyle(e);
        return [rgb(e instanceof SVGElement ? style.fill : style.color), rgb(paper)];
      }));
    })()"""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return np.dot(linear, (0.2126, 0.7152, 0.0722))

    for dark in (False, True):
        for pair in open_page(dark=dark).run(script):
            low, high = sorted(luminance(np.array(colour) / 255) for colour in pair)
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_tab_key_reaches_every_control_and_shows_where_it_is(open_page):
    page = open_page("find=mt&labelled=16")
    reached = []
    for _ in range(40):
        page.press("Tab")
        reached.append(
            page.run(
                "(() => { const e = document.activeElement; const ring = getComputedStyle("
                "e.matches('.choices input') ? e.nextElementSibling : e).outlineStyle;"
                "return [e.id || e.name || e.tagName.toLowerCase(), ring]; })()"
            )
        )
        if reached[-1][0] == "body":
            break
    names = [name for name, _ in reached]
    assert names[:2] == ["a", "theme"]
    assert {"protocol", "metric", "find", "dataset", "labelled", "sort-median", "order"} <= set(
        names
    )
    assert any(name.startswith("row-") for name in names)
    assert names.count("svg") == 2
    assert {ring for name, ring in reached if name != "body"} == {"solid"}


def test_hostile_names_are_text(open_page, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    spec = toy.spec(HOSTILE, dataset=HOSTILE)
    rows = toy.cases("run-0", {1000: (0.5, 0.6), 2000: (0.6, 0.5)})
    rows = rows.replace({"case": {"case1": HOSTILE}})
    toy.add(store, rows, spec, device=HOSTILE, commit=HOSTILE, unit=HOSTILE)
    rows, spec = toy.cases("run-1", {1000: (0.5,)}), toy.spec(HOSTILE, dataset=HOSTILE, seed=1)
    toy.add(store, rows, spec, state="failed", error=HOSTILE)
    (path,) = html.write_html(load_facts(store, "last", "tcseg"), tmp_path)
    page = open_page(of=path.as_uri(), width=375, height=812)
    page.click("tr.row button")
    page.run("document.querySelectorAll('details').forEach(all => { all.open = true; })")
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.run("document.scripts.length") == 2
    assert HOSTILE in page.run("document.getElementById('table').textContent")
    assert HOSTILE in page.run("document.getElementById('cases').textContent")
    assert HOSTILE in page.run("document.getElementById('details').textContent")
    assert page.run("document.documentElement.scrollWidth") == 375
    assert page.run("document.getElementById('details').scrollWidth") <= 375


def test_a_store_without_a_finished_run_says_so(open_page, tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    toy.add(store, toy.cases(toy.run_id(), {1000: (0.8,)}), state="failed")
    (path,) = html.write_html(load_facts(store, "last", "tcseg"), tmp_path)
    page = open_page(of=path.as_uri())
    assert table(page)[0][2] == "0/1 (1 failed)"
    for plot in ("pairs", "curves", "cases"):
        assert "no run has finished yet" in page.run(f"document.getElementById('{plot}').innerText")
