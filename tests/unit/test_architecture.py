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
PACKAGE = Path(harness.__file__).parent
CONTRACTS = {
    "diagnosis",
    "errors",
    "files",
    "calibration_log",
    "calibration_profile",
    "device_profile",
    "printable",
    "progress",
    "quantities",
    "quantity",
    "readings",
    "redaction",
    "source",
    "registry",
    "method",
    "settings",
    "labels",
    "models",
    "suite",
    "spec",
    "catalogue",
    "packaged_tasks",
    "expansion",
    "record",
    "declaration",
    "proof",
    "proof_checks",
    "proof_facts",
    "store",
    "datasets",
    "conversation",
    "devices",
    "toml_files",
    "tuned",
    "tuning",
}
HEAVY = {"torch", "transformers", "peft", "lm_eval", "datasets", "accelerate"}
MAY_IMPORT = {
    "contracts": {"contracts"},
    "tensors": {"contracts", "tensors"},
    "methods": {"contracts", "tensors", "methods"},
    "assets": {"contracts", "assets"},
    "planning": {"contracts", "tensors", "methods", "assets", "engine", "planning"},
    "calibration": {"contracts", "tensors", "methods", "assets", "engine", "evaluation", "planning", "calibration"},
    "engine": {"contracts", "tensors", "methods", "assets", "engine", "evaluation"},
    "evaluation": {"contracts", "tensors", "assets", "evaluation"},
    "report": {"contracts", "report"},
    "commands": {
        *("contracts", "tensors", "methods", "assets", "planning", "calibration", "engine", "evaluation", "report"),
        "commands",
    },
    "cli": {"contracts", "report", "commands", "cli"},
}


def part_of(module: str) -> str:
    names = module.split(".")
    if len(names) == 1:
        return "contracts"
    return "contracts" if names[1] in CONTRACTS else names[1]


def files(part: str) -> list[Path]:
    if part == "contracts":
        return [PACKAGE / f"{name}.py" for name in sorted(CONTRACTS) if (PACKAGE / f"{name}.py").exists()]
    import importlib

    folder = Path(str(importlib.import_module(f"harness.{part}").__file__)).parent
    return sorted(folder.glob("*.py"))


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
        used = {part_of(name) for name in imports(file, top_level_only=False) if name.split(".")[0] == "harness"}
        assert used <= MAY_IMPORT[part], f"{file.name} imports {used - MAY_IMPORT[part]}"


@pytest.mark.parametrize("part", ["contracts", "assets", "report", "commands", "cli"])
def test_no_torch_outside_the_engine(part: str) -> None:
    for file in files(part):
        heavy = {name.split(".")[0] for name in imports(file, top_level_only=True)} & HEAVY
        assert not heavy, f"{file.name} imports {heavy}"
        assert "torch" not in {name.split(".")[0] for name in imports(file, top_level_only=False)}, file.name


def test_a_method_module_imports_no_torch_at_its_top() -> None:
    public = [file for file in files("methods") if not file.name.startswith("_")]
    assert len(public) >= 6
    for file in public:
        assert not {name.split(".")[0] for name in imports(file, top_level_only=True)} & (HEAVY | {"numpy"}), file.name


def test_no_method_is_named_outside_its_own_file() -> None:
    from harness.method import METHODS

    names = set(METHODS.names()) - {"base", "full"}  # these two are ordinary words
    for part in (
        "contracts",
        "assets",
        "tensors",
        "engine",
        "evaluation",
        "report",
        "commands",
        "cli",
        "planning",
        "calibration",
    ):
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


def test_parsed_arguments_end_where_they_are_unpacked() -> None:
    """A door's ``main``, and what stands beside a shared group, read them; nobody writes, guesses or makes them."""
    takers = set()
    for file in files("cli"):
        tree = ast.parse(file.read_text())
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
    assert groups == {"selection_from", "catalogue_from", "assets_from", "results_from", "how_to_run_from"}
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


PARENT_SIDE = {
    "task",
    "executor",
    "queue",
    "settling",
    "local",
    "claims",
    "launch",
    "child",
    "ray_executor",
    "ray_worker",
}
"""What starts runs and takes their records, beside the first lines of a child, which say that it has begun."""
DOORS = {("child", "harness.engine.runner"), ("ray_worker", "harness.engine.conversion")}
"""Where the parent's side goes over to what loads torch: inside a function, in a process of its own."""


def test_the_parents_side_imports_neither_torch_nor_the_childs_side() -> None:
    doors = set()
    for name in sorted(PARENT_SIDE):
        file = PACKAGE / "engine" / f"{name}.py"
        every, at_top = (set(imports(file, top_level_only=only)) for only in (False, True))
        assert not {module.split(".")[0] for module in every} & HEAVY, name
        own = {f"harness.engine.{other}" for other in PARENT_SIDE}
        ours = {module for module in every if module.split(".")[0] == "harness"}
        outside = {module for module in ours - own if part_of(module) not in {"contracts", "assets"}}
        assert not outside & at_top, f"{name} imports {outside & at_top}"
        doors |= {(name, module) for module in outside}
    assert doors == DOORS


def test_the_childs_side_knows_of_the_parents_only_the_task() -> None:
    for file in files("engine"):
        if file.stem not in PARENT_SIDE:
            used = set(imports(file, top_level_only=False)) & {f"harness.engine.{name}" for name in PARENT_SIDE}
            assert used <= {"harness.engine.task"}, f"{file.name} imports {used}"


def test_the_parents_side_works_where_torch_is_absent() -> None:
    script = WITHOUT_TORCH.partition("from harness.cli")[0] + "import importlib\n"
    script += f"for name in {sorted(PARENT_SIDE)!r}: importlib.import_module(f'harness.engine.{{name}}')\n"
    script += "from harness.engine.launch import probe_environment\n"
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
