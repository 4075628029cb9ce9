"""A notebook, executed by nbclient in a kernel: records, a report that it shows, and a run begun from it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from harness.expansion import load_suite
from harness.store import Store
from tests.cli.conftest import RANDOM

ROOT = Path(__file__).parents[2]
WHY = "is not installed here: tox -e notebook has it"
nbformat = pytest.importorskip("nbformat", reason=f"nbformat {WHY}")
nbclient = pytest.importorskip("nbclient", reason=f"nbclient {WHY}")
pytest.importorskip("ipykernel", reason=f"ipykernel {WHY}")

pytestmark = pytest.mark.slow


def executed(cells: list[str], folder: Path) -> list[Any]:
    """Return the cells of a notebook after it ran in a folder, as Jupyter would leave them."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python", "language": "python"}
    nbclient.NotebookClient(made, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    nbformat.validate(made)
    return list(made.cells)


def result_of(cell: Any) -> Any:
    """Return what a notebook shows of a cell's last line."""
    return next(output.data for output in cell.outputs if output.output_type == "execute_result")


def test_a_notebook_shows_the_frames_and_the_tables_of_the_report(tmp_path: Path) -> None:
    """The examples of docs/python.md, on the records that are committed."""
    (tmp_path / "results").symlink_to(ROOT / "results")
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "harness.run" not in block]
    assert len(blocks) == 3
    whole = "import pandas\nfor what in ('max_rows', 'max_colwidth'): pandas.set_option(f'display.{what}', None)\n"
    cells = executed([whole + blocks[0], *blocks[1:], "accuracy", "report"], tmp_path)
    records = [r for r in Store(ROOT / "results" / "records").read().records if r.is_run]
    frame = result_of(cells[0])["text/html"]
    assert frame.count("<tr") - 1 == len(records)
    assert all(f"<td>{record.label}</td>" in frame for record in records)
    assert "winogrande" in result_of(cells[3])["text/html"]
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    shown = result_of(cells[4])["text/html"]
    tables = re.findall(r"<table.*?</table>", shown, re.DOTALL)
    assert len(tables) == page.count("<table") > 2
    assert all(table in page for table in tables)
    suite = load_suite("configurations")
    assert all(label in tables[0] for label in suite.labels if any(r.label == label for r in records))
    printed = "".join(output.text for output in cells[2].outputs if output.output_type == "stream")
    assert "configurations, version" in printed


def test_a_notebook_runs_a_suite(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RANDOM)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run = (
        f"results = harness.run('tiny.toml', models='smollm2-135m={tiny_llama}', labels=['full', 'lisa'], offline=True)"
    )
    cells = executed(["import harness", run, "results.runs[['label', 'status']]", run, "len(results.runs)"], tmp_path)
    assert result_of(cells[2])["text/html"].count("<td>ok</td>") == 2
    assert result_of(cells[4])["text/plain"] == "2"
    stored = Store(tmp_path / "results" / "records").read("tiny").records
    assert [(record.label, record.status) for record in stored] == [("full", "ok"), ("lisa", "ok")]
