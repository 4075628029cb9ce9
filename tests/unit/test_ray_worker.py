"""What a Ray worker sends of a run, and where its files end up. Needs no Ray."""

from __future__ import annotations

import io
import signal
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import load_models
from harness.errors import HarnessError
from harness.preparing.runs import Prepared
from harness.runs import node, ray, ray_worker
from harness.runs.node import devices_of_ranks, localize
from harness.runs.ray import RayCluster
from harness.runs.ray_worker import Order, pack, unpack
from harness.source import source_checksum
from harness.task import RunTask
from tests.records import ENVIRONMENT
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
    attempt = tmp_path / "attempt-1"
    attempt.mkdir()
    (attempt / "items.jsonl.zst").write_bytes(b"items")
    record, place = unpack(pack(make_record("full"), attempt, send_files=False), tmp_path)
    assert place == attempt
    assert (attempt / "items.jsonl.zst").exists()
    assert record.spec.label == "full"


def test_a_worker_that_was_born_ignoring_interrupts_hears_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_cancelled(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a worker sets it for its children: put back at the end
    monkeypatch.setattr(ray_worker, "check_source", is_cancelled)
    asked = Order(task=order(tmp_path), environment=ENVIRONMENT, marker=tmp_path, threads=1, timeout_seconds=None)
    events = SimpleNamespace(say=SimpleNamespace(remote=lambda *_: None))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt):
            ray_worker.run_task(asked.model_dump_json(), events)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_node_names_no_folder_elsewhere(tmp_path: Path) -> None:
    data = pack(make_record("full"), tmp_path / "..", send_files=False)
    with pytest.raises(HarnessError, match="names a folder elsewhere"):
        unpack(data, tmp_path / "here")


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


def order(tmp_path: Path, **places: Path | None) -> RunTask:
    model = load_models()["smollm2-135m"]
    values = {"model_folder": tmp_path, "rows_folder": None, "cache_folder": tmp_path, **places}
    spec = make_record("full").spec
    return RunTask(spec=spec, uuid="u", model=model, work_folder=tmp_path / "work", run_id=spec.run_id, **values)


def test_a_node_that_sees_all_places_uses_them(tmp_path: Path) -> None:
    task = order(tmp_path)
    assert localize(task) == task


@pytest.mark.parametrize("missing", ["cache_folder", "model_folder", "rows_folder"])
def test_a_node_that_lacks_a_place_prepares_its_own(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = order(tmp_path, **{missing: tmp_path / "absent"})
    own = Prepared({task.model.name: tmp_path / "model"}, tmp_path / "rows")
    monkeypatch.setattr(node, "prepare_runs", lambda *_, **__: own)
    here = localize(task)
    assert (here.model_folder, here.rows_folder) == (tmp_path / "model", tmp_path / "rows")


def test_data_that_a_node_does_not_see_is_one_sentence(tmp_path: Path) -> None:
    absent = DatasetSpec(name="rows", layout="text", file=tmp_path / "absent.jsonl")
    task = order(tmp_path).model_copy(update={"datasets": {"rows": absent}})
    with pytest.raises(HarnessError, match="the file is not on this node"):
        localize(task)


def test_each_rank_is_shown_one_of_the_gpus_that_ray_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = ENVIRONMENT.model_copy(update={"device_type": "cuda"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-a")
    assert devices_of_ranks(2, gpu, "Ray") == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "GPU-a"}]
    assert (devices_of_ranks(1, gpu, "Ray"), devices_of_ranks(2, ENVIRONMENT, "Ray")) == ([{}], [{}, {}])
    with pytest.raises(HarnessError, match="a run takes 3 GPUs, and Ray gave its worker 2"):
        devices_of_ranks(3, gpu, "Ray")


class Cluster:
    """As much of Ray as says what a cluster has, and takes what is asked of it."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._nodes = nodes

    def cluster_resources(self) -> dict[str, float]:
        return {what: sum(node.get(what, 0) for node in self._nodes) for what in ("CPU", "GPU")}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self._nodes]

    def remote(self, **asked: Any) -> Any:
        self.asked.append(asked)
        return lambda function: SimpleNamespace(remote=function)

    def get(self, value: Any) -> Any:
        return value


def test_a_run_on_several_gpus_asks_for_them_of_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def describes(number: int) -> bytes:
        threads.append(number)
        return ENVIRONMENT.model_copy(update={"source_checksum": source_checksum()}).model_dump_json().encode()

    monkeypatch.setattr(ray, "describe_node", describes)
    cluster = Cluster({"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 4})
    environment = RayCluster(cluster, 8, 4).environment()
    assert (environment.num_ranks, threads) == (4, [2])
    assert [(asked["num_gpus"], asked["num_cpus"]) for asked in cluster.asked] == [(4, 8)]


@pytest.mark.parametrize(
    ("cpus", "ranks", "said"),
    [
        (1, 8, r"a run takes 8 GPUs of one node \(gpus_per_run = 8\), and no node of the cluster has more than 4"),
        (9, 3, r"a run takes 9 CPUs of one node \(gpus_per_run = 3\), and no node of the cluster has more than 8"),
    ],
)
def test_what_no_node_has_is_said_at_once(cpus: int, ranks: int, said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        RayCluster(Cluster({"CPU": 8, "GPU": 4}, {"CPU": 2, "GPU": 4}), cpus, ranks)
