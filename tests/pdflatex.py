"""Compiling the LaTeX of a report, where a TeX is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

in_tex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")


def compiled(folder: Path) -> str:
    """Compile a folder's report.tex without a shell and return the log; an error of TeX fails the test."""
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)
    log = (folder / "report.log").read_text(encoding="latin-1")
    assert done.returncode == 0, log[-3000:]
    return log
