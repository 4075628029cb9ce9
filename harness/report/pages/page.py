"""The content of a report: the tables of a summary with what a reader needs to take them for what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.calibration_log import Log
from harness.report.pages import groups
from harness.report.pages import mt_bench as judging
from harness.report.pages.calibration import calibration_blocks
from harness.report.pages.costs import definition, shown_quantities
from harness.report.pages.document import (
    Block,
    Bullets,
    Definitions,
    Document,
    Heading,
    Paragraph,
    PlotBlock,
    Prose,
    TableBlock,
    Text,
    file_stem,
)
from harness.report.pages.losses import DEFINITIONS as LOSSES_DEFINITIONS
from harness.report.pages.losses import found_losses, losses_blocks
from harness.report.pages.outcome import outcome_sentences
from harness.report.pages.pairs import DEFINITIONS as PAIR_DEFINITIONS
from harness.report.pages.pairs import found_pairs, told_apart_blocks
from harness.report.pages.proofs import proof_blocks
from harness.report.pages.tables import (
    AVERAGE_DEFINITION,
    common_settings,
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
from harness.report.plots.shown import DRAWN
from harness.report.reading.items import ReadItems
from harness.report.reading.proofs import failing_rows
from harness.report.reading.remarks import remark_sentences
from harness.report.reading.summary import Summary
from harness.report.reading.words import BUSY, REMARKED, TUNED, UNPROVEN, is_busy
from harness.report.statistics.intervals import LEVEL
from harness.report.units import percent

OUTCOME_TITLE = "What came out"
MISSING_TITLE = "Runs without a result"
SCORE_DEFINITIONS = (
    (
        "score",
        "The mean accuracy in % with its interval in brackets; n, the number of items (of all tasks in an average), "
        "stands in the heading where all labels have the same. Another metric than `acc` is named in the heading; a "
        "score in points is shown as it is.",
    ),
    (
        "interval",
        f"At the level {percent(LEVEL)}%. One seed: Wilson's for one task (Wilson 1927); normal for the average, from "
        "the binomial variances of the tasks: they cover the choice of items, not the seed. Several seeds: the same "
        "with the variances of items and seeds, from the outcomes item by item, as between two labels: it covers "
        "both, and is left out where the outcomes are not at hand or the seeds answered other items. Two labels are "
        "scored on the same items, so whether their intervals overlap is no test between them.",
    ),
    (
        "average",
        f"{AVERAGE_DEFINITION} Where tasks have `acc_norm`, accuracy by log-likelihood a character, a second mean "
        "takes it for these tasks and `acc` for the others; the first is the headline.",
    ),
)
BUSY_DEFINITION = (
    f"{BUSY} behind a label",
    "Others used the device when one of its runs began, so peaks of the device and times may be off.",
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
    pairs = {} if read_items is None else found_pairs(summary, read_items)
    losses = found_losses(summary)
    blocks: list[Block] = [Heading(1, f"Report of suite {suite.name}, version {view.suite_version}")]
    blocks += [Paragraph(suite.description), Heading(2, OUTCOME_TITLE)]
    blocks += [Bullets(tuple(outcome_sentences(summary, pairs, losses))), Heading(2, "Results"), *_results(summary)]
    blocks += told_apart_blocks(summary, pairs)
    blocks += losses_blocks(summary, losses)
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
    blocks += proof_blocks(summary)
    blocks += [Heading(2, "How to read the tables"), _definitions(summary, told_apart=bool(pairs), losses=bool(losses))]
    blocks += [Heading(2, "Protocol"), *_protocol(summary), Heading(2, "Environment")]
    records = [run.record for row in summary.rows for run in row.runs if run.record is not None]
    blocks.append(Paragraph(f"Environment {view.environment_id}."))
    blocks.append(TableBlock(environment_table(view.environment, records)))
    return tuple(blocks)


def _definitions(summary: Summary, *, told_apart: bool, losses: bool) -> Definitions:
    """Return what the words of the tables mean, in the order of the tables."""
    found = [*judging.DEFINITIONS] if judging.judges_of(summary) else []
    found += groups.DEFINITIONS if groups.groups_of(summary) else ()
    found += SCORE_DEFINITIONS if summary.columns else ()
    found += [*map(definition, shown_quantities(summary.rows, "table")), BUSY_DEFINITION]
    found += PAIR_DEFINITIONS if told_apart else ()
    found += LOSSES_DEFINITIONS if losses else ()
    return Definitions(tuple((term, Prose(text)) for term, text in found))


def _results(summary: Summary) -> list[Block]:
    blocks: list[Block] = []
    taken: list[str] = []
    for model in summary.models:
        blocks.append(Heading(3, summary.heading(model)))
        rows = summary.rows_of(model)
        if not summary.has_records(model):
            runs = sum(len(row.runs) for row in rows)
            blocks.append(Paragraph(f"Not run: none of its {runs} runs has a record yet."))
            continue
        stem, reasons = file_stem(model, taken), tuple(map(row_reasons, rows))
        taken.append(stem)
        if summary.columns:
            caption = "Scores: mean in %, [95% interval]; n: items."
            blocks.append(TableBlock(score_table(summary, model), caption, f"{stem}-scores", reasons))
        for group in groups.groups_of(summary):
            caption = f"{group.task} by task: mean in %, [95% interval]; n: items."
            blocks.append(TableBlock(groups.subtask_table(summary, model, group), caption))
        for judge in judging.judges_of(summary):
            means, categories = judging.judge_tables(summary, model, judge)
            caption = f"MT-Bench, judged by {judge}: points, [95% interval]; n: judgments."
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
    if not summary.view.environment.on_cuda:
        notes.append("These runs had no CUDA device: no GPU memory was measured, and none is shown.")
    if any(row.spec.model.get("source") == "random" for row in summary.rows if row.spec is not None):
        notes.append("The models have random weights: memory and speed are theirs, losses say nothing of a method.")
    if (tuned := tuning_note(summary)) is not None:
        notes.append(tuned)
    busy = dict.fromkeys(row.label for row in summary.rows if is_busy(row))
    if busy:
        notes.append(f"{BUSY} The device was not idle when runs of these labels began: {', '.join(busy)}.")
    if failing := dict.fromkeys(row.label for row in failing_rows(summary)):
        notes.append(f"{UNPROVEN} The proof of a run of these labels fails: {', '.join(failing)}.")
    return notes + [f"{REMARKED} {sentence}" for sentence in remark_sentences(summary)]


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
        notes.append("Nothing is marked as best: the order of the averages is no test between labels.")
    return notes + list(summary.notes)


def _plots(plots: Mapping[str, Sequence[Path]]) -> list[Block]:
    if not plots:
        return [Paragraph("No run has a result to plot.")]
    return [PlotBlock(DRAWN[name].title, tuple(files), DRAWN[name].caption) for name, files in plots.items()]


def _protocol(summary: Summary) -> list[Block]:
    view = summary.view
    bench = view.evaluation.mt_bench
    unused = {name for name in ("mt_bench", "subtasks", "metrics") if getattr(view.evaluation, name) is None}
    asked = view.evaluation.model_dump(mode="json", exclude=unused)
    evaluation = settings_text(asked) if view.evaluation.tasks or bench else "none"
    training = settings_text(common_training(summary))
    records = [run.record for row in summary.rows for run in row.runs if run.record is not None]
    specs = [row.spec for row in summary.rows if row.spec is not None]
    sources = dict.fromkeys(f"{role}: {name}" for spec in specs for role, name in spec.sources.items())
    first, last = min(r.started_at for r in records), max(r.finished_at for r in records)
    shared = common_settings(summary)
    entries: list[tuple[str, Text]] = [
        ("protocol", f"{view.protocol}; what another protocol measured does not compare with it."),
        *(("model", f"{name}.") for name in dict.fromkeys(_model_text(spec.model) for spec in specs)),
        ("evaluation", f"{evaluation}."),
        *dict.fromkeys(
            (
                f"conversation template of {record.model_name}",
                f"in training and in generation: {answers.template} ({answers.template_origin}).",
            )
            for record in records
            if (answers := record.mt_bench) is not None
        ),
        ("training, the same for every label", f"{training}."),
        *([("settings, the same for every label that has them", f"{settings_text(shared)}.")] if shared else []),
        ("bound on steps", "none." if view.max_steps is None else f"at most {view.max_steps} optimizer steps."),
        ("data", f"{', '.join(sorted(sources))}."),
        ("run", f"from {first.isoformat(timespec='seconds')} to {last.isoformat(timespec='seconds')}."),
    ]
    return [Definitions(tuple(entries)), TableBlock(label_table(summary))]


def _model_text(model: Mapping[str, str | None]) -> str:
    rest = {key: value for key, value in model.items() if key != "name"}
    return f"{model['name']}: {settings_text(rest)}"
