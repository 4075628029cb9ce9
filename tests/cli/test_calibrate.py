"""harness calibrate through the real command: tiny shapes on a CPU, planted failures, budgets that end."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.calibration.parts import all_parts
from harness.calibration_log import PartResult, log_file, read_log
from harness.device_profile import read_profile
from harness.expansion import load_suite
from harness.store import Store
from tests.cli.conftest import command

pytestmark = pytest.mark.slow

RESULTS = Path("results") / "records"
PLUG_INS = '''
import os
from harness.method import Method, MethodConfig

class Raises(Method):
    def prepare(self, model, context):
        raise ValueError("planted: this method raises")
    def build_optimizer(self, model, context):
        raise NotImplementedError

class RunsOut(Raises):
    def prepare(self, model, context):
        import torch
        raise torch.OutOfMemoryError("planted: the device is full")

class Dies(Raises):
    def prepare(self, model, context):
        os.write(2, b"planted: last words\\n")
        os.abort()

class Idle(Raises):
    """Trains and changes nothing."""
    def prepare(self, model, context):
        return model
    def build_optimizer(self, model, context):
        import torch
        from harness.engine.stepwise import Stepwise
        class Nothing(Stepwise):
            def step_parameters(self, params):
                pass
            def step(self, closure=None):
                pass
        return Nothing(torch.optim.SGD(model.parameters(), lr=0.0))

class Needs(Raises):
    class Config(MethodConfig):
        strength: float

class Sleeps(Raises):
    def prepare(self, model, context):
        import time
        time.sleep(600)
'''
NAMES = {"raises": "Raises", "runs-out": "RunsOut", "dies": "Dies", "idle": "Idle", "needs": "Needs"}


def site(folder: Path, names: Mapping[str, str]) -> Path:
    """Return a folder with a distribution of planted methods."""
    site = folder / "site"
    (site / "planted-1.0.dist-info").mkdir(parents=True)
    (site / "planted.py").write_text(PLUG_INS)
    (site / "planted-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
    points = "".join(f"{name} = planted:{kind}\n" for name, kind in names.items())
    (site / "planted-1.0.dist-info" / "entry_points.txt").write_text(f"[finetune_harness.methods]\n{points}")
    return site


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibration")


@pytest.fixture(scope="module")
def whole(folder: Path, prepared: None) -> subprocess.CompletedProcess[str]:
    return command("calibrate", "--smoke", cwd=folder, timeout=500)


def results(folder: Path) -> dict[str, PartResult]:
    return {result.part: result for result in read_log(folder / RESULTS).latest("smoke")}


def test_everything_is_asked_and_well(whole: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert whole.returncode == 0, whole.stdout + whole.stderr
    found = results(folder)
    assert list(found) == [part.name for part in all_parts()]
    skipped = {name for name, result in found.items() if result.outcome == "skipped"}
    assert skipped == {"context", "allocator"}
    assert {result.outcome for name, result in found.items() if name not in skipped} == {"ok"}
    suite = load_suite("calibration-small")
    records = Store(folder / RESULTS).read(suite.name).records
    assert [record.spec.label for record in records] == [label for rung in suite.ladder for label in rung.labels]
    for record in records:
        assert record.status == "ok"
        assert record.train is not None
        assert record.train.optimizer_seconds_mean is not None
        assert f"shape-tiny {record.spec.label}: tracked peak" in " ".join(whole.stdout.split())
    reached = [line for line in whole.stdout.splitlines() if "of what was asked for is reached" in line]
    assert reached[0].split()[0] == reached[0].split()[2]


def test_a_profile_is_written_that_names_the_device(whole: subprocess.CompletedProcess[str], folder: Path) -> None:
    (file,) = (folder / RESULTS / "calibration").glob("*.toml")
    profile = read_profile(file)
    assert (profile.device_type, profile.sizes, profile.context_bytes) == ("cpu", "smoke", None)
    assert profile.rates.bf16_flops is not None
    assert len(profile.attention) == 3
    assert str(file) in whole.stdout


def test_what_is_answered_is_not_asked_again(whole: subprocess.CompletedProcess[str], folder: Path) -> None:
    before = log_file(folder / RESULTS).read_bytes()
    again = command("calibrate", "--smoke", "--part", "constants", "--part", "ladder", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "constants: 7 of 9 parts are answered already" in again.stdout
    assert "[1/1]" not in again.stderr
    asked = [
        json.loads(line)["part"] for line in log_file(folder / RESULTS).read_bytes().removeprefix(before).splitlines()
    ]
    assert asked == ["context", "allocator"]  # what was skipped may have become possible


def test_the_report_has_a_page_of_it(whole: subprocess.CompletedProcess[str], folder: Path) -> None:
    done = command("report", "--suite", "calibration-small", "--out", "report", "--format", "md", cwd=folder)
    assert done.returncode == 0, done.stderr
    page = (folder / "report" / "report.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith(("## ", "### "))]
    begin = headings.index("## Calibration")
    assert headings[begin + 1 : begin + 5] == [
        "### Checks",
        "### Constants that planning assumes",
        "### Runs on random weights",
        "### Evaluation",
    ]
    assert "| steps of full: difference to the CPU" in page
    assert "| shape-tiny owlore-4x64: tracked peak" in page


def test_planted_failures_are_lines_and_the_rest_goes_on(tmp_path: Path) -> None:
    done = command(
        "calibrate", "--smoke", "--part", "checks", cwd=tmp_path, environment={"PYTHONPATH": str(site(tmp_path, NAMES))}
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    found = results(tmp_path)
    planted = {name: found.pop(f"steps of {name}") for name in NAMES}
    assert {name: result.outcome for name, result in planted.items()} == {
        "raises": "failed",
        "runs-out": "out_of_memory",
        "dies": "failed",
        "idle": "failed",
        "needs": "skipped",
    }
    text = " ".join(done.stdout.split())
    for name, sentence in {
        "raises": "ValueError: planted: this method raises",
        "runs-out": "OutOfMemoryError: planted: the device is full",
        "dies": "its process ended by SIGABRT",
        "idle": "3 steps of 'idle' changed no weight",
        "needs": "method 'needs' has no label that gives its settings strength",
    }.items():
        assert sentence in (planted[name].sentence or ""), name
        assert f"steps of {name}" in text
    assert {result.outcome for result in found.values()} == {"ok"}
    assert len(found) == sum(part.group == "checks" for part in all_parts())


def test_a_budget_that_ends_in_the_middle_keeps_what_came_and_the_next_call_goes_on(tmp_path: Path) -> None:
    planted = {"PYTHONPATH": str(site(tmp_path, {"sleeps": "Sleeps"}))}
    first = command(
        *("calibrate", "--smoke", "--part", "checks", "--budget-seconds", "25"), cwd=tmp_path, environment=planted
    )
    assert first.returncode == 3, first.stderr
    assert "not reached: the budget ended" in " ".join(first.stdout.split())
    assert "the same command goes on" in first.stdout
    kept = read_log(tmp_path / RESULTS).results
    assert len(kept) < sum(part.group == "checks" for part in all_parts())
    second = command("calibrate", "--smoke", "--part", "checks", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    everything = read_log(tmp_path / RESULTS).results
    assert everything[: len(kept)] == kept
    assert len({result.part for result in everything}) == len(everything)


def test_a_budget_that_is_over_leaves_the_ladder(tmp_path: Path) -> None:
    done = command("calibrate", "--smoke", "--part", "ladder", "--budget-seconds", "0.001", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("not reached: the budget ended") == 5
    assert not list((tmp_path / RESULTS).glob("*.jsonl"))
    assert "0 of 0" not in done.stdout


def test_without_cuda_full_sizes_are_refused_in_one_sentence(tmp_path: Path) -> None:
    done = command("calibrate", cwd=tmp_path, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert "torch sees no CUDA device here" in done.stderr
    assert "--smoke" in done.stderr
    assert "Traceback" not in done.stderr
