"""Labels: named configurations of methods, each setting with its source. Read from ``suites/methods.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from harness.errors import HarnessError, near_miss
from harness.settings import Name, Strict
from harness.toml_files import read_toml, validate


class LabelEntry(Strict):
    """One named configuration: a method and its settings."""

    method: Name = ""
    """Empty only together with ``alias_of``, until :func:`with_aliases` fills it in."""
    summary: str = ""
    """One line for ``harness list methods``."""
    alias_of: Name | None = None
    """Another label, whose method and settings these begin with."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Each a value, or ``{ value = ..., source = "...", note = "..." }``."""

    @model_validator(mode="after")
    def _method_or_alias(self) -> LabelEntry:
        if not (self.method or self.alias_of):
            raise ValueError("give method or alias_of")
        return self

    def values(self) -> dict[str, Any]:
        """Return the settings without their sources."""
        return {
            key: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
            for key, entry in self.settings.items()
        }

    def sources(self) -> dict[str, str]:
        """Return where each setting was read: paper, code, or chosen by us; empty where the file does not say."""
        return {
            key: str(entry.get("source", "")) if isinstance(entry, dict) else "" for key, entry in self.settings.items()
        }


def load_labels() -> dict[str, LabelEntry]:
    """Return the named configurations of methods.toml by label, aliases resolved.

    Raises:
        HarnessError: the file is not valid.
    """
    table, where = read_toml("methods.toml")
    entries = {label: validate(LabelEntry, entry, f"{where}: [{label}]") for label, entry in table.items()}
    return with_aliases(entries, entries, where)


def with_aliases(
    entries: Mapping[str, LabelEntry], known: Mapping[str, LabelEntry], where: str
) -> dict[str, LabelEntry]:
    """Return entries with the method and settings of the label that each is an alias of.

    Args:
        entries: To resolve.
        known: Labels that they may be an alias of.
        where: How to call their file in a message.

    Raises:
        HarnessError: an alias of no label, or of another alias.
    """
    resolved = {}
    for label, entry in entries.items():
        if entry.alias_of is None:
            resolved[label] = entry
            continue
        base = known.get(entry.alias_of)
        if base is None or not base.method:
            raise HarnessError(
                f"{where}: label '{label}' is an alias of '{entry.alias_of}', which is "
                f"{'an alias itself' if base else 'not a label'}{near_miss(entry.alias_of, known)}"
            )
        changes = {
            "method": base.method,
            "summary": entry.summary or base.summary,
            "settings": {**base.settings, **entry.settings},
        }
        resolved[label] = entry.model_copy(update=changes)
    return resolved
