"""Text from records, models and judges stays text: nothing of it runs in a browser or is a command to LaTeX."""

from __future__ import annotations

import re
import runpy
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.calibration_log import SUITES, Log, PartResult
from harness.record import Judging, Score
from harness.report.pages.document import Document, Heading
from harness.report.pages.html import html_page
from harness.report.pages.latex import latex
from harness.report.pages.latex_text import escape_latex
from harness.report.pages.markdown import markdown
from harness.report.pages.page import report_document
from harness.report.reading.summary import summarize
from harness.report.write import write_report
from harness.store import Contents
from harness.suite import Suite
from tests.chromium import CHROMIUM, Page, chromium
from tests.fuzz_calibration import part
from tests.pdflatex import compiled, in_tex

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
RUNS = "document.title='owned';window.owned=1"
PAYLOADS = (
    f"<script>{RUNS}</script>",
    f'"><img src=x onerror="{RUNS}">',
    f"' onmouseover='{RUNS}' autofocus onfocus='{RUNS}'",
    f"</style><script>{RUNS}</script>",
    f"</title></script><script>{RUNS}</script>",
    f"]]></text></svg><svg onload={RUNS}><script>{RUNS}</script>",
    f"[x](javascript:{RUNS}) ![x](javascript:{RUNS})",
    f"<a href=javascript:{RUNS}>x</a><iframe srcdoc='<script>parent.owned=1</script>'></iframe>",
)
TEX = r"\input{/etc/passwd} \write18{id} $x^2_1$ % # & ~ ^^5cinput{x} {\catcode`\_=1 \end{document} \verb|x|"
OUTCOMES = ("ok", "failed", "out_of_memory", "skipped")
STRANGE = "é ñ ł ß – — … ≤ ± → α Ω µ 中文 日本 🙂 \u202e\u0007\x00 ﷽ -- ,, ?` !` '' << >>"


def hostile(text: str) -> tuple[Suite, Contents]:
    """Every text of a record and a suite that a page shows holds ``text``, though a suite's names are checked."""
    changes = {"name": f"quick {text}", "description": text, "notes": (text,), "models": (text,)}
    checked = make.make_suite()
    suite = checked.model_copy(update={**changes, "labels": (f"full {text}", "lora")})
    environment = make.CPU.model_copy(
        update={
            "device_name": text,
            "driver": text,
            "platform": text,
            "python": text,
            "device_busy": text,
            "packages": {f"torch {text}": text},
        }
    )
    config = {"config": {text: text}, "sources": {"train": text, "evaluation": text}}
    run = make.make_record(f"full {text}", model=text, suite=checked, environment=environment, spec=config)
    failed = make.make_record(
        "lora", model=text, suite=checked, environment=environment, status="failed", reason=text, minute=1
    )
    judging = Judging(
        judge=text,
        judge_version=text,
        endpoint=text,
        references=text,
        prompt_version=text,
        max_tokens=16,
        repeats=1,
        num_asked=10,
        num_parsed=10,
        num_unparsed=0,
        num_missing=0,
        num_out_of_range=0,
        file="judgments",
    )
    points = Score(
        task="mt_bench",
        metric=f"category {text}",
        value=5.0,
        stderr=0.5,
        n=10,
        higher_is_better=True,
        task_version="1",
        num_fewshot=0,
        headline=False,
        unit="points",
    )
    judged = run.model_copy(
        update={
            "kind": "evaluation",
            "of": run.uuid,
            "uuid": "judged",
            "judging": judging,
            "scores": (points,),
            "started_at": run.started_at + timedelta(minutes=5),
        }
    )
    named = [
        record.model_copy(update={"spec": record.spec.model_copy(update={"suite": suite.name})})
        for record in (run, failed, judged)
    ]
    return suite, Contents(tuple(named), (text,))


def hostile_log(text: str, environment_id: str) -> Log:
    """A calibration whose sentences, names and facts hold ``text``."""
    reading = {"name": text, "value": 1.0, "unit": "bytes", "expected": 2.0, "expected_by": text, "at_least": 3.0}
    facts = {"kernel": text, "head_size": 1, "kept_bytes": 1.0, "backward_bytes": 1.0, text: text}
    changes = {"sentence": text, "environment_id": environment_id}
    answers = [part(text, "checks", facts, readings=[reading], **changes)]
    answers += [part(f"{what} {text}", "constants", {}, readings=[], outcome=what, **changes) for what in OUTCOMES]
    return Log(tuple(PartResult.model_validate(answer) for answer in answers))


def document_of(text: str) -> Document:
    """Return the page of a suite that is shown as a calibration is: with the answers of its parts."""
    suite, contents = hostile(text)
    summary = summarize(suite, contents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SUITES, "full", suite.name)
        document = report_document(summary, {}, calibration=hostile_log(text, summary.view.environment_id))
    assert Heading(2, "Calibration") in document
    return document


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


