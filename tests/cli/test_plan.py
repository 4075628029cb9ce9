"""``harness plan`` through the real command, and the prediction that every run carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.datasets import load_datasets
from harness.catalogue.devices import load_devices
from harness.catalogue.models import load_models
from harness.commands import plan, run
from harness.commands._selection import Selection
from harness.commands.plan import fits, parse_memory
from harness.commands.run import _refusal, _too_large
from harness.errors import HarnessError
from harness.expansion import expand, load_suite
from harness.planning.questions import PlanAnswer, PlanTask
from harness.record_training import MemoryBreakdown, Prediction
from tests.cli.conftest import called
from tests.records import ENVIRONMENT

SHORT = ["--batch-size", "2", "--seq-len", "32", "--set", "max_grad_norm=1.0"]
SHAPE = ["--max-steps", "4", *SHORT]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"HARNESS_CACHE": str(tmp_path_factory.mktemp("cache"))}


def planned(cache: dict[str, str], cwd: Path, *arguments: str) -> list[dict[str, Any]]:
    done = called("plan", "--json", *arguments, cwd=cwd, environment=cache)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def test_gpus_share_a_run_out_and_the_table_says_so(tmp_path: Path, cache: dict[str, str]) -> None:
    asked = ("--model", "smollm2-135m", "--label", "lora", "--seed", "1", *SHAPE, "--device", "h100-sxm", "--gpus", "2")
    (refused,) = json.loads(called("plan", "--json", *asked, cwd=tmp_path, environment=cache).stdout)
    assert "gradient_accumulation_steps to a multiple of 2" in refused["error"]
    shared = [*asked, "--set", "gradient_accumulation_steps=2"]
    (found,) = planned(cache, tmp_path, *shared)
    assert found["num_ranks"] == 2
    half = (2 * 134_515_008 + 4 * found["trainable_params"]) // 2  # bf16, and adapters in fp32
    assert 0 <= found["weights_bytes"] - half < 1000  # the rotary buffer
    table = called("plan", *shared, cwd=tmp_path, environment=cache).stdout
    assert "GPUs" in table
    assert "one GPU of 2" in table


def test_json_holds_what_is_promised_and_is_answered_from_the_cache(tmp_path: Path, cache: dict[str, str]) -> None:
    asked = ("--model", "smollm2-135m", "--label", "lisa", "--seed", "1", *SHAPE, "--device", "h100-sxm")
    kept = Path(cache["HARNESS_CACHE"]) / "predictions"
    before = set(kept.glob("*"))
    (first,) = planned(cache, tmp_path, *asked)
    for key in ("weights_bytes", "gradients_bytes", "optimizer_state_bytes", "activations_bytes"):
        assert first[key] > 0
    assert first["static_bytes"] == first["weights_bytes"] + first["gradients_bytes"] + first["optimizer_state_bytes"]
    assert first["peak_bytes"] == sum(first["at_peak"].values()) > first["static_bytes"] / 2
    assert 0 <= first["weights_bytes"] - 2 * 134_515_008 < 1000  # bf16, and the rotary buffer
    assert first["model"] == "smollm2-135m"
    assert first["method"] == "lisa"
    assert first["label"].startswith("lisa[")
    assert first["peak_phase"] in ("forward", "backward", "clip", "optimizer")
    assert first["trainable_params"] < 134_515_008
    assert first["predict_seconds"] > 0
    assert first["fits"] == "yes"
    assert first["hours"] == pytest.approx(4 * first["step_seconds"] / 3600)
    (again,) = planned(cache, tmp_path, *asked)
    assert again == first
    assert len(set(kept.glob("*")) - before) == 1


@pytest.fixture
def selection() -> Selection:
    suite = load_suite("quickstart")
    models = {name: load_models()[name] for name in suite.models}
    specs = tuple(expand(suite, models=models, sources={}, seeds=[1]))
    return Selection(suite, models, load_datasets(), specs)


@pytest.mark.parametrize("device", ["rtx-4090", "mi300x", None])
def test_a_plan_is_asked_with_the_compute_capability_of_its_device(device: str | None, selection: Selection) -> None:
    found = load_devices()[device] if device else None
    trained = [spec for spec in selection.specs if spec.train is not None]
    tasks = plan._tasks(selection, trained, plan._Asked("run", found, None, 3))
    assert tasks
    assert {task.compute_capability for task in tasks} == {"8.9" if device == "rtx-4090" else None}


def test_runs_are_predicted_with_the_compute_capability_of_their_device(
    selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = ENVIRONMENT.model_copy(
        update={"device_type": "cuda", "device_name": "a GPU of tomorrow", "compute_capability": "8.6"}
    )
    asked: list[PlanTask] = []

    def ask(tasks: list[PlanTask], source_checksum: str, progress: object) -> list[PlanAnswer]:
        asked.extend(tasks)
        return [PlanAnswer(error="not asked") for _ in tasks]

    monkeypatch.setattr(run, "ask", ask)
    run.predictions(selection, gpu, lambda what, done, total: None)
    assert asked
    assert {task.compute_capability for task in asked} == {"8.6"}
    newer = asked[0].model_copy(update={"compute_capability": "9.0"})
    assert newer.key("0") != asked[0].key("0")


def test_a_horizon_that_sees_more_needs_more(tmp_path: Path, cache: dict[str, str]) -> None:
    asked = ("--model", "smollm2-135m", "--label", "lisa", "--seed", "1", *SHAPE, "--set", "interval_steps=1")
    states = [
        planned(cache, tmp_path, *asked, "--horizon", horizon)[0]["optimizer_state_bytes"]
        for horizon in ("first", "run", "all-visited")
    ]
    assert states == sorted(states)
    assert len(set(states)) == 3
    assert states[-1] == 2 * 2 * 134_515_008  # two bf16 moments of every parameter


def test_a_table_says_what_fits(tmp_path: Path, cache: dict[str, str]) -> None:
    asked = ("plan", "--model", "smollm2-135m", "--label", "lisa", *SHAPE, "--device-memory", "100MB")
    done = called(*asked, cwd=tmp_path, environment=cache)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("smollm2-135m"))
    assert "1, 2, 3" not in row or " no " in row
    assert " no " in row
    assert "not calibrated" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["plan"], "name a suite with --suite, or one run with --model and --label"),
        (["plan", "--model", "smollm2-135m", "--label", "base"], "nothing of what is chosen trains"),
        (["plan", "--suite", "quickstart", "--device-memory", "much"], "expected a size such as 24GiB"),
        (["plan", "--suite", "quickstart", "--device", "h100-sxn"], "did you mean 'h100-sxm'"),
        (["plan", "--suite", "quickstart", "--mfu", "1.5"], "is not a number above 0, at most 1"),
        (["plan", "--suite", "quikstart"], "did you mean 'quickstart'"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = called(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refused_configuration_is_said_and_the_others_are_planned(tmp_path: Path, cache: dict[str, str]) -> None:
    asked = ("plan", "--model", "smollm2-135m", "--label", "lisa", "--label", "lora", *SHAPE)
    done = called(*asked, "--set", "update_in_backward=true", "--json", cwd=tmp_path, environment=cache)
    assert done.returncode in (1, 2)
    assert "max_grad_norm" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "expected"), [("24GiB", 24 * 2**30), ("80GB", 80 * 10**9), ("1.5 GiB", 3 * 2**29), ("1000B", 1000)]
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_memory(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "0", "nan", "inf", "12 stone"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(HarnessError, match="expected a size"):
        parse_memory(text)


def prediction(weights: int, peak: int, reserved: int) -> Prediction:
    rest = {"gradients_bytes": 0, "optimizer_state_bytes": 0, "activations_bytes": 0}
    return Prediction(
        device="cuda",
        horizon="run",
        weights_bytes=weights,
        gradients_bytes=0,
        optimizer_state_bytes=0,
        peak_bytes=peak,
        peak_phase="backward",
        peak_step=0,
        at_peak=MemoryBreakdown(weights_bytes=weights, other_bytes=peak - weights, **rest),
        reserved_bytes=reserved,
        trainable_params=1,
        flops_per_step=1,
        recomputed_flops_per_step=0,
        predict_seconds=1.0,
        torch="2",
    )


def test_a_run_that_is_told_to_need_too_much_is_warned_of_and_a_hopeless_one_refused() -> None:
    gpu = ENVIRONMENT.model_copy(update={"device_memory_bytes": 10 * 2**30, "device_name": "a GPU"})
    large, hopeless = prediction(4 * 2**30, 12 * 2**30, 13 * 2**30), prediction(11 * 2**30, 12 * 2**30, 13 * 2**30)
    small = prediction(4 * 2**30, 6 * 2**30, 7 * 2**30)
    answers = {name: PlanAnswer(prediction=one) for name, one in (("a", large), ("b", small))}
    (sentence,) = _too_large(answers, gpu)
    assert "1 of 2 runs are predicted to need up to 12.0 GiB, more than the 10.0 GiB of a GPU" in sentence
    assert _too_large({"b": answers["b"]}, gpu) == []
    assert _refusal(large, gpu) is None
    assert "the weights alone need 11.0 GiB" in str(_refusal(hopeless, gpu))
    assert _refusal(hopeless, ENVIRONMENT.model_copy(update={"device_memory_bytes": None})) is None


def test_fits_leaves_room_for_the_context_and_tells_the_cache_apart() -> None:
    one = prediction(2**30, 6 * 10**9, 7 * 10**9)
    assert [fits(one, memory) for memory in (6_400_000_000, 6_600_000_000, 7_600_000_000)] == ["no", "tight", "yes"]


def test_every_record_carries_its_prediction(tmp_path: Path, tiny_llama: Path, suite_text: str, prepared: None) -> None:
    (tmp_path / "tiny.toml").write_text(suite_text)
    arguments = (
        "run",
        "--suite",
        "tiny.toml",
        "--model",
        f"smollm2-135m={tiny_llama}",
        "--label",
        "lisa",
        "--offline",
    )
    done = called(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = map(json.loads, (tmp_path / "results" / "records" / "tiny.jsonl").read_text().splitlines())
    told, seen = record["prediction"], record["train"]["tracked_peak"]["at_peak"]
    assert told["device"] == "cpu"
    assert told["at_peak"]["weights_bytes"] == seen["weights_bytes"]
    # Rows are shorter than the longest there can be, so the run needs at most what is told.
    assert sum(seen.values()) <= told["peak_bytes"]


PROFILE = """device_name = "NVIDIA A10"
device_type = "{kind}"
compute_capability = "8.6"
memory_bytes = 23609475072
torch = "2.13.0"
sizes = "{sizes}"
measured_at = "2026-01-01T00:00:00Z"
context_bytes = 300000000
blas_workspace_bytes = [1073741824, 1073741824]
[rates]
bf16_flops = 1e14
"""


def profile(folder: Path, kind: str = "cuda", sizes: str = "full") -> str:
    (folder / "p.toml").write_text(PROFILE.format(kind=kind, sizes=sizes))
    return str(folder / "p.toml")


def test_a_device_profile_gives_memory_constants_and_times(tmp_path: Path, cache: dict[str, str]) -> None:
    asked = ("--model", "smollm2-135m", "--label", "full", *SHORT, "--max-steps", "3")
    (plain,) = planned(cache, tmp_path, *asked, "--seed", "1")
    (given,) = planned(cache, tmp_path, *asked, "--seed", "1", "--device-profile", profile(tmp_path))
    assert plain["device_memory_bytes"] is plain["step_seconds"] is None
    assert given["device_memory_bytes"] == 23609475072
    assert given["peak_bytes"] - plain["peak_bytes"] == 2 * (1 << 30) - 2 * (32 << 20)
    flops = given["flops_per_step"] + given["recomputed_flops_per_step"]
    assert given["step_seconds"] == pytest.approx(flops / 1e14)
    done = called("plan", *asked, "--device-profile", profile(tmp_path), cwd=tmp_path, environment=cache)
    assert "measured on NVIDIA A10 with torch 2.13.0" in done.stdout
    assert "0.279 GiB for the CUDA context" in done.stdout


def test_a_profile_of_a_cpu_is_refused_and_one_of_tiny_shapes_is_warned_of(
    tmp_path: Path, cache: dict[str, str]
) -> None:
    asked = ("plan", "--model", "smollm2-135m", "--label", "full", *SHORT, "--max-steps", "3", "--device-profile")
    refused = called(*asked, profile(tmp_path, kind="cpu"), cwd=tmp_path, environment=cache)
    assert refused.returncode == 2
    assert "which is no CUDA device" in refused.stderr
    warned = called(*asked, profile(tmp_path, sizes="smoke"), cwd=tmp_path, environment=cache)
    assert warned.returncode == 0, warned.stderr
    assert "measured with tiny shapes" in warned.stderr
    missing = called(*asked, str(tmp_path / "none.toml"), cwd=tmp_path, environment=cache)
    assert missing.returncode == 2
    assert "there is no file or folder" in missing.stderr
