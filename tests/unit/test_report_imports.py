"""What a report of numbers alone does without: pandas writes no better, and scipy's quantile is kept."""

from __future__ import annotations

import subprocess
import sys

import pytest
from scipy.special import ndtri, stdtrit

from harness.report.numbers.frames import _frame, csv_line, csv_rows
from harness.report.statistics.intervals import LEVEL, NORMAL_AT_LEVEL, normal_quantile, student_quantile

VALUES = [
    (1, 1.0, 0.1 + 0.2, 1e-300, 12345678901234567890, float("inf")),
    (None, True, False, "", float("nan"), -0.0),
    ("a,b", 'say "so"', "two\nlines", "  spaces ", "é", (1, 2)),
    ("\r", "'", "nan", "None", 1e22, 1e16),
]


def test_rows_are_written_as_pandas_writes_them() -> None:
    columns = ("one", "two, too", "three", "four", "five", "six")
    for rows in (VALUES, []):
        written = "".join(map(csv_line, csv_rows(columns, rows)))
        assert written == _frame(rows, columns).to_csv(index=False, lineterminator="\n")


def test_the_quantile_that_is_kept_is_scipys_to_the_bit() -> None:
    assert float(ndtri(0.5 + LEVEL / 2)) == NORMAL_AT_LEVEL == normal_quantile(LEVEL)
    assert normal_quantile(0.9) == float(ndtri(0.95))
    assert student_quantile(3.5, 0.9) == float(stdtrit(3.5, 0.95))


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("harness.cli", {"logging", "importlib.abc", "uuid", "pydantic", "rich", "numpy"}),
        ("harness.commands.report", {"scipy", "pandas", "numpy", "torch", "matplotlib"}),
    ],
)
def test_a_command_begins_without_what_it_may_not_need(module: str, heavy: set[str]) -> None:
    script = f"import sys; before = set(sys.modules); import {module}; print(*({heavy!r} & set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
