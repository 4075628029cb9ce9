"""The page and the plot of ``known_importance.py``, made from its results: no figure is typed in.

Intervals are Student's over seeds at 95 %, differences are paired by seed (same teacher, student, rows), and p-values
of a disturbance's differences are adjusted by Holm's method, by the harness's own statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.report.plots.style import COLORS, LINES, MARKERS, common_style, save_as
from harness.report.statistics.family import holm
from harness.report.statistics.intervals import t_interval

BASE = "uniform"
COLOURS, SHAPES = (*COLORS, "#8B4513"), (*MARKERS, "*")
LEVEL = 0.05
Run = Mapping[str, Any]
Cells = dict[tuple[str, str], list[Run]]
"""Runs by arm and kind of disturbance, one a seed, in the order of seeds; refused ones are left out."""

TEMPLATE = Path(__file__).with_name("known_importance_page.md")
"""The page's words, with the names of what is filled in."""


def write_page(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``known-importance.md`` and ``known-importance.png`` into a folder."""
    (folder / "known-importance.md").write_text(page(results), encoding="utf-8")
    write_plot(results, folder / "known-importance.png")


def page(results: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    kinds, arms, cells = _laid_out(results)
    laws = [arm for arm in arms if not _knows(results)[arm]]
    seeds = {run["seed"] for run in results["runs"]}
    chance = results["settings"]["planted"] / results["settings"]["blocks"]
    return TEMPLATE.read_text(encoding="utf-8").format(
        **results["settings"],
        num_seeds=len(seeds),
        num_arms=len(laws) - 1,
        chance=chance,
        base=BASE,
        level=LEVEL,
        truth=_table("disturbance", kinds, _truth(cells)),
        mass=_table("drawn by", laws, {kind: _share(cells, kind, mass) for kind in kinds}),
        auc=_table("drawn by", laws, {kind: _plain(cells, kind, auc) for kind in kinds}),
        recovered=_table("drawn by", arms, {kind: _share(cells, kind, recovered) for kind in kinds}),
        differences=_table("drawn by", [arm for arm in arms if arm != BASE], _differences(cells, kinds, laws)),
        words="\n".join(f"- {_sentence(cells, kind, laws)}" for kind in kinds),
    )


def mass(run: Run) -> float:
    """Return the probability of the planted blocks in the first draw, of all."""
    return float(sum(run["probabilities"][block] for block in run["planted"]))


def auc(run: Run) -> float:
    """Return the share of pairs of a planted and another block in which the planted is the likelier, ties halved."""
    p, planted = run["probabilities"], set(run["planted"])
    pairs = [(p[one], p[other]) for one in planted for other in range(len(p)) if other not in planted]
    return sum((one > other) + 0.5 * (one == other) for one, other in pairs) / len(pairs)


def last_loss(run: Run) -> float:
    """Return the held-out loss at the end, in nats."""
    return float(run["losses"][max(run["losses"], key=int)])


def recovered(run: Run) -> float:
    """Return the share of the way from the first held-out loss to the teacher's."""
    return _recovered(run, last_loss(run))


def _recovered(run: Run, loss: float) -> float:
    first = run["losses"]["0"]
    return float((first - loss) / (first - run["floor"]))


def _laid_out(results: Mapping[str, Any]) -> tuple[list[str], list[str], Cells]:
    cells: Cells = {}
    for run in results["runs"]:
        if "losses" in run:
            cells.setdefault((run["arm"], run["kind"]), []).append(run)
    kinds = list(dict.fromkeys(run["kind"] for run in results["runs"]))
    return kinds, [arm["name"] for arm in results["arms"]], cells


def _knows(results: Mapping[str, Any]) -> dict[str, bool]:
    return {arm["name"]: arm["knows"] for arm in results["arms"]}


def paired(cells: Cells, arm: str, base: str, kind: str) -> list[float]:
    """Return the differences of two arms' last losses, one a seed that both have."""
    of_base = {run["seed"]: last_loss(run) for run in cells.get((base, kind), [])}
    return [last_loss(run) - of_base[run["seed"]] for run in cells.get((arm, kind), []) if run["seed"] in of_base]


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's test that a mean difference is 0."""
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _interval(values: Sequence[float], text: Callable[[float], str], most: float | None = None) -> str:
    """Return mean and interval; of values from 0 to ``most`` it is cut there. None of values that are all alike."""
    if len(set(values)) < 2:
        return "–" if not values else text(values[0])
    low, high = t_interval(values)
    if most is not None:
        low, high = max(low, 0.0), min(high, most)
    return f"{text(fmean(values))} [{text(low)}, {text(high)}]"


def _share(cells: Cells, kind: str, of: Callable[[Run], float]) -> Callable[[str], str]:
    most = 100.0 if of is mass else None
    return lambda arm: (
        _interval([100.0 * of(run) for run in cells.get((arm, kind), [])], lambda x: f"{x:.0f}", most) + " %"
    )


def _plain(cells: Cells, kind: str, of: Callable[[Run], float]) -> Callable[[str], str]:
    return lambda arm: _interval([of(run) for run in cells.get((arm, kind), [])], lambda x: f"{x:.2f}", 1.0)


def _truth(cells: Cells) -> dict[str, Callable[[str], str]]:
    def mean_of(arm: str, of: Callable[[Run], float]) -> Callable[[str], str]:
        return lambda kind: f"{fmean(of(run) for run in cells[arm, kind]):.3f}"

    known, others = "planted blocks only", "other blocks only"
    return {
        "teacher": mean_of(known, lambda run: run["floor"]),
        "student, before": mean_of(known, lambda run: run["losses"]["0"]),
        "planted blocks trained": mean_of(known, last_loss),
        "as many others trained": mean_of(others, last_loss),
        "planted less others": lambda kind: _interval(paired(cells, known, others, kind), lambda x: f"{x:+.3f}"),
    }


def _differences(cells: Cells, kinds: Sequence[str], laws: Sequence[str]) -> dict[str, Callable[[str], str]]:
    found = {kind: adjusted(cells, kind, laws) for kind in kinds}

    def cell(kind: str) -> Callable[[str], str]:
        def text(arm: str) -> str:
            told = _interval(paired(cells, arm, BASE, kind), lambda x: f"{x:+.3f}")
            return f"**{told}**" if found[kind].get(arm, 1.0) <= LEVEL else told

        return text

    return {kind: cell(kind) for kind in kinds}


def adjusted(cells: Cells, kind: str, laws: Sequence[str]) -> dict[str, float]:
    """Return Holm's p-value of each law's difference from uniform under a disturbance."""
    differences = {law: paired(cells, law, BASE, kind) for law in laws if law != BASE}
    compared = [law for law, values in differences.items() if len(values) > 1]
    return dict(zip(compared, holm([p_value(differences[law]) for law in compared]), strict=True))


def _sentence(cells: Cells, kind: str, laws: Sequence[str]) -> str:
    """Return what the tables say of a disturbance."""
    finds, avoids = [], []
    for law in laws:
        values = [auc(run) for run in cells.get((law, kind), [])]
        low, high = t_interval(values) if len(values) > 1 else (0.0, 1.0)
        if low > 0.5:
            finds.append(law)
        elif high < 0.5:
            avoids.append(law)
    p = adjusted(cells, kind, laws)
    told = {law: fmean(paired(cells, law, BASE, kind)) for law, value in p.items() if value <= LEVEL}
    better = [law for law, value in told.items() if value < 0.0]
    worse = [law for law, value in told.items() if value > 0.0]
    return (
        f"`{kind}`: planted blocks are found (AUC above 0.5 with its interval) by {_names(finds)}, avoided by "
        f"{_names(avoids)}; told apart from `{BASE}` by the loss: better {_names(better)}, worse {_names(worse)}."
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _table(first: str, rows: Sequence[str], columns: Mapping[str, Callable[[str], str]]) -> str:
    lines = [f"| {first} | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    lines += [f"| {row} | " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def write_plot(results: Mapping[str, Any], file: Path) -> None:
    """Draw, for each disturbance, the planted blocks' probability under each law above, held-out loss below."""
    from matplotlib.figure import Figure

    kinds, arms, cells = _laid_out(results)
    laws = [arm for arm in arms if not _knows(results)[arm]]
    chance = results["settings"]["planted"] / results["settings"]["blocks"]
    with common_style():
        figure = Figure(figsize=(2.4 * len(kinds) + 0.6, 5.6), layout="constrained")
        rows = figure.subplots(2, len(kinds), sharey="row", squeeze=False)
        for column, kind in enumerate(kinds):
            above, below = rows[0][column], rows[1][column]
            above.set_title(kind)
            above.axvline(chance, color="#6B6B6B", linestyle=":", linewidth=1.0)
            for place, law in enumerate(laws):
                values = [mass(run) for run in cells.get((law, kind), [])]
                color, marker = COLOURS[place % len(COLOURS)], SHAPES[place % len(SHAPES)]
                above.plot(values, [place] * len(values), marker, color=color, markersize=3, alpha=0.35)
                if values:
                    above.plot([fmean(values)], [place], marker, color=color, markersize=6)
            above.set_yticks(range(len(laws)), laws)
            above.set_xlim(-0.02, 1.02)
            above.set_xlabel("probability of planted blocks")
            for place, arm in enumerate(arms):
                runs = cells.get((arm, kind), [])
                steps = sorted({int(step) for run in runs for step in run["losses"]})
                means = [fmean(_recovered(run, run["losses"][str(step)]) for run in runs) for step in steps]
                style = LINES[0] if arm in laws else LINES[1]
                color = COLOURS[place % len(COLOURS)] if arm in laws else ("#6B6B6B", "#B0B0B0", "#000000")[place % 3]
                below.plot(
                    steps, means, style, color=color, marker=SHAPES[place % len(SHAPES)], markersize=3, label=arm
                )
            below.set_xlabel("optimizer steps")
        rows[0][0].invert_yaxis()
        rows[1][0].set_ylabel("share of the loss recovered, mean")
        lines = rows[1][0].get_lines()
        figure.legend(lines, [str(line.get_label()) for line in lines], loc="outside lower center", ncols=4)
        save_as(figure, file)