def assert_harmless(page: Page, file: Path, payload: str) -> None:
    page.requests.clear()
    page.open(file)
    page.run("document.querySelectorAll('thead button').forEach(one => one.click())")
    page.run("document.querySelectorAll('*').forEach(one => one.dispatchEvent(new Event('mouseover')))")
    assert page.run("window.owned === undefined && document.title.startsWith('Report of suite quick')")
    assert page.run("document.scripts.length") == 1
    assert (
        page.run("document.querySelectorAll('iframe, svg, [onerror], [onload], [onfocus], [onmouseover]').length") == 0
    )
    assert page.run("[...document.links].every(link => link.getAttribute('href').startsWith('#'))")
    assert page.run("document.body.textContent").count(payload) > 10, "it is shown as text"
    assert page.requests == [file.as_uri()]
    assert page.complaints == []


@in_browser
@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_planted_in_a_record_runs_in_a_browser(tmp_path: Path, page: Page, payload: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(html_page(document_of(payload)), encoding="utf-8")
    assert_harmless(page, file, payload)


@in_browser
def test_nothing_planted_in_a_plot_runs_in_a_browser(tmp_path: Path, page: Page) -> None:
    payload = PAYLOADS[5][:38]  # a plot cuts labels
    write_report(*hostile(payload), tmp_path, ["html"])
    assert_harmless(page, tmp_path / "report.html", payload)
    assert page.run("document.images.length") > 0
    for image in (tmp_path / "plots").glob("*.svg"):
        assert "<script" not in image.read_text(encoding="utf-8")


@in_browser
def test_the_check_above_sees_a_script_that_runs(tmp_path: Path, page: Page) -> None:
    file = tmp_path / "page.html"
    file.write_text(f"<title>Report of suite quick</title><body>{PAYLOADS[0]}", encoding="utf-8")
    with pytest.raises(AssertionError):
        assert_harmless(page, file, PAYLOADS[0])
    assert page.run("[window.owned, document.title]") == [1, "owned"]


class Elements(HTMLParser):
    """Counts what a page is made of, as a browser would read it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self.found.update(name for name, _ in attrs if name.startswith("on"))


def test_nothing_planted_in_a_record_is_an_element_of_the_page() -> None:
    def elements(text: str) -> Counter[str]:
        parser = Elements()
        parser.feed(html_page(document_of(text)))
        return parser.found

    usual = elements("plain")
    assert usual["script"] == 1
    for payload in PAYLOADS:
        assert elements(payload) == usual, payload


def test_nothing_planted_in_a_record_is_markup_in_markdown(tmp_path: Path) -> None:
    for payload in (*PAYLOADS, TEX):
        text = markdown(document_of(payload), tmp_path)
        assert not re.search(r"<[a-zA-Z/!]", text), payload
        assert not re.search(r"(?<!\\)\]\((?!plots/)", text), payload
        assert not re.search(r"(?<!\\)\$", text), payload


def commands(text: str) -> set[str]:
    return set(re.findall(r"\\[a-zA-Z]+", text))


def test_nothing_planted_in_a_record_is_a_command_in_latex(tmp_path: Path) -> None:
    usual = commands("".join(latex(document_of("plain"), tmp_path).values()))
    files = latex(document_of(TEX), tmp_path)
    assert len(files) == 3
    for name, text in files.items():
        assert text.isascii()
        assert all(c == "\\allowbreak" or c.startswith("\\text") for c in commands(text) - usual)
        assert text.count("\\end{document}") == (name == "report.tex")
        assert "^^" not in text
        assert set(re.findall(r"\\input\{([^}]*)\}", text)) <= set(files)


def test_no_text_becomes_a_path_outside_the_report(tmp_path: Path) -> None:
    write_report(*hostile("../../../planted/\\..\\x"), tmp_path / "out", ["latex", "html", "md", "csv", "json"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert sorted(file.name for file in (tmp_path / "out" / "tables").iterdir()) == [
        "planted-x-cost.tex",
        "planted-x-scores.tex",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50% & $x_1$ #{}", r"50\% \& \$x\_1\$ \#\{\}"),
        (r"\input{a}", r"\textbackslash{}input\{a\}"),
        ("^^5c ~", r"\textasciicircum{}\textasciicircum{}5c \textasciitilde{}"),
        ("a--b ,,", "a-{}-{}b ,{},{}"),
        ("é ñ ł", r"\'{e} \~{n} \l{}"),
        ("\u212bngstr\u00f6m e\u0301", r"\r{A}ngstr\"{o}m \'{e}"),
        ("≤ – α", r"$\leq$ \textendash{} $\alpha$"),
        ("中", r"\texttt{{[}U+4E2D{]}}"),
        ("🙂", r"\texttt{{[}U+1F642{]}}"),
        ("a\u202e\x00\x07\ud800b", "ab"),
    ],
)
def test_text_in_latex_is_what_pdflatex_sets(text: str, expected: str) -> None:
    assert escape_latex(text) == expected


@pytest.mark.slow
@in_tex
@pytest.mark.parametrize("text", [TEX, STRANGE, "plain " * 60, "x" * 400, "[*", "".join(map(chr, range(32, 0x250)))])
def test_the_latex_compiles_whatever_the_text(tmp_path: Path, text: str) -> None:
    for name, source in latex(document_of(text), tmp_path).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
    assert compiled(tmp_path)
