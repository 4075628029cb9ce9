"""A page for each finding: what the head of its script says, its versions, and what README.md says was seen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "findings"
PART = re.compile(r"^([A-Z][A-Za-z ]+): (.*)$")
PIN = re.compile(r"(?<![\w-])([A-Za-z][\w-]*)==([\w.]+)")


@dataclass(frozen=True)
class Finding:
    """What a script's head says."""

    name: str
    sentence: str
    parts: tuple[tuple[str, str], ...]
    """Heading and text of each paragraph."""
    versions: tuple[str, ...]
    seen: str
    """What was seen, with its figures: of the table in README.md, as the two below."""
    advice: str
    here: str
    """How the harness takes it."""


def findings() -> list[Finding]:
    """Return all findings, by name."""
    rows = _rows()
    return [_read(file, rows[file.name]) for file in sorted(FOLDER.glob("*.sh"))]


def pages() -> dict[str, str]:
    """Return the pages as Markdown, by file name."""
    return {f"{finding.name}.md": _page(finding) for finding in findings()}


def listing() -> str:
    """Return what stands at the end of the page of all findings."""
    names = "\n".join(finding.name for finding in findings())
    return f"\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"


def _rows() -> dict[str, tuple[str, str, str]]:
    """Return the cells behind each script's name in the table of README.md."""
    table = re.findall(r"^\| `([\w-]+\.sh)` \| (.*) \|$", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    found = {}
    for name, row in table:
        seen, advice, here = re.split(r" \| ", row)
        found[name] = (seen, advice, here)
    return found


def _read(file: Path, row: tuple[str, str, str]) -> Finding:
    text = file.read_text(encoding="utf-8")
    head = [line.removeprefix("#").rstrip() for line in text.partition("set -euo")[0].splitlines()[1:]]
    sentence = head[0].strip()
    parts: list[tuple[str, str]] = []
    for line in head[1:]:
        if (found := PART.match(line.removeprefix(" "))) is not None and not line.startswith("   "):
            parts.append((found[1], found[2]))
        elif line.startswith("   ") and parts:
            parts[-1] = (parts[-1][0], f"{parts[-1][1]} {line.strip()}")
        elif line.strip() and not parts:
            sentence = f"{sentence} {line.strip()}"
    pins = dict(PIN.findall(text.replace("$release", "")))
    return Finding(
        name=file.stem,
        sentence=sentence,
        parts=tuple(parts),
        versions=tuple(f"{name} {version}" for name, version in sorted(pins.items())),
        seen=row[0],
        advice=row[1],
        here=row[2],
    )


def _page(finding: Finding) -> str:
    title = finding.name.replace("-", " ")
    lines = [f"# {title[0].upper()}{title[1:]}\n", f"{_plain(finding.sentence)}\n"]
    lines += [f"**{heading}:** {_plain(text)}\n" for heading, text in finding.parts]
    lines += [f"**Seen.** {finding.seen}\n", f"**In short.** {finding.advice}\n", f"**Here.** {finding.here}\n"]
    lines.append(f"**Versions.** {', '.join(finding.versions)}; Python 3.11.\n")
    lines.append(f"**To see it.** `bash findings/{finding.name}.sh`\n")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Return text of a comment as Markdown shows it: nothing in it is meant as a mark."""
    return re.sub(r"([\\`*_<>\[\]$])", r"\\\1", text)
