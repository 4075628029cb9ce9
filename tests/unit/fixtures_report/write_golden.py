"""The golden files of a report: what the formats make of one fixed set of records, without drawing its plots.

On a wanted change run this file from the root of a checkout, and read the difference before it is committed:
``python tests/unit/fixtures_report/write_golden.py``.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from harness.report.numbers.frames import run_frame, score_frame
from harness.report.numbers.report_json import report_json
from harness.report.pages.latex import latex
from harness.report.pages.markdown import markdown
from harness.report.pages.page import all_notes, report_document
from harness.report.reading.summary import summarize

HERE = Path(__file__).parent
FOLDER = HERE / "golden"
PLOTS = ("memory_score", "memory", "loss", "blocks")


def golden_files() -> dict[str, bytes]:
    """Return each file's content by its path in the folder of the report."""
    factory = runpy.run_path(str(HERE / "factory.py"))
    suite, contents = factory["golden"]()
    read_items = factory["read_items"](contents)
    summary = summarize(suite, contents, read_items=read_items)
    out = Path("out")
    plots = {name: [out / "plots" / f"{name}.{kind}" for kind in ("svg", "png")] for name in PLOTS}
    document = report_document(summary, plots, read_items)
    files = {"report.md": markdown(document, out), **latex(document, out)}
    files["report.json"] = report_json(summary, all_notes(summary))
    for name, frame in (("scores.csv", score_frame(summary)), ("runs.csv", run_frame(summary))):
        files[name] = frame.to_csv(index=False, lineterminator="\n")
    return {name: text.encode() for name, text in files.items()}


if __name__ == "__main__":
    for name, data in golden_files().items():
        file = FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
