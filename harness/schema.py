"""JSON schema of suite and catalogue files, for editors (taplo and others): made from the models that read them.

Draft 7, which every editor's validator knows. It says what can be known of a table by itself: what a label may set is
the union of its method's settings and those of training, what two keys have to do with each other stands in their
descriptions. The packaged copies (``suites/*.schema.json``) know the methods of the harness; :func:`schema_of` knows
plug-ins too.

``python -m harness.suite_keys`` writes the copies.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel

from harness.catalogue.labels import LabelEntry
from harness.catalogue.resolved import COMPUTED, Entries, packaged_catalogue
from harness.method import METHODS, Method
from harness.settings import TrainSettings
from harness.suite import Suite

Kind = Literal["suite", "catalogue"]
KINDS: dict[Kind, type[BaseModel]] = {"suite": Suite, "catalogue": Entries}
DRAFT = "http://json-schema.org/draft-07/schema#"
SOURCED = ("source", "note")
"""Keys beside ``value`` of a setting that is written with where it was read."""
LEFT_OUT = re.compile(r"\bNone(?=[:;.,])")
"""A file says None of a key by leaving it out."""
ROLE = re.compile(r":[a-z]+:`")
ANYTHING: dict[str, Any] = {}


def schema_file(kind: Kind) -> str:
    """Return the name of the packaged schema of a kind of file."""
    return f"{kind}.schema.json"


@cache
def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return what stands in the docstring below each field of a class, its own and those that it inherits."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not (issubclass(cls, BaseModel) and cls is not BaseModel):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        except (OSError, TypeError, SyntaxError):  # a plug-in without its source
            continue
        body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                said = below.value.value if isinstance(below.value, ast.Constant) else None
                if isinstance(said, str):
                    found[field.target.id] = _for_readers(said)
    return found


def about(model: type[BaseModel]) -> str:
    """Return the first paragraph of a class's docstring."""
    return _for_readers(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0])


def _for_readers(docstring: str) -> str:
    """Return a docstring in a line, as one reads it who writes TOML and knows no module."""
    return LEFT_OUT.sub("left out", " ".join(ROLE.sub("`", docstring.replace("``", "`")).split()))


def schema_of(kind: Kind, *, plug_ins: bool = True) -> dict[str, Any]:
    """Return the schema of a kind of file.

    Args:
        kind: Of the file.
        plug_ins: Whether labels of methods that are plug-ins are known.
    """
    made = _Making(plug_ins)
    schema = made.table(KINDS[kind])
    properties = schema["properties"]
    for name, computed in COMPUTED.items():
        properties[name]["additionalProperties"] = made.without(properties[name]["additionalProperties"], computed)
    properties["methods"] = {
        **_described(properties["methods"]),
        "type": "object",
        "additionalProperties": made.label_entry(),
    }
    if kind == "suite":
        properties["train"] = {
            **_described(properties["train"]),
            "allOf": [made.put("train", made.table(TrainSettings))],
            "description": about(TrainSettings),
        }
        properties["settings"] = {
            **made.by_label(made.settings_of_label),
            "description": "Settings of a label, by label: of its method, and of training.",
        }
        properties["sweep"] = {
            **made.by_label(made.sweep_of_label),
            "description": "Lists of values of a label's settings, by label: each combination is a run.",
        }
    _let_tasks_be_short(made.definitions)
    if "train" in made.definitions:  # a label may say what [train] lacks
        made.definitions["train"] |= {"required": [], "not": {"required": ["num_steps", "num_epochs"]}}
    return {
        "$schema": DRAFT,
        "title": f"{kind} file of harness",
        **schema,
        "definitions": dict(sorted(made.definitions.items())),
    }


def _let_tasks_be_short(definitions: dict[str, Any]) -> None:
    """Let [tasks] be written as its class takes it: one folder for a list of one, a file for a table of one."""
    tasks = definitions["TaskTable"]["properties"]
    for table, key in ((tasks, "include_path"), (tasks["rows"], "additionalProperties")):
        table[key] = {**_described(table[key]), "anyOf": [{"type": "string"}, table[key]]}


