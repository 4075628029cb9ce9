"""What benchmarks/architecture.py counts, on trees where the answer is known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import architecture as figures  # noqa: E402


def tree(folder: Path, **sources: str) -> figures.Tree:
    """Lay modules into a tree; in a name ``__`` stands for a dot."""
    for name, source in {"harness": "", "harness__engine": "", "harness__report": "", **sources}.items():
        parts = name.split("__")
        is_package = name in ("harness", "harness__engine", "harness__report")
        file = folder.joinpath(*parts, "__init__.py") if is_package else folder.joinpath(*parts).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    (folder / "methods").mkdir(exist_ok=True)
    return figures.Tree(folder)


def test_an_import_inside_a_function_closes_a_cycle_at_run_time_alone(tmp_path: Path) -> None:
    found = tree(
        tmp_path,
        harness__a="from harness import b\n",
        harness__b="def late():\n    from harness.a import thing\n",
    )
    assert figures.cycles(found.graph(at_top=True)) == []
    assert figures.cycles(found.graph(at_top=False)) == [["harness.a", "harness.b"]]


def test_what_is_for_the_type_checker_alone_is_no_import(tmp_path: Path) -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from harness.b import Thing\n"
    found = tree(tmp_path, harness__a=source, harness__b="import harness.a\n")
    assert found.imports("harness.a", at_top=False) == set()
    assert found.imports("harness.b", at_top=True) == {"harness.a"}


def test_an_import_from_a_higher_floor_is_an_arrow_up(tmp_path: Path) -> None:
    found = tree(
        tmp_path,
        harness__engine__step="def late():\n    import harness.report.page\n",
        harness__report__page="import harness.record\n",
        harness__record="",
    )
    assert figures.arrows_up(found.graph(at_top=False)) == [("harness.engine.step", "harness.report.page")]


def test_sizes_are_lines(tmp_path: Path) -> None:
    found = tree(tmp_path, harness__a="def one():\n    x = 1\n    return x\n\n\nasync def two(): ...\n")
    assert found.lines("harness.a") == 6
    assert sorted(found.functions()) == [(1, "harness.a.two"), (3, "harness.a.one")]


def test_what_a_method_makes_one_read_follows_its_imports_inside_methods(tmp_path: Path) -> None:
    found = tree(tmp_path, harness__record="")
    for name, source in {
        "__init__": "",
        "full": "import harness.record\nfrom harness.methods._trained import T\n",
        "_trained": "def late():\n    from harness.methods import _optimizers\n",
        "_optimizers": "",
        "other": "",
    }.items():
        (tmp_path / "methods" / f"{name}.py").write_text(source)
    read = [f"harness.methods.{name}" for name in ("_optimizers", "_trained", "full")]
    assert figures.method_reading(figures.Tree(found.root), "full") == read


def test_a_task_names_files_that_hold_what_it_touches(tmp_path: Path) -> None:
    found = tree(tmp_path, harness__a="def one(): ...\n")
    assert figures.touched({"harness/a.py": "def one", "harness/new.py": "+"}, found) == [
        "harness/a.py",
        "harness/new.py",
    ]
    with pytest.raises(SystemExit, match="does not hold 'def two'"):
        figures.touched({"harness/a.py": "def two"}, found)


def test_the_files_of_each_task_are_those_of_this_tree() -> None:
    now = figures.tasks_of("now")
    assert len(now) == 6
    counted = {name: len(figures.touched(files, figures.Tree(ROOT))) for name, files in now.items()}
    assert all(counted.values())
