"""Plots: what is in them, that they are the same every time, and that nothing recorded breaks them."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from harness.catalogue.labels import load_labels
from harness.errors import HarnessError
from harness.readings import held_out_curve
from harness.record import Record
from harness.record_training import BlockActivity
from harness.report.plots.blocks import trained_spans
from harness.report.plots.memory import CATEGORIES, REST, memory_figure
from harness.report.plots.shown import DRAWN, write_plots
from harness.report.plots.style import COLORS, common_style, label_styles, save_as
from harness.report.plots.timeline import timeline_figure, write_timeline
from harness.report.reading.summary import Summary, summarize
from harness.store import Contents
from harness.suite import Suite

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let these plots alone be drawn."""
    monkeypatch.setattr("harness.report.plots.shown.DRAWN", {name: DRAWN[name] for name in names})


def summary_of(suite: Suite, *records: Record) -> Summary:
    return summarize(suite, Contents(records))


def texts(svg: Path) -> str:
    return "\n".join("".join(element.itertext()) for element in ET.parse(svg).iter() if element.tag.endswith("}text"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    suite = make.make_suite()
    labels = (*suite.labels, f"lora[{make.HOSTILE}]")
    records = [make.make_record(label, minute=i) for i, label in enumerate(labels)]
    records = [record if record.spec.label == "base" else make.with_memory(record) for record in records]
    return write_plots(summary_of(suite, *records), tmp_path_factory.mktemp("plots"))


NOT_DRAWN = {"sweeps", "tuning"}
"""The records here hold neither."""
NAMES = tuple(name for name in DRAWN if name not in NOT_DRAWN)
"""Plots that any scored and trained records fill."""


def test_each_plot_is_written_as_svg_png_and_pdf(drawn: dict[str, list[Path]]) -> None:
    assert {name: [file.name for file in files] for name, files in drawn.items()} == {
        name: [f"{name}.svg", f"{name}.png", f"{name}.pdf"] for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_svg_is_xml_that_holds_every_label_as_text(drawn: dict[str, list[Path]], name: str) -> None:
    found = texts(drawn[name][0])
    # a name beside its point has its beginning and its end
    hostile = "lora[a|b `c`…" if name in {"memory_score", "memory_loss"} else "lora[a|b `c` <script>alert(1)</script> …"
    for label in ("full", "lora", "galore", "lisa", "owlore", hostile):
        assert label in found
    assert ("base" in found) == (name in {"memory_score", "tasks"})


@pytest.mark.parametrize(("name", "labels"), [("memory_score", 5), ("loss", 5), ("blocks", 2)])
def test_the_png_shows_the_labels_colours(drawn: dict[str, list[Path]], name: str, labels: int) -> None:
    image = Image.open(drawn[name][1]).convert("RGB")
    found = {color for _, color in image.getcolors(maxcolors=1 << 24)}
    # full, lora, galore, lisa and owlore; the first three train every block and have no panel
    expected = [tuple(bytes.fromhex(color[1:])) for color in COLORS[1:6]][-labels:]
    assert not set(expected) - found
    assert min(image.size) > 350
    assert "Software" not in Image.open(drawn[name][1]).info


def bars_of(tmp_path: Path, *records: Record, labels: tuple[str, ...]) -> str:
    summary = summary_of(make.make_suite(labels=labels), *records)
    with common_style():
        figure = memory_figure(summary, label_styles([row.label for row in summary.rows]))
        assert figure is not None
        return texts(save_as(figure, tmp_path / "memory.svg"))


def test_bars_without_data_are_absent_and_said_so(tmp_path: Path) -> None:
    full = make.make_record("full", status="out_of_memory", reason="x")
    records = [
        make.with_memory(full),
        make.with_memory(make.make_record("lora", minute=1), tracked=False),
        make.with_memory(make.make_record("lisa", minute=2), predicted=False),
    ]
    found = bars_of(tmp_path, *records, labels=("base", "full", "lora", "lisa", "owlore")).splitlines()
    assert [line for line in found if line.startswith("not ")] == [
        "not measured: not run",
        "not predicted",
        "not measured: out of memory",
        "not measured",
        "not predicted",
        "not measured: not run",
        "not predicted",
    ]
    assert [line for line in found if line.endswith("  measured")] == [
        f"{label}  measured" for label in ("base", "full", "lora", "lisa", "owlore")
    ]  # nothing recorded says that base does not train
    assert "allocated peak of the train phase (CUDA)" not in found
    assert {"weights", "gradients", "optimizer state", "activations", "other"} <= set(found)


@pytest.mark.parametrize(
    ("environment", "told", "said"),
    [
        (make.CPU, {}, ""),
        (make.CUDA, {}, ""),
        (make.CPU, {"peak_step": 11}, ": of other steps or rows than the tracked ones"),
        (make.CUDA, {"peak_step": 11}, ": of other steps or rows than the tracked ones"),
        (make.CPU, {"device": "cuda"}, ": for another kind of device"),
    ],
)
def test_a_prediction_of_what_was_not_tracked_says_so(
    environment: Any, told: dict[str, Any], said: str, tmp_path: Path
) -> None:
    record = make.with_memory(make.make_record("full", environment=environment))
    record = record.model_copy(update={"prediction": record.prediction.model_copy(update=told)})
    found = bars_of(tmp_path, record, labels=("full",)).splitlines()
    assert [line.partition(":")[1:] for line in found if ": of" in line or ": for" in line] == (
        [(":", said[1:])] if said else []
    )


def test_on_cuda_the_allocated_peak_is_marked(tmp_path: Path) -> None:
    record = make.with_memory(make.make_record("lora", environment=make.CUDA), tracked=False)
    found = bars_of(tmp_path, record, labels=("lora",)).splitlines()
    assert {"not broken down", "allocated peak of the train phase (CUDA)"} <= set(found)


def test_the_widths_of_a_bar_are_its_parts_in_gib() -> None:
    summary = summary_of(make.make_suite(labels=("full",)), make.with_memory(make.make_record("full")))
    figure = memory_figure(summary, label_styles(["full"]))
    assert figure is not None
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in figure.axes[0].containers}
    parts = {c.name: getattr(make.make_breakdown("full"), c.field) / make.GIB for c in CATEGORIES}
    assert {name: measured for name, (measured, _) in widths.items()} == pytest.approx(
        parts | {"total": sum(parts.values())}
    )


def test_a_run_out_of_memory_has_a_bar_up_to_where_it_died() -> None:
    full = make.make_record("full", status="out_of_memory", reason="x", out_of_memory_at=make.make_out_of_memory())
    figure = memory_figure(summary_of(make.make_suite(labels=("full",)), full), label_styles(["full"]))
    assert figure is not None
    axis = figure.axes[0]
    widths = {bars.get_label(): bars[0].get_width() * make.GIB / make.MIB for bars in axis.containers}
    assert widths == pytest.approx(
        {"weights": 513, "gradients": 100, "optimizer state": 1026, REST.name: 400, "total": 2039}
    )
    assert "1.99: out of memory in backward of step 4" in [text.get_text() for text in axis.texts]
    assert [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "x"] == pytest.approx([2039 / 1024])


def test_no_two_categories_look_alike_in_a_grey_print() -> None:
    def grey(color: str) -> float:
        red, green, blue = bytes.fromhex(color[1:])
        return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255

    looks = [(category.hatch, grey(category.color)) for category in CATEGORIES]
    for i, (hatch, light) in enumerate(looks):
        for other_hatch, other_light in looks[i + 1 :]:
            assert hatch != other_hatch or abs(light - other_light) > 0.2


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cpu", "tracked peak: 1.24 GiB in step 1, backward"),
        ("cuda", "largest allocated peak: 1.24 GiB in step 7, optimizer"),
    ],
)
def test_a_timeline_marks_the_step_and_moment_of_the_peak(device: str, said: str, tmp_path: Path) -> None:
    environment = make.CPU if device == "cpu" else make.CUDA
    record = make.with_memory(make.make_record("lisa", environment=environment))
    found = texts(write_timeline(record, tmp_path / "run.svg")).splitlines()
    assert said in found
    assert ("reserved peak of the step" in found) == (device == "cuda")
    assert "optimizer state on the device" in found
    image = Image.open(write_timeline(record, tmp_path / "run.png"))
    assert min(image.size) > 800


