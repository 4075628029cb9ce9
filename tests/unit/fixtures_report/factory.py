"""Records for the report's tests, made in Python: every status, several seeds, a second environment, hostile text."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from harness.record import Proof, Record, Score
from harness.record_environment import Environment
from harness.record_training import (
    BlockActivity,
    MemoryBreakdown,
    OutOfMemoryAt,
    Phase,
    Prediction,
    StepCurve,
    TrackedPeak,
    TrainResult,
)
from harness.settings import EvaluationSettings, TrainSettings
from harness.spec import RunSpec
from harness.store import Contents
from harness.suite import Suite

GIB = 2**30
TASKS = ("boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
START = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
HOSTILE = "a|b `c`\n<script>alert(1)</script> $x_1$ [link](http://x.invalid) *bold* \x1b[31m"
TRAIN = {
    "data": "packaged-train",
    "prompt": "alpaca",
    "loss_on": "answer",
    "packing": False,
    "sequence_length": 128,
    "batch_size": 4,
    "num_steps": 30,
    "learning_rate": 1e-4,
    "lr_scheduler": "linear",
    "dtype": "fp32",
}
CPU = Environment(
    device_type="cpu",
    device_name="test processor",
    device_memory_bytes=None,
    driver=None,
    num_threads=2,
    platform="Linux-test",
    python="3.11.9",
    packages={"torch": "2.13.0", "lm-eval": "0.4.13"},
    source_checksum="c" * 64,
    commit="d" * 40,
    dirty=False,
)
CUDA = CPU.model_copy(
    update={"device_type": "cuda", "device_name": "test device", "device_memory_bytes": 80 * GIB, "driver": "600.1"}
)


def make_suite(**changes: Any) -> Suite:
    values: dict[str, Any] = {
        "name": "quick",
        "version": 1,
        "protocol": "packaged-v1",
        "description": "Six labels on a small model.",
        "notes": ("These scores are not comparable with published ones.", "It shows the machinery and not a ranking."),
        "ranking": False,
        "models": ("tiny",),
        "labels": ("base", "full", "lora", "galore", "lisa", "owlore"),
        "seeds": (1,),
        "train": TRAIN,
        "evaluation": EvaluationSettings(tasks=TASKS, rows="packaged-scored", num_fewshot=0),
    }
    return Suite.model_validate(values | changes)


def make_scores(label: str, seed: int, tasks: tuple[str, ...] = TASKS, n: int = 40) -> tuple[Score, ...]:
    """Headline accuracies as whole shares of ``n``, and for hellaswag a second metric that is no headline."""
    draw = random.Random(f"{label} {seed}")
    scores = []
    for task in tasks:
        value = draw.randint(n // 5, n // 2) / n
        scores.append(_score(task, "acc", value, n, headline=True))
        if task == "hellaswag":
            scores.append(_score(task, "acc_norm", draw.randint(n // 5, n // 2) / n, n, headline=False))
    return tuple(scores)


def _score(task: str, metric: str, value: float, n: int, *, headline: bool) -> Score:
    return Score(
        task=task,
        metric=metric,
        value=value,
        stderr=(value * (1 - value) / (n - 1)) ** 0.5,
        n=n,
        higher_is_better=True,
        task_version="1.0",
        num_fewshot=0,
        headline=headline,
    )


def make_train(label: str, seed: int, num_steps: int = 30, num_blocks: int = 12) -> TrainResult:
    draw = random.Random(f"train {label} {seed}")
    losses = tuple(2.6 * 0.985**i + 0.25 * draw.random() for i in range(num_steps))
    if label.startswith(("lisa", "owlore")):
        activity = tuple(
            BlockActivity(step=step, blocks=tuple(sorted(draw.sample(range(num_blocks), 3))))
            for step in range(0, num_steps, 5)
        )
    else:
        activity = (BlockActivity(step=0, blocks=tuple(range(num_blocks))),)
    name = label.partition("[")[0]
    params = {"lora": 5_000_000, "lisa": 60_000_000, "owlore": 60_000_000}.get(name, 134_515_008)
    state = {"full": GIB, "lora": GIB // 100, "galore": GIB // 4}.get(name, GIB // 3)
    ones = (1.0,) * num_steps
    return TrainResult(
        num_steps=num_steps,
        curve=StepCurve(
            loss=losses,
            learning_rate=ones,
            grad_norm=ones,
            trained_tokens=(64,) * num_steps,
            tokens=(512,) * num_steps,
            seconds=ones,
            trainable_params=(params,) * num_steps,
            optimizer_state_bytes=(state,) * num_steps,
        ),
        block_activity=activity,
        num_blocks=num_blocks,
        step_seconds_mean=0.5 + 0.1 * draw.random(),
        step_seconds_median=0.5,
        num_timed_steps=num_steps - 3,
        covers_refresh_cycle=False if label == "galore" else None,
        refresh_seconds=None,
        data_seconds=0.25,
        trainable_params_mean=float(params),
        trainable_params_ever=params,
        total_params=134_515_008,
        peak_optimizer_state_bytes=state,
        validation_loss_before=2.75,
        validation_loss_after=2.0 + 0.2 * draw.random(),
        validation_tokens=256,
    )


MIB = 2**20
BREAKDOWNS = {
    "full": (513, 513, 1026, 410, 12),
    "lora": (516, 10, 20, 395, 6),
    "galore": (513, 513, 260, 410, 90),
    "lisa": (513, 140, 280, 330, 10),
    "owlore": (513, 140, 75, 330, 40),
}
"""MiB at the peak: weights, gradients, optimizer state, activations, other."""


def make_breakdown(label: str, share: float = 1.0) -> MemoryBreakdown:
    """Return what a label's peak is made of, all but the weights scaled by ``share``."""
    weights, *rest = BREAKDOWNS[label.partition("[")[0]]
    sizes = [weights * MIB, *(int(part * share * MIB) for part in rest)]
    return MemoryBreakdown(**dict(zip(MemoryBreakdown.model_fields, sizes, strict=True)))


