"""Labels as a person gives them: plain, or with changed settings as every output prints them, ``owlore[rank=64]``.

What is printed can be given back: ``lora[rank=8]`` is that point of a sweep, and else the label with the setting
changed as ``--set`` would change it, of that label alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import HarnessError
from harness.suite import label_with, sweep_points

PAIRS = {"[": "]", "(": ")", "{": "}"}


@dataclass(frozen=True)
class AskedLabel:
    """A label that is asked for, with the settings in its brackets."""

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Return it as every output prints it."""
        return label_with(self.label, self.changes)


def read_label(text: str) -> AskedLabel:
    """Return the label that a text names.

    Raises:
        HarnessError: what stands in its brackets are no settings.
    """
    label, bracket, rest = text.partition("[")
    if not bracket:
        return AskedLabel(text)
    wrong = HarnessError(f"label '{text}': expected LABEL or LABEL[KEY=VALUE,...], such as lora[rank=8]")
    if not label or not rest.endswith("]"):
        raise wrong
    changes: dict[str, Any] = {}
    for part in _parts(rest[:-1]):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise wrong
        if key.strip() in changes:
            raise HarnessError(f"label '{text}': '{key.strip()}' is set twice")
        changes[key.strip()] = setting_value(value)
    return AskedLabel(label, changes)


def same_label(text: str) -> str:
    """Return a label as every output prints it: settings in order; a text that is none comes back as it is."""
    try:
        return read_label(text).text
    except HarnessError:
        return text


def setting_value(text: str) -> Any:
    """Return the value that a text spells in TOML, or the text where it is no TOML."""
    import tomllib

    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text


def points_with(sweep: Mapping[str, Sequence[Any]], changes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the points of a sweep under changed settings, each once: those that say the same, else what is left of all.

    Args:
        sweep: Values by setting; empty: one point without a setting.
        changes: Settings that hold in every run.
    """
    points = list(sweep_points(sweep))
    agreeing = [point for point in points if all(_same(changes.get(key, value), value) for key, value in point.items())]
    seen: list[dict[str, Any]] = []
    for point in agreeing or points:
        rest = point if agreeing else {key: value for key, value in point.items() if key not in changes}
        if rest not in seen:
            seen.append(rest)
            yield rest


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _parts(text: str) -> list[str]:
    """Return what commas part, but for those in brackets and quotes."""
    parts, open_ones, quote = [""], [""], ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in PAIRS:
            open_ones.append(PAIRS[char])
        elif char == open_ones[-1]:
            open_ones.pop()
        elif char == "," and len(open_ones) == 1:
            parts.append("")
            continue
        parts[-1] += char
    return parts