def test_a_timeline_without_cuda_shows_what_its_peak_was_made_of() -> None:
    record = make.with_memory(make.make_record("lisa"))
    assert record.train is not None
    figure = timeline_figure(record, record.train.curve)
    bars = {bars.get_label(): bars[0].get_width() * make.GIB for axis in figure.axes for bars in axis.containers}
    parts = {category.name: getattr(make.make_breakdown("lisa"), category.field) for category in CATEGORIES}
    assert bars == pytest.approx(parts)
    on_cuda = make.with_memory(make.make_record("lisa", environment=make.CUDA))
    assert not [bars for axis in timeline_figure(on_cuda, on_cuda.train.curve).axes for bars in axis.containers]


def test_a_timeline_of_one_step_has_points_and_blocks_that_are_all_trained_are_said() -> None:
    train = make.make_train("full", 1, num_steps=1)
    record = make.make_record("full").model_copy(update={"train": train})
    figure = timeline_figure(record, train.curve)
    lines = [line for axis in figure.axes for line in axis.lines]
    assert len(lines) == 2 and {line.get_marker() for line in lines} == {"o"}
    assert "every block at every step" in [text.get_text() for axis in figure.axes for text in axis.texts]
    assert not [drawn for axis in figure.axes for drawn in axis.collections]


def test_a_timeline_needs_no_peak_but_a_step(tmp_path: Path) -> None:
    write_timeline(make.make_record("lora"), tmp_path / "run.svg")
    for record in (make.make_record("base"), make.make_record("lora", status="refused", reason="x")):
        with pytest.raises(HarnessError, match="has no optimizer step on record"):
            write_timeline(record, tmp_path / "run.svg")