def make_tracked(label: str) -> TrackedPeak:
    moment = "optimizer" if label == "galore" else "backward"
    return TrackedPeak(steps=(0, 1, 2), step=1, moment=moment, at_peak=make_breakdown(label))


def make_prediction(label: str, device: str = "cpu") -> Prediction:
    at_peak = make_breakdown(label, 1.02)
    values: dict[str, Any] = {
        "device": device,
        "horizon": "run",
        "weights_bytes": at_peak.weights_bytes,
        "gradients_bytes": at_peak.gradients_bytes,
        "optimizer_state_bytes": at_peak.optimizer_state_bytes,
        "peak_bytes": at_peak.total_bytes,
        "peak_phase": "backward",
        "peak_step": 1,
        "at_peak": at_peak,
        "reserved_bytes": None if device == "cpu" else at_peak.total_bytes + 64 * MIB,
        "trainable_params": 1000,
        "flops_per_step": 10**12,
        "recomputed_flops_per_step": 0,
        "predict_seconds": 1.5,
        "torch": "2.13.0",
    }
    return Prediction.model_validate(values)


def make_out_of_memory() -> OutOfMemoryAt:
    return OutOfMemoryAt(
        phase="train",
        step=4,
        moment="backward",
        weights_bytes=513 * MIB,
        gradients_bytes=100 * MIB,
        optimizer_state_bytes=1026 * MIB,
        rest_bytes=400 * MIB,
    )


def with_memory(record: Record, *, tracked: bool = True, predicted: bool = True) -> Record:
    """Return a record with what was measured and predicted of its memory; on CUDA with peaks of every step."""
    label, device = record.spec.label, record.environment.device_type
    changes: dict[str, Any] = {}
    if predicted:
        changes["prediction"] = make_prediction(label, device)
    if record.train is not None and tracked:
        update: dict[str, Any] = {"tracked_peak": make_tracked(label)}
        changes["train"] = record.train.model_copy(update=update)
    if record.train is not None and device == "cuda":
        peak = make_breakdown(label).total_bytes
        draw = random.Random(f"steps {label}")
        allocated = [int(peak * (0.9 + 0.08 * draw.random())) for _ in record.train.curve.loss]
        allocated[7] = peak
        curve = record.train.curve.model_copy(
            update={
                "allocated_peak_bytes": tuple(allocated),
                "reserved_peak_bytes": tuple(max(allocated[: i + 1]) + 96 * MIB for i in range(len(allocated))),
                "peak_moments": tuple("backward" if size < peak else "optimizer" for size in allocated),
            }
        )
        changes["train"] = changes.get("train", record.train).model_copy(update={"curve": curve})
        changes["phases"] = tuple(
            phase.model_copy(update={"allocated_peak_bytes": peak}) if phase.name == "train" else phase
            for phase in record.phases
        )
    return record.model_copy(update=changes)


