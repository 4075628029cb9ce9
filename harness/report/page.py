"""The content of a report: the tables of a summary with what a reader needs to take them for what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.calibration_log import Log
from harness.report import groups, judging
from harness.report.calibration import calibration_blocks
from harness.report.comparisons import ReadItems, comparison_blocks
from harness.report.document import (
    Block,
    Bullets,
    Document,
    Heading,
    Paragraph,
    PlotBlock,
    Prose,
    TableBlock,
    file_stem,
)
from harness.report.plots import DRAWN
from harness.report.statistics import LEVEL
from harness.report.summary import Summary
from harness.report.tables import (
    common_training,
    cost_table,
    environment_table,
    label_table,
    missing_table,
    row_reasons,
    score_table,
    settings_text,
    tuning_table,
)
from harness.report.units import NOTHING, percent
from harness.report.words import BUSY, TUNED, is_busy

MISSING_TITLE = "Runs without a result"
SCORE_DEFINITIONS = (
    "A score cell holds the mean accuracy in %, its interval in brackets and n, the number of items (of all tasks "
    "in an average). Another metric than `acc` is named in the heading; a score in points is shown as it is.",
    f"Intervals are at the level {percent(LEVEL)}%. One seed: Wilson's for one task (Wilson 1927); normal for the "
    "average, from the binomial variances of the tasks: they cover the choice of items, not the seed. Several seeds: "
    "Student's t over the seeds: it covers the seed, not the choice of items, and has no width where all seeds agree. "
    "Two labels are scored on the same items, so whether their intervals overlap is no test between them.",
    "average: unweighted mean of the headline metrics of the suite's tasks. Where tasks have `acc_norm`, accuracy by "
    "log-likelihood a character, a second mean takes it for these tasks and `acc` for the others; the first is the "
    "headline.",
)
DEFINITIONS = (
    "peak memory: `torch.cuda.max_memory_allocated` over the whole train phase, no reset after warm-up, largest over "
    "the seeds, GiB = 2^30 bytes. Without CUDA it is not measured.",
    "tracked peak: the largest sum of live storages on the run's device, CUDA or CPU, that a tracker saw in the run's "
    "first steps, largest over the seeds. A storage that an operation makes and frees inside itself is not in it. A "
    f"{NOTHING} stands where no step was tracked: the record is older than the tracker.",
    "predicted peak: what `harness plan` says of the run from its settings and shapes alone, largest over the seeds. A "
    f"{NOTHING} stands where the run has no prediction; `harness show` says why.",
    "predicted against measured: predicted peak less measured peak in % of the measured one, of the run that is "
    "farthest from zero. Measured is the peak memory on CUDA and the tracked peak on a CPU. A "
    f"{NOTHING} stands where either is missing or the prediction is for another kind of device.",
    f"{BUSY} behind a label: others used the device when one of its runs began, so peaks of the device and times may "
    "be off.",
    "host peak RSS: largest resident set of the run's process up to the end of training, loading of the model "
    "included, largest over the seeds. It is main memory, not GPU memory, and holds the libraries too.",
    "step time: synchronised seconds of an optimizer step after the warm-up steps, resampling and projector refreshes "
    "included, loading of data left out; mean over the seeds. A `*` marks a run shorter than one refresh cycle.",
    "operations a step: floating-point operations that a step of the method needs by the prediction, a multiply-add "
    "being two, attention counted without regard to the causal mask, what checkpointing computes again and projector "
    "refreshes left out; scaled by the tokens there were.",
    "MFU: those operations a second over the device's stated dense peak for the dtype of the weights (`harness list "
    f"devices`); a {NOTHING} where the device's peak is not known.",
    "tokens a second: mean tokens of a step, padding left out, over the mean step time.",
    "trainable parameters a step: parameters that required a gradient, mean over the steps; ever: those that did at "
    "any step. In brackets the share of all parameters.",
    "optimizer state, peak: largest size of the optimizer's state after a step, in GiB, largest over the seeds.",
    "held-out loss: mean cross-entropy in nats on one fixed batch that is not trained on, before and after training.",
    "general text loss: the same on a fixed text that no label is trained on; where it rises, training has cost the "
    "model something else. It is there where the suite names such a text.",
)


def report_document(
    summary: Summary,
    plots: Mapping[str, Sequence[Path]],
    read_items: ReadItems | None = None,
    calibration: Log | None = None,
) -> Document:
    """Return what every page of a report holds.

    Args:
        summary: What to report.
        plots: Files of each plot by name.
        read_items: Where labels are compared item by item; None leaves that out.
        calibration: What was asked of devices beside runs; those parts stand on the page that are of its suite and
            environment.
    """
    suite, view = summary.suite, summary.view
    blocks: list[Block] = [Heading(1, f"Report of suite {suite.name}, version {view.suite_version}")]
    blocks += [Paragraph(suite.description), Heading(2, "Results"), *_results(summary)]
    if read_items is not None:
        blocks += comparison_blocks(summary, read_items)
    if calibration is not None:
        blocks += calibration_blocks(summary, calibration)
    blocks += [Heading(2, "Notes"), Bullets(tuple(all_notes(summary)))]
    tuning = tuning_table(summary)
    if tuning is not None:
        blocks += [
            Heading(2, "Learning rates"),
            TableBlock(tuning, "Mean held-out loss of the trials in nats."),
        ]
    blocks += [Heading(2, "Plots"), *_plots(plots)]
    missing = missing_table(summary)
    blocks.append(Heading(2, MISSING_TITLE))
    blocks.append(Paragraph("Every run has one.") if missing is None else TableBlock(missing))
    definitions = (*SCORE_DEFINITIONS, *DEFINITIONS) if summary.columns else DEFINITIONS
    if groups.groups_of(summary):
        definitions = (*groups.DEFINITIONS, *definitions)
    if judging.judges_of(summary):
        definitions = (*judging.DEFINITIONS, *definitions)
    blocks += [Heading(2, "How to read the tables"), Bullets(tuple(map(Prose, definitions)))]
    blocks += [Heading(2, "Protocol"), *_protocol(summary), Heading(2, "Environment")]
    records = [run.record for row in summary.rows for run in row.runs if run.record is not None]
    blocks.append(Paragraph(f"Environment {view.environment_id}."))
    blocks.append(TableBlock(environment_table(view.environment, records)))
    return tuple(blocks)


def _results(summary: Summary) -> list[Block]:
    blocks: list[Block] = []
    taken: list[str] = []
    for model in summary.models:
        blocks.append(Heading(3, model))
        rows = summary.rows_of(model)
        if not summary.has_records(model):
            runs = sum(len(row.runs) for row in rows)
            blocks.append(Paragraph(f"Not run: none of its {runs} runs has a record yet."))
            continue
        stem, reasons = file_stem(model, taken), tuple(map(row_reasons, rows))
        taken.append(stem)
        if summary.columns:
            caption = "Scores: mean in %, [95% interval], (n = items)."
            blocks.append(TableBlock(score_table(summary, model), caption, f"{stem}-scores", reasons))
        for group in groups.groups_of(summary):
            caption = f"{group.task} by task: mean in %, [95% interval], (n = items)."
            blocks.append(TableBlock(groups.subtask_table(summary, model, group), caption))
        for judge in judging.judges_of(summary):
            means, categories = judging.judge_tables(summary, model, judge)
            caption = f"MT-Bench, judged by {judge}: points, [95% interval], (n = judgments)."
            blocks += [TableBlock(means, caption, reasons=reasons), TableBlock(categories, reasons=reasons)]
        blocks.append(TableBlock(cost_table(summary, model), "Cost.", f"{stem}-cost", reasons))
    return blocks


def result_notes(summary: Summary) -> list[str]:
    """Return the sentences that must stand with the tables wherever they are shown."""
    notes = list(summary.suite.notes)
    if (sentence := judging.not_judged_sentence(summary)) is not None:
        notes.append(sentence)
    if len(judging.judges_of(summary)) > 1:
        notes.append("Each judge has tables of its own: scores of different judges do not compare.")
    if not summary.suite.ranking:
        notes.append("The suite is no ranking: nothing is marked as best.")
    if summary.view.environment.device_type != "cuda":
        notes.append("These runs had no CUDA device: no GPU memory was measured, and none is shown.")
    if any(run.record.spec.model.get("source") == "random" for row in summary.rows for run in row.runs if run.record):
        notes.append("The models have random weights: memory and speed are theirs, losses say nothing of a method.")
    if (tuned := tuning_note(summary)) is not None:
        notes.append(tuned)
    busy = dict.fromkeys(row.label for row in summary.rows if is_busy(row))
    if busy:
        notes.append(f"{BUSY} The device was not idle when runs of these labels began: {', '.join(busy)}.")
    return notes


def tuning_note(summary: Summary) -> str | None:
    """Return how the learning rates of marked labels were chosen, and of which labels not; None: none was."""
    tuned = [row for row in summary.rows if row.choice is not None]
    if not tuned or summary.grid is None:
        return None
    rates, seeds = len(summary.grid.learning_rates), len(summary.grid.seeds)
    others = dict.fromkeys(row.label for row in summary.rows if row.choice is None and row.trains)
    return (
        f"{TUNED} The learning rate of these labels was chosen by harness tune, from the same {rates} rates with "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} each, by the held-out loss and no scored item; the trials are "
        f"records of suite {summary.suite.name}-tune, named in {summary.suite.tuned}."
        + (f" Not tuned: {', '.join(others)}." if others else "")
    )


def all_notes(summary: Summary) -> list[str]:
    """Return the notes of a page: those, and what was left out of the tables."""
    notes = result_notes(summary)
    if summary.suite.ranking and summary.columns:
        notes.append("Nothing is marked as best: this report makes no tests between labels.")
    return notes + list(summary.notes)


def _plots(plots: Mapping[str, Sequence[Path]]) -> list[Block]:
    if not plots:
        return [Paragraph("No run has a result to plot.")]
    return [PlotBlock(DRAWN[name].title, tuple(files), DRAWN[name].caption) for name, files in plots.items()]


def _protocol(summary: Summary) -> list[Block]:
    view = summary.view
    bench = view.evaluation.mt_bench
    unused = {name for name in ("mt_bench", "subtasks") if getattr(view.evaluation, name) is None}
    asked = view.evaluation.model_dump(mode="json", exclude=unused)
    evaluation = settings_text(asked) if view.evaluation.tasks or bench else "none"
    training = settings_text(common_training(summary))
    records = [run.record for row in summary.rows for run in row.runs if run.record is not None]
    sources = dict.fromkeys(f"{role}: {name}" for record in records for role, name in record.spec.sources.items())
    first, last = min(r.started_at for r in records), max(r.finished_at for r in records)
    lines = [
        f"Protocol {view.protocol}; what another protocol measured does not compare with it.",
        *(f"Model {name}." for name in dict.fromkeys(_model_text(record.spec.model) for record in records)),
        f"Evaluation: {evaluation}.",
        *dict.fromkeys(
            f"Conversation template of {record.spec.model_name}, in training and in generation: "
            f"{answers.template} ({answers.template_origin})."
            for record in records
            if (answers := record.mt_bench) is not None
        ),
        f"Training, the same for every label: {training}.",
        f"At most {view.max_steps} optimizer steps." if view.max_steps is not None else "No bound on optimizer steps.",
        f"Data: {', '.join(sorted(sources))}.",
        f"Run from {first.isoformat(timespec='seconds')} to {last.isoformat(timespec='seconds')}.",
    ]
    return [Bullets(tuple(lines)), TableBlock(label_table(summary))]


def _model_text(model: Mapping[str, str | None]) -> str:
    rest = {key: value for key, value in model.items() if key != "name"}
    return f"{model['name']}: {settings_text(rest)}"