def test_without_cuda_the_axis_is_the_tracked_peak_and_says_that_it_is_not_gpu_memory(
    drawn: dict[str, list[Path]],
) -> None:
    found = texts(drawn["memory_score"][0])
    assert "tracked peak of the first steps, GiB" in found
    assert "host" not in found
    assert "not GPU memory" in found


def test_with_cuda_the_axis_is_the_allocated_peak_and_each_model_has_a_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "memory_score", "blocks")
    suite = make.make_suite(models=("tiny", "large"), labels=("lisa", "lora"))
    records = [
        make.make_record(label, model=model, suite=suite, environment=make.CUDA, minute=i)
        for i, (label, model) in enumerate([("lisa", "tiny"), ("lora", "tiny"), ("lisa", "large")])
    ]
    drawn = write_plots(summary_of(suite, *records), tmp_path)
    found = texts(drawn["memory_score"][0])
    assert found.count("peak memory in training (CUDA, allocated), GiB") == 2
    assert {"tiny", "large"} <= set(found.splitlines())
    assert "not run" in texts(drawn["blocks"][0]).splitlines()
    assert "not run: lora" in found.splitlines()


def test_the_same_records_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "memory_score", "tasks")
    summary = summary_of(make.make_suite(labels=("lora",)), make.make_record("lora"))
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        contents.append([file.read_bytes() for files in write_plots(summary, folder).values() for file in files])
    assert contents[0] == contents[1]


def test_without_a_result_nothing_is_drawn(tmp_path: Path) -> None:
    summary = summary_of(make.make_suite(labels=("lora",)), make.make_record("lora", status="failed", reason="x"))
    assert write_plots(summary, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_users_own_settings_of_matplotlib_are_neither_used_nor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "loss")
    import matplotlib as mpl

    summary = summary_of(make.make_suite(labels=("lora",)), make.make_record("lora"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = write_plots(summary, tmp_path / "a")["loss"][1].read_bytes()
    with mpl.rc_context({"lines.linewidth": 9.0, "axes.facecolor": "red"}):
        assert write_plots(summary, tmp_path / "b")["loss"][1].read_bytes() == plain
        assert mpl.rcParams["lines.linewidth"] == 9.0


def test_spans_of_a_block_join_where_they_touch_and_end_with_the_run() -> None:
    train = make.make_train("full", 1).model_copy(
        update={
            "num_steps": 10,
            "block_activity": (
                BlockActivity(step=0, blocks=(0, 1)),
                BlockActivity(step=4, blocks=(1, 2)),
                BlockActivity(step=6, blocks=(0,)),
                BlockActivity(step=20, blocks=(3,)),
            ),
        }
    )
    assert trained_spans(train.model_copy(update={"block_activity": train.block_activity[:3]})) == {
        0: [(0, 4), (6, 4)],
        1: [(0, 6)],
        2: [(4, 2)],
    }
    assert 3 not in trained_spans(train)


def test_no_two_of_many_labels_look_the_same() -> None:
    styles = label_styles([f"label{i}" for i in range(28)]).values()
    assert len({(style.color, style.line) for style in styles}) == 28
    assert len({(style.color, style.marker) for style in styles}) == 28


def test_a_label_of_the_catalogue_looks_the_same_in_every_report() -> None:
    alone, among = label_styles(["lora"]), label_styles(["mine", "owlore", "base", "lora", "full"])
    assert alone["lora"] == among["lora"]
    assert label_styles(["mine"])["mine"].color == label_styles(["mine", "other"])["mine"].color
    told = label_styles(["base", "full", "lora", "galore", "lisa", "owlore", "mine"])
    assert len({style.color for style in told.values()}) == 7
    catalogue = label_styles(list(load_labels()))
    assert len({(style.color, style.line) for style in catalogue.values()}) == min(28, len(catalogue))


def test_the_marker_of_the_allocated_peak_has_its_own_number(tmp_path: Path) -> None:
    record = make.with_memory(make.make_record("lora", environment=make.CUDA))
    peak = make.make_breakdown("lora").total_bytes / make.GIB
    found = bars_of(tmp_path, record, labels=("lora",)).splitlines()
    assert f"{peak:.3f} tracked, {peak:.3f} allocated" in found


def test_the_held_out_curve_is_drawn_at_every_step_that_all_seeds_read() -> None:
    train = make.make_record("lora").train
    assert train is not None
    ends = train.model_copy(update={"validation_loss_before": 3.0, "validation_loss_after": 2.0})
    assert held_out_curve(ends) == {0: 3.0, len(train.curve.loss): 2.0}
    curve = ends.model_copy(update={"validation_steps": (0, 2, 4), "validation_losses": (3.0, 2.5, 2.0)})
    assert held_out_curve(curve) == {0: 3.0, 2: 2.5, 4: 2.0}
    assert held_out_curve(train.model_copy(update={"validation_loss_before": None})) == {}
