"""The walls: who may import whom, what is packaged, what works where torch is absent."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import architecture as figures  # noqa: E402

PACKAGE = Path(harness.__file__).parent
HEAVY = {"torch", "transformers", "peft", "lm_eval", "datasets", "accelerate"}
GROUND = {"contracts", "catalogue"}
TENSORS = GROUND | {"methods", "assets", "data", "tensors", "evaluation", "engine"}
MAY_IMPORT = {
    "contracts": GROUND,
    "catalogue": GROUND,
    "tensors": GROUND | {"tensors"},
    "assets": GROUND | {"assets"},
    "data": GROUND | {"assets", "data", "tensors"},
    "methods": GROUND | {"methods", "tensors"},
    "plugin": GROUND | {"plugin", "tensors"},
    "preparing": GROUND | {"assets", "data", "preparing"},
    "bundling": GROUND | {"assets", "data", "preparing", "bundling"},
    "evaluation": GROUND | {"assets", "evaluation", "tensors"},
    "engine": TENSORS,
    "integrations": TENSORS - {"assets", "evaluation"} | {"integrations"},
    "runs": GROUND | {"assets", "preparing", "runs"},
    "loggers": GROUND | {"loggers"},
    "planning": TENSORS - {"evaluation"} | {"runs", "planning"},
    "calibration": TENSORS | {"preparing", "runs", "planning", "calibration"},
    "checking": TENSORS | {"planning", "calibration", "checking"},
    "report": GROUND | {"report"},
    "commands": TENSORS
    | {"preparing", "bundling", "runs", "loggers", "planning", "calibration", "checking", "report", "commands"},
    "cli": GROUND | {"report", "commands", "cli"},
    "api": GROUND | {"report", "commands", "api"},
}
"""By room, of the project's rooms; what stands at the top of harness/ is a contract."""
WINGS: dict[str, set[str]] = {
    "table": set(),
    "units": set(),
    "files": set(),
    "fitted": {"table", "units"},
    "formats": set(),
    "statistics": set(),
    "reading": {"statistics", "table", "units"},
    "plots": {"statistics", "reading", "table", "units", "files"},
    "pages": {"statistics", "reading", "plots", "table", "units", "fitted"},
    "numbers": {"statistics", "reading"},
    "tables": {"statistics", "reading", "pages", "table", "units"},
    "comparing": {"statistics", "reading", "plots", "table", "units"},
    "overview": {"comparing", "pages", "reading", "table", "units"},
    "write": {"reading", "plots", "pages", "numbers", "files", "formats"},
}
"""The rooms inside report/, each with those that it may import beside itself."""
WITHOUT_TORCH_ROOMS = (
    *("contracts", "catalogue", "assets", "data", "preparing", "bundling", "runs", "loggers", "report"),
    *("commands", "cli", "api"),
)
LAST_STAGES = {"batches.py", "drawn.py"}
"""Of the data path: they make tensors."""
DOORS = {("child.py", "harness.engine.ranks"), ("child.py", "harness.engine.runner")}
"""Where the parent's side goes over to what loads torch: inside a function, in a process of its own."""


def part_of(module: str) -> str:
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in MAY_IMPORT else "contracts"


def files(part: str) -> list[Path]:
    if part == "contracts":
        return sorted(PACKAGE.glob("*.py"))
    import importlib

    folder = Path(str(importlib.import_module(f"harness.{part}").__file__)).parent
    return sorted(folder.rglob("*.py"))


def ours(file: Path, *, top_level_only: bool = False) -> set[str]:
    return {name for name in imports(file, top_level_only=top_level_only) if name.split(".")[0] == "harness"}


