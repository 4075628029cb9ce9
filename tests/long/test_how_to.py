"""The commands of the pages under docs/how-to, run in the order of their index on the embedded model.

Runs are cut to a few steps and items; all else stands as the pages have it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests import warm
from tests.conftest import needed
from tests.documents import ROOT, Block, blocks

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
FOLDER = ROOT / "docs" / "how-to"
SHORT = ("--limit", "1", "--max-steps", "4")


def pages() -> list[Path]:
    """Return the pages in the order of their index."""
    names = re.findall(r"^- \[[^]]*\]\(([\w-]+\.md)\)", (FOLDER / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [FOLDER / name for name in names]


def typed() -> list[tuple[Block, list[str]]]:
    return [(block, words) for page in pages() for block in blocks(page) for words in block.commands]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the quickstart's records, of the labels that the pages name."""
    from harness.data.packaged import rows_place

    needed(rows_place())
    folder = tmp_path_factory.mktemp("how-to")
    called(folder, "run", "--suite", "quickstart", "--label", "lora", "--label", "owlore", *SHORT)
    (folder / "results").rename(folder / "quickstart")
    return folder


def called(folder: Path, *words: str, code: int = 0) -> str:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = warm.harness(
        [*words, *(("--offline",) if words[0] == "run" else ())], cwd=folder, env=variables, timeout=600
    )
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done.stdout


def test_the_pages_are_those_of_the_folder() -> None:
    assert {page.name for page in pages()} == {file.name for file in FOLDER.glob("*.md")} - {"index.md"}


def test_every_command_of_the_pages_does_what_it_says(place: Path) -> None:
    ran = 0
    for block, words in typed():
        assert words[0] == "harness", block
        more = SHORT if words[1] == "run" else ()
        missing_labels = words[1] == "compare"  # the page says that the gate fails, as not every label was run again
        said = called(place, *words[1:], *more, code=int(missing_labels))
        ran += 1
        if block.text.startswith("$ ") and words[1] in ("show", "plan", "compare"):
            # What is shown below the command has the words that the command prints today, whatever the numbers are.
            shown = {word for line in block.text.splitlines()[1:] for word in re.findall(r"[a-z]{5,}", line)}
            missing = shown - set(re.findall(r"[a-z]{5,}", said))
            assert len(missing) <= len(shown) / 3, (str(block), missing)
    assert ran >= 7
