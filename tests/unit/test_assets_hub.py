"""The hub, against a stand-in on 127.0.0.1 that serves one tiny repository and every refusal."""

from __future__ import annotations

import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.assets.cache import read_table
from harness.assets.hub import (
    cached_folder,
    cached_hub_file,
    dataset_asset,
    fetch_from_hub,
    model_asset,
    pinned_revision,
)
from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.data import rows as training_rows
from harness.errors import HarnessError
from harness.preparing.assets import resolve_model

COMMIT = "a" * 40
SHARDED = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"first",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "original/params.json": b"{}",
}
DATA = {"merge/merged_json.json": b'{"type": "text_only", "instances": [{"text": "a"}]}', "other.json": b"[]"}


class _Hub(http.server.BaseHTTPRequestHandler):
    requests: list[str]
    cut: set[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        self.requests.append(path)
        if "gated" in path:
            self._send(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, body)
        elif "private" in path:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"}, body)
        elif "broken" in path:
            self._send(500, b"", {}, body)
        elif "revision/nowhere" in path:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, body)
        elif path.startswith("/api/"):
            self._api(path, body)
        else:
            self._file(path, body)

    def _api(self, path: str, body: bool) -> None:
        files = DATA if "/datasets/" in path else {"model.bin": b"x"} if "pickled" in path else FILES
        if "sharded" in path:
            files = SHARDED
        if "/tree/" in path:
            tree = [{"type": "file", "path": name, "size": len(d), "oid": _oid(d)} for name, d in files.items()]
            self._send(200, json.dumps(tree).encode(), {"X-Repo-Commit": COMMIT}, body)
            return
        info = {
            "id": "/".join(path.split("/")[3:5]),
            "sha": COMMIT,
            "private": False,
            "disabled": False,
            "gated": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": name} for name in files],
        }
        self._send(200, json.dumps(info).encode(), {}, body)

    def _file(self, path: str, body: bool) -> None:
        name = path.rpartition(f"/resolve/{COMMIT}/")[2]
        data = {**FILES, **SHARDED, **DATA}.get(name)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, body)
            return
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT}
        if body and name in self.cut:
            self.cut.discard(name)
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self._send(200, data, headers, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    from huggingface_hub import constants

    handler = type("Hub", (_Hub,), {"requests": [], "cut": set()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()


def model(hub_id: str = "tiny/model", revision: str | None = None) -> BaseModelSpec:
    return BaseModelSpec(name="m", architecture="LlamaForCausalLM", hub_id=hub_id, revision=revision)


def test_a_model_is_fetched_once_without_pickles_and_its_commit_pinned(hub: type[_Hub], tmp_path: Path) -> None:
    spec = model()
    assert pinned_revision(model_asset(spec)) is None and cached_folder(model_asset(spec)) is None
    seen: list[tuple[int, int | None]] = []
    folder = fetch_from_hub(model_asset(spec), progress=lambda _, done, total: seen.append((done, total)))
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert max(done for done, _ in seen) >= 7000
    assert resolve_model(spec).revision == COMMIT
    hub.requests.clear()
    assert fetch_from_hub(model_asset(spec)) == folder
    assert fetch_from_hub(model_asset(spec), offline=True) == folder
    assert hub.requests == []
    (entry,) = read_table(tmp_path / "cache" / "lock.json").values()
    assert entry["revision"] == COMMIT and entry["files"]["model.safetensors"] == 7000


def test_offline_never_asks_the_hub(hub: type[_Hub]) -> None:
    with pytest.raises(HarnessError, match=r"tiny/model is not in the cache .*--offline forbids.*--model m=PATH"):
        fetch_from_hub(model_asset(model()), offline=True)
    assert hub.requests == []


def test_a_file_that_was_cut_after_the_download_does_not_count(hub: type[_Hub]) -> None:
    folder = fetch_from_hub(model_asset(model()))
    (folder / "model.safetensors").resolve().write_bytes(b"half")
    assert cached_folder(model_asset(model())) is None
    with pytest.raises(HarnessError, match="--offline forbids"):
        fetch_from_hub(model_asset(model()), offline=True)


def test_a_gated_model_says_licence_and_token(hub: type[_Hub]) -> None:
    with pytest.raises(HarnessError, match=r"gated/model on the hub is gated: accept its licence.*HF_TOKEN.*--model"):
        fetch_from_hub(model_asset(model("gated/model")))


def test_an_unknown_or_private_repository_says_token(hub: type[_Hub]) -> None:
    with pytest.raises(HarnessError, match=r"private/model is not on the hub, or it is private: set HF_TOKEN"):
        fetch_from_hub(model_asset(model("private/model")))


def test_an_unknown_revision_is_named(hub: type[_Hub]) -> None:
    with pytest.raises(HarnessError, match="tiny/model on the hub has no revision 'nowhere'"):
        fetch_from_hub(model_asset(model(revision="nowhere")))


def test_a_model_with_pickled_weights_only_is_refused(hub: type[_Hub]) -> None:
    with pytest.raises(HarnessError, match="no safetensors weights, and pickled ones are never loaded"):
        fetch_from_hub(model_asset(model("pickled/model")))
    assert cached_folder(model_asset(model("pickled/model"))) is None


def test_a_hub_that_fails_is_one_sentence(hub: type[_Hub]) -> None:
    with pytest.raises(HarnessError, match=r"broken/model could not be fetched from the hub \(.*500.*\); check"):
        fetch_from_hub(model_asset(model("broken/model")))


def test_no_network_is_one_sentence(hub: type[_Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(HarnessError, match=r"tiny/model could not be fetched from the hub .*--model m=PATH"):
        fetch_from_hub(model_asset(model()))


def test_a_download_that_is_cut_is_completed_or_refused_but_never_used_by_half(hub: type[_Hub]) -> None:
    hub.cut.add("model.safetensors")
    try:
        folder = fetch_from_hub(model_asset(model()))
    except HarnessError as error:
        assert "could not be fetched from the hub" in str(error)
        assert cached_folder(model_asset(model())) is None
        folder = fetch_from_hub(model_asset(model()))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_one_file_of_a_data_set_is_fetched(hub: type[_Hub]) -> None:
    spec = DatasetSpec(name="d", layout="text", hub_id="tiny/data", path="merge/merged_json.json")
    folder = fetch_from_hub(dataset_asset(spec))
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["merged_json.json"]
    absent = DatasetSpec(name="d", layout="text", hub_id="tiny/data", path="none.json")
    with pytest.raises(HarnessError, match=r"tiny/data@a+ on the hub has no file none.json"):
        fetch_from_hub(dataset_asset(absent))


def data(hub_id: str = "tiny/data", revision: str | None = None) -> DatasetSpec:
    return DatasetSpec(name="d", layout="text", hub_id=hub_id, revision=revision, path="merge/merged_json.json")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (data("gated/data"), r"gated/data on the hub is gated: accept its licence.*HF_TOKEN.*--data d=PATH"),
        (data("private/data"), r"private/data is not on the hub, or it is private: set HF_TOKEN.*--data d=PATH"),
        (data(revision="nowhere"), r"tiny/data on the hub has no revision 'nowhere'; mend it.*--data d=PATH"),
        (data("broken/data"), r"broken/data could not be fetched from the hub \(.*500.*\); check.*--data d=PATH"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_one_sentence_with_what_to_do(
    hub: type[_Hub], spec: DatasetSpec, said: str
) -> None:
    with pytest.raises(HarnessError, match=said) as caught:
        fetch_from_hub(dataset_asset(spec))
    assert "\n" not in str(caught.value)
    assert cached_hub_file(spec) is None


def test_a_data_set_without_a_network_is_one_sentence(hub: type[_Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HarnessError, match=r"tiny/data is not in the cache .*--offline forbids.*--data d=PATH"):
        fetch_from_hub(dataset_asset(data()), offline=True)
    assert hub.requests == []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(HarnessError, match=r"tiny/data could not be fetched from the hub .*--data d=PATH"):
        fetch_from_hub(dataset_asset(data()))


def test_half_a_data_set_is_never_used(hub: type[_Hub]) -> None:
    hub.cut.add("merge/merged_json.json")
    try:
        folder = fetch_from_hub(dataset_asset(data()))
    except HarnessError as error:
        assert "could not be fetched from the hub" in str(error)
        assert cached_hub_file(data()) is None
        folder = fetch_from_hub(dataset_asset(data()))
    file = folder / "merge" / "merged_json.json"
    assert file.read_bytes() == DATA["merge/merged_json.json"]
    assert cached_hub_file(data()) == file
    file.resolve().write_bytes(file.read_bytes()[:-5])  # cut after it had arrived
    assert cached_hub_file(data()) is None
    with pytest.raises(HarnessError, match="--offline forbids"):
        fetch_from_hub(dataset_asset(data()), offline=True)


def test_a_model_that_lacks_a_file_of_its_weights_is_refused(hub: type[_Hub]) -> None:
    with pytest.raises(HarnessError, match=r"lacks 1 of its 2 files of weights \(model-00002-of-00002"):
        fetch_from_hub(model_asset(model("sharded/model")))
    assert cached_folder(model_asset(model("sharded/model"))) is None


def test_a_data_set_of_another_number_of_rows_is_refused(hub: type[_Hub]) -> None:
    spec = data().model_copy(update={"num_rows": 7})
    with pytest.raises(HarnessError, match=r"data set 'd' .* is not in the cache .* was never prepared"):
        training_rows.load_rows(spec, "train")
    fetch_from_hub(dataset_asset(spec))
    with pytest.raises(HarnessError, match=r"holds 1 rows, and its source 7: it has changed there; .* --data d=PATH"):
        training_rows.load_rows(spec, "train")