class _Making:
    """A schema in the making: the definitions that it refers to."""

    def __init__(self, plug_ins: bool) -> None:
        self.definitions: dict[str, Any] = {}
        self.methods: dict[str, type[Method]] = {
            name: METHODS.get(name) for name in METHODS.names() if plug_ins or METHODS.plug_in(name) is None
        }
        self.labels = {
            **{name: name for name in self.methods},
            **{label: entry.method for label, entry in packaged_catalogue().labels.items()},
        }

    def put(self, name: str, schema: dict[str, Any]) -> dict[str, Any]:
        """Return a reference to a definition, made of ``schema``."""
        self.definitions[name] = schema
        return {"$ref": f"#/definitions/{name}"}

    def table(self, model: type[BaseModel]) -> dict[str, Any]:
        """Return the schema of a class, those of the classes inside it among the definitions."""
        made = model.model_json_schema()
        for name, inner in made.pop("$defs", {}).items():
            cls = _class_named(model, name)
            self.definitions[name] = _plain(self._documented(inner, cls) if cls is not None else inner)
        plain = _plain(self._documented(made, model))
        assert isinstance(plain, dict)
        return plain

    def _documented(self, schema: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
        docs = field_docs(model)
        properties = {
            name: {**value, "description": docs[name]} if name in docs else value
            for name, value in schema.get("properties", {}).items()
        }
        return {**schema, "properties": properties, "description": about(model)}

    def without(self, reference: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        """Return a reference to a table that has not some of its keys: those that no file gives."""
        name = reference["$ref"].rpartition("/")[2]
        table = self.definitions[name]
        kept = {key: value for key, value in table["properties"].items() if key not in names}
        required = [key for key in table.get("required", []) if key not in names]
        self.definitions[name] = {**table, "properties": kept, "required": required}
        return reference

    def label_entry(self) -> dict[str, Any]:
        """Return the schema of a label of the user's: its settings are those of its method or its alias."""
        entry = self.table(LabelEntry)
        branches = []
        for key, names in (("method", self.methods), ("alias_of", self.labels)):
            for name in names:
                method = name if key == "method" else self.labels[name]
                condition = {"properties": {key: {"const": name}}, "required": [key]}
                then = {"properties": {"settings": self.sourced_settings_of_label(method)}}
                branches.append({"if": condition, "then": then})
        return self.put("label", {**entry, "allOf": branches})

    def by_label(self, of_method: Any) -> dict[str, Any]:
        """Return the schema of a table of labels."""
        properties = {
            label: of_method(method) for label, method in sorted(self.labels.items()) if method in self.methods
        }
        return {"type": "object", "properties": properties, "additionalProperties": {"type": "object"}}

    def settings_of_label(self, method: str) -> dict[str, Any]:
        """Return a reference to what a label of a method may set."""
        cls = self.methods[method]
        self.put("train", self.table(TrainSettings))
        train = TrainSettings.model_fields if cls.trains else ("dtype",)
        settings = {name: {"$ref": f"#/definitions/train/properties/{name}"} for name in train}
        settings |= self.table(cls.Config)["properties"]
        table = {"type": "object", "properties": settings, "additionalProperties": False}
        return self.put(f"settings-{method}", table)

    def sweep_of_label(self, method: str) -> dict[str, Any]:
        """Return a reference to what a label of a method may sweep over."""
        return self._over_settings(f"sweep-{method}", method, lambda one: {"type": "array", "items": one})

    def sourced_settings_of_label(self, method: str) -> dict[str, Any]:
        """Return a reference to what a label may set where each value may stand beside its source."""

        def sourced(one: dict[str, Any]) -> dict[str, Any]:
            said = {key: {"type": "string"} for key in SOURCED}
            return {"anyOf": [one, {"type": "object", "properties": {"value": one, **said}, "required": ["value"]}]}

        return self._over_settings(f"sourced-settings-{method}", method, sourced)

    def _over_settings(
        self, name: str, method: str, made_of: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> dict[str, Any]:
        if method not in self.methods:
            return {"type": "object"}
        table = self.definitions[self.settings_of_label(method)["$ref"].rpartition("/")[2]]
        each = {
            key: made_of({"$ref": f"#/definitions/settings-{method}/properties/{key}"}) for key in table["properties"]
        }
        return self.put(name, {**table, "properties": each})


def _described(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: schema[key] for key in ("description",) if key in schema}


def _class_named(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the class behind a name in a schema's definitions, among those that the fields of a class refer to."""
    todo: list[Any] = [model]
    seen: list[Any] = []
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.append(one)
        if isinstance(one, type) and issubclass(one, BaseModel):
            if one.__name__ == name:
                return one
            todo += [field.annotation for field in one.model_fields.values()]
        else:
            todo += getattr(one, "__args__", ())
    return None


def _plain(value: Any) -> Any:
    """Return a schema in draft 7 without what TOML has not: no ``null``, and nothing beside a reference."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    made = {key: _plain(one) for key, one in value.items() if key not in ("title", "$defs")}
    if isinstance(value.get("title"), dict):  # a field of that name
        made["title"] = _plain(value["title"])
    if isinstance(values := made.get("enum"), list):  # whose order hangs on what was imported first: see key_types
        made["enum"] = sorted(values, key=str)
    if made.get("default", ANYTHING) is None:
        del made["default"]
    if "anyOf" in made:
        kinds = [one for one in made.pop("anyOf") if one != {"type": "null"}]
        made = {**kinds[0], **made} if len(kinds) == 1 else {**made, "anyOf": kinds}
    if len(made.get("patternProperties", ())) == 1 and "additionalProperties" not in made:
        ((pattern, inner),) = made.pop("patternProperties").items()
        made |= {"propertyNames": {"pattern": pattern}, "additionalProperties": inner}
    if "prefixItems" in made:
        made["items"] = made.pop("prefixItems")
    if "$ref" in made:
        made["$ref"] = made["$ref"].replace("#/$defs/", "#/definitions/")
        if len(made) > 1:
            made = {"allOf": [{"$ref": made.pop("$ref")}], **made}
    return made


def schema_text(kind: Kind, *, plug_ins: bool = True) -> str:
    """Return a schema as the text of its file."""
    return json.dumps(schema_of(kind, plug_ins=plug_ins), indent=1, ensure_ascii=False) + "\n"