def imports(file: Path, *, top_level_only: bool) -> Iterator[str]:
    """Yield the modules a file imports; what stands under ``if TYPE_CHECKING`` is for the type checker alone."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.FunctionDef) and top_level_only:
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
                yield child.module
            yield from walk(child)

    yield from walk(ast.parse(file.read_text()))


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_a_part_imports_only_what_it_may(part: str) -> None:
    found = files(part)
    assert found
    for file in found:
        through_doors = {module for name, module in DOORS if part == "runs" and name == file.name}
        used = {part_of(name) for name in ours(file) - through_doors}
        assert used <= MAY_IMPORT[part], f"{file} imports {used - MAY_IMPORT[part]}"


def test_every_room_has_its_walls() -> None:
    data = {"suites", "profiles", "published"}  # in an installed package they stand beside the code
    folders = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()} - data
    assert folders | {"contracts", "methods"} == set(MAY_IMPORT)


@pytest.mark.parametrize("wing", sorted(WINGS))
def test_a_wing_of_the_report_imports_only_what_it_may(wing: str) -> None:
    flat = PACKAGE / "report" / f"{wing}.py"
    found = [flat] if flat.exists() else sorted((PACKAGE / "report" / wing).glob("*.py"))
    assert found
    for file in found:
        used = {name.split(".")[2] for name in ours(file) if name.startswith("harness.report.")}
        assert used <= WINGS[wing] | {wing}, f"{file} imports {used - WINGS[wing]}"


def test_every_wing_of_the_report_has_its_walls() -> None:
    found = {path.stem for path in (PACKAGE / "report").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__pycache__"} == set(WINGS)


def test_there_is_no_cycle_and_no_arrow_up_at_run_time_either() -> None:
    tree = figures.Tree(ROOT)
    graph = tree.graph(at_top=False)
    assert len(graph) > 200 and graph.number_of_edges() > 1000
    assert figures.cycles(graph) == []
    assert figures.arrows_up(graph) == []


@pytest.mark.parametrize("part", WITHOUT_TORCH_ROOMS)
def test_no_torch_outside_the_rooms_of_tensors(part: str) -> None:
    for file in files(part):
        if part == "data" and file.name in LAST_STAGES:
            continue
        heavy = {name.split(".")[0] for name in imports(file, top_level_only=True)} & HEAVY
        assert not heavy, f"{file.name} imports {heavy}"
        assert "torch" not in {name.split(".")[0] for name in imports(file, top_level_only=False)}, file.name


def test_a_method_module_imports_no_torch_at_its_top() -> None:
    public = [file for file in files("methods") if not file.name.startswith("_")]
    assert len(public) >= 6
    public += files("plugin")
    for file in public:
        assert not {name.split(".")[0] for name in imports(file, top_level_only=True)} & (HEAVY | {"numpy"}), file.name


def test_no_method_is_named_outside_its_own_file() -> None:
    from harness.method import METHODS

    names = set(METHODS.names()) - {"base", "full"}  # these two are ordinary words
    for part in sorted(set(MAY_IMPORT) - {"methods"}):
        for file in files(part):
            words = {
                node.value
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not words & names, f"{file.name} branches on {words & names}"


def every_file() -> list[Path]:
    return [file for part in sorted(MAY_IMPORT) for file in files(part)]


def test_no_part_but_the_command_line_knows_of_its_arguments() -> None:
    for file in every_file():
        if file.parent != PACKAGE / "cli":
            assert "argparse" not in set(imports(file, top_level_only=False)), file
            names = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
            assert "Namespace" not in names, file


def _is_action(node: ast.stmt) -> bool:
    """Return whether it is a class that writes parsed values, as argparse has it."""
    return isinstance(node, ast.ClassDef) and "argparse.Action" in map(ast.unparse, node.bases)


def test_parsed_arguments_end_where_they_are_unpacked() -> None:
    """A door's ``main``, and what stands beside a shared group, read them; nobody writes, guesses or makes them."""
    takers = set()
    for file in files("cli"):
        tree = ast.parse(file.read_text())
        tree.body = [node for node in tree.body if not _is_action(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                annotated = [ast.unparse(arg.annotation) for arg in node.args.args if arg.annotation is not None]
                if any("Namespace" in annotation for annotation in annotated):
                    takers.add((file.stem, node.name))
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("getattr", "setattr", "hasattr", "vars"), file
                assert not ast.unparse(node.func).endswith(("Namespace", "set_defaults")), file
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args":
                assert isinstance(node.ctx, ast.Load), file
    groups = {name for stem, name in takers if stem == "_arguments"}
    shared = {"selection", "labels", "catalogue", "tasks", "assets", "results", "how_to_run"}
    assert groups == {f"{group}_from" for group in shared}
    assert {name for stem, name in takers if stem != "_arguments"} == {"main"}


def test_private_modules_are_their_own_folder_s() -> None:
    for part in sorted(set(MAY_IMPORT) - {"calibration"}):  # which times the arithmetic of methods piece by piece
        for file in files(part):
            foreign = {
                name
                for name in imports(file, top_level_only=False)
                if name.split(".")[0] == "harness" and "._" in name and part_of(name) != part
            }
            assert not foreign, f"{file} imports {foreign}"


def test_the_parents_side_opens_the_childs_at_one_door_alone() -> None:
    doors = set()
    for file in files("runs"):
        assert not {module.split(".")[0] for module in imports(file, top_level_only=False)} & HEAVY, file
        outside = {module for module in ours(file) if part_of(module) not in MAY_IMPORT["runs"]}
        assert not outside & ours(file, top_level_only=True), f"{file} imports {outside} at its top"
        doors |= {(file.name, module) for module in outside}
    assert doors == DOORS


def test_the_childs_side_knows_nothing_of_the_parents() -> None:
    for part in ("tensors", "data", "methods", "evaluation", "engine"):
        for file in files(part):
            assert not {name for name in ours(file) if part_of(name) == "runs"}, file


def test_the_parents_side_works_where_torch_is_absent() -> None:
    names = sorted(f"harness.runs.{file.stem}" for file in files("runs") if file.stem != "__init__")
    assert len(names) > 8
    script = WITHOUT_TORCH.partition("from harness.cli")[0] + "import importlib\n"
    script += f"for name in {names!r}: importlib.import_module(name)\n"
    script += "try: import torch\nexcept ModuleNotFoundError: print('no torch')\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "no torch\n", done.stderr


def test_one_module_makes_files_durable_renames_them_and_says_why_the_system_refuses() -> None:
    for file in every_file():
        if file == PACKAGE / "files.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{file.name} line {getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"fsync", "strerror", "renames"}, f"{where}: .{node.attr}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                # A text's replace takes two arguments, a path's one; os.replace and os.rename are called through os.
                of_os = ast.unparse(node.func) in {"os.replace", "os.rename"}
                of_path = node.func.attr in {"replace", "rename"} and len(node.args) == 1 and not node.keywords
                assert not (of_os or of_path), f"{where}: {ast.unparse(node.func)}"


def test_every_folder_with_code_is_packaged() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = set(table["packages"])
    found = {"harness", "harness.methods", "harness.profiles", "harness.published", "harness.suites"}
    found |= {
        f"harness.{folder.relative_to(ROOT / 'harness').as_posix().replace('/', '.')}"
        for folder in (ROOT / "harness").rglob("*")
        if folder.is_dir() and (folder / "__init__.py").exists()
    }
    assert listed == found


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "peft", "lm_eval"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from harness.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "methods"],
        ["paper", "list"],
        ["list", "models", "--json"],
        ["list", "suites"],
        ["list", "benchmarks"],
        ["run", "--suite", "commonsense", "--dry-run"],
        ["status", "--suite", "quickstart"],
    ],
)
def test_commands_that_need_no_torch_work_without_it(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_command_that_needs_torch_says_so_without_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "run", "--suite", "quickstart"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert "torch" in done.stderr
    assert "Traceback" not in done.stderr
