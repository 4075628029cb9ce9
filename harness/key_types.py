"""What a key of a settings file takes, in words: from the types of the models, for messages and the page of keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.fields import FieldInfo

from harness.settings import NAME_PATTERN

LONGEST_LIST = 8
"""Values that are all named."""


def field_schema(field: FieldInfo) -> dict[str, Any]:
    """Return the JSON schema of a field's value, without its default."""
    annotated: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    try:
        return TypeAdapter[Any](annotated).json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUserError):
        return {}


@cache
def expected_of(model: type[BaseModel], name: str) -> str:
    """Return what a field takes, such as ``a whole number above 0``."""
    schema = field_schema(model.model_fields[name])
    return words_of(schema, schema.get("$defs", {}))


def words_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return what a JSON schema takes, in words; what may be left out (null) is not among them.

    Args:
        schema: Of a value.
        definitions: What its references mean.
    """
    if "$ref" in schema:
        return words_of(definitions.get(schema["$ref"].rpartition("/")[2], {}), definitions)
    if "allOf" in schema and len(schema["allOf"]) == 1:
        return words_of(schema["allOf"][0], definitions)
    if "anyOf" in schema:
        kinds = [words_of(one, definitions) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        # In an order of its own: typing takes Literal["a", "b"] for Literal["b", "a"], whichever was imported first.
        said = sorted(json.dumps(value, ensure_ascii=False) for value in values)
        return said[0] if len(said) == 1 else f"one of {', '.join(said)}"
    kind = schema.get("type")
    if kind == "array":
        return _list_in_words(schema, definitions)
    if kind == "string":
        return _text_in_words(schema)
    if kind in ("integer", "number"):
        return _number_in_words(schema, "a whole number" if kind == "integer" else "a number")
    return {"boolean": "true or false", "object": "a table"}.get(str(kind), "any value")


def _list_in_words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    inner = schema.get("items", {})
    if "prefixItems" in schema:
        parts = [words_of(one, definitions) for one in schema["prefixItems"]]
        same = len(set(parts)) == 1
        return f"a list of {len(parts)}, each {parts[0]}" if same else f"a list of {', '.join(parts)}"
    least = schema.get("minItems", 0)
    beginning = "a list" if least < 1 else f"a list of at least {least}"
    of = words_of(inner, definitions) if isinstance(inner, dict) and inner else "any value"
    return beginning if of == "any value" else f"{beginning}, each {of}"


def _text_in_words(schema: Mapping[str, Any]) -> str:
    if schema.get("pattern") == NAME_PATTERN:
        return "a name"
    if schema.get("format") in ("path", "file-path", "directory-path"):
        return "a path"
    return f"a text like {schema['pattern']}" if "pattern" in schema else "a text"


def _number_in_words(schema: Mapping[str, Any], kind: str) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    said = [
        None if above is None else f"above {above:g}",
        None if least is None else f"of at least {least:g}",
        None if most is None else f"at most {most:,}",
        None if below is None else f"below {below:,}",
    ]
    return " ".join([kind, ", ".join(part for part in said if part)]).strip()
