"""What the site is made of: every document, command, public name and finding has its place; a broken link ends it.

``tox -e docs`` builds it, with every warning of Sphinx an error.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pytest

import harness.plugin
from harness.cli import COMMANDS, build_parser
from tests.documents import DOCUMENTS, ROOT

sys.path.append(str(ROOT / "docs" / "site"))  # at the end: processes that tests start take the path over
import findings_pages
import pages


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    pages.lay_out(folder)
    return folder


def test_every_document_is_a_page_that_the_navigation_has(source: Path) -> None:
    named = {name for names in pages.NAVIGATION.values() for name in names}
    for file in DOCUMENTS:
        page = pages.documents()[file.relative_to(ROOT)]
        assert (source / page).exists()
        assert page == Path("index.md") or page.with_suffix("").as_posix() in named, page


def test_every_link_of_a_page_leads_to_a_file_of_the_site(source: Path) -> None:
    seen = 0
    for page in source.rglob("*.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page}: {target}"
                seen += 1
    assert seen > 100


def test_every_option_of_every_command_is_on_its_page(source: Path) -> None:
    text = (source / "reference" / "commands.md").read_text(encoding="utf-8")
    (action,) = [one for one in build_parser("", whole=True)._actions if isinstance(one, argparse._SubParsersAction)]
    for name in COMMANDS:
        section = text.partition(f"## harness {name}\n")[2].partition("\n## ")[0]
        for option in action.choices[name]._actions:
            if option.help is not argparse.SUPPRESS and not isinstance(option, argparse._HelpAction):
                assert all(f"`{word}" in section for word in option.option_strings), (name, option.option_strings)


def test_every_public_name_of_a_plug_in_has_a_section(source: Path) -> None:
    text = (source / "reference" / "plugin.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == sorted(harness.plugin.__all__)


def test_every_finding_says_what_was_seen_and_with_which_versions() -> None:
    found = findings_pages.findings()
    assert {finding.name for finding in found} == {file.stem for file in (ROOT / "findings").glob("*.sh")}
    for finding in found:
        headings = [heading for heading, _ in finding.parts]
        assert {"A good guess", "What happens", "Why it matters"} <= set(headings), (finding.name, headings)
        assert finding.sentence and finding.versions and finding.seen and finding.here, finding.name


def test_a_link_to_no_file_ends_the_build() -> None:
    places = pages.documents()
    with pytest.raises(pages.BrokenLink, match=r"docs/suites.md: \(absent.md\) leads to no file"):
        pages.turned("see [this](absent.md#there)", Path("docs/suites.md"), places, set())
    kept = "```\n[x](absent.md)\n```\n[y](https://example.org/z) [z](#here)"
    assert pages.turned(kept, Path("docs/suites.md"), places, set()) == kept


def test_links_are_turned_from_the_checkout_to_the_site() -> None:
    places, files = pages.documents(), set[Path]()
    text = "[a](../README.md) [b](../findings/README.md#x) [c](../suites/quickstart.toml) [d](memory.md#y)"
    turned = pages.turned(text, Path("docs/suites.md"), places, files)
    assert turned == "[a](index.md) [b](findings/index.md#x) [c](files/suites/quickstart.toml) [d](memory.md#y)"
    assert files == {Path("suites/quickstart.toml")}
