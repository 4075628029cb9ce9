"""``harness show``: the newest record of a run, readable, or whole as JSON; and drawn over its steps."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from harness.commands._find import find_records
from harness.commands._output import console, plot_file, print_table
from harness.printable import printable, printable_json
from harness.record import MemoryBreakdown, OutOfMemoryAt, Record
from harness.report.quantities import prediction_difference
from harness.report.units import GIB, gib, signed_percent


def show(run_id: str, *, results: Path, in_json: bool = False, plot: str | None = None) -> int:
    """Print the newest record of a run, and draw it where that is asked."""
    file = None if plot is None else plot_file("--plot", plot)
    records = find_records(results, run_id)
    record = records[-1]
    if file is not None:
        from harness.report.timeline import write_timeline

        write_timeline(record, file)
    if in_json:
        print(printable_json(record.model_dump_json(indent=2)))
        return 0
    print_table([{"what": what, "value": value} for what, value in _facts(record, len(records))])
    if record.phases:
        print()
        print_table([_phase_row(phase.model_dump()) for phase in record.phases])
    if record.scores:
        print()
        print_table(
            [
                {
                    "task": score.task,
                    "metric": score.metric,
                    "value": f"{score.value:.4f}",
                    "stderr": "" if score.stderr is None else f"{score.stderr:.4f}",
                    "n": str(score.n),
                    "shots": "" if score.num_fewshot is None else str(score.num_fewshot),
                }
                for score in record.scores
            ]
        )
    if record.log_tail:
        console().print(Text(printable(f"\n{record.log_tail}")))
    return 0


def _facts(record: Record, num_records: int) -> list[tuple[str, str]]:
    spec, environment = record.spec, record.environment
    facts = [
        ("run", f"{record.run_id} ({num_records} record{'s' if num_records > 1 else ''}, the newest is shown)"),
        ("suite", f"{spec.suite} version {spec.suite_version}, protocol {spec.protocol}"),
        ("model", ", ".join(f"{key} {value}" for key, value in spec.model.items() if value)),
        ("label", f"{spec.label} (method {spec.method}), seed {spec.seed}"),
        ("status", record.status + (f": {record.reason}" if record.reason else "")),
        ("started", record.started_at.isoformat(timespec="seconds")),
        ("took", f"{(record.finished_at - record.started_at).total_seconds():.1f} s"),
        ("device", f"{environment.device_name}, {environment.num_threads} threads"),
        *([("device not idle", environment.device_busy)] if environment.device_busy else []),
        ("settings", ", ".join(f"{key}={value}" for key, value in spec.config.items())),
    ]
    if spec.train is not None:
        train = spec.train.model_dump(exclude_none=True)
        facts.append(("training", ", ".join(f"{key}={value}" for key, value in train.items())))
    if record.train is not None:
        facts += _train_facts(record)
    facts += _memory_facts(record)
    facts += _mt_bench_facts(record)
    for name, value in (("items", record.items), ("weights", record.weights)):
        if value is not None:
            facts.append((name, value))
    return facts


def _mt_bench_facts(record: Record) -> list[tuple[str, str]]:
    """Return what a run answered, or how a judge graded it."""
    facts = []
    if (answers := record.mt_bench) is not None:
        cut = f"{answers.num_cut} turns ended at the limit of tokens"
        facts.append(("MT-Bench answers", f"{answers.num_questions} questions, {cut}: {answers.file}"))
        facts.append(("conversation template", f"{answers.template} ({answers.template_origin})"))
    if (judging := record.judging) is not None:
        facts.append(("judge", f"{judging.identity}, at {judging.endpoint}"))
        facts.append(
            (
                "judgments",
                f"{judging.num_parsed} with a score, {judging.num_unparsed} without, {judging.num_missing} missing, of "
                f"{judging.num_asked}: {judging.file}",
            )
        )
        if judging.repeats > 1:
            facts.append(("mean of each repeat", ", ".join(f"{mean:.3f}" for mean in judging.repeat_means)))
    return facts


def _train_facts(record: Record) -> list[tuple[str, str]]:
    train = record.train
    assert train is not None
    visited = sorted({block for entry in train.block_activity for block in entry.blocks})
    loss = train.curve.loss
    losses = f", loss {loss[0]:.4f} at the first and {loss[-1]:.4f} at the last" if loss else ""
    facts = [
        ("steps", f"{train.num_steps}{losses}"),
        (
            "trainable parameters",
            f"{train.trainable_params_mean:,.0f} a step, {train.trainable_params_ever:,} ever, "
            f"of {train.total_params:,}",
        ),
        ("optimizer state", f"{train.peak_optimizer_state_bytes / GIB:.4f} GiB at its largest"),
        ("blocks ever trainable", f"{len(visited)} of {train.num_blocks}: {', '.join(map(str, visited))}"),
    ]
    if train.step_seconds_mean is not None and train.step_seconds_median is not None:
        updates = train.optimizer_seconds_mean
        share = "" if updates is None else f"; updates {updates:.3f} s of it ({updates / train.step_seconds_mean:.0%})"
        facts.append(
            (
                "step time",
                f"mean {train.step_seconds_mean:.3f} s, median {train.step_seconds_median:.3f} s over "
                f"{train.num_timed_steps} steps after the warm-up{share}",
            )
        )
    if train.validation_loss_before is not None and train.validation_loss_after is not None:
        facts.append(
            ("held-out loss", f"{train.validation_loss_before:.4f} before, {train.validation_loss_after:.4f} after")
        )
    if len(train.validation_steps) > 2:
        readings = zip(train.validation_steps, train.validation_losses, strict=True)
        facts.append(("held-out loss by steps", ", ".join(f"{step}: {value:.4f}" for step, value in readings)))
    if train.general_loss_before is not None and train.general_loss_after is not None:
        before, after = train.general_loss_before, train.general_loss_after
        facts.append(("general text loss", f"{before:.4f} before, {after:.4f} after, on {train.general_tokens} tokens"))
    return facts


def _memory_facts(record: Record) -> list[tuple[str, str]]:
    """Return what was measured and predicted of memory, and where it ran out."""
    facts = []
    train, prediction, out = record.train, record.prediction, record.out_of_memory_at
    if train is not None and train.curve.allocated_peak_bytes:
        peak = max(train.curve.allocated_peak_bytes)
        step = train.curve.allocated_peak_bytes.index(peak)
        moment = train.curve.peak_moments[step]
        facts.append(("allocated peak", f"{_gib(peak)} in step {step}, moment {moment} (CUDA, every step)"))
    if train is not None and (tracked := train.tracked_peak) is not None:
        steps = ", ".join(map(str, tracked.steps))
        where = f"in step {tracked.step}, moment {tracked.moment} (tracked: {steps})"
        facts.append(("tracked peak", f"{_gib(tracked.at_peak.total_bytes)} {where}: {_parts(tracked.at_peak)}"))
    if prediction is not None:
        where = f"in step {prediction.peak_step}, moment {prediction.peak_phase}"
        assumed = f"for {prediction.device}, horizon {prediction.horizon}"
        facts.append(
            ("predicted peak", f"{_gib(prediction.peak_bytes)} {where} ({assumed}): {_parts(prediction.at_peak)}")
        )
        difference = prediction_difference(record)
        if difference is not None:
            against = "allocated" if prediction.device == "cuda" else "tracked"
            facts.append(("predicted against measured", f"{signed_percent(difference)}% of the {against} peak"))
    elif record.prediction_error is not None:
        facts.append(("predicted peak", f"none: {record.prediction_error}"))
    if out is not None:
        where = f"phase {out.phase}" + ("" if out.step is None else f", step {out.step}, moment {out.moment}")
        facts.append(("out of memory", where + (f": {_parts(out)}" if out.weights_bytes is not None else "")))
    return facts


def _parts(sizes: MemoryBreakdown | OutOfMemoryAt) -> str:
    """Return the known sizes of a breakdown, in the order of the record, in GiB."""
    named = [(name, value) for name, value in sizes if name.endswith("_bytes") and value is not None]
    return ", ".join(f"{name.removesuffix('_bytes').replace('_', ' ')} {_gib(value)}" for name, value in named)


def _gib(value: int) -> str:
    return f"{gib(value)} GiB"


def _phase_row(phase: dict[str, object]) -> dict[str, str]:
    def shown(key: str) -> str:
        value = phase[key]
        return "not measured" if not isinstance(value, int) else f"{value / GIB:.3f} GiB"

    retries, every = phase["allocator_retries"], phase["device_sample_seconds"]

    return {
        "phase": str(phase["name"]),
        "seconds": f"{phase['seconds']:.2f}",
        "allocated peak": shown("allocated_peak_bytes"),
        "reserved peak": shown("reserved_peak_bytes"),
        "retries": "not measured" if retries is None else str(retries),
        "whole device": shown("device_peak_bytes") + ("" if every is None else f" (every {every} s)"),
        "host peak": shown("host_peak_bytes"),
    }
