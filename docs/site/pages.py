"""Lays out what the site is made of: the documents as they are, and pages made from the code and from findings.

``python docs/site/pages.py FOLDER`` writes ``FOLDER/source`` and, with Sphinx, ``FOLDER/html``; ``tox -e docs`` calls
it. The documents stay readable where the code is hosted: their links are to files of the checkout, and are turned here.
A link to a file that is not there, and one to a heading that is not there, ends the build.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # a test that imports this has a harness, and its processes take its path over
    sys.path.insert(0, str(ROOT))

import commands_page  # noqa: E402
import findings_pages  # noqa: E402
import plugin_page  # noqa: E402

BESIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LOG.md": "log.md",
    "findings/README.md": "findings/index.md",
}
"""Documents outside ``docs/``, with the names of their pages."""
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
NAVIGATION: Mapping[str, tuple[str, ...]] = {
    "Begin": (
        *("quickstart", "install", "what-to-use", "how-to/index", "how-to/fits-my-gpu", "how-to/is-it-on"),
        *("how-to/is-it-better", "how-to/did-it-get-worse", "how-to/does-the-paper-hold"),
    ),
    "Suites and data": ("suites", "suite-keys", "tasks", "small-study", "small-suites", "mt-bench"),
    "Results": ("reports", "plots", "proof", "regressions", "logging", "python"),
    "Memory and speed": ("memory", "calibration", "evaluation", "performance"),
    "Methods": ("methods", "in-your-own-trainer", "adding-a-method", "known-importance"),
    "Machines": ("clusters", "sharding", "offline", "faults", "robustness", "security"),
    "Reference": ("reference/commands", "reference/plugin"),
    "The code": ("architecture", "mutations", "contributing", "changelog", "log"),
    "Elsewhere": ("findings/index",),
}


class BrokenLink(Exception):
    """A document links to a file that is not there."""


def documents() -> dict[Path, Path]:
    """Return every document of the checkout, relative to it, with the place of its page."""
    found = {Path(name): Path(page) for name, page in BESIDE.items()}
    for file in sorted((ROOT / "docs").rglob("*.md")):
        found[file.relative_to(ROOT)] = file.relative_to(ROOT / "docs")
    return found


def turned(text: str, document: Path, places: Mapping[Path, Path], files: set[Path]) -> str:
    """Return a document with links between pages.

    Args:
        text: The document.
        document: Where it lies, relative to the checkout.
        places: Of every document its page.
        files: Is added the files of the checkout that are linked and are no documents.

    Raises:
        BrokenLink: a link leads to no file.
    """
    page = places[document]

    def turn(match: re.Match[str]) -> str:
        target = match[2]
        if re.match(r"[a-z]+:", target):
            return match[0]
        file = (ROOT / document.parent / target).resolve()
        if not file.exists() or not file.is_relative_to(ROOT):
            raise BrokenLink(f"{document}: ({target}) leads to no file")
        inside = file.relative_to(ROOT)
        if inside in places:
            place = places[inside]
        elif inside.parts[0] == "findings" and inside.suffix == ".sh":
            place = Path("findings") / f"{inside.stem}.md"
        else:
            files.add(inside)
            place = Path("files") / inside
        up = "../" * (len(page.parts) - 1)
        return f"{match[1]}{up}{place.as_posix()}{match[3]}"

    return outside_code(text, lambda part: LINK.sub(turn, part))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Return a document with what is no block of code changed."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def lay_out(source: Path) -> None:
    """Write everything that Sphinx reads into a folder.

    Raises:
        BrokenLink: a document links to a file that is not there.
    """
    places, files = documents(), set[Path]()
    pages = {page: turned((ROOT / name).read_text("utf-8"), name, places, files) for name, page in places.items()}
    pages[Path("index.md")] += navigation()
    pages[Path("findings/index.md")] += findings_pages.listing()
    for name, text in findings_pages.pages().items():  # in the folder of README.md, whose links they repeat
        pages[Path("findings") / name] = turned(text, Path("findings/README.md"), places, files)
    pages[Path("reference/commands.md")] = commands_page.page()
    pages[Path("reference/plugin.md")] = plugin_page.page()
    for page, text in pages.items():
        (source / page).parent.mkdir(parents=True, exist_ok=True)
        (source / page).write_text(text, encoding="utf-8")
    for file in files:
        (source / "files" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, source / "files" / file)
    shutil.copy(Path(__file__).with_name("conf.py"), source)
    (source / "_static").mkdir(exist_ok=True)
    shutil.copy(Path(__file__).with_name("extra.css"), source / "_static")


def navigation() -> str:
    """Return what stands at the end of the first page, and is shown beside every page."""
    blocks = (
        "\n".join((f"```{{toctree}}\n:caption: {caption}\n:hidden:\n", *names, "```"))
        for caption, names in NAVIGATION.items()
    )
    return "\n\n" + "\n\n".join(blocks) + "\n"


def main(out: Path) -> int:
    """Lay out and build; return Sphinx's exit code."""
    for folder in (out / "source", out / "html"):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        lay_out(out / "source")
    except BrokenLink as error:
        print(error, file=sys.stderr)
        return 1
    from sphinx.cmd.build import build_main

    return build_main(["-W", "--keep-going", "-q", "-b", "html", str(out / "source"), str(out / "html")])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
