"""An installed harness knows the commit that it was built from, by wheel and source archive; its source stays."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from harness import source
from harness.source import COMMIT_FILE, _built_from, checksum_of, commit_text

from .test_source import laid_out

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""
ASKED = """
import json, sys
sys.path.insert(0, sys.argv[1])
import harness
assert harness.__file__.startswith(sys.argv[1]), harness.__file__
from harness import source
from harness.cli._version import version_text
print(json.dumps([source.checkout_state(), source.source_checksum(), source.package_checksum(), version_text()]))
"""


def run(*words: str, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    return run("git", *who, *words, cwd=folder).strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout of its own with the present source, committed."""
    folder = tmp_path_factory.mktemp("built") / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / name)
    for name in ("harness", "methods", "suites", "results/paper", "results/profiles"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", COMMIT_FILE))
    (folder / ".gitignore").write_text("build/\n*.egg-info/\n__pycache__/\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    return folder


def built(root: Path, what: str, out: Path) -> Path:
    """Return what setuptools builds of a folder, without a network and in this environment."""
    out.mkdir(exist_ok=True)
    return out / run(sys.executable, "-P", "-c", BUILD, what, str(out), cwd=root).splitlines()[-1]


def commit_in(wheel: Path) -> dict[str, object]:
    with zipfile.ZipFile(wheel) as archive:
        assert f"harness/{COMMIT_FILE}" in archive.read(_record(archive)).decode()
        found: dict[str, object] = json.loads(archive.read(f"harness/{COMMIT_FILE}"))
    return found


def _record(archive: zipfile.ZipFile) -> str:
    return next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))


@pytest.mark.slow
def test_a_wheel_by_way_of_a_source_archive_knows_its_commit(checkout: Path, tmp_path: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    archive = built(checkout, "build_sdist", tmp_path / "sdist")
    assert git(checkout, "status", "--porcelain") == ""  # nothing was written into the checkout
    with tarfile.open(archive) as files:
        files.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = built(unpacked, "build_wheel", tmp_path / "wheel")
    assert commit_in(wheel) == {"commit": head, "dirty": False}
    with zipfile.ZipFile(wheel) as found:
        found.extractall(tmp_path / "site")
    state, of_source, of_package, version = json.loads(
        run(sys.executable, "-P", "-c", ASKED, str(tmp_path / "site"), cwd=tmp_path)
    )
    assert state == [head, False]
    assert version.endswith(f"(commit {head[:12]})")
    assert (of_source, of_package) == (source.source_checksum(), source.package_checksum())


@pytest.mark.slow
def test_a_wheel_of_a_changed_checkout_says_so_and_one_of_no_checkout_says_nothing(
    checkout: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(checkout, changed)
    (changed / "README.md").write_text("changed")
    head = git(changed, "rev-parse", "HEAD")
    assert commit_in(built(changed, "build_wheel", tmp_path / "wheel")) == {"commit": head, "dirty": True}
    shutil.rmtree(changed / ".git")  # what the last build left must not stay
    with zipfile.ZipFile(built(changed, "build_wheel", tmp_path / "other")) as archive:
        assert f"harness/{COMMIT_FILE}" not in archive.namelist()


def test_every_package_that_lies_apart_in_a_checkout_is_known_to_the_checksum() -> None:
    places = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    assert {name for name, place in places.items() if not place.startswith("harness")} == set(source.APART)


def test_the_file_is_no_source(tmp_path: Path) -> None:
    packages = laid_out(tmp_path / "harness", tmp_path / "methods", tmp_path / "suites", tmp_path / "published")
    before = checksum_of(packages)
    (tmp_path / "harness" / COMMIT_FILE).write_text(commit_text("a" * 40, False))
    assert checksum_of(packages) == before


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (commit_text("a" * 40, True), ("a" * 40, True)),
        (commit_text("b" * 64, False), ("b" * 64, False)),
        (commit_text(None, None), (None, None)),
        ('{"commit": "aaaa", "dirty": false}', (None, None)),
        (json.dumps({"commit": "a" * 40 + "\n"}), (None, None)),
        (json.dumps({"commit": "a" * 40, "dirty": "yes"}), ("a" * 40, None)),
        ("[1]", (None, None)),
        ("{", (None, None)),
        ("[" * 100_000, (None, None)),
        ("\udcff", (None, None)),
    ],
)
def test_what_the_build_left_is_read_or_says_nothing(
    text: str, found: tuple[str | None, bool | None], tmp_path: Path
) -> None:
    (tmp_path / COMMIT_FILE).write_text(text, errors="surrogateescape")
    assert _built_from(tmp_path) == found


def test_outside_of_a_checkout_the_build_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source.importlib.resources, "files", lambda package: tmp_path)
    (tmp_path / "__init__.py").write_text("")
    assert source.checkout_state() == (None, None)
    (tmp_path / COMMIT_FILE).write_text(commit_text("a" * 40, False))
    assert source.checkout_state() == ("a" * 40, False)


def test_a_checkout_asks_git_and_not_the_file() -> None:
    assert not (ROOT / "harness" / COMMIT_FILE).exists()
    assert source.checkout_state()[0] == git(ROOT, "rev-parse", "HEAD")
