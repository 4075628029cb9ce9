"""Figures of the code's architecture, counted: sizes, import cycles, arrows up, what it takes to change a thing.

python benchmarks/architecture.py                    # of this checkout
python benchmarks/architecture.py --at COMMIT        # of any commit, the same count
python benchmarks/architecture.py --against COMMIT   # both, side by side
python benchmarks/architecture.py --fields           # and each record field with the modules that name it

Definitions. Lines and functions are those of harness/ and methods/. A cycle is a strongly connected set of two or more
modules, *at the top* by imports outside functions, *at run time* by all imports; what stands under ``TYPE_CHECKING`` is
neither. An arrow up goes from a room to one on a floor above, by ``FLOORS``. A module names a field of a record where
mypy finds that it reads the attribute of, or passes the keyword to, a class of harness/record*.py, or holds the field's
name as a string that no other class declares; those files are left out. The files of a task are those listed in
architecture_tasks.toml, each with a text that it must hold for the task to touch it.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import networkx

ROOT = Path(__file__).parents[1]
TASKS = Path(__file__).with_name("architecture_tasks.toml")
FLOORS = (
    {"harness", "contracts", "catalogue", "suites", "profiles", "published"},
    {"data", "assets", "tensors"},
    {"methods", "plugin"},
    {"preparing", "evaluation"},
    {"engine", "bundling"},
    {"planning", "runs", "loggers", "integrations"},
    {"calibration", "report"},
    {"checking"},
    {"commands"},
    {"cli", "api"},
)
"""Rooms from the ground up; a module at the top of harness/ that is in none is a contract."""
LONG_FILE, LONG_FUNCTION = 300, 60


@dataclass(frozen=True)
class Tree:
    """The sources of one state of the project."""

    root: Path

    @cached_property
    def modules(self) -> dict[str, tuple[Path, ast.Module]]:
        """Return file and syntax of each module by its name."""
        found = {}
        for folder, package in ((self.root / "harness", "harness"), (self.root / "methods", "harness.methods")):
            for file in sorted(folder.rglob("*.py")):
                parts = (package, *file.relative_to(folder).with_suffix("").parts)
                name = ".".join(parts).removesuffix(".__init__")
                found[name] = file, ast.parse(file.read_text(encoding="utf-8"))
        return found

    def lines(self, name: str) -> int:
        """Return the lines of a module's file."""
        return len(self.modules[name][0].read_text(encoding="utf-8").splitlines())

    def functions(self) -> Iterator[tuple[int, str]]:
        """Yield lines and name of each function."""
        for name, (_, tree) in self.modules.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{name}.{node.name}"

    def imports(self, name: str, *, at_top: bool) -> set[str]:
        """Return the project's modules that a module imports."""
        asked = {
            target
            for node in _executed(self.modules[name][1], at_top=at_top)
            for target in _targets(node)
            if target.split(".")[0] == "harness"
        }
        return {module for target in asked if (module := self._module_of(target)) is not None} - {name}

    def graph(self, *, at_top: bool) -> networkx.DiGraph[str]:
        """Return who imports whom."""
        graph: networkx.DiGraph[str] = networkx.DiGraph()
        graph.add_nodes_from(self.modules)
        graph.add_edges_from((name, target) for name in self.modules for target in self.imports(name, at_top=at_top))
        return graph

    def _module_of(self, target: str) -> str | None:
        while target not in self.modules and "." in target:
            target = target.rpartition(".")[0]
        return target if target in self.modules else None


