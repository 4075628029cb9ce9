"""The HTML page: what stands in it, and what it does in a browser where one is installed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import runpy
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.report.pages.document import TableBlock
from harness.report.pages.html import html_page, sort_key
from harness.report.table import Cell, Column, Table
from harness.report.write import write_report
from tests.chromium import CHROMIUM, Page, chromium

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    suite, contents = make.golden()
    folder = tmp_path_factory.mktemp("page")
    write_report(suite, contents, folder, ["html"])
    return folder / "report.html"


@pytest.fixture(scope="module")
def page(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        page.open(file)
        yield page


def test_every_plot_is_xml_whatever_labels_hold(file: Path) -> None:
    for plot in file.parent.glob("plots/*.svg"):
        ElementTree.fromstring(plot.read_bytes())


def test_the_page_names_nothing_outside_itself(file: Path) -> None:
    elements = Elements(file.read_text(encoding="utf-8"))
    images = elements.all("img")
    assert len(images) == len(list(file.parent.glob("plots/*.svg"))) >= 4
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in images)
    assert not elements.all("link")
    assert all(str(link["href"]).startswith("#") for link in elements.all("a"))
    assert [set(attributes) for attributes in elements.all("script")] == [set()]
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(link["href"]).removeprefix("#") for link in elements.all("a")} <= set(ids)


def test_the_policy_allows_only_the_pages_own_style_and_script(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    (policy,) = [m["content"] for m in Elements(text).all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    for kind in ("style", "script"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        checksum = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{checksum}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_a_row_without_a_result_tells_why_in_its_cells_and_below(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    cell = '<td class="number missing fault" title="seed 1: out of memory: needs 9 GiB, has 8&#10;seed 2: refused: too'
    assert text.count(cell) == 12 + 14  # the cells of its scores and of its cost
    assert '<td class="text">needs 9 GiB, has 8</td>' in text
    assert '<a class="why" href="#runs-without-a-result">' in text


@pytest.mark.parametrize(
    ("cell", "key"),
    [
        (Cell("31.2", 0.3125, ("[0.0, 78.9]", "(n=40, 2 seeds)")), "0.3125"),
        (Cell("-1.5", -0.015, ("[-3.0, +0.1]",)), "-0.015"),
        (Cell("2.750 -> 2.164", 2.1644), "2.1644"),
        (Cell("<0.0001", 3e-7), "3e-07"),
        (Cell("nan", float("nan")), None),
        (Cell("not measured", rest=("(no CUDA)",)), None),
        ("31.2", None),
        ("–", None),
        ("out of memory, refused", None),
    ],
)
def test_cells_are_sorted_by_the_value_behind_their_text(cell: Cell | str, key: str | None) -> None:
    assert sort_key(cell) == key


def test_every_number_of_a_column_of_numbers_can_be_sorted(file: Path) -> None:
    for text in re.findall(r'<td class="number missing[^>]*>([^<]*)</td>', file.read_text(encoding="utf-8")):
        assert not re.match(r"[+<-]?\d", text), text


def column(page: Page, number: int, table: int = 0) -> list[str]:
    """Return the first lines of the cells of a column, as they stand."""
    script = (
        f"[...document.querySelectorAll('table')[{table}].tBodies[0].rows]"
        f".map(row => row.cells[{number}].childNodes[0].textContent.trim())"
    )
    return list(page.run(script))


def click(page: Page, number: int) -> str | None:
    heading = f"document.querySelectorAll('table')[0].tHead.rows[0].cells[{number}]"
    return page.run(f"{heading}.querySelector('button').click(), {heading}.getAttribute('aria-sort')")


@in_browser
def test_a_heading_sorts_by_number_and_again_reverses_with_the_missing_last(page: Page) -> None:
    before = column(page, 2)
    missing = ["out of memory, refused", "not run"]
    numbers = sorted((cell for cell in before if cell not in missing), key=float)
    assert len(numbers) == 5
    assert before != [*numbers, *missing]
    assert click(page, 2) == "ascending"
    assert column(page, 2) == [*numbers, *missing]
    assert click(page, 2) == "descending"
    assert column(page, 2) == [*reversed(numbers), *missing]
    assert click(page, 0) == "ascending"
    assert column(page, 0) == sorted(column(page, 0), key=lambda label: label.replace("(", " "))
    assert page.run("document.querySelectorAll('[aria-sort]').length") == 1


@in_browser
def test_sorting_is_stable_and_works_from_the_keyboard(tmp_path: Path, page: Page, file: Path) -> None:
    numbers = (Cell("1.0", 1.0), Cell("2.0", 2.0), Cell("1.0", 1.0), "–")
    rows = tuple(zip("dbca", numbers, strict=True))
    small = tmp_path / "small.html"
    table = Table((Column("name", "left"), Column("number")), rows)
    small.write_text(html_page((TableBlock(table),)), encoding="utf-8")
    page.open(small)
    page.run("document.querySelectorAll('thead button')[1].focus()")
    page.press("Enter", "\r")
    assert column(page, 0) == ["d", "c", "b", "a"]
    page.press("Enter", "\r")
    assert column(page, 0) == ["b", "d", "c", "a"]
    page.open(file)


@in_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_plots_are_seen_and_nothing_is_asked_for_or_complained_of(
    page: Page, file: Path, width: int, dark: bool
) -> None:
    page.requests.clear()
    page.open(file, width=width, dark=dark)
    found: dict[str, Any] = json.loads(
        page.run(
            "JSON.stringify({plots: [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth]),"
            " wide: document.documentElement.scrollWidth, paper: getComputedStyle(document.body).backgroundColor})"
        )
    )
    assert len(found["plots"]) == len(list(file.parent.glob("plots/*.svg"))) >= 4
    assert all(complete and natural > 0 and shown > 200 for complete, natural, shown in found["plots"])
    assert found["wide"] <= width
    assert found["paper"] == ("rgb(20, 23, 28)" if dark else "rgb(253, 253, 252)")
    assert page.requests == [file.as_uri()]
    assert page.complaints == []


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    suite, contents = make.quickstart()
    folder = tmp_path_factory.mktemp("quickstart")
    write_report(suite, contents, folder, ["html"], read_items=make.read_items(contents))
    return folder / "report.html"


def test_what_came_out_stands_above_the_tables(quickstart: Path) -> None:
    text = quickstart.read_text(encoding="utf-8")
    top = text[: text.index("<table>")]
    for sentence in (
        "6 runs have a result: all that were asked for.",
        "None of the 15 pairs of labels can be told apart by their average.",
        "Tracked peak: from 0.925 GiB (lora) to 2.42 GiB (full).",
    ):
        assert f"<li>{sentence}</li>" in top


def test_no_two_entries_of_the_contents_read_alike(quickstart: Path) -> None:
    text = quickstart.read_text(encoding="utf-8")
    (contents,) = re.findall(r"<nav.*?</nav>", text, re.DOTALL)
    entries = re.findall(r"<a [^>]*>([^<]*)</a>", contents)
    assert "Results: smollm2-135m" in entries
    assert "Which labels can be told apart: smollm2-135m" in entries
    assert len(set(entries)) == len(entries)


def test_a_heading_says_what_it_means_on_hovering_and_below_its_table(quickstart: Path) -> None:
    text = quickstart.read_text(encoding="utf-8")
    for table, heading in ((1, "tracked peak (GiB)"), (3, "could be found (pt)")):
        part = text.split('<div class="wide">')[table + 1]
        (tip,) = re.findall(rf'<th [^>]*title="([^"]+)"><button type="button">{re.escape(heading)}', part)
        (meaning,) = re.findall(rf"<dt>{re.escape(heading)}</dt><dd>(.*?)</dd>", part)
        assert re.sub("</?code>", "", meaning) == tip
    assert "<details><summary>What the headings mean</summary>" in text
    assert not re.search(r" style=|onclick", text)


def test_every_plot_is_as_wide_as_it_was_drawn_all_enlarged_alike(quickstart: Path) -> None:
    elements = Elements(quickstart.read_text(encoding="utf-8"))
    factors = []
    for image in elements.all("img"):
        drawn = base64.b64decode(str(image["src"]).partition(",")[2])
        (points,) = re.findall(rb'<svg[^>]*? width="([0-9.]+)pt"', drawn[:2000])
        factors.append(int(str(image["width"])) / float(points))
    assert len(factors) >= 5
    assert max(factors) - min(factors) < 0.01


@in_browser
def test_a_wide_window_shows_every_column_of_every_table(page: Page, quickstart: Path, file: Path) -> None:
    page.open(quickstart, width=1280)
    sizes = page.run("[...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth])")
    page.open(file)
    assert len(sizes) == 6
    for wide, seen in sizes:
        assert wide <= seen


@in_browser
def test_rows_stay_low_in_a_narrow_window_and_plots_keep_their_letters(
    page: Page, quickstart: Path, file: Path
) -> None:
    page.open(quickstart, width=480)
    heights = page.run("[...document.querySelectorAll('tbody tr')].map(row => row.offsetHeight)")
    widths = page.run("[...document.images].map(image => [image.clientWidth, Number(image.getAttribute('width'))])")
    wide = page.run("document.documentElement.scrollWidth")
    page.open(file)
    assert max(heights) <= 75
    assert all(shown == drawn for shown, drawn in widths)
    assert wide <= 480


@in_browser
def test_it_prints_on_few_sheets(page: Page, quickstart: Path, file: Path, tmp_path: Path) -> None:
    page.open(quickstart)
    sheets = page.pdf(tmp_path / "report.pdf")
    page.open(file)
    assert 3 < sheets <= 9