def make_record(
    label: str,
    *,
    model: str = "tiny",
    seed: int = 1,
    minute: int = 0,
    status: str = "ok",
    reason: str | None = None,
    suite: Suite | None = None,
    environment: Environment = CPU,
    spec: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """Return a record; ``base`` does not train, and only ``ok`` has results. ``minute`` places it in time."""
    suite = suite if suite is not None else make_suite()
    trains = label != "base"
    values: dict[str, Any] = {
        "suite": suite.name,
        "suite_version": suite.version,
        "protocol": suite.protocol,
        "model": {"name": model, "source": "packaged:tiny", "checksum": "e" * 64},
        "label": label,
        "method": "base" if label == "base" else "full",
        "config": {} if label == "base" else {"rank": 8, "update_in_backward": False},
        "train": TrainSettings.model_validate(TRAIN) if trains else None,
        "evaluation": suite.evaluation,
        "calibration": None,
        "sources": {"evaluation": "packaged", **({"train": "packaged"} if trains else {})},
        "max_steps": None,
        "seed": seed,
    }
    run = RunSpec.model_validate(values | (spec or {}))
    started = START + timedelta(minutes=minute)
    peak = None if environment.device_type == "cpu" else int((8 + random.Random(label).random() * 10) * GIB)
    host = int((1.5 + random.Random(label).random()) * GIB)
    phases = [Phase(name="load", seconds=2.0, host_peak_bytes=GIB)]
    if trains:
        phases.append(Phase(name="train", seconds=20.0, allocated_peak_bytes=peak, host_peak_bytes=host))
    phases.append(Phase(name="evaluate", seconds=10.0, allocated_peak_bytes=peak, host_peak_bytes=host))
    fields: dict[str, Any] = {
        "run_id": run.run_id,
        "environment_id": environment.environment_id,
        "uuid": re.sub(r"[^A-Za-z0-9._-]+", "_", f"{label[:30]}-{model[:20]}-{seed}-{minute}"),
        "started_at": started,
        "finished_at": started + timedelta(seconds=40),
        "status": status,
        "reason": reason,
        "spec": run,
        "environment": environment,
    }
    if status == "ok":
        train = make_train(label, seed) if trains else None
        scores = make_scores(label, seed, suite.evaluation.tasks)
        fields |= {"phases": tuple(phases), "scores": scores, "train": train, "proof": Proof()}
    return Record.model_validate(fields | changes)


def mixed() -> tuple[Suite, Contents]:
    """One suite with every kind of cell: ok, out of memory, failed, refused, absent, left out, added, hostile."""
    suite = make_suite(labels=("base", "full", "lora", "galore", "lisa", "owlore"), seeds=(1, 2))
    other = CPU.model_copy(update={"packages": {"torch": "2.12.0", "lm-eval": "0.4.13"}})
    lora = with_memory(make_record("lora", suite=suite, minute=4))
    full = make_record("full", suite=suite, minute=1, status="out_of_memory", reason="needs 9 GiB, has 8")
    records = [
        make_record("galore", suite=suite, minute=-9, environment=other),
        make_record("base", suite=suite, minute=0),
        with_memory(full).model_copy(update={"out_of_memory_at": make_out_of_memory()}),
        make_record("full", suite=suite, seed=2, minute=2, status="refused", reason="too large | by far"),
        lora,
        make_record("lora", suite=suite, seed=2, minute=5),
        with_memory(make_record("galore", suite=suite, minute=6), predicted=False),
        make_record("galore", suite=suite, seed=2, minute=7, status="failed", reason=HOSTILE),
        with_memory(make_record("lisa", suite=suite, minute=8), tracked=False),
        make_record(f"owlore[{HOSTILE}]", suite=suite, minute=9),
        make_record(
            "lora",
            suite=suite,
            minute=10,
            kind="evaluation",
            of=lora.uuid,
            scores=make_scores("lora", 1, ("gsm8k",)),
        ),
    ]
    return suite, Contents(tuple(records), ("quick.jsonl line 12: is cut off; it is passed over",))


def golden() -> tuple[Suite, Contents]:
    """The same with a run of another version of the suite, for the golden files."""
    suite, contents = mixed()
    older = make_record("lisa", suite=suite, seed=2, minute=-5, spec={"suite_version": 2})
    records = [record.model_copy(update={"items": record.uuid}) for record in (older, *contents.records)]
    return suite, Contents(tuple(records), contents.warnings)


def quickstart() -> tuple[Suite, Contents]:
    """A report as the quickstart makes it: six labels, eight tasks, one seed, on a CPU, with items."""
    suite = make_suite(name="quickstart", models=("smollm2-135m",))
    records = []
    for minute, label in enumerate(suite.labels):
        record = make_record(label, suite=suite, model="smollm2-135m", minute=minute)
        scores = make_scores(label, 1, n=6)
        record = record.model_copy(update={"scores": scores, "items": record.uuid})
        records.append(record if label == "base" else with_memory(record))
    return suite, Contents(tuple(records))


def read_items(contents: Contents) -> Any:
    """Return what reads the items of records that are named by their uuid: the first ones of each task are right."""
    files = {
        record.uuid: {
            (score.task, score.metric): {
                (score.task, i, ""): float(i < round(score.value * score.n)) for i in range(score.n)
            }
            for score in record.scores
        }
        for record in contents.records
    }
    return files.get
