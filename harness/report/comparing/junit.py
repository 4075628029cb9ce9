"""A comparison as JUnit XML, which CI systems read: a test case a cell.

The dialect is that of pytest's ``--junitxml``: ``testsuites`` of ``testsuite`` of ``testcase``. What fails the gate is
a ``failure``, what was not compared is ``skipped``, and a comparison that is no answer holds an ``error``, so that a
reader of the file alone does not take it for a pass.
"""

from __future__ import annotations

import re
from collections import defaultdict
from xml.etree import ElementTree as ET

from harness.report.comparing.cells import FAILING, Cell, Comparison, Verdict
from harness.report.comparing.page import cell_sentence

SKIPPED: frozenset[Verdict] = frozenset({"not comparable", "not measured again", "new"})
"""Verdicts that are no comparison."""
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 does not hold in any spelling. Source: W3C, Extensible Markup Language 1.0, production Char."""


def comparison_junit(comparison: Comparison) -> str:
    """Return the file's text, in UTF-8 where it is written."""
    root = ET.Element("testsuites", name="harness compare")
    suites: dict[str, list[Cell]] = defaultdict(list)
    for cell in comparison.cells:
        suites[" / ".join(filter(None, cell.key[:2]))].append(cell)
    for name, cells in suites.items():
        _suite(root, name, cells)
    if not comparison.fails and comparison.unusable is not None:
        suite = ET.SubElement(
            root, "testsuite", name="harness compare", tests="1", failures="0", skipped="0", errors="1"
        )
        case = ET.SubElement(suite, "testcase", classname="harness compare", name="something was compared")
        ET.SubElement(case, "error", type="unusable", message=_text(comparison.unusable))
    for count in ("tests", "failures", "skipped", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root)
    return f"<?xml version='1.0' encoding='utf-8'?>\n{ET.tostring(root, encoding='unicode')}\n"


def _suite(root: ET.Element, name: str, cells: list[Cell]) -> None:
    failed = sum(cell.verdict in FAILING for cell in cells)
    skipped = sum(cell.verdict in SKIPPED for cell in cells)
    suite = ET.SubElement(
        root,
        "testsuite",
        name=_text(name),
        tests=str(len(cells)),
        failures=str(failed),
        skipped=str(skipped),
        errors="0",
    )
    for cell in cells:
        case = ET.SubElement(suite, "testcase", classname=_text(cell.subject), name=_text(cell.title))
        if cell.verdict in FAILING:
            ET.SubElement(case, "failure", type=cell.verdict, message=_text(cell_sentence(cell)))
        elif cell.verdict in SKIPPED:
            ET.SubElement(case, "skipped", type=cell.verdict, message=_text(cell_sentence(cell)))
        else:
            ET.SubElement(case, "system-out").text = _text(cell_sentence(cell))


def _text(text: str) -> str:
    """Return text without what XML cannot hold; each such character becomes a question mark."""
    return NO_XML.sub("?", text)
