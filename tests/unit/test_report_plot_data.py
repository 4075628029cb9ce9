"""What the plots of scores, losses, blocks and sweeps draw is what the records say."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness.catalogue.labels import load_labels
from harness.catalogue.tuned import Choice, Trial, Tuned
from harness.record import Proof, Record
from harness.record_training import BlockActivity
from harness.report.plots.blocks import block_figure, changing_probabilities, draw_probabilities
from harness.report.plots.loss import SECONDS, STEPS, TOKENS, loss_figure, mean_curve
from harness.report.plots.memory_against import memory_loss_figure, memory_score_figure, pareto_front
from harness.report.plots.names import shortened
from harness.report.plots.shown import DRAWN
from harness.report.plots.style import FORMATS, HATCHES, common_style, label_styles
from harness.report.plots.sweeps import _set_scale, sweep_figure, tuning_figure
from harness.report.plots.tasks import task_figure
from harness.report.reading.estimates import average_of_row, score_of_row
from harness.report.reading.summary import Summary, summarize
from harness.report.reading.sweeps import find_sweeps
from harness.store import Contents
from harness.suite import Suite

HERE = Path(__file__).parent
make = SimpleNamespace(**runpy.run_path(str(HERE / "fixtures_report" / "factory.py")))


def summary_of(suite: Suite, *records: Record, tuned: Tuned | None = None) -> Summary:
    return summarize(suite, Contents(records), tuned)


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def styles_of(summary: Summary) -> dict[str, Any]:
    return label_styles([row.label for row in summary.rows])


def line_called(axis: Axes, gid: str) -> np.ndarray:
    return np.array(next(line for line in axis.lines if line.get_gid() == gid).get_xydata())


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_every_point_that_no_other_beats(points: list[tuple[int, int]]) -> None:
    def beats(other: tuple[int, int], point: tuple[int, int]) -> bool:
        return other != point and other[0] <= point[0] and other[1] >= point[1]

    front = pareto_front(points)
    assert set(front) == {i for i, point in enumerate(points) if not any(beats(other, point) for other in points)}
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_points_of_memory_and_score_are_the_records_and_base_is_no_part_of_the_front() -> None:
    suite = make.make_suite(labels=("base", "full", "lora"), seeds=(1, 2))
    runs = [("base", 1), ("full", 1), ("full", 2), ("lora", 1), ("lora", 2)]
    records = []
    for i, (label, seed) in enumerate(runs):
        record = make.make_record(label, seed=seed, suite=suite, environment=make.CUDA, minute=i)
        phases = tuple(p.model_copy(update={"allocated_peak_bytes": (i + 1) * make.GIB}) for p in record.phases)
        records.append(record.model_copy(update={"phases": phases}))
    summary = summary_of(suite, *records)
    axis = drawn(memory_score_figure(summary, styles_of(summary))).axes[0]
    scores = {row.label: 100 * average_of_row(row, summary.columns)[0].mean for row in summary.rows}  # type: ignore[index]
    points = {bars.get_label(): tuple(bars.lines[0].get_xydata()[0]) for bars in axis.containers}
    assert points == {"full": pytest.approx((3.0, scores["full"])), "lora": pytest.approx((5.0, scores["lora"]))}
    whisker = axis.containers[0].lines[2][0].get_segments()[0]
    assert [tuple(end) for end in whisker] == [pytest.approx((x, scores["full"])) for x in (2.0, 3.0)]
    front = line_called(axis, "front")
    assert (3.0, pytest.approx(scores["full"])) in [tuple(point) for point in front]
    assert front[:, 0].max() == 5.0
    assert scores["base"] not in front[:, 1]


def with_loss(label: str, loss: float | None, *, grows: float = 1.0, seed: int = 1, predicted: bool = True) -> Any:
    """Return a run on a CPU whose predicted peak is ``grows`` times the tracked one."""
    record = make.with_memory(make.make_record(label, seed=seed, minute=seed), predicted=predicted)
    changes = {"train": record.train.model_copy(update={"validation_loss_after": loss})}
    if predicted:
        peak = int(grows * make.make_breakdown(label).total_bytes)
        changes["prediction"] = record.prediction.model_copy(update={"peak_bytes": peak})
    return record.model_copy(update=changes)


def test_points_of_memory_and_loss_are_the_records_and_less_loss_is_the_front() -> None:
    suite = make.make_suite(labels=("base", "full", "lora", "lisa"), seeds=(1, 2))
    losses = {
        ("full", 1): 2.0,
        ("full", 2): 2.2,
        ("lora", 1): 2.3,
        ("lora", 2): 2.5,
        ("lisa", 1): 2.9,
        ("lisa", 2): 2.7,
    }
    records = [with_loss(label, loss, seed=seed) for (label, seed), loss in losses.items()]
    summary = summary_of(suite, make.make_record("base"), *records)
    axis = drawn(memory_loss_figure(summary, styles_of(summary))).axes[0]
    points = {bars.get_label(): tuple(bars.lines[0].get_xydata()[0]) for bars in axis.containers}
    size = {label: make.make_breakdown(label).total_bytes / make.GIB for label in ("full", "lora", "lisa")}
    assert points == {
        "full": pytest.approx((size["full"], 2.1)),
        "lora": pytest.approx((size["lora"], 2.4)),
        "lisa": pytest.approx((size["lisa"], 2.8)),
    }
    assert axis.get_ylabel() == "held-out loss, nats" and "tracked peak" in axis.get_xlabel()
    front = [tuple(corner) for corner in line_called(axis, "front")]
    assert (pytest.approx(size["lora"]), pytest.approx(2.4)) in front
    assert all(up != pytest.approx(2.8) for _, up in front)  # more memory than lora, and a higher loss


def test_where_memory_grows_after_the_tracked_steps_every_label_stands_at_its_predicted_peak() -> None:
    suite = make.make_suite(labels=("full", "lisa"))
    summary = summary_of(suite, with_loss("full", 2.0), with_loss("lisa", 2.5, grows=1.5))
    for figure in (memory_loss_figure, memory_score_figure):
        axis = drawn(figure(summary, styles_of(summary))).axes[0]
        points = {bars.get_label(): bars.lines[0].get_xydata()[0][0] for bars in axis.containers}
        size = {label: make.make_breakdown(label).total_bytes / make.GIB for label in ("full", "lisa")}
        assert points == {"full": pytest.approx(size["full"]), "lisa": pytest.approx(1.5 * size["lisa"])}
        assert axis.get_xlabel().startswith("predicted peak of the whole run")
    lacks = summary_of(suite, with_loss("full", 2.0, predicted=False), with_loss("lisa", 2.5, grows=1.5))
    axis = drawn(memory_loss_figure(lacks, styles_of(lacks))).axes[0]
    assert "tracked peak" in axis.get_xlabel()  # of all labels the same


def test_a_loss_that_is_not_finite_is_no_point_and_is_named() -> None:
    suite = make.make_suite(labels=("full", "lora", "lisa"))
    summary = summary_of(suite, with_loss("full", 2.0), with_loss("lora", float("nan")), with_loss("lisa", 2.5))
    axis = drawn(memory_loss_figure(summary, styles_of(summary))).axes[0]
    assert {bars.get_label() for bars in axis.containers} == {"full", "lisa"}
    assert "no finite loss, or no peak: lora" in axis.get_xlabel()


def test_one_loss_is_compared_with_nothing() -> None:
    summary = summary_of(make.make_suite(labels=("full", "lora")), with_loss("full", 2.0), with_loss("lora", None))
    assert memory_loss_figure(summary, styles_of(summary)) is None


@pytest.mark.parametrize("seed", range(4))
def test_each_name_stands_once_beside_its_point_on_no_other_name_and_on_no_point(seed: int) -> None:
    labels = [*load_labels()][:13] + [f"lora[rank={seed},learning_rate=0.0003,alpha=1{i}]" for i in range(3)]
    suite = make.make_suite(labels=("base",))
    records = []
    draw = np.random.default_rng(seed)
    for i, label in enumerate(labels):
        record = make.make_record(label, suite=suite, environment=make.CUDA, minute=i)
        peak = int(make.GIB * draw.uniform(8, 18))
        phases = tuple(phase.model_copy(update={"allocated_peak_bytes": peak}) for phase in record.phases)
        records.append(record.model_copy(update={"phases": phases}))
    summary = summary_of(suite, *records)
    with common_style():
        figure = drawn(memory_score_figure(summary, styles_of(summary)))
        renderer = FigureCanvasAgg(figure).get_renderer()
        axis = figure.axes[0]
        names = {text.get_text(): text.get_window_extent(renderer) for text in axis.texts if text.get_gid() == "name"}
        places = [axis.transData.transform(bars.lines[0].get_xydata()[0]) for bars in axis.containers]
    assert set(names) == {shortened(label) for label in labels}
    assert len(names) == len(labels)
    boxes = list(names.values())
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(*place) for place in places)
        assert axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 + 1
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["Pareto front", "no training"]


@pytest.mark.parametrize(("steps", "smoothed"), [(1, False), (6, False), (44, False), (45, True), (90, True)])
def test_a_short_curve_is_drawn_as_it_was_measured(steps: int, smoothed: bool) -> None:
    train = make.make_train("lora", 1, num_steps=steps)
    record = make.make_record("lora").model_copy(update={"train": train})
    summary = summary_of(make.make_suite(labels=("lora",)), record)
    axis = drawn(loss_figure(summary, styles_of(summary), STEPS)).axes[0]
    (line,) = [line for line in axis.lines if line.get_label() == "lora"]
    assert np.array_equal(line.get_ydata(), train.curve.loss) != smoothed
    if steps == 90:
        assert line.get_ydata()[45] == pytest.approx(np.mean(train.curve.loss[42:49]))
    assert "From 45 steps on the line is a running mean over a fifteenth" in DRAWN["loss"].caption


def test_one_task_is_one_task() -> None:
    evaluation = make.EvaluationSettings(tasks=("boolq",), rows="packaged-scored", num_fewshot=0)
    suite = make.make_suite(labels=("lora",), evaluation=evaluation)
    summary = summary_of(suite, make.with_memory(make.make_record("lora", suite=suite)))
    assert drawn(memory_score_figure(summary, styles_of(summary))).axes[0].get_ylabel() == "average of 1 task, %"


def test_labels_that_train_every_block_have_no_panel_and_are_named() -> None:
    suite = make.make_suite(labels=("full", "lora", "lisa"))
    records = [make.make_record(label, suite=suite, minute=i) for i, label in enumerate(suite.labels)]
    summary = summary_of(suite, *records)
    figure = drawn(block_figure(summary, styles_of(summary)))
    assert [axis.get_title() for axis in figure.axes] == ["lisa"]
    assert figure.get_supxlabel() == "every block at every step, so not drawn: full, lora"
    assert block_figure(summary_of(suite, *records[:2]), styles_of(summary)) is None
    part = records[0].train.model_copy(update={"block_activity": (BlockActivity(step=1, blocks=tuple(range(12))),)})
    late = records[0].model_copy(update={"train": part})
    titles = [axis.get_title() for axis in drawn(block_figure(summary_of(suite, late), styles_of(summary))).axes]
    assert "full" in titles


def test_a_negative_value_has_a_minus() -> None:
    axis = Figure().subplots()
    _set_scale(axis, [-1.0, 0.5, 1e-5])
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["−1", "0.5", "1e−05"]


def test_failures_are_named_below_the_axis_of_every_model_with_records() -> None:
    suite = make.make_suite(models=("tiny", "large"), labels=("full", "lora"))
    records = [
        make.with_memory(make.make_record("full", suite=suite)),
        make.make_record("lora", suite=suite, status="failed", reason="x", minute=1),
        make.make_record("full", model="large", suite=suite, status="out_of_memory", reason="x", minute=2),
    ]
    summary = summary_of(suite, *records)
    for figure in (
        memory_score_figure(summary, styles_of(summary)),
        loss_figure(summary, styles_of(summary), STEPS),
    ):
        first, second = (axis.get_xlabel().splitlines() for axis in drawn(figure).axes)
        assert first[-1] == "failed: lora"
        assert second[-2:] == ["out of memory: full", "not run: lora"]


def test_bars_of_tasks_are_the_cells_of_the_score_table_and_failures_have_their_place() -> None:
    suite = make.make_suite(labels=("base", "full", "lora"))
    records = [
        make.make_record("base"),
        make.make_record("full", minute=1, status="out_of_memory", reason="x"),
        make.make_record("lora", minute=2),
    ]
    summary = summary_of(suite, *records)
    axis = drawn(task_figure(summary, styles_of(summary))).axes[0]
    bars = {c.get_label(): [bar.get_height() for bar in c] for c in axis.containers if hasattr(c, "patches")}
    for row in (summary.rows[0], summary.rows[2]):
        cells = [score_of_row(row, column) for column in summary.columns] + [average_of_row(row, summary.columns)]
        assert bars[row.label] == pytest.approx([100 * cell[0].mean for cell in cells if cell is not None])
    assert [text.get_text() for text in axis.texts] == ["out of memory"] * (len(make.TASKS) + 1)
    names = [text.get_text().replace("\n", "") for text in axis.get_xticklabels()]
    assert names == [*make.TASKS, "average of8 tasks"]


def test_many_labels_wrap_the_groups_into_rows_of_axes() -> None:
    labels = tuple(f"label{i}" for i in range(28))
    suite = make.make_suite(labels=labels)
    summary = summary_of(suite, *(make.make_record(label, suite=suite, minute=i) for i, label in enumerate(labels)))
    figure = drawn(task_figure(summary, styles_of(summary)))
    assert len(figure.axes) > 2
    assert sum(len(axis.get_xticks()) for axis in figure.axes) == len(make.TASKS) + 1
    assert len({(s.color, s.hatch) for s in styles_of(summary).values()}) == 28
    assert len(set(HATCHES)) == len(HATCHES)


def seeds_of(label: str, *seconds: float) -> list[Any]:
    """Return one training a number: so many seconds a step, one step more for each further seed."""
    found = []
    for i, each in enumerate(seconds):
        train = make.make_train(label, i, num_steps=10 + i)
        steps = len(train.curve.loss)
        curve = train.curve.model_copy(update={"seconds": (each,) * steps, "tokens": tuple(range(1, steps + 1))})
        found.append(train.model_copy(update={"curve": curve, "tracked_peak": make.make_tracked(label)}))
    return found


def test_a_loss_of_one_seed_stands_at_the_steps_tokens_and_seconds_so_far() -> None:
    (train,) = seeds_of("lora", 2.0)
    for progress, first, places in (
        (STEPS, 0, range(1, 11)),
        (TOKENS, 0, np.cumsum(range(1, 11))),
        (SECONDS, 3, range(2, 16, 2)),  # the tracked first three steps are left out
    ):
        x, loss = mean_curve([train], progress)
        assert x.tolist() == pytest.approx(list(places))
        assert loss.tolist() == list(train.curve.loss[first:])


def test_seeds_are_meaned_as_far_as_every_seed_went() -> None:
    quick, slow = seeds_of("lora", 1.0, 2.0)
    x, loss = mean_curve([quick, slow], STEPS)
    assert x.tolist() == list(range(1, 11))
    assert loss.tolist() == pytest.approx(np.mean([quick.curve.loss, slow.curve.loss[:10]], axis=0).tolist())
    x, loss = mean_curve([quick, slow], SECONDS)
    assert (x[0], x[-1]) == (2.0, 7.0)  # from the slow one's first step to the quick one's last
    assert loss[0] == pytest.approx((quick.curve.loss[4] + slow.curve.loss[3]) / 2)


def test_held_out_readings_stand_where_the_run_was_then() -> None:
    (train,) = seeds_of("lora", 2.0)
    train = train.model_copy(update={"validation_steps": (0, 2, 5, 10), "validation_losses": (4.0, 3.0, 2.0, 1.0)})
    record = make.make_record("lora").model_copy(update={"train": train})
    summary = summary_of(make.make_suite(labels=("lora",)), record)
    for progress, expected in (
        (STEPS, [[0, 4], [2, 3], [5, 2], [10, 1]]),
        (TOKENS, [[0, 4], [3, 3], [15, 2], [55, 1]]),
        (SECONDS, [[4, 2], [14, 1]]),  # steps 0 to 2 were tracked: what was read before has no second
    ):
        axis = drawn(loss_figure(summary, styles_of(summary), progress)).axes[0]
        assert line_called(axis, "held-out").tolist() == expected


def test_a_run_of_tracked_steps_alone_has_no_place_on_the_axis_of_seconds() -> None:
    train = make.make_train("lora", 1, num_steps=3).model_copy(update={"tracked_peak": make.make_tracked("lora")})
    short = make.make_record("lora").model_copy(update={"train": train})
    summary = summary_of(make.make_suite(labels=("lora", "full")), short, make.make_record("full", minute=1))
    axis = drawn(loss_figure(summary, styles_of(summary), SECONDS)).axes[0]
    assert axis.get_xlabel().splitlines()[-1] == "too few steps: lora"
    assert "lora" not in [line.get_label() for line in axis.lines]


@pytest.mark.parametrize(("sampling", "shown"), [("without_replacement", True), ("bernoulli", True), ("tour", False)])
def test_probabilities_stand_beside_the_blocks_they_drew(sampling: str, shown: bool) -> None:
    shares = [(i + 1) / 78 for i in range(12)]
    law = "outlier" if shown else "ignored"
    proof = Proof(method={"sampling": sampling, "probability": law, "probabilities": shares})
    record = make.make_record("owlore").model_copy(update={"proof": proof})
    summary = summary_of(make.make_suite(labels=("owlore", "full")), record, make.make_record("full", minute=1))
    axes = drawn(block_figure(summary, styles_of(summary))).axes
    bars = [axis for axis in axes if axis.get_title() == "probability"]
    assert len(bars) == shown
    assert [[patch.get_width() for patch in axis.patches] for axis in bars] == [shares] * shown
    assert all(axis.get_shared_y_axes().joined(axis, axes[0]) for axis in bars)


def test_probabilities_that_changed_are_a_map_over_the_steps() -> None:
    vectors = [[1 / 12] * 12, [(i + 1) / 78 for i in range(12)], [(12 - i) / 78 for i in range(12)]]
    history = [{"step": step, "probabilities": vector} for step, vector in zip((0, 0, 4), vectors, strict=True)]
    proof = Proof(method={"probability": "gradient_norm", "probabilities": vectors[-1], "probability_history": history})
    record = make.make_record("lisa").model_copy(update={"proof": proof})
    assert record.train is not None
    assert draw_probabilities(record) is None
    assert changing_probabilities(record) == [(0, vectors[1]), (4, vectors[2])]  # blocks were drawn by the later one
    summary = summary_of(make.make_suite(labels=("lisa", "full")), record, make.make_record("full", minute=1))
    raster, beside = drawn(block_figure(summary, styles_of(summary))).axes
    (mesh,) = beside.collections
    assert np.asarray(mesh.get_array()).tolist() == [list(pair) for pair in zip(*vectors[1:], strict=True)]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0.0, 12 / 78)
    corners = mesh.get_coordinates()
    assert corners[0, :, 0].tolist() == [0, 4, record.train.num_steps]
    assert corners[:, 0, 1].tolist() == [block - 0.5 for block in range(13)]
    assert beside.get_title() == "probability\nto 0.15"
    assert beside.get_shared_y_axes().joined(beside, raster)


@pytest.mark.parametrize("history", [None, 3, [], [3], [{"step": 0}], [{"step": 0, "probabilities": ["a"] * 12}]])
def test_a_history_that_is_none_is_not_drawn(history: Any) -> None:
    record = make.make_record("lisa").model_copy(update={"proof": Proof(method={"probability_history": history})})
    assert changing_probabilities(record) is None


def test_thousands_of_spans_become_pixels_in_vector_files_and_few_do_not() -> None:
    for periods, pixels in ((100, False), (5000, True)):
        activity = tuple(BlockActivity(step=step, blocks=(step % 12,)) for step in range(periods))
        train = make.make_train("lisa", 1).model_copy(update={"block_activity": activity, "num_steps": periods})
        record = make.make_record("lisa").model_copy(update={"train": train})
        summary = summary_of(make.make_suite(labels=("lisa",)), record)
        (rectangles,) = drawn(block_figure(summary, styles_of(summary))).axes[0].collections
        assert len(rectangles.get_paths()) == periods
        assert bool(rectangles.get_rasterized()) is pixels


def test_a_label_that_trains_no_block_says_so() -> None:
    train = make.make_train("lisa", 1).model_copy(update={"block_activity": (BlockActivity(step=0, blocks=()),)})
    record = make.make_record("lisa").model_copy(update={"train": train})
    summary = summary_of(make.make_suite(labels=("lisa",)), record)
    (axis,) = drawn(block_figure(summary, styles_of(summary))).axes
    assert [text.get_text() for text in axis.texts] == ["no block was trained"]


def swept(values: tuple[Any, ...], setting: str = "rank", **changes: Any) -> list[Record]:
    return [
        make.make_record(
            f"owlore[{setting}={value}]",
            minute=i,
            environment=make.CUDA,
            spec={"method": "owlore", "config": {"rank": 8, "gap": 200, "exact": False, setting: value} | changes},
        )
        for i, value in enumerate(values)
    ]


def test_three_labels_one_number_apart_are_a_sweep_and_its_values_rise() -> None:
    summary = summary_of(make.make_suite(labels=("owlore",)), *swept((128, 8, 32)))
    (sweep,) = find_sweeps(summary)
    assert (sweep.model, sweep.setting, sweep.name, sweep.values) == ("tiny", "rank", "owlore", (8.0, 32.0, 128.0))
    assert [row.label for row in sweep.rows] == ["owlore[rank=8]", "owlore[rank=32]", "owlore[rank=128]"]


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({8: "owlore[rank=8]", 32: "owlore[rank=32]", 128: "owlore[rank=128]"}, "owlore"),
        ({8: "mine[rank=8]", 32: "mine[rank=32]", 128: "mine[rank=128]"}, "mine"),
        ({8: "mine[gap=200,rank=8]", 32: "mine[gap=200,rank=32]", 128: "mine[gap=200,rank=128]"}, "mine[gap=200]"),
        (
            {8: "mine[exact=false,rank=8]", 32: "mine[exact=false,rank=32]", 128: "mine[exact=false,rank=128]"},
            "mine[exact=false]",
        ),
        ({8: "small", 32: "middle", 128: "large"}, "owlore"),
        ({8: "mine", 32: "mine[rank=32]", 128: "mine[rank=128]"}, "mine"),
        ({8: "my[rank=8] one", 32: "my[rank=32] one", 128: "my[rank=128] one"}, "owlore"),
    ],
    ids=["a label", "another label", "two settings told", "a switch told", "by hand", "a default", "no label of ours"],
)
def test_a_sweep_is_called_by_its_label_without_the_setting(labels: dict[int, str], name: str) -> None:
    records = [
        record.model_copy(update={"spec": record.spec.model_copy(update={"label": labels[rank]})})
        for rank, record in zip(labels, swept(tuple(labels)), strict=True)
    ]
    (sweep,) = find_sweeps(summary_of(make.make_suite(labels=("mine",)), *records))
    assert sweep.name == name


@pytest.mark.parametrize(
    "records",
    [
        swept((8, 16)),
        swept((8, 16, None)),
        swept((False, True, 2), "exact"),
        swept(("a", "b", "c"), "law"),
        [*swept((8, 16)), *swept((32,), gap=100)],
    ],
    ids=["two values", "not a number", "a switch", "words", "two settings apart"],
)
def test_other_labels_are_no_sweep(records: list[Record]) -> None:
    summary = summary_of(make.make_suite(labels=("owlore",)), *records)
    assert find_sweeps(summary) == []
    assert sweep_figure(summary, styles_of(summary)) is None


def test_a_sweep_is_drawn_from_the_records_on_a_log_axis_with_failures_crossed() -> None:
    records = swept((8, 32, 128))
    (largest,) = swept((512,))
    failed = {"status": "out_of_memory", "reason": "x", "train": None, "scores": (), "phases": ()}
    records.append(largest.model_copy(update=failed))
    summary = summary_of(make.make_suite(labels=("owlore",)), *records)
    score, loss, memory = drawn(sweep_figure(summary, styles_of(summary))).axes
    rows = find_sweeps(summary)[0].rows[:3]
    expected = {
        score: [100 * average_of_row(row, summary.columns)[0].mean for row in rows],  # type: ignore[index]
        loss: [row.records[0].train.validation_loss_after for row in rows],  # type: ignore[union-attr]
        memory: [row.records[0].phase("train").allocated_peak_bytes / make.GIB for row in rows],  # type: ignore[union-attr,operator]
    }
    for axis, values in expected.items():
        assert axis.get_xscale() == "log"
        assert axis.containers[0].lines[0].get_xydata().tolist() == [
            pytest.approx(pair) for pair in zip((8, 32, 128), values, strict=True)
        ]
        assert line_called(axis, "no result")[:, 0].tolist() == [512]
    assert score.get_xlabel() == "rank\nout of memory:\nowlore[rank=512]"


def test_tuning_is_drawn_as_the_mean_loss_of_the_trials_with_the_choice_ringed() -> None:
    trials = [
        Trial(learning_rate=rate, seed=seed, run_id="x", status="ok", validation_loss=loss + seed)
        for rate, loss in ((1e-5, 3.0), (1e-4, 2.0), (1e-3, 2.5))
        for seed in (0, 1)
    ]
    trials[-1] = trials[-1].model_copy(update={"status": "diverged", "validation_loss": None})
    choice = Choice(model="tiny", label="lora", learning_rate=1e-4, environment_id="x", trials=tuple(trials))
    grid = {"learning_rates": (1e-5, 1e-4, 1e-3), "seeds": (0, 1)}
    suite = make.make_suite(labels=("lora",), tune=grid, tuned="quick.tuned.toml")
    tuned = Tuned(suite="quick", suite_version=1, choices=(choice,))
    summary = summary_of(suite, make.make_record("lora"), tuned=tuned)
    axis = drawn(tuning_figure(summary, styles_of(summary))).axes[0]
    assert axis.containers[0].lines[0].get_xydata().tolist() == [[1e-5, 3.5], [1e-4, 2.5]]
    assert line_called(axis, "chosen").tolist() == [[1e-4, 2.5]]
    assert line_called(axis, "no result")[:, 0].tolist() == [1e-3]


DIGESTS = """
import hashlib, runpy, sys
from pathlib import Path
from harness.report.plots.shown import write_plots
from harness.report.reading.summary import summarize
from harness.store import Contents
make = runpy.run_path(sys.argv[1])
suite = make["make_suite"](labels=("lisa",))
record = make["with_memory"](make["make_record"]("lisa"))
plots = write_plots(summarize(suite, Contents((record,))), Path(sys.argv[2]))
for files in plots.values():
    for file in files:
        print(file.name, hashlib.sha256(file.read_bytes()).hexdigest())
"""


@pytest.mark.slow
def test_two_processes_with_other_hash_seeds_write_the_same_bytes(tmp_path: Path) -> None:
    found = [
        subprocess.run(
            [sys.executable, "-P", "-c", DIGESTS, str(HERE / "fixtures_report" / "factory.py"), str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert found[0].count("\n") == 3 * 7


def test_every_plot_says_what_it_is(tmp_path: Path) -> None:
    assert set(FORMATS) == {".png", ".svg", ".pdf"}
    for plot in DRAWN.values():
        assert plot.title
        assert plot.caption.endswith(".")
    assert "no test" in DRAWN["memory_score"].caption