def _executed(node: ast.AST, *, at_top: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if at_top and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from _executed(child, at_top=at_top)


def _targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """Return the room of a module: its folder, or at the top of harness/ its own name, or ``contracts``."""
    parts = module.split(".")
    if len(parts) == 1:
        return "harness"
    known = {room for floor in FLOORS for room in floor}
    return parts[1] if parts[1] in known else "contracts"


def floor_of(room: str) -> int:
    """Return the floor of a room, 0 at the ground."""
    return next(height for height, rooms in enumerate(FLOORS) if room in rooms)


def cycles(graph: networkx.DiGraph[str]) -> list[list[str]]:
    """Return the sets of modules that import each other, the largest first."""
    found = [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1]
    return sorted(found, key=len, reverse=True)


def arrows_up(graph: networkx.DiGraph[str]) -> list[tuple[str, str]]:
    """Return the imports of a module on a higher floor."""
    return sorted((a, b) for a, b in graph.edges if floor_of(room_of(a)) < floor_of(room_of(b)))


def method_reading(tree: Tree, method: str) -> list[str]:
    """Return the files inside methods/ that one has to read for a method: those it imports, and so on."""
    prefix = "harness.methods"
    if f"{prefix}.{method}" not in tree.modules:
        return []
    graph = tree.graph(at_top=False)
    inside = graph.subgraph(name for name in graph if name.startswith(f"{prefix}."))
    return sorted({f"{prefix}.{method}"} | networkx.descendants(inside, f"{prefix}.{method}"))


def touched(task: Mapping[str, str], tree: Tree) -> list[str]:
    """Return the files of a task.

    Args:
        task: By file, ``+`` for a new one, what it must hold: a regular expression.
        tree: Where it must.

    Raises:
        SystemExit: a file is not there or does not hold it, so the list is out of date.
    """
    for name, text in task.items():
        file = tree.root / name
        if text == "+":
            continue
        if not file.is_file() or re.search(text, file.read_text(encoding="utf-8")) is None:
            raise SystemExit(f"{TASKS.name}: {name} is not there or does not hold {text!r}")
    return sorted(task)


def figures(tree: Tree, tasks: Mapping[str, Mapping[str, str]], fields: Mapping[str, set[str]]) -> dict[str, str]:
    """Return each figure as text by its title."""
    sizes = sorted((tree.lines(name), name) for name in tree.modules)
    functions = sorted(tree.functions())
    top, run_time = tree.graph(at_top=True), tree.graph(at_top=False)
    up = arrows_up(run_time)
    counts = [len(modules) for modules in fields.values()]
    shown = {
        "files / lines": f"{len(sizes)} / {sum(size for size, _ in sizes):,}",
        "lines a file, median": f"{statistics.median(size for size, _ in sizes):.0f}",
        "largest file": "{} ({})".format(*reversed(sizes[-1])),
        f"files over {LONG_FILE} lines": str(sum(size > LONG_FILE for size, _ in sizes)),
        "lines a function, median": f"{statistics.median(size for size, _ in functions):.0f}",
        "largest function": "{} ({})".format(*reversed(functions[-1])),
        f"functions over {LONG_FUNCTION} lines": str(sum(size > LONG_FUNCTION for size, _ in functions)),
        "import cycles at the top / at run time": f"{len(cycles(top))} / {len(cycles(run_time))}",
        "arrows up": str(len(up)),
        "files in methods/ to read for full / galore / lora": " / ".join(
            str(len(method_reading(tree, name))) for name in ("full", "galore", "lora")
        ),
        "fields of a record": str(len(counts)),
        "modules that name a field, median / mean / max": (
            f"{statistics.median(counts):g} / {statistics.fmean(counts):.1f} / {max(counts)}"
        ),
        "fields that over 6 modules name": str(sum(count > 6 for count in counts)),
    }
    return shown | {f"files for {name}": str(len(touched(task, tree))) for name, task in tasks.items()}


def record_fields(tree: Tree) -> dict[str, set[str]]:
    """Return the modules that name each field of harness/record.py's classes, by ``Class.field``."""
    from architecture_fields import naming_modules

    return naming_modules(tree.root)


def at_commit(commit: str, folder: Path) -> Tree:
    """Return the tree of a commit, laid into a folder."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "--extract", "--directory", str(folder)], input=packed, check=True)
    return Tree(folder)


def tasks_of(which: str) -> dict[str, dict[str, str]]:
    """Return the files of each task, ``before`` or ``now``."""
    table = tomllib.loads(TASKS.read_text(encoding="utf-8"))
    return {entry["name"]: entry[which] for entry in table["task"]}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", metavar="COMMIT", help="of this commit instead of the checkout")
    parser.add_argument("--against", metavar="COMMIT", help="beside this commit, which the tasks' 'before' is of")
    parser.add_argument("--fields", action="store_true", help="list the modules that name each field")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        tree = Tree(ROOT) if given.at is None else at_commit(given.at, Path(first))
        columns = [(given.at or "now", tree, tasks_of("now") if given.at is None else {})]
        if given.against is not None:
            columns.insert(0, (given.against, at_commit(given.against, Path(second)), tasks_of("before")))
        named = [record_fields(tree) for _, tree, _ in columns]
        found = [figures(tree, tasks, fields) for (_, tree, tasks), fields in zip(columns, named, strict=True)]
        titles = list(dict.fromkeys(title for column in found for title in column))
        print(f"| | {' | '.join(name for name, _, _ in columns)} |\n|---|{'---|' * len(columns)}")
        for title in titles:
            print(f"| {title} | {' | '.join(column.get(title, '') for column in found)} |")
        run_time = tree.graph(at_top=False)
        for cycle in cycles(run_time):
            print("cycle:", ", ".join(cycle))
        for source, target in arrows_up(run_time):
            print(f"arrow up: {source} -> {target}")
        if given.fields:
            for field, modules in sorted(named[-1].items(), key=lambda entry: -len(entry[1])):
                print(f"{len(modules):3} {field}: {', '.join(sorted(modules))}")


if __name__ == "__main__":
    main()
