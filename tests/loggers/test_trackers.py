"""A suite through the real command, logged everywhere at once: each tracker's own reader says what the records do."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.data.packaged import rows_place
from harness.loggers.contract import flat
from harness.record import Record
from harness.store import Store
from tests.cli.conftest import SUITE, command
from tests.conftest import needed
from tests.loggers import readers

pytestmark = pytest.mark.slow

MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
THERE = [name for name, module in MODULES.items() if importlib.util.find_spec(module) is not None]
TRACKERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(name not in THERE, reason=f"{name} is not installed here: tox -e loggers has it"),
    )
    for name in MODULES
]
PLACES = {
    "tensorboard": lambda logs: readers.of_tensorboard(logs / "tensorboard"),
    "wandb": lambda logs: readers.of_wandb(logs / "wandb"),
    "mlflow": lambda logs: readers.of_mlflow((logs / "mlflow").as_uri()),
    "trackio": lambda logs: readers.of_trackio(logs / "trackio"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logged")


@pytest.fixture(scope="module")
def environment(folder: Path) -> Iterator[dict[str, str]]:
    """Give the variables of the command, and let this process's readers see the same."""
    variables = {"TRACKIO_DIR": str(folder / "results/records/logs/trackio"), "MLFLOW_ALLOW_FILE_STORE": "true"}
    before = dict(os.environ)
    os.environ.update(variables)
    yield variables
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def records(folder: Path, tiny_llama: Path, environment: dict[str, str]) -> list[Record]:
    """Run three labels of which one is refused, logged by all trackers that are there."""
    needed(rows_place())
    labels = SUITE.replace('"base", "full", "lora", "galore", "lisa", "owlore"', '"base", "full", "lisa"')
    settings = "[settings.full]\nmoment_dtype = 'fp32'\n[settings.lisa]\nactive_layers = 40\n"
    (folder / "tiny.toml").write_text(labels[: labels.index("[settings.full]")] + settings)
    logs = [word for name in THERE for word in ("--log", name)]
    asked = ["run", "--suite", "tiny.toml", "--model", f"smollm2-135m={tiny_llama}", "--offline"]
    done = command(*asked, *logs, cwd=folder, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "--log" not in done.stderr
    again = command(*asked, cwd=folder, environment=environment)  # what is logged is no part of what a run is
    assert "3 of 3 runs skipped" in again.stdout, again.stderr
    return list(Store(folder / "results" / "records").read("tiny").records)


@pytest.fixture
def read(request: pytest.FixtureRequest, folder: Path, records: list[Record]) -> dict[str, readers.Read]:
    runs = list(PLACES[request.param](folder / "results" / "records" / "logs"))
    assert len(runs) == len(records)
    return {run.name.split("-")[2] if request.param == "tensorboard" else run.name.split("/")[1]: run for run in runs}


def float_of(tracker: str) -> Callable[[float], float]:
    """Return what becomes of a number: TensorBoard keeps scalars in single precision."""
    return (lambda value: float(np.float32(value))) if tracker == "tensorboard" else float


@pytest.mark.parametrize(
    ("tracker", "read"), [pytest.param(*p.values, *p.values, marks=p.marks) for p in TRACKERS], indirect=["read"]
)
def test_a_tracker_has_what_the_record_has(tracker: str, read: dict[str, readers.Read], records: list[Record]) -> None:
    kept = float_of(tracker)
    for record in records:
        run = read[record.label]
        assert (run.group, run.status, run.reason) == ("tiny", *record.ending)
        assert tracker == "tensorboard" or run.name == record.name
        for score in record.scores:
            assert [value for _, value in run.scalars[f"score/{score.task}/{score.metric}"]] == [kept(score.value)]
        assert tracker in ("wandb", "trackio") or str(run.settings["seed"]).removesuffix(".0") == str(record.seed)
    trained = next(record for record in records if record.label == "full")
    run, train = read["full"], trained.train
    assert train is not None and len(train.curve.loss) == 8
    curve = train.curve
    for name, values in {
        "train/loss": curve.loss,
        "train/learning_rate": curve.learning_rate,
        "train/grad_norm": curve.grad_norm,
        "train/step_seconds": curve.seconds,
        "train/tokens": curve.tokens,
        "train/tokens_per_second": [a / b for a, b in zip(curve.tokens, curve.seconds, strict=True)],
        "train/optimizer_state_bytes": curve.optimizer_state_bytes,
    }.items():
        assert run.scalars[name] == [(i + 1, kept(value)) for i, value in enumerate(values)], name  # type: ignore[arg-type]
    held_out = zip(train.validation_steps, map(kept, train.validation_losses), strict=True)
    assert run.scalars["validation/held_out_loss"] == list(held_out)
    assert [step for step, _ in run.scalars["validation/held_out_loss"]] == [0, 3, 6, 8]
    for name, value in {
        "figure/validation_loss_after": train.validation_loss_after,
        "figure/step_seconds_mean": train.step_seconds_mean,
        "figure/peak_optimizer_state_bytes": train.peak_optimizer_state_bytes,
        "figure/trainable_params_mean": train.trainable_params_mean,
    }.items():
        assert value is not None and [v for _, v in run.scalars[name]] == [kept(value)], name
    assert "figure/train_peak_bytes" not in run.scalars  # no CUDA here: not measured, and no stand-in number


@pytest.mark.parametrize(
    ("tracker", "read"), [pytest.param(*p.values, *p.values, marks=p.marks) for p in TRACKERS], indirect=["read"]
)
def test_hyperparameters_are_the_spec(tracker: str, read: dict[str, readers.Read], records: list[Record]) -> None:
    for record in records:
        asked = record.spec.model_dump(mode="json")
        told = read[record.label].settings
        if tracker in ("wandb", "trackio"):
            assert {name: told[name] for name in asked} == asked
        elif tracker == "mlflow":
            assert dict(told) == {name: str(value)[:500] for name, value in flat(asked).items()}
        else:
            assert dict(told) == flat(asked)
