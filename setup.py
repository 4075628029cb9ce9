"""Writes into what is built the commit that it was built from; all else of the build stands in pyproject.toml.

A wheel and a source archive have no repository around them, and runs of an installed harness record their commit too.
In a checkout that is asked of git; a source archive brings what was asked when it was made. An editable installation
gets no such file: its commit is asked for at every run.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
FILE = "harness/commit.json"
"""No source, so that no identity depends on it: ``harness.source`` reads it."""


def built_from() -> str | None:
    """Return the content of the file; None where neither git nor an earlier build knows the commit."""
    if (ROOT / FILE).is_file():
        return (ROOT / FILE).read_text(encoding="utf-8")
    if git("ls-files", "--error-unmatch", "harness/__init__.py") is None:
        return None
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    if not commit or changes is None:
        return None
    return json.dumps({"commit": commit.strip(), "dirty": bool(changes.strip())}) + "\n"


def git(*arguments: str) -> str | None:
    """Return what git says of this folder, or None where it does not."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def write(folder: Path, content: str | None) -> None:
    """Put the file into a folder that is built, instead of one that an earlier build left there."""
    file = folder / FILE
    file.unlink(missing_ok=True)
    if content is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")


class BuildPy(build_py):
    """Builds the packages, with the commit beside them."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            write(Path(self.build_lib), built_from())


class Sdist(sdist):
    """Makes the source archive, with the commit in it."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Put together what goes into the archive."""
        super().make_release_tree(base_dir, files)
        write(Path(base_dir), built_from())


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
