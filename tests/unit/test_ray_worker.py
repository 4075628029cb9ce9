"""What a Ray worker sends of a run, and where its files end up. Needs no Ray."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from harness.engine.ray_worker import pack, unpack
from harness.errors import HarnessError
from tests.unit.fixtures_report.factory import make_record


def test_files_of_a_run_travel_where_the_results_folder_is_not_seen(tmp_path: Path) -> None:
    far, here = tmp_path / "far", tmp_path / "here"
    (far / "weights").mkdir(parents=True)
    (far / "items.jsonl.zst").write_bytes(b"items")
    (far / "weights" / "model.safetensors").write_bytes(b"weights")
    record = make_record("full")
    sent, place = unpack(pack(record, far, send_files=True), here)
    assert sent == record
    assert place == here
    assert (here / "items.jsonl.zst").read_bytes() == b"items"
    assert (here / "weights" / "model.safetensors").read_bytes() == b"weights"
    assert not far.exists()


def test_files_stay_where_the_results_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl.zst").write_bytes(b"items")
    record, place = unpack(pack(make_record("full"), tmp_path, send_files=False), tmp_path / "unused")
    assert place == tmp_path
    assert (tmp_path / "items.jsonl.zst").exists()
    assert record.spec.label == "full"


def test_bytes_that_no_worker_packed_are_refused(tmp_path: Path) -> None:
    for data in (b"", b"nonsense", pack(make_record("full"), tmp_path / "none", send_files=False)[:700]):
        with pytest.raises(HarnessError, match="cannot be read"):
            unpack(data, tmp_path / "here")


@pytest.mark.parametrize("name", ["files/../../evil", "files/link"])
def test_files_that_would_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    if name == "files/link":
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(HarnessError, match="cannot be read"):
        unpack(packed_with(entry, tmp_path), tmp_path / "here")
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "here" / "link").is_symlink()


def test_an_absolute_name_ends_up_inside_the_folder(tmp_path: Path) -> None:
    unpack(packed_with(tarfile.TarInfo(f"files/{tmp_path}/evil"), tmp_path), tmp_path / "here")
    assert not (tmp_path / "evil").exists()
    assert list((tmp_path / "here").rglob("evil"))


def packed_with(entry: tarfile.TarInfo, folder: Path) -> bytes:
    data = io.BytesIO(pack(make_record("full"), folder / "none", send_files=False))
    with tarfile.open(fileobj=data, mode="a") as archive:
        archive.addfile(entry)
    return data.getvalue()
