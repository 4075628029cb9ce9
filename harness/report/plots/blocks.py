"""The plot of layer sampling: which blocks were trained at which step, and the probabilities they were drawn with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from math import ceil
from textwrap import fill
from typing import TYPE_CHECKING

from harness.readings import steps_done
from harness.record import Record
from harness.record_training import TrainResult
from harness.report.plots.panels import CHAR_INCHES, LINE_INCHES, PANELS_ACROSS, finish, width_of
from harness.report.plots.style import GREY, LABEL_LIMIT, LabelStyle
from harness.report.reading.summary import Row, Summary
from harness.report.reading.words import row_status
from harness.report.table import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_HEIGHT = 1.55
RATIOS = (4, 1)
"""Widths of the steps and of the probabilities beside them."""
MOST_SPANS = 4000
"""Rectangles of one panel above which they become pixels in SVG and PDF too, so that the files stay small."""
MOST_GAPS = 40
"""Bars above which no space is left between them: it would be less than a pixel."""
CAPTION = (
    "Filled: the block was trained at this step. Bars beside it: the probability with which the method drew the block "
    "in one draw, from its block scores where it uses some; where it changed in training, a map of it over the same "
    "steps in their place, darker the likelier. A tour and methods without draws have none. One seed. "
    "Labels that train every block at every step have no panel and are named below."
)


def block_figure(summary: Summary, styles: Mapping[str, LabelStyle]) -> Figure | None:
    """Return a panel for every label that trains, or None where no run says which blocks it trained."""
    from matplotlib.figure import Figure

    shown = {(row.model, row.label): record for row in summary.rows if (record := _first_record(row)) is not None}
    drawn = {model for model, _ in shown}
    whole = [place for place, record in shown.items() if trains_all_blocks(record)]
    cells = [
        row
        for row in summary.rows
        if row.model in drawn and row.trains is not False and (row.model, row.label) not in whole
    ]
    if len(whole) == len(shown):
        return None  # every panel would be of one colour
    across = min(PANELS_ACROSS, len(cells))
    down = ceil(len(cells) / across)
    figure = Figure(figsize=(width_of(across), PANEL_HEIGHT * down), layout="constrained")
    grid = figure.add_gridspec(down, 2 * across, width_ratios=RATIOS * across)
    for i, row in enumerate(cells):
        record = shown.get((row.model, row.label))
        title = _cell_name(styles[row.label].name, row.model, drawn)
        down_at, across_at = i // across, 2 * (i % across)
        shares = None if record is None else draw_probabilities(record)
        changing = None if record is None else changing_probabilities(record)
        alone = shares is None and changing is None
        raster = figure.add_subplot(grid[down_at, across_at : across_at + (2 if alone else 1)])
        raster.set_title(one_line(title, LABEL_LIMIT))
        if record is None:
            _say_absent(raster, row)
            continue
        _draw_raster(raster, styles[row.label], record)
        if not alone:
            beside = figure.add_subplot(grid[down_at, across_at + 1], sharey=raster)
            if shares is not None:
                _draw_shares(beside, styles[row.label], shares)
            elif changing is not None:
                _draw_changes(beside, styles[row.label], changing, steps_done(record))
        raster.set_ylabel("decoder block" if i % across == 0 else "")
        raster.set_xlabel("optimizer step" if i + across >= len(cells) else "")
    if whole:
        _say_left_out(figure, [_cell_name(styles[label].name, model, drawn) for model, label in whole])
    finish(figure, f"Decoder blocks trained at each optimizer step{_seed_words(list(shown.values()))}", [])
    return figure


def _cell_name(name: str, model: str, drawn: Collection[str]) -> str:
    return name if len(drawn) == 1 else f"{name}, {one_line(model, 24)}"


def _say_left_out(figure: Figure, names: Sequence[str]) -> None:
    """Say below the panels which labels have none, because they trained every block at every step."""
    width, height = figure.get_size_inches()
    said = fill(f"every block at every step, so not drawn: {', '.join(names)}", int(width / CHAR_INCHES))
    text = figure.supxlabel(said, x=0.01, ha="left", fontsize=7.0, color=GREY)
    text.set_parse_math(False)
    figure.set_size_inches(width, height + LINE_INCHES * (said.count("\n") + 1))


def trains_all_blocks(record: Record) -> bool:
    """Return whether a run trained every decoder block at every step."""
    train = record.train
    assert train is not None
    spans = trained_spans(train)
    return len(spans) == train.num_blocks and all(found == [(0, train.num_steps)] for found in spans.values())


def _first_record(row: Row) -> Record | None:
    return next((record for record in row.records if record.train and record.train.block_activity), None)


def _say_absent(axis: Axes, row: Row) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    words = row_status(row) or "blocks not recorded"
    axis.text(0.5, 0.5, words, ha="center", va="center", color=GREY, transform=axis.transAxes)


def _draw_raster(axis: Axes, style: LabelStyle, record: Record) -> None:
    draw_spans(axis, record, style.color)
    axis.set_xlim(0, max(1, steps_done(record)))
    axis.locator_params(axis="both", integer=True, nbins=6)
    if not axis.collections[0].get_paths():
        axis.text(0.5, 0.5, "no block was trained", ha="center", va="center", color=GREY, transform=axis.transAxes)


def _draw_shares(axis: Axes, style: LabelStyle, shares: Sequence[float]) -> None:
    axis.barh(range(len(shares)), shares, 0.8 if len(shares) <= MOST_GAPS else 1.0, color=style.color)
    axis.set_title("probability", fontsize=6.5)
    axis.tick_params(labelleft=False, left=False)
    axis.grid(visible=False, axis="y")
    most = max(shares)
    axis.set_xlim(0, 1.1 * most)
    axis.set_xticks([0, most], ["0", f"{most:.2g}"])


def _draw_changes(
    axis: Axes, style: LabelStyle, changing: Sequence[tuple[int, Sequence[float]]], num_steps: int
) -> None:
    """Draw the probability of every block at every step, from white at 0 to the label's colour at the largest."""
    from matplotlib.colors import LinearSegmentedColormap

    most = max(max(shares) for _, shares in changing)
    end = max(num_steps, changing[-1][0] + 1)
    edges = [*(step for step, _ in changing), end]
    by_block = list(zip(*(shares for _, shares in changing), strict=True))
    rows = [block - 0.5 for block in range(len(by_block) + 1)]
    colors = LinearSegmentedColormap.from_list("probability", ["white", style.color])
    axis.pcolormesh(edges, rows, by_block, cmap=colors, vmin=0.0, vmax=most, rasterized=True)
    axis.set_title(f"probability\nto {most:.2g}", fontsize=6.5)  # in one line it reaches into the next panel
    axis.tick_params(labelleft=False, left=False)
    axis.grid(visible=False)
    axis.set_xlim(0, end)
    axis.set_xticks([0, end])


