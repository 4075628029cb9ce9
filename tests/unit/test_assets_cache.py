from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path

import pytest

from harness.assets import cache
from harness.errors import HarnessError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def test_cache_root_prefers_its_own_variable_then_xdg_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_root().name == "cache"
    monkeypatch.delenv("HARNESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.cache_root() == Path("/x/finetune-harness")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache.cache_root() == Path("/h/.cache/finetune-harness")


def test_file_checksum_is_sha256_and_reports_bytes(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"abc" * 1000)
    seen: list[tuple[int, int | None]] = []
    assert cache.file_checksum(file, lambda _, done, total: seen.append((done, total))) == (
        hashlib.sha256(b"abc" * 1000).hexdigest()
    )
    assert seen[-1] == (3000, 3000)
    with pytest.raises(HarnessError, match="cannot be read"):
        cache.file_checksum(tmp_path / "none")


def test_folder_checksum_depends_on_names_and_contents_but_not_on_hidden_files(tmp_path: Path) -> None:
    def checksum(files: dict[str, str]) -> str:
        folder = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return cache.folder_checksum(folder)

    base = checksum({"a": "1", "sub/b": "2"})
    assert checksum({"sub/b": "2", "a": "1", ".cache/x": "3", ".hidden": "4"}) == base
    assert len({base, checksum({"a": "2", "sub/b": "1"}), checksum({"a": "1", "b": "2"}), checksum({"a": "1"})}) == 4
    with pytest.raises(HarnessError, match="holds no file"):
        checksum({".only": "hidden"})
    with pytest.raises(HarnessError, match="no such folder"):
        cache.folder_checksum(tmp_path / "none")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the files whose checksum is computed from here on."""
    computed: list[Path] = []
    real = cache.file_checksum
    monkeypatch.setattr(cache, "file_checksum", lambda path, progress: (computed.append(path), real(path))[1])
    return computed


def test_a_remembered_checksum_is_not_computed_again_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[Path]
) -> None:
    monkeypatch.setattr(cache, "SETTLED_SECONDS", -1.0)
    file = tmp_path / "f"
    file.write_text("one")
    first = cache.known_file_checksum(file)
    assert cache.known_file_checksum(file) == first
    assert hashed == [file]
    file.write_text("two")
    os.utime(file, ns=(1, 1))
    assert cache.known_file_checksum(file) != first
    assert hashed == [file, file]


def test_a_file_replaced_by_one_of_equal_size_and_time_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SETTLED_SECONDS", -1.0)
    file, other = tmp_path / "f", tmp_path / "other"
    file.write_text("one")
    other.write_text("two")
    for each in (file, other):
        os.utime(each, ns=(10**18, 10**18))
    first = cache.known_file_checksum(file)
    other.replace(file)
    second = cache.known_file_checksum(file)
    assert second == hashlib.sha256(b"two").hexdigest() != first
    file.write_text("six")  # in place, its time set back
    os.utime(file, ns=(10**18, 10**18))
    assert cache.known_file_checksum(file) == hashlib.sha256(b"six").hexdigest()


def test_a_file_written_a_moment_ago_is_not_remembered(tmp_path: Path, hashed: list[Path]) -> None:
    file = tmp_path / "f"
    file.write_text("one")
    assert cache.known_file_checksum(file) == cache.known_file_checksum(file)
    assert hashed == [file, file], "within one tick of the disk's clock it may be written again"


def test_a_folder_in_the_cache_spoilt_at_equal_size_and_time_is_noticed(tmp_path: Path) -> None:
    place = cache.build_folder(cache.cache_root() / "built", lambda part: (part / "f").write_text("one") and None)
    assert cache.build_folder(place, lambda part: None) == place
    status = (place / "f").stat()
    (place / "f").write_text("two")
    os.utime(place / "f", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(HarnessError, match="another SHA-256 than when it was made"):
        cache.build_folder(place, lambda part: None)


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "USE_POLICY.md", "a.png", "pytorch_model.bin", "modeling.py"])
def test_what_nobody_reads_beside_weights_does_not_count(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_text("w")
    first = cache.weights_checksum(tmp_path)
    assert first == cache.folder_checksum(tmp_path)
    (tmp_path / name).write_text("more")
    assert cache.weights_checksum(tmp_path) == first != cache.folder_checksum(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["merges.txt", "tokenizer.json", "tokenizer.model", "generation_config.json", "chat_template.jinja", "unknown"],
)
def test_what_may_be_read_beside_weights_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_text("w")
    first = cache.weights_checksum(tmp_path)
    (tmp_path / name).write_text("more")
    assert cache.weights_checksum(tmp_path) != first


def test_a_file_with_another_checksum_is_not_kept(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "f"
    with pytest.raises(HarnessError, match="expected 0000"):
        cache.build_file(target, lambda part: part.write_text("x") and None, checksum="0000")
    assert not target.exists()
    assert [path for path in target.parent.iterdir() if path.suffix == ".part"] == []


def test_a_build_that_fails_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "folder"

    def fail(part: Path) -> None:
        (part / "half").write_text("x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        cache.build_folder(target, fail)
    assert not target.exists() and not list(target.parent.glob("*.part")) and not list(target.parent.glob(".*.part"))
    cache.build_folder(target, lambda part: (part / "whole").write_text("x") and None)
    assert cache.is_complete(target)


def test_what_a_killed_process_left_is_removed_and_never_used(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "folder"
    left = target.parent / ".folder.12345678.part"
    left.mkdir(parents=True)
    (left / "a").write_text("half")
    cache.build_folder(target, lambda part: (part / "a").write_text("whole") and None)
    assert (target / "a").read_text() == "whole" and not left.exists()


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest"])
def test_a_damaged_folder_is_not_complete_and_is_built_again(tmp_path: Path, damage: str) -> None:
    target = tmp_path / "cache" / "folder"

    def build(part: Path) -> None:
        (part / "sub").mkdir()
        (part / "sub" / "a").write_text("whole")

    cache.build_folder(target, build)
    if damage == "truncate":
        (target / "sub" / "a").write_text("wh")
    elif damage == "delete":
        (target / "sub" / "a").unlink()
    else:
        (target / cache.MANIFEST).write_text('{"files": {"sub/a"')
    assert not cache.is_complete(target)
    cache.build_folder(target, build)
    assert cache.is_complete(target) and (target / "sub" / "a").read_text() == "whole"


def test_a_changed_byte_shows_in_the_full_check(tmp_path: Path) -> None:
    target = cache.build_folder(tmp_path / "cache" / "f", lambda part: (part / "a").write_text("same") and None)
    assert cache.spoilt_files(target) == []
    (target / "a").write_text("sand")
    assert cache.is_complete(target) and cache.spoilt_files(target) == ["a"]


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(HarnessError, match=r"the cache cannot be written.*HARNESS_CACHE"):
        cache.build_folder(cache.cache_root() / "folder", lambda part: None)


def _build_slowly(target: str, counts: str) -> None:
    def build(part: Path) -> None:
        with Path(counts).open("a") as sink:
            sink.write("x")
        for number in range(50):
            (part / str(number)).write_text("x" * 1000)

    folder = cache.build_folder(Path(target), build)
    assert cache.is_complete(folder) and len(list(folder.iterdir())) == 51


def test_two_processes_at_once_build_it_once_and_both_see_it_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "cache" / "folder"), str(tmp_path / "counts"))
    processes = [context.Process(target=_build_slowly, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert (tmp_path / "counts").read_text() == "x"


def _update(file: str, key: str) -> None:
    for number in range(10):
        cache.update_table(Path(file), {f"{key}{number}": number})


def test_no_entry_of_a_shared_table_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    file = tmp_path / "table.json"
    processes = [context.Process(target=_update, args=(str(file), key)) for key in "abcd"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert len(cache.read_table(file)) == 40


def test_a_file_of_a_built_folder_that_was_changed_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "built"
    cache.build_folder(folder, _write_two)
    (file,) = [path for path in folder.iterdir() if path.name == "a"]
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    assert cache.is_complete(folder)
    with pytest.raises(HarnessError, match=rf"{file}: has another SHA-256 than when it was made: delete {folder}"):
        cache.build_folder(folder, _write_two)


def _write_two(part: Path) -> None:
    (part / "a").write_text("first")
    (part / "b").write_text("second")
