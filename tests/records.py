"""Records made by hand for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from harness.record import Record
from harness.record_environment import Environment
from harness.settings import EvaluationSettings, TrainSettings
from harness.spec import RunSpec

TRAIN = TrainSettings(
    data="rows",
    prompt="plain",
    loss_on="answer",
    packing=False,
    sequence_length=64,
    batch_size=2,
    num_steps=4,
    learning_rate=1e-3,
    lr_scheduler="linear",
    dtype="fp32",
)
ENVIRONMENT = Environment(
    device_type="cpu",
    device_name="a processor",
    device_memory_bytes=None,
    driver=None,
    num_threads=2,
    platform="Linux",
    python="3.11.7",
    packages={"torch": "2.13.0"},
    source_checksum="0" * 64,
)


def make_spec(**changes: Any) -> RunSpec:
    """Return the spec of a tiny run."""
    values: dict[str, Any] = {
        "suite": "tiny",
        "suite_version": 1,
        "protocol": "test",
        "model": {"name": "tiny", "source": "folder", "checksum": "0"},
        "label": "full",
        "method": "full",
        "config": {"update_in_backward": False},
        "train": TRAIN,
        "evaluation": EvaluationSettings(tasks=("piqa",), rows="packaged-scored"),
        "calibration": None,
        "sources": {"train": "rows"},
        "max_steps": None,
        "seed": 1,
    }
    return RunSpec(**{**values, **changes})


def make_record(*, uuid: str = "u", minute: int = 0, status: str = "ok", **changes: Any) -> Record:
    """Return a record of a tiny run that began ``minute`` minutes after a fixed moment."""
    spec, where = changes.pop("spec", make_spec()), changes.pop("environment", ENVIRONMENT)
    began = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    return Record(
        run_id=spec.run_id,
        environment_id=where.environment_id,
        uuid=uuid,
        started_at=began,
        finished_at=began + timedelta(seconds=30),
        status=status,
        spec=spec,
        environment=where,
        **changes,
    )
