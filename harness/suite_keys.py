"""The page of every key of a suite file (``docs/suite-keys.md``), made from the models that read them.

``python -m harness.suite_keys``, in a checkout, writes the page and the packaged schemas anew.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harness.catalogue.resolved import COMPUTED
from harness.key_types import expected_of
from harness.method import METHODS, MethodConfig
from harness.schema import KINDS, about, field_docs, schema_file, schema_text
from harness.settings import Strict, TrainSettings
from harness.suite import Suite

PAGE = Path("docs") / "suite-keys.md"
BY_LABEL = ("train", "settings", "sweep")
"""Tables of a suite whose keys depend on labels."""
HEAD = """# Every key of a suite file

Made by `python -m harness.suite_keys` from the models that read the files; a test holds it to them.
[suites.md](suites.md) says how suites are made and used. `harness new suite NAME` writes one to begin with,
`harness check FILE` says all that is wrong with one, `harness check --schema suite` prints the JSON schema by which
editors complete and check keys.

A key marked *needed* has no default. Sizes are counts of what the text names (tokens, rows, optimizer steps), times are
seconds. A catalogue file (`--catalogue`) has of these tables those of names alone: `[base_models.NAME]`,
`[datasets.NAME]`, `[methods.LABEL]`.
"""
LABELS = """## `[settings.LABEL]` and `[sweep.LABEL]`

Settings of a label: every key of `[train]`, and those of its method below. In `[sweep.LABEL]` each is a list, and every
combination of values is a run. What is *needed* stands in the label's entry of methods.toml
(`harness list methods --json`), so that a suite says only what differs.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD, *_section("Top of the file", about(Suite), Suite, skip=tuple(_tables(Suite)) + BY_LABEL)]
    train = "What a label sets goes before it, and what all labels set may be left out here."
    parts += _section("`[train]`", f"{about(TrainSettings)} {train}", TrainSettings)
    for title, model, skip in _all_tables(Suite):
        parts += _section(f"`{title}`", about(model), model, skip=skip)
    parts.append(LABELS)
    for owner, names, methods in _method_settings():
        parts += _section(f"Of {', '.join(f'`{name}`' for name in methods)}", about(owner), owner, level=3, only=names)
    return "\n".join(parts)


def _section(
    title: str,
    what: str,
    model: type[BaseModel],
    *,
    level: int = 2,
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] | None = None,
) -> list[str]:
    docs = field_docs(model)
    names = [name for name in only or model.model_fields if name not in skip]
    rows = [
        f"| `{name}` | {_cell(expected_of(model, name))} | {_cell(_default(model.model_fields[name]))} | "
        f"{_cell(docs.get(name, ''))} |"
        for name in names
    ]
    return [f"{'#' * level} {title}\n\n{what}\n\n| key | takes | default | |\n| --- | --- | --- | --- |", *rows, ""]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*needed*"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ({}, ()):
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _tables(model: type[BaseModel]) -> dict[str, tuple[str, type[BaseModel]]]:
    """Return the fields of a class that are tables of a class: how each is headed, and its class."""
    found = {}
    for name, field in model.model_fields.items():
        if (inner := _model_in(field.annotation)) is not None:
            kind = get_origin(field.annotation)
            found[name] = (f"{name}.NAME" if kind is dict else name, inner)
            if kind is tuple:
                found[name] = (f"[{name}]", inner)
    return found


def _all_tables(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel], tuple[str, ...]]]:
    """Yield the tables in a class, those inside them after each: heading, class, keys that are not shown."""
    for name, (heading, inner) in _tables(model).items():
        whole = f"{path}{heading}".replace("methods.NAME", "methods.LABEL")
        below = _tables(inner)
        yield f"[{whole}]", inner, (*below, *(COMPUTED.get(name, ()) if not path else ()))
        yield from _all_tables(inner, f"{whole}.")


def _method_settings() -> list[tuple[type[BaseModel], tuple[str, ...], tuple[str, ...]]]:
    """Return classes of settings of methods, the keys that each declares, and the methods that have it."""
    owners: dict[type[BaseModel], list[str]] = {}
    for name in METHODS.names():
        if METHODS.plug_in(name) is None and METHODS.get(name).trains:
            for cls in METHODS.get(name).Config.__mro__:
                if issubclass(cls, MethodConfig):
                    owners.setdefault(cls, []).append(name)
    ordered = sorted(owners.items(), key=lambda entry: (-len(entry[1]), entry[0].__name__))
    declared = [(cls, _declared(cls), tuple(methods)) for cls, methods in ordered]
    return [(cls, names, methods) for cls, names, methods in declared if names]


def _declared(cls: type[BaseModel]) -> tuple[str, ...]:
    own = inspect.get_annotations(cls)
    return tuple(name for name in cls.model_fields if name in own)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) and annotation is not Strict else None
    return next((found for one in getattr(annotation, "__args__", ()) if (found := _model_in(one)) is not None), None)


def main(root: Path) -> None:
    """Write the page and the packaged schemas into a checkout."""
    (root / PAGE).write_text(page(), encoding="utf-8")
    for kind in KINDS:
        (root / "suites" / schema_file(kind)).write_text(schema_text(kind, plug_ins=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path.cwd())