def draw_probabilities(record: Record) -> list[float] | None:
    """Return the probability of one draw by block as the method recorded it; None where it drew from none."""
    method = {} if record.proof is None else record.proof.method
    shares = method.get("probabilities")
    assert record.train is not None
    if method.get("probability") == "ignored" or "probability_history" in method:  # no one probability of a draw
        return None
    if not isinstance(shares, list) or len(shares) != record.train.num_blocks:
        return None
    known = [float(share) for share in shares if isinstance(share, int | float)]
    return known if len(known) == len(shares) and max(known) > 0 else None


def changing_probabilities(record: Record) -> list[tuple[int, list[float]]] | None:
    """Return the probabilities by block from each step on at which they changed; None where they did not."""
    history = None if record.proof is None else record.proof.method.get("probability_history")
    assert record.train is not None
    if not isinstance(history, list):
        return None
    found: dict[int, list[float]] = {}
    for entry in history:
        step, shares = (entry.get("step"), entry.get("probabilities")) if isinstance(entry, dict) else (None, None)
        if not isinstance(step, int) or not isinstance(shares, list) or len(shares) != record.train.num_blocks:
            return None
        known = [float(share) for share in shares if isinstance(share, int | float)]
        if len(known) != len(shares) or not max(known) > 0.0:
            return None
        found[step] = known  # of several at one step the last was drawn from
    return sorted(found.items()) or None


def draw_spans(axis: Axes, record: Record, color: str, shift: float = 0.0) -> None:
    """Draw a rectangle for every span in which a block was trained, ``shift`` to the right of its first step."""
    from matplotlib.collections import PolyCollection

    train = record.train
    assert train is not None
    corners = [
        [(left, block - 0.5), (left, block + 0.5), (left + length, block + 0.5), (left + length, block - 0.5)]
        for block, spans in trained_spans(train).items()
        for left, length in ((start + shift, length) for start, length in spans)
    ]
    rectangles = PolyCollection(corners, facecolors=color, edgecolors="none", linewidths=0)
    if len(corners) > MOST_SPANS:
        rectangles.set_rasterized(True)
        rectangles.set_snap(False)  # spans thinner than a pixel are paler, not left out
    axis.add_collection(rectangles)
    axis.set_ylim(-0.5, max(1, train.num_blocks) - 0.5)
    axis.grid(visible=False)


def trained_spans(train: TrainResult) -> dict[int, list[tuple[int, int]]]:
    """Return for each block that was ever trained the spans (first step, number of steps) in which it was."""
    activity = sorted(train.block_activity, key=lambda entry: entry.step)
    ends = [entry.step for entry in activity[1:]] + [train.num_steps]
    spans: dict[int, list[tuple[int, int]]] = {}
    for entry, end in zip(activity, ends, strict=True):
        if end <= entry.step:
            continue
        for block in entry.blocks:
            known = spans.setdefault(block, [])
            if known and sum(known[-1]) == entry.step:
                known[-1] = (known[-1][0], end - known[-1][0])
            else:
                known.append((entry.step, end - entry.step))
    return dict(sorted(spans.items()))


def _seed_words(records: Sequence[Record]) -> str:
    seeds = [seed for seed, _ in groupby(sorted(record.seed for record in records))]
    return f" (seed {seeds[0]})" if len(seeds) == 1 else " (first seed with a result)"
