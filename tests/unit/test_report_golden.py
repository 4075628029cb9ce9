"""The files of a report on a fixed set of records are, byte for byte, the golden ones; and what stands in them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest

script = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "write_golden.py"), run_name="golden")
)
NAMES = (
    "report.md",
    "report.tex",
    "tables/tiny-scores.tex",
    "tables/tiny-cost.tex",
    "report.json",
    "scores.csv",
    "runs.csv",
)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return script.golden_files()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_the_golden_one(files: dict[str, bytes], name: str) -> None:
    """On a wanted change run fixtures_report/write_golden.py."""
    assert files[name] == (script.FOLDER / name).read_bytes()


def test_every_golden_file_is_compared(files: dict[str, bytes]) -> None:
    assert set(files) == set(NAMES)
    assert {f.relative_to(script.FOLDER).as_posix() for f in script.FOLDER.rglob("*") if f.is_file()} == set(NAMES)


@pytest.mark.parametrize("name", ["report.md", "report.tex"])
def test_a_page_holds_every_kind_of_cell(files: dict[str, bytes], name: str) -> None:
    text = files[name].decode() + (files["tables/tiny-scores.tex"].decode() if name == "report.tex" else "")
    text = text.replace("-{}", "-").replace(",{}", ",").replace("\\\\", " ")
    refused = "out of memory, refused" if name == "report.md" else "& refused & refused"
    for words in (refused, "1 of 2 seeds; failed", "1 of 2 seeds; not run", "not scored", "30.0"):
        assert words in text
    for words in ("needs 9 GiB, has 8", "no record yet", "torch 2.12.0 instead of 2.13.0", "suite version 2 instead"):
        assert words in text


def test_the_json_says_what_was_measured_in_full_and_null_where_nothing_was(files: dict[str, bytes]) -> None:
    value = json.loads(files["report.json"])
    assert (value["schema"], value["schema_version"]) == ("finetune-harness/report", 1)
    scores, runs_found = (
        [dict(zip(value[name]["columns"], row, strict=True)) for row in value[name]["rows"]]
        for name in ("scores", "runs")
    )
    labels = {entry["label"]: entry for entry in value["labels"]}
    assert [seed["status"] for seed in labels["full"]["seeds"]] == ["out_of_memory", "refused"]
    assert labels["full"]["average"]["mean"] is None
    own = [s["value"] for s in scores if s["label"] == "lora" and s["headline"] and s["task"] != "gsm8k"]
    assert len(own) == 2 * 8
    assert labels["lora"]["average"]["mean"] == pytest.approx(fmean(own), rel=1e-12)
    assert labels["lora"]["average"]["num_seeds"] == 2
    assert labels["lora"]["cost"]["train_peak_bytes"] is None
    assert labels["lora"]["cost"]["tracked_peak_bytes"] == 947 * 2**20
    (gsm8k,) = [task for task in labels["lora"]["tasks"] if task["task"] == "gsm8k"]
    assert gsm8k["mean"] is None
    runs = {(run["label"], run["seed"], run["in_table"]): run for run in runs_found}
    assert runs["full", 1, True]["reason"] == "needs 9 GiB, has 8"
    assert runs["lisa", 2, True]["status"] == "absent"
    assert runs["lisa", 2, False]["suite_version"] == 2
    assert len(scores) == 8 * 9 + 1
    assert any("suite version 2 instead of 1" in note for note in value["notes"])
