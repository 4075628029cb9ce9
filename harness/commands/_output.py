"""What the commands print: plain tables, warnings, progress. Plain lines when the output is no terminal."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Task as Bar
from rich.progress import TimeRemainingColumn as _TimeRemaining
from rich.text import Text

from harness.commands._result_line import result_line
from harness.commands._time_left import TimeLeft
from harness.errors import HarnessError
from harness.printable import printable
from harness.progress import throttled
from harness.record import Record, Score
from harness.redaction import redacted
from harness.remarks import remarks_of
from harness.report.fitted import ENTRIES, NARROWEST, Line, alignment, fitted, wrapped_prose
from harness.report.plots.style import FORMATS
from harness.report.table import Column
from harness.stand_ins import mark_of
from harness.task import RunTask

PIPE_WIDTH = 120
"""Columns of a table when the output is no terminal and COLUMNS is not set."""
WIDEST, HEIGHT = 1000, 25
LINE_SECONDS = 10.0
"""Between two lines about one download when the output is no terminal."""
SHORT = 60
"""Characters of a sentence that is said again."""


class _Console(Console):
    """A console that leaves it to the command line what a reader that has left means."""

    def on_broken_pipe(self) -> None:
        """Raise on, where rich would exit with 1."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """Return a console; one that is no terminal is plain, and as wide as COLUMNS says or else wide."""
    stream = sys.stderr if stderr else sys.stdout
    asked = os.environ.get("COLUMNS", "")
    width: int | None = None
    if asked.isascii() and asked.isdigit() and int(asked[:9]) > 0:
        width = min(max(int(asked[:9]), NARROWEST), WIDEST)
    elif not stream.isatty():
        width = PIPE_WIDTH
    height = None if width is None else HEIGHT  # without one rich takes 80 columns for a terminal that it calls dumb
    return _Console(file=stream, width=width, height=height, highlight=False, soft_wrap=False, force_jupyter=False)


def print_table(rows: Sequence[Mapping[str, str]], *, keys: int = 1, title: str | None = None) -> None:
    """Print rows with the same keys as a table, in further tables below it where the terminal is narrow.

    Args:
        rows: Texts by the names of their columns. A column without any entry is left out.
        keys: How many of the first columns name a row: they stand in every one of the tables.
        title: Stands above each.
    """
    if not rows:
        print("none")
        return
    cells = [[printable(str(value)) for value in row.values()] for row in rows]
    columns = [
        Column(printable(name).replace("_", " "), alignment(row[i] for row in cells)) for i, name in enumerate(rows[0])
    ]
    out = console()
    print_lines(out, fitted(columns, cells, out.width, keys=keys, title=title))


def print_named(rows: Sequence[Mapping[str, str]], naming: Collection[str]) -> None:
    """Print rows that several columns name, below a sentence with what all of them have alike.

    Args:
        rows: With the same keys.
        naming: The columns that may name a row; those that do stand first.
    """
    shared = [key for key in (rows[0] if len(rows) > 1 else ()) if len({row[key] for row in rows}) == 1]
    if said := [f"{key} {rows[0][key]}" for key in shared if rows[0][key] not in ENTRIES]:
        note(f"of all rows: {'; '.join(said)}")
        print()
    kept = [{key: text for key, text in row.items() if key not in shared} for row in rows]
    if kept and not kept[0]:
        kept = [dict(row) for row in rows]
    keys = [key for key in (kept[0] if kept else ()) if key in naming]
    ordered = [{key: row[key] for key in (*keys, *(key for key in row if key not in keys))} for row in kept]
    print_table(ordered, keys=max(1, len(keys)))


def print_lines(out: Console, lines: Iterable[Line]) -> None:
    """Print lines as they are: wider than the terminal is only what holds one word."""
    for line in lines:
        out.print(Text(line.text, style="bold" if line.heading else ""), soft_wrap=True)


def note(sentence: str) -> None:
    """Print a sentence that stands below a table: on a terminal wrapped between words, else on one line."""
    text, out = printable(redacted(sentence)), console()
    for line in wrapped_prose(text, out.width) if out.is_terminal else [text]:
        out.print(Text(line), soft_wrap=True)


def warn(sentences: Iterable[str]) -> None:
    """Print warnings, one a line, on standard error."""
    for sentence in sentences:
        print(printable(redacted(f"harness: warning: {sentence}")), file=sys.stderr)


def say(text: str) -> None:
    """Print a line in which files, models or judges may have had a say."""
    print(printable(redacted(text)))


def plot_file(option: str, text: str) -> Path:
    """Return the file that an option names for a plot.

    Raises:
        HarnessError: its ending is none of a plot, or its folder does not exist.
    """
    file = Path(text).expanduser()
    if file.suffix.lower() not in FORMATS:
        raise HarnessError(f"{option} {text}: expected a file that ends in {' or '.join(FORMATS)}")
    if not file.parent.is_dir():
        raise HarnessError(f"{option} {text}: there is no folder '{file.parent}'")
    return file


def score_row(score: Score) -> dict[str, str]:
    """Return a score as a row of a table."""
    return {
        "task": score.task,
        "metric": score.metric,
        "value": score.text,
        "stderr": "" if score.stderr is None else f"{score.stderr:.4f}",
        "n": str(score.n),
        "shots": "" if score.num_fewshot is None else str(score.num_fewshot),
    }


def say_score(score: Score) -> None:
    """Print a score in a line."""
    say(f"{score.title}: {score.text} (n = {score.n})")


class _Left(_TimeRemaining):
    """The time that is left: of runs what is known of their kind, of all else what its own speed says."""

    def __init__(self, runs: TimeLeft | None) -> None:
        super().__init__()
        self._runs = runs

    def render(self, task: Bar) -> Text:
        """Return the text of one bar."""
        if not task.fields.get("of_runs"):
            return super().render(task)
        left = None if self._runs is None else self._runs.text()
        return Text(left or "", style="progress.remaining")


class Display:
    """Shows on standard error how runs or downloads go: bars in a terminal, else a line for each thing that ends."""

    def __init__(self, num_runs: int | None = None, *, tasks: Sequence[RunTask] = ()) -> None:
        """Take how many runs there are, or which; None: it is about something else."""
        self._console = console(stderr=True)
        self._bars: Progress | None = None
        self._inner: TaskID | None = None
        self._outer: TaskID | None = None
        self._num_runs = len(tasks) if num_runs is None and tasks else num_runs
        self._left = TimeLeft(task.spec for task in tasks) if tasks else None
        self._done = 0
        self._seldom = throttled(self._said, LINE_SECONDS, ends=False)
        self._title = ""
        self._said_before: Counter[str] = Counter()

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                _Left(self._left),
                console=self._console,
                transient=True,
            )
            if self._num_runs is not None:
                self._outer = self._bars.add_task("runs", total=self._num_runs, of_runs=True)
            self._inner = self._bars.add_task("starting", total=None)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def run_begins(self, task: RunTask) -> None:
        """Say which run starts."""
        self._title = printable(task.spec.run_name + mark_of((task.spec,)))
        if self._left is not None:
            self._left.begins(task.uuid, task.spec)
        if self._bars is None:
            left = None if self._left is None else self._left.text()
            self._line(f"{self._counter()} {self._title}: started{f', {left}' if left else ''}")
        self.progress("starting", 0, None)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Show what goes on inside a run or a download."""
        what = printable(redacted(what))
        if self._bars is not None and self._inner is not None:
            title = f"{self._title}: {what}" if self._title else what
            if total is None:  # rich keeps a bar's old total when it is given none
                self._bars.remove_task(self._inner)
                self._inner = self._bars.add_task(title, total=None)
            self._bars.update(self._inner, description=title, completed=done, total=total)
            return
        if self._num_runs is None:
            self._seldom(what, done, total)

    def run_ended(self, record: Record) -> None:
        """Say how a run ended."""
        how, (_, reason) = result_line(record), record.ending
        if reason:
            how = how.removesuffix(reason) + self._once(reason)
        if self._left is not None:
            self._left.ended(record)
        self._line(f"{self._counter()} {record.name}: {how}")
        for note in (*record.notes, *(remark.sentence for remark in remarks_of(record))):
            self._line(f"note: {self._once(note)}")
        self._done += 1
        if self._bars is not None and self._outer is not None:
            self._bars.update(self._outer, completed=self._done)

    def waits(self, num_runs: int) -> None:
        """Say that only other processes' runs are left."""
        self._line(f"waiting for {num_runs} run{'s' * (num_runs != 1)} that other processes are doing")

    def _said(self, what: str, done: int, total: int | None) -> None:
        self._line(what if total is None else f"{what}: {done} of {total}")

    def _once(self, sentence: str) -> str:
        """Return a sentence, shortened with a count where it was said before and is long."""
        self._said_before[sentence] += 1
        if (times := self._said_before[sentence]) == 1 or len(sentence) <= SHORT:
            return sentence
        return f"{sentence[:SHORT].rstrip()} … (as above; {times} times by now)"

    def _counter(self) -> str:
        return f"[{self._done + 1}/{self._num_runs}]"

    def _line(self, text: str) -> None:
        text = printable(redacted(text))
        if self._bars is not None:
            self._bars.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)
