"""The line that says how a run ended: with what it measured, and nothing that it did not."""

from __future__ import annotations

from harness import quantities
from harness.readings import headline_scores, ran_on_cuda, run_peak_bytes, seconds_taken, step_curve
from harness.record import Record
from harness.report.statistics.intervals import mean_value
from harness.report.units import gib, percent


def result_line(record: Record) -> str:
    """Return how a run ended, in what time and why; of a result also its losses, its peak and its average."""
    status, reason = record.ending
    parts = [f"{status} in {duration(seconds_taken(record))}"]
    if record.is_ok:
        parts += [part for part in (_loss(record), _peak(record), _average(record)) if part]
    return ", ".join(parts) + (f": {reason}" if reason else "")


def duration(seconds: float) -> str:
    """Return a time in the unit in which a person reads it."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if (whole := round(seconds)) < 100:
        return f"{whole} s"
    if (minutes := round(seconds / 60)) < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def _loss(record: Record) -> str:
    """Return the held-out loss before and after; where none was held out, the training loss of first and last step."""
    after = quantities.HELD_OUT_LOSS.read(record)
    if after is not None:
        before = quantities.HELD_OUT_BEFORE.read(record)
        return f"loss {after:.2f}" if before is None else f"loss {before:.2f} -> {after:.2f}"
    curve = step_curve(record)
    if curve is None or not curve.loss:
        return ""
    return f"training loss {curve.loss[0]:.2f} -> {curve.loss[-1]:.2f}"


def _peak(record: Record) -> str:
    """Return the peak memory on CUDA, elsewhere the tracked peak, which is said to be one."""
    if ran_on_cuda(record):
        peak = run_peak_bytes(record)
        return "" if peak is None else f"peak {gib(peak)} GiB"
    tracked = quantities.TRACKED_PEAK.read(record)
    return "" if tracked is None else f"peak {gib(tracked)} GiB (tracked)"


def _average(record: Record) -> str:
    """Return the mean of the scores that enter an average; of one alone its task, of unlike units nothing."""
    scores = headline_scores(record)
    if len({score.is_fraction for score in scores}) != 1:
        return ""
    name = "average" if len(scores) > 1 else scores[0].task
    mean = mean_value(scores)
    return f"{name} {percent(mean) if scores[0].is_fraction else f'{mean:.2f}'}"
