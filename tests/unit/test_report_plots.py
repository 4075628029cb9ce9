"""Plots: what is in them, that they are the same every time, and that nothing recorded breaks them."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from harness.record import BlockActivity, Record
from harness.report.plots import trained_spans, write_plots
from harness.report.style import COLORS, label_styles
from harness.report.summary import Summary, summarize
from harness.store import Contents
from harness.suite import Suite

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))


def summary_of(suite: Suite, *records: Record) -> Summary:
    return summarize(suite, Contents(records))


def texts(svg: Path) -> str:
    return "\n".join("".join(element.itertext()) for element in ET.parse(svg).iter() if element.tag.endswith("}text"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    suite = make.make_suite()
    records = [make.make_record(label, minute=i) for i, label in enumerate((*suite.labels, f"lora[{make.HOSTILE}]"))]
    return write_plots(summary_of(suite, *records), tmp_path_factory.mktemp("plots"))


def test_each_plot_is_written_as_svg_and_png(drawn: dict[str, list[Path]]) -> None:
    assert {name: [file.name for file in files] for name, files in drawn.items()} == {
        name: [f"{name}.svg", f"{name}.png"] for name in ("memory_score", "loss", "blocks")
    }


@pytest.mark.parametrize("name", ["memory_score", "loss", "blocks"])
def test_the_svg_is_xml_that_holds_every_label_as_text(drawn: dict[str, list[Path]], name: str) -> None:
    found = texts(drawn[name][0])
    for label in ("full", "lora", "galore", "lisa", "owlore", "lora[a|b `c` <script>alert(1)</script> …"):
        assert label in found
    assert ("base" in found) == (name == "memory_score")


@pytest.mark.parametrize("name", ["memory_score", "loss", "blocks"])
def test_the_png_shows_the_labels_colours(drawn: dict[str, list[Path]], name: str) -> None:
    image = Image.open(drawn[name][1]).convert("RGB")
    found = {color for _, color in image.getcolors(maxcolors=1 << 24)}
    expected = [tuple(bytes.fromhex(color[1:])) for color in COLORS[1:6]]
    assert not set(expected) - found
    assert min(image.size) > 400
    assert "Software" not in Image.open(drawn[name][1]).info


def test_the_host_axis_says_that_it_is_not_gpu_memory(drawn: dict[str, list[Path]]) -> None:
    found = texts(drawn["memory_score"][0])
    assert "host peak RSS up to the end of training, GiB" in found
    assert "not GPU memory" in found


def test_with_cuda_the_axis_is_the_allocated_peak_and_each_model_has_a_panel(tmp_path: Path) -> None:
    suite = make.make_suite(models=("tiny", "large"), labels=("full", "lora"))
    records = [
        make.make_record(label, model=model, suite=suite, environment=make.CUDA, minute=i)
        for i, (label, model) in enumerate([("full", "tiny"), ("lora", "tiny"), ("full", "large")])
    ]
    drawn = write_plots(summary_of(suite, *records), tmp_path)
    found = texts(drawn["memory_score"][0])
    assert found.count("peak memory in training (CUDA, allocated), GiB") == 2
    assert {"tiny", "large"} <= set(found.splitlines())
    assert "no result" in texts(drawn["blocks"][0])


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
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


def test_the_users_own_settings_of_matplotlib_are_neither_used_nor_changed(tmp_path: Path) -> None:
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
