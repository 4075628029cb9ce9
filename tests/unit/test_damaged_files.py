"""Every read of a damaged file: one sentence that names the file, or for the cache's own the work done again."""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.record import SCHEMA_VERSION
from tests.file_readers import FORGIVEN, MODELS, PREPARED, READERS, Reader

FLIPS = 12
"""Bits of each file, one after the other, the same every time."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def good(tmp_path: Path, tiny_llama: Path) -> Callable[[str], tuple[Reader, Path]]:
    """Return what makes a good file of a kind."""

    def make(kind: str) -> tuple[Reader, Path]:
        folder = tmp_path / "files"
        if kind in MODELS:
            shutil.copytree(tiny_llama, folder)
        else:
            folder.mkdir()
        reader = READERS[kind]
        return reader, reader.write(folder)

    return make


def outcome(reader: Reader, file: Path) -> str:
    """Return ``read``, ``none``, or the sentence; anything else that is raised fails the test."""
    try:
        return "none" if reader.read(file) is None else "read"
    except HarnessError as error:
        return str(error)


def expect_refused(kind: str, found: str, file: Path) -> None:
    if kind in FORGIVEN:
        assert found == "none"
    else:
        names = [file.name]
        if kind in MODELS or "MT-Bench" in kind or kind == "bundle":
            names.append(str(file.parent))
        if kind in PREPARED:
            names.append("harness prepare")
        assert any(name in found for name in names), found
        first, *others = found.split("\n")
        assert not others or (kind in LISTED and first.endswith(f"{len(others)} faults:"))


LISTED = {"suite", "device profile", "packaged profiles", "tuned rates"}
"""Kinds of which an empty file lacks several settings, a line each."""
CUT_AT_A_LINE = {"block percentages", "paper table", "data sets", "devices", "models"}
CUT_AT_A_LINE |= {"device profile", "packaged profiles"}
"""Kinds of which half may be whole: nothing says how long they are."""
MAY_BE_EMPTY = {
    "records", "judgments", "models", "data sets", "devices", "catalogue", "MT-Bench references", "calibration parts",
}  # fmt: skip
"""Kinds of which an empty file may say that there is nothing."""


@pytest.mark.parametrize("kind", READERS)
def test_a_good_file_is_read(kind: str, good: Any) -> None:
    reader, file = good(kind)
    assert outcome(reader, file) == "read"


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind not in MAY_BE_EMPTY])
def test_an_empty_file(kind: str, good: Any) -> None:
    reader, file = good(kind)
    file.write_bytes(b"")
    if kind == "tokenizer configuration":
        assert outcome(reader, file) != "none"
    else:
        expect_refused(kind, outcome(reader, file), file)


@pytest.mark.parametrize("kind", READERS)
def test_a_file_cut_in_half(kind: str, good: Any) -> None:
    reader, file = good(kind)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    if kind in CUT_AT_A_LINE or kind == "judgments":
        assert outcome(reader, file) == "read" or file.name in outcome(reader, file)
    else:
        expect_refused(kind, outcome(reader, file), file)


@pytest.mark.parametrize("kind", READERS)
def test_a_flipped_bit(kind: str, good: Any) -> None:
    reader, file = good(kind)
    data = file.read_bytes()
    draw = random.Random(kind)
    for _ in range(FLIPS):
        bit = draw.randrange(8 * len(data))
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        file.write_bytes(spoilt)
        found = outcome(reader, file)
        if reader.sealed:
            assert file.name in found
            assert "checksum" in found or "SHA-256" in found or "damaged" in found
        assert "\n" not in found


@pytest.mark.parametrize("kind", READERS)
def test_a_folder_in_its_place(kind: str, good: Any) -> None:
    reader, file = good(kind)
    file.unlink()
    file.mkdir()
    found = outcome(reader, file)
    if found != "read":  # a tokenizer without its configuration is one
        expect_refused(kind, found, file)


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind not in MODELS])
def test_a_file_that_may_not_be_read(kind: str, good: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, whom no permission binds, opening is made to fail: libraries that open for themselves are left out."""
    reader, file = good(kind)
    opened = io.open

    def refuse(name: Any, *arguments: Any, **keywords: Any) -> Any:
        if not isinstance(name, int) and Path(name) == file:
            raise PermissionError(13, "Permission denied", str(name))
        return opened(name, *arguments, **keywords)

    if kind == "training rows, Parquet":
        file.chmod(0)
        if os.access(file, os.R_OK):
            pytest.skip("permissions do not bind this user, and pyarrow opens the file itself")
    else:
        monkeypatch.setattr(io, "open", refuse)
        monkeypatch.setattr("builtins.open", refuse)
    found = outcome(reader, file)
    expect_refused(kind, found, file)
    assert kind in FORGIVEN or "ermission denied" in found


NEWER = ["suite", "tuned rates", "models", "records", "benchmark document", "device profile", "calibration parts"]


@pytest.mark.parametrize("kind", NEWER)
def test_a_file_of_a_newer_harness(kind: str, good: Any) -> None:
    reader, file = good(kind)
    text = file.read_text()
    if kind == "records":
        file.write_text(text.replace(f'"schema_version":{SCHEMA_VERSION}', '"schema_version":99'))
        assert "newer than" in outcome(reader, file)
    elif kind == "calibration parts":
        file.write_text(text.replace('"schema_version":1', '"schema_version":2'))
        assert "that this harness reads (schema_version is 2" in outcome(reader, file)
    elif kind == "benchmark document":
        file.write_text(text[:-1] + ', "new_part": {"x": 1}}')
        assert outcome(reader, file) == "read"
    else:
        file.write_text(f"new_setting = 1\n{text}")
        assert "new_setting" in outcome(reader, file)
