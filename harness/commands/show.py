"""``harness show``: the newest record of a run, readable, or whole as JSON; and drawn over its steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from harness import quantities
from harness.commands._find import find_records
from harness.commands._output import console, plot_file, print_table, score_row
from harness.printable import as_json, printable
from harness.proof import judge_record
from harness.quantity import Quantity
from harness.readings import (
    held_out_curve,
    how_it_ended,
    live_parts,
    live_peak_place,
    predicted_parts,
    ran_on_cuda,
    run_peak_bytes,
    seconds_taken,
    step_peak,
    tracked_steps,
)
from harness.record import Record
from harness.record_training import MemoryBreakdown, OutOfMemoryAt, Phase
from harness.remarks import remarks_of
from harness.remarks_scoring import judging_remarks
from harness.report.units import NOTHING, gib, percent, scaled, with_unit
from harness.stand_ins import mark_of


def show(run: str, *, results: Path, suite: str | None = None, in_json: bool = False, plot: str | None = None) -> int:
    """Print the newest record of a run, and draw it where that is asked."""
    file = None if plot is None else plot_file("--plot", plot)
    records = find_records(results, run, suite)
    record = records[-1]
    if file is not None:
        from harness.report.plots.timeline import write_timeline

        write_timeline(record, file)
    if in_json:
        print(as_json({**json.loads(record.model_dump_json()), **_derived(record)}))
        return 0
    print_table([{"what": what, "value": value} for what, value in _facts(record, len(records))])
    if record.phases:
        print()
        print_table([_phase_row(phase) for phase in record.phases])
    if record.scores:
        print()
        print_table([score_row(score) for score in record.scores])
    if record.log_tail:
        console().print(Text(printable(f"\n{record.log_tail}")))
    return 0


def _facts(record: Record, num_records: int) -> list[tuple[str, str]]:
    spec, environment = record.spec, record.environment
    facts = [
        ("run", record.name),
        ("run id", f"{record.run_id} ({num_records} record{'s' if num_records > 1 else ''}, the newest is shown)"),
        ("suite", f"{spec.suite} version {spec.suite_version}, protocol {spec.protocol}"),
        ("model", ", ".join(f"{key} {value}" for key, value in spec.model.items() if value)),
        *([("in its place", mark.strip(" ()"))] if (mark := mark_of((spec,))) else []),
        ("label", f"{spec.label} (method {spec.method}), seed {spec.seed}"),
        ("status", how_it_ended(record)),
        ("started", record.started_at.isoformat(timespec="seconds")),
        ("took", f"{seconds_taken(record):.1f} s"),
        ("device", f"{environment.devices}, {environment.num_threads} threads{' each' * (environment.num_ranks > 1)}"),
        *([("device not idle", environment.device_busy)] if environment.device_busy else []),
        ("settings", ", ".join(f"{key}={value}" for key, value in spec.config.items())),
    ]
    if spec.train is not None:
        train = spec.train.model_dump(exclude_none=True)
        facts.append(("training", ", ".join(f"{key}={value}" for key, value in train.items())))
    if record.train is not None:
        facts += [*_train_facts(record), *_row_facts(record)]
    facts += [*_proof_facts(record), *_quantity_facts(record), *_memory_facts(record)]
    facts += [("note", note) for note in record.notes]
    facts += [("note", f"{remark.kind}: {remark.sentence}") for remark in remarks_of(record)]
    facts += _mt_bench_facts(record)
    for name, value in (("items", record.items), ("weights", record.weights)):
        if value is not None:
            facts.append((name, value))
    return facts


def _derived(record: Record) -> dict[str, Any]:
    """Return what follows from a record as it is read now."""
    remarks = [{"kind": remark.kind, "sentence": remark.sentence} for remark in remarks_of(record)]
    return {"judgement": _judgement(record), "remarks": remarks}


def _judgement(record: Record) -> dict[str, Any] | None:
    """Return what the proof shows as it is judged now; None where nothing was trained to an end."""
    judgement = judge_record(record)
    if judgement is None:
        return None
    checks = [{"name": one.name, "verdict": one.verdict, "sentence": one.sentence} for one in judgement.checks]
    return {"sentence": judgement.sentence(), "checks": checks}


def _proof_facts(record: Record) -> list[tuple[str, str]]:
    """Return the judgement, and each check that fails or could not be judged."""
    judgement = judge_record(record)
    if judgement is None:
        return []
    others = [check for check in judgement.checks if check.verdict != "passed"]
    return [
        *_adapter_facts(record),
        ("proof", judgement.summary()),
        *((f"proof, {check.name}", f"{check.verdict}: {check.sentence}") for check in others),
    ]


def _adapter_facts(record: Record) -> list[tuple[str, str]]:
    """Return how many layers called what have an adapter, where the record lists it."""
    adapters = (record.proof.method if record.proof else {}).get("adapters")
    wrapped = adapters.get("wrapped") if isinstance(adapters, dict) else None
    if not isinstance(wrapped, dict):
        return []
    return [("adapters", ", ".join(f"{number} {name}" for name, number in wrapped.items())), *_rate_facts(record)]


def _rate_facts(record: Record) -> list[tuple[str, str]]:
    """Return the largest learning rate that each group of parameters had, where groups have rates of their own."""
    steps = () if record.train is None else record.train.curve.group_learning_rates
    if not steps:
        return []
    named = (record.proof.method if record.proof else {}).get("learning_rates")
    names = list(named) if isinstance(named, dict) and len(named) == len(steps[0]) else range(1, len(steps[0]) + 1)
    largest = [max(rates) for rates in zip(*steps, strict=True)]
    return [("learning rates", ", ".join(f"{name} {rate:g}" for name, rate in zip(names, largest, strict=True)))]


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
        facts += [("judging", sentence) for sentence in judging_remarks(judging)]
        if judging.sent:
            facts.append(("asked with", "; ".join(json.dumps(fields) for fields in judging.sent)))
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
        ("blocks ever trainable", f"{len(visited)} of {train.num_blocks}: {', '.join(map(str, visited))}"),
    ]
    if len(curve := held_out_curve(train)) > 2:
        facts.append(("held-out loss by steps", ", ".join(f"{step}: {value:.4f}" for step, value in curve.items())))
    return facts


def _row_facts(record: Record) -> list[tuple[str, str]]:
    """Return what became of the rows of the training data."""
    rows = record.rows
    if rows is None or rows.num_rows is None:
        return []
    told = [f"{rows.num_rows} to train on"]
    if rows.num_held_out_rows:
        prompts = f" (of {rows.num_held_out_prompts} of {rows.num_prompts} prompts)" if rows.num_prompts else ""
        told.append(f"{rows.num_held_out_rows} held out{prompts}")
    told += [f"{rows.num_blank_rows} blank"] * bool(rows.num_blank_rows)
    told += [f"{rows.num_repeated_rows} that repeat another"] * bool(rows.num_repeated_rows)
    return [("rows", ", ".join(told))]


def _quantity_facts(record: Record) -> list[tuple[str, str]]:
    """Return every quantity that the run has, with what else is known of it."""
    facts = []
    for quantity in quantities.ALL:
        value = quantity.read(record)
        if value is None or "show" not in quantity.shown.places:
            continue
        text = with_unit(value, quantity.unit)
        if quantity.before is not None and (before := quantity.before.read(record)) is not None:
            text = f"{with_unit(before, quantity.before.unit)} before, {text} after"
        if quantity.shown.whole is not None and (whole := quantity.shown.whole(record)):
            text += f" of {with_unit(whole, quantity.unit)} ({percent(value / whole)}%)"
        facts.append((quantity.title, text + (DETAILS[quantity](record) if quantity in DETAILS else "")))
    return facts


def _timed_steps(record: Record) -> str:
    assert record.train is not None
    return f" over {record.train.num_timed_steps} steps after the warm-up"


def _place_of_peak(record: Record) -> str:
    peak = step_peak(record)
    if peak is None or peak.size != run_peak_bytes(record):
        return ""
    return f" in step {peak.at_step}, moment {peak.during} (CUDA, every step)"


def _measured_peak(record: Record) -> Quantity:
    return quantities.PEAK_MEMORY if ran_on_cuda(record) else quantities.TRACKED_PEAK


def _place_tracked(record: Record) -> str:
    place = live_peak_place(record)
    assert place is not None and record.train is not None
    steps = ", ".join(map(str, tracked_steps(record.train)))
    where = f"in step {place.at_step}, moment {place.during} (tracked: {steps})"
    return f" {where}: {_parts(live_parts(record))}"


def _place_predicted(record: Record) -> str:
    prediction = record.prediction
    assert prediction is not None
    assumed = f"for {prediction.device}, horizon {prediction.horizon}"
    where = f"in step {prediction.peak_step}, moment {prediction.peak_phase}"
    return f" {where} ({assumed}): {_parts(predicted_parts(record))}"


DETAILS: Mapping[Quantity, Callable[[Record], str]] = {
    quantities.PEAK_MEMORY: _place_of_peak,
    quantities.TRACKED_PEAK: _place_tracked,
    quantities.PREDICTED_PEAK: _place_predicted,
    quantities.PREDICTED_AGAINST_MEASURED: lambda record: f" of the {_measured_peak(record).title}",
    quantities.STEP_TIME: _timed_steps,
}
"""What is told of a quantity beside its value."""


def _memory_facts(record: Record) -> list[tuple[str, str]]:
    """Return why nothing was predicted of memory, and where it ran out."""
    facts = []
    if record.prediction is None and record.prediction_error is not None:
        facts.append((quantities.PREDICTED_PEAK.title, f"none: {record.prediction_error}"))
    if (out := record.out_of_memory_at) is not None:
        where = f"phase {out.phase}" + ("" if out.step is None else f", step {out.step}, moment {out.moment}")
        facts.append(("out of memory", ": ".join(text for text in (where, _parts(out)) if text)))
    return facts


def _parts(sizes: MemoryBreakdown | OutOfMemoryAt | None) -> str:
    """Return the known sizes of a breakdown, in the order of the record, in GiB."""
    named = [(name, value) for name, value in sizes or () if name.endswith("_bytes") and value is not None]
    return ", ".join(f"{name.removesuffix('_bytes').replace('_', ' ')} {gib(value)} GiB" for name, value in named)


def _phase_row(phase: Phase) -> dict[str, str]:
    """Return every figure of a phase under its name."""

    def shown(name: str, value: object) -> str:
        if value is None:
            return NOTHING
        if name.endswith("_bytes") and isinstance(value, int):
            return f"{scaled(value, 'bytes'):.3f} GiB"
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    return {name.removesuffix("_bytes").replace("_", " "): shown(name, value) for name, value in phase}
