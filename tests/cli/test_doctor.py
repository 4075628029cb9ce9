"""``harness doctor``: the whole command, with stand-ins for torch and nvidia-smi where there is no GPU."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.catalogue.models import load_models
from harness.commands import _doctor_actions, _places, doctor
from harness.data.packaged import rows_place
from harness.diagnosis import TorchFacts
from harness.preparing.assets import converted_model_place
from harness.runs.device_probe import ask_nvidia
from tests.conftest import needed
from tests.unit.test_architecture import WITHOUT_TORCH

CPU = TorchFacts(version="2.13.0+cpu", built_for="CPU", num_threads=1)
SMI = "#!/bin/sh\necho '470.82.01, 40960, 512, NVIDIA A100-SXM4-40GB'\n"
TORCH = """
import warnings
__version__ = "2.13.0"
class version:
    cuda = {cuda!r}
    hip = None
def get_num_threads():
    return 3
class cuda:
    def get_arch_list():
        return ["sm_75", "sm_80", "sm_90"]
    def is_available():
        for said in {said!r}:
            warnings.warn(said)
        return {capabilities!r} != []
    def device_count():
        return {count}
    def get_device_properties(index):
        class properties:
            name = "Planted GPU"
            major, minor = {capabilities!r}[index]
            total_memory = 40 << 30
        return properties
    def mem_get_info(index):
        return {free}, 40 << 30
"""
TOO_OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020). Please update"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Return a call of the command in this process, on a machine with an empty cache and without a GPU."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "ask_torch", lambda: CPU)
    monkeypatch.setattr(doctor, "ask_nvidia", lambda: None)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        return cli.main(["doctor", *arguments])

    return call


def planted(folder: Path, *, smi: str | None = SMI, **torch: Any) -> dict[str, str]:
    """Return variables under which torch and nvidia-smi are stand-ins."""
    values = {"cuda": "13.0", "said": [], "capabilities": [], "free": (40 << 30) - 1, **torch}
    (folder / "fake" / "torch").mkdir(parents=True)
    (folder / "fake" / "torch" / "__init__.py").write_text(TORCH.format(count=len(values["capabilities"]), **values))
    if smi is not None:
        tool = folder / "fake" / "nvidia-smi"
        tool.write_text(smi)
        tool.chmod(0o755)
    return {"PYTHONPATH": str(folder / "fake"), "PATH": f"{folder / 'fake'}:/usr/bin:/bin"}


def asked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: Mapping[str, str],
    arguments: tuple[str, ...] = (),
) -> tuple[int, str]:
    """Run the command with its real questions to other processes; return exit code and text on one line."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = cli.main(["doctor", *arguments])
    return code, " ".join(capsys.readouterr().out.split())


