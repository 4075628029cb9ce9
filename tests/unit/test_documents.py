"""Every command in the documents is one that works: its options are parsed, and what it names is there.

A block whose commands cannot be judged so stands in ``LISTED`` with its reason. ``tests/long/test_how_to.py`` runs
those of the pages under docs/how-to.
"""

from __future__ import annotations

import ast
import configparser
import contextlib
import importlib.util
import io
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from harness.catalogue.devices import load_devices
from harness.catalogue.labels import load_labels
from harness.catalogue.models import load_models
from harness.cli import COMMANDS, build_parser
from harness.suite import suite_names
from tests.documents import ROOT, Block, all_blocks

LISTED = {
    ("docs/performance.md", "harness report --format csv"): "rows of a table of measurements, named by their command",
    ("docs/performance.md", "harness --help, median"): "rows of a table of measurements, named by their command",
    ("docs/offline.md", "bash bundle/install.sh"): "made by the command before it; unit/test_bundle.py runs it",
    (
        "docs/offline.md",
        "source bundle/venv/bin/activate",
    ): "made by what stands before it; long/test_bundle.py uses it",
    ("docs/offline.md", 'bash "$HOME/bundle/install.sh"'): "made by the line before it; unit/test_bundle.py runs it",
    ("docs/offline.md", 'source "$HOME/harness-venv'): "made by the block before it; long/test_bundle.py uses it",
    (
        "findings/README.md",
        "bash findings/NAME.sh",
    ): "NAME is any of the scripts, which install packages: no test does",
}
"""Blocks by their document and a part of their text, each with why its commands are not all judged."""
PLACEHOLDER = re.compile(r"^[A-Z][A-Z0-9_]*$")


def listed(block: Block) -> bool:
    return any(block.document == name and part in block.text for name, part in LISTED)


BLOCKS = all_blocks()
TYPED = [block for block in BLOCKS if block.commands]


def test_the_list_names_only_blocks_that_are_there() -> None:
    for name, part in LISTED:
        assert any(block.document == name and part in block.text for block in TYPED), (name, part)


@pytest.mark.parametrize("block", TYPED, ids=str)
def test_every_command_of_a_block_works_as_it_stands(block: Block) -> None:
    faults = [fault for words in block.commands for fault in faults_of(words, block)]
    if listed(block):
        faults = [fault for fault in faults if not fault.startswith("no test")]
        assert not [fault for fault in faults if "is not parsed" in fault and "performance" not in block.document]
    else:
        assert not faults, f"{block}: {'; '.join(faults)}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block not in TYPED and block.language], ids=str)
def test_what_is_shown_of_a_language_is_of_that_language(block: Block) -> None:
    if block.language == "python":
        ast.parse(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "yaml":
        assert yaml.safe_load(block.text)
    elif block.language == "json":
        for line in block.text.splitlines():
            assert json.loads(line) is not None
    else:
        assert block.language in ("text", "latex"), block


def faults_of(words: list[str], block: Block) -> Iterator[str]:
    """Yield what is wrong with a command."""
    called, line = words[0], " ".join(words)
    if called == "harness":
        yield from faults_of_harness(words[1:], block)
    elif called == "tox":
        names = configparser.ConfigParser()
        names.read(ROOT / "tox.ini")
        for name in words[2:3] if words[1:2] == ["-e"] else []:
            if f"testenv:{name}" not in names:
                yield f"{line}: tox.ini has no environment {name}"
    elif called == "pytest":
        for name in (word.partition("::")[0] for word in words[1:] if "/" in word and not word.startswith("-")):
            if not (ROOT / name).exists():
                yield f"{line}: there is no {name}"
    elif called == "python" and words[1:4] == ["-m", "pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for name in (one for word in words[4:] for one in re.findall(r"\[([\w,-]+)\]", word)):
            missing = set(name.split(",")) - set(extras["optional-dependencies"])
            if missing:
                yield f"{line}: there is no extra {missing}"
    elif called == "python" and words[1] == "-m":
        if importlib.util.find_spec(words[2]) is None:
            yield f"{line}: there is no module {words[2]}"
    elif called == "python":
        if not (ROOT / words[1]).exists():
            yield f"{line}: there is no {words[1]}"
    elif words[:2] == ["pre-commit", "install"]:
        if not (ROOT / ".pre-commit-config.yaml").exists():
            yield f"{line}: nothing is configured"
    else:
        yield f"no test knows what '{line}' does: run it, or list the block with a reason"


def faults_of_harness(words: list[str], block: Block) -> Iterator[str]:
    """Yield what is wrong with a call of the command; what stands in brackets is left out, but has to be there."""
    line = f"harness {' '.join(words)}"
    if words and words[0] not in COMMANDS:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            build_parser("").parse_args(words)
            yield f"{line} is not parsed"
        return
    plain, optional = without_brackets(words)
    parser = build_parser(words[0])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            args = vars(parser.parse_args(plain))
    except SystemExit as stop:
        if stop.code:
            yield f"{line} is not parsed: {said.getvalue().strip()}"
        return
    known = {option for one in parser._actions for option in one.option_strings}
    for choice in parser._subparsers._group_actions if parser._subparsers else ():  # type: ignore[union-attr]
        known |= {option for one in choice.choices[words[0]]._actions for option in one.option_strings}  # type: ignore
    yield from (f"{line}: there is no option {option}" for option in optional if option not in known)
    yield from (f"{line}: {fault}" for fault in unknown_names(args, block))


def without_brackets(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words of a synopsis without what may be left out, and the options among that."""
    plain, optional, depth = [], [], 0
    for word in words:
        depth += word.count("[") * word.startswith("[")
        if depth:
            optional += re.findall(r"--[a-z][\w-]*", word)
        else:
            plain.append(word.removesuffix("..."))
        depth -= word.count("]") * (depth > 0)
    return [word for word in plain if word], optional


def unknown_names(args: dict[str, object], block: Block) -> Iterator[str]:
    """Yield names of suites, labels, models and devices that there are not, placeholders left out."""
    there = {
        "suite": {*suite_names(), *(f"{name}.toml" for name in made_in(block))},
        "label": set(load_labels()),
        "model": set(load_models()),
        "device": set(load_devices()),
    }
    for kind, names in there.items():
        value = args.get(kind)
        for name in value if isinstance(value, list | tuple) else [value]:
            if name is None or PLACEHOLDER.match(str(name)):
                continue
            if re.split(r"[\[=]", str(name))[0] not in names:
                yield f"there is no {kind} {name}"


def made_in(block: Block) -> set[str]:
    """Return the suites that a document has its reader write."""
    text = (ROOT / block.document).read_text(encoding="utf-8")
    return set(re.findall(r"harness new suite ([a-z][\w-]*)", text)) | set(re.findall(r"`([a-z][\w-]*)\.toml`", text))


LINK = re.compile(r"\]\(([^)\s]+)\)")


def headings(file: Path) -> set[str]:
    """Return the anchors of a document's headings, as a code host makes them."""
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        if number:
            found[f"{slug}-{number}"] = 1
    return set(found)


def test_every_link_between_documents_leads_to_a_file_and_to_a_heading_of_it() -> None:
    documents = {ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md")}
    documents |= {ROOT / "findings" / "README.md", *(ROOT / "docs").rglob("*.md")}
    faults = []
    for file in sorted(documents):
        text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (file.parent / name).resolve() if name else file
            if not target.exists():
                faults.append(f"{file.name}: ({link}) leads to no file")
            elif anchor and target.suffix == ".md" and anchor not in headings(target):
                faults.append(f"{file.name}: ({link}) leads to no heading")
    assert not faults, "\n".join(faults)
