"""Which modules name which fields of a record, by mypy's types: part of architecture.py."""

from __future__ import annotations

import ast
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mypy import build
from mypy.modulefinder import BuildSource
from mypy.nodes import CallExpr, MemberExpr, Node, RefExpr, TypeInfo, Var
from mypy.options import Options
from mypy.types import Instance, ProperType, UnionType, get_proper_type

RECORD = "harness.record"
REFERENCES = {"node", "info", "type", "names", "definition", "metaclass_type", "analyzed", "imports"}
"""Attributes of mypy's nodes that lead to what stands elsewhere."""


def naming_modules(root: Path) -> dict[str, set[str]]:
    """Return the modules that name each field of the record's classes, by ``Class.field``."""
    with tempfile.TemporaryDirectory() as folder:
        for source, target in (("harness", "harness"), ("methods", "harness/methods"), ("suites", "harness/suites")):
            shutil.copytree(root / source, Path(folder, target))
        typed = build.build(_sources(Path(folder)), _options())
        fields = {field for name, file in typed.files.items() if _is_record(name) for field in _fields(file.names)}
        found: dict[str, set[str]] = {f"{owner}.{field}": set() for owner, field in fields}
        for name, file in typed.files.items():
            if name.startswith("harness") and not _is_record(name):
                for field in _named(file, typed.types, fields):
                    found[field].add(name)
        for name, field in _as_strings(Path(folder), fields):
            found[field].add(name)
    return found


def _is_record(module: str) -> bool:
    """Return whether a module declares a record's classes: record.py, or record_training.py and the like."""
    return module == RECORD or module.startswith(f"{RECORD}_")


def _sources(folder: Path) -> list[BuildSource]:
    found = []
    for file in sorted((folder / "harness").rglob("*.py")):
        name = ".".join(file.relative_to(folder).with_suffix("").parts)
        found.append(BuildSource(str(file), name.removesuffix(".__init__"), None))
    return found


def _options() -> Options:
    options = Options()
    options.python_executable = sys.executable
    options.export_types = options.preserve_asts = options.check_untyped_defs = options.ignore_errors = True
    options.ignore_missing_imports, options.incremental, options.follow_imports = True, False, "silent"
    options.plugins = ["pydantic.mypy"]
    for name in ("torch", "transformers", "peft", "lm_eval", "datasets", "pandas", "matplotlib", "scipy", "ray"):
        options.per_module_options[name] = options.per_module_options[f"{name}.*"] = {"follow_imports": "skip"}
    return options


def _fields(names: Any) -> set[tuple[str, str]]:
    return {
        (owner, field)
        for owner, symbol in names.items()
        if isinstance(symbol.node, TypeInfo)
        and _is_record(symbol.node.module_name)
        and symbol.node.module_name == symbol.node.fullname.rpartition(".")[0]
        for field, inner in symbol.node.names.items()
        if isinstance(inner.node, Var) and not field.startswith("_") and field != "model_config"
        if not inner.node.is_property
    }


def _named(file: Node, types: Any, fields: set[tuple[str, str]]) -> Iterator[str]:
    """Yield what a module reads of a record's classes, and what it makes them with."""
    for node in _nodes(file):
        if isinstance(node, MemberExpr):
            for owner in _classes(types.get(node.expr)):
                if (owner, node.name) in fields:
                    yield f"{owner}.{node.name}"
        elif isinstance(node, CallExpr) and isinstance(node.callee, RefExpr):
            made = node.callee.node
            if isinstance(made, TypeInfo) and _is_record(made.module_name):
                yield from (f"{made.name}.{key}" for key in node.arg_names if key and (made.name, key) in fields)


def _classes(found: Any) -> Iterator[str]:
    todo: list[ProperType] = [] if found is None else [get_proper_type(found)]
    while todo:
        present = todo.pop()
        if isinstance(present, UnionType):
            todo += [get_proper_type(item) for item in present.items]
        elif isinstance(present, Instance):
            yield from (base.name for base in present.type.mro if _is_record(base.module_name))


def _nodes(root: Node) -> Iterator[Node]:
    """Yield every node below one. mypy's own visitors are compiled and take no subclass from outside."""
    seen: set[int] = set()
    todo: list[Any] = [root]
    while todo:
        node = todo.pop()
        if isinstance(node, list | tuple):
            todo += node
        elif isinstance(node, Node) and not isinstance(node, TypeInfo) and id(node) not in seen:
            seen.add(id(node))
            yield node
            todo += _parts(node)


def _parts(node: Node) -> Iterator[Any]:
    for name in dir(type(node)):
        if not name.startswith("_") and name not in REFERENCES:
            try:
                value = getattr(node, name)
            except (AttributeError, AssertionError):  # a slot that was never filled, a property that does not apply
                continue
            if isinstance(value, Node | list | tuple):
                yield value


def _as_strings(folder: Path, fields: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield module and field where a string is the name of a field that no other class declares."""
    trees = {source.module: ast.parse(Path(str(source.path)).read_text()) for source in _sources(folder)}
    declared: dict[str, set[str]] = defaultdict(set)
    for module, tree in trees.items():
        for owner in ast.walk(tree):
            for line in owner.body if isinstance(owner, ast.ClassDef) else ():
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    declared[line.target.id].add(f"{module}.{owner.name}")
    own = {field: owner for owner, field in fields if "_" in field and len(declared[field]) == 1}
    for module, tree in trees.items():
        if not _is_record(module):
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in own:
                    yield module, f"{own[node.value]}.{node.value}"