def test_it_prints_what_a_report_of_a_bug_needs_in_80_columns(
    alone: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert alone() == 0
    text = capsys.readouterr().out
    for name in ("harness", "python", "platform", "packages", "torch", "devices", "driver", "host", "cache", "network"):
        assert f"\n{name} " in f"\n{text}", name
    assert "nothing needs action" in text
    assert "file locks work" in " ".join(text.split())
    assert all(len(line) <= 80 or len(line.split()) <= 2 for line in text.splitlines())


def test_json_is_the_same_and_valid(alone: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert alone("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["filelock"] and found["actions"] == [] and found["torch"]["built_for"] == "CPU"


def test_a_prepared_suite_lacks_nothing(
    monkeypatch: pytest.MonkeyPatch, alone: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HARNESS_CACHE")
    needed(rows_place())
    needed(converted_model_place(load_models()["smollm2-135m"]))
    assert alone("--suite", "quickstart") == 0
    assert "quickstart: everything is there" in capsys.readouterr().out


def test_an_empty_cache_is_said_with_the_command_that_fills_it(
    alone: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert alone("--suite", "quickstart", "--data", "packaged-commonsense=" + str(__file__)) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "suite 'quickstart' lacks model smollm2-135m, " in text
    assert "run 'harness prepare --suite quickstart --data packaged-commonsense=" in text
    assert not (tmp_path / "cache" / "models").exists()


def test_a_selection_without_a_suite_is_wrong_use(
    alone: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert alone("--model", "smollm2-135m") == 2
    assert "name one with --suite" in capsys.readouterr().err


def test_it_works_where_torch_is_absent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1 and not done.stderr
    assert "torch cannot be imported" in done.stdout


def test_a_torch_that_cannot_be_imported_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    variables = planted(tmp_path)
    (tmp_path / "fake" / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    code, text = asked(monkeypatch, capsys, variables)
    assert code == 1
    assert "torch cannot be imported (OSError: libcudart.so.13: cannot open), and nothing can run" in text


@pytest.mark.parametrize(
    ("torch", "said"),
    [
        ({"cuda": None}, "shows 1 GPU (NVIDIA A100-SXM4-40GB), but torch 2.13.0 is built for the CPU alone: install"),
        ({"said": [TOO_OLD]}, "the driver 470.82.01 is too old for CUDA 13.0, which torch 2.13.0 is built for: update"),
        ({"said": ["CUDA unknown error"]}, "but torch 2.13.0 sees none: it says 'CUDA unknown error'"),
        ({"capabilities": [(7, 0)]}, "compute capability 7.0, and torch 2.13.0 holds code for sm_75 sm_80 sm_90 alone"),
        ({"capabilities": [(7, 5)]}, "has compute capability 7.5 and computes no bf16: use suites whose"),
        ({"capabilities": [(9, 0)], "free": 20 << 30}, "device 0 (Planted GPU) is used by others (20.0 GiB)"),
    ],
)
def test_a_device_that_cannot_be_used_is_said_with_what_to_do(
    torch: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    code, text = asked(monkeypatch, capsys, planted(tmp_path, **torch))
    assert code == 1 and said in text


def test_hidden_devices_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, text = asked(monkeypatch, capsys, planted(tmp_path) | {"CUDA_VISIBLE_DEVICES": ""})
    assert code == 1 and "CUDA_VISIBLE_DEVICES hides all" in text


def test_a_device_in_order_needs_no_action(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, text = asked(monkeypatch, capsys, planted(tmp_path, capabilities=[(8, 6)]))
    assert code == 0
    assert "device 0 Planted GPU, compute capability 8.6, 40.0 GiB, 40.0 GiB free, bf16 yes" in text
    assert "driver 470.82.01: NVIDIA A100-SXM4-40GB, 40.0 GiB, 0.5 GiB in use" in text


@pytest.mark.parametrize("smi", [None, "#!/bin/sh\nexit 9\n", "#!/bin/sh\necho 'No devices were found'\n"])
def test_an_absent_or_failing_nvidia_smi_says_nothing_of_devices(
    smi: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in planted(tmp_path, smi=smi).items():
        monkeypatch.setenv(name, value)
    assert not ask_nvidia()


def test_a_version_below_the_minimum_and_an_absent_package_are_said(
    monkeypatch: pytest.MonkeyPatch, alone: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = _doctor_actions.importlib.metadata
    version = metadata.version

    def planted_version(name: str) -> str:
        if name == "zstandard":
            raise metadata.PackageNotFoundError(name)
        return "0.20.0" if name == "peft" else version(name)

    monkeypatch.setattr(metadata, "version", planted_version)
    assert alone() == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "peft is 0.20.0, and the harness needs peft>=0.21: pip install 'peft>=0.21'" in text
    assert "zstandard is not installed, and the harness needs" in text


def test_a_cache_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, alone: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way of the folder, also for root, whom modes do not stop")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    assert alone() == 1
    assert "the cache cannot be written: choose another folder with HARNESS_CACHE" in " ".join(
        capsys.readouterr().out.split()
    )


def test_little_room_is_said(
    monkeypatch: pytest.MonkeyPatch, alone: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    usage = _places.shutil.disk_usage
    monkeypatch.setattr(_places.shutil, "disk_usage", lambda place: usage(place)._replace(free=1_500_000_000))
    assert alone() == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "the cache has 1.5 GB of free disk, under 2 GB: make room" in text
    assert "the results folder has" not in text


def test_a_file_system_without_locks_is_said(
    monkeypatch: pytest.MonkeyPatch, alone: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert alone() == 1
    assert "its file system takes no file locks" in " ".join(capsys.readouterr().out.split())


def test_locks_that_no_other_process_sees_do_not_count(
    monkeypatch: pytest.MonkeyPatch, alone: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    assert alone() == 1
    assert "its file system takes no file locks" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_secret_and_no_home_is_printed(
    form: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    alone: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret_of_a_user")
    monkeypatch.setenv("PIP_INDEX_URL", "https://somebody:planted_password@index.invalid/simple")
    monkeypatch.setenv("https_proxy", "http://somebody:planted_password@proxy.invalid")
    said = CPU.model_copy(update={"warnings": ("no hf_planted_secret_of_a_user at https://u:planted_password@x/",)})
    monkeypatch.setattr(doctor, "ask_torch", lambda: said)
    assert alone(*form) == 0
    text = capsys.readouterr().out
    assert "planted" not in text and str(tmp_path) not in text
    assert "~/cache" in text and "PIP_INDEX_URL" in text and "https_proxy" in text
    assert ('"hub_token_set": true' if form else "HF_TOKEN set") in text
