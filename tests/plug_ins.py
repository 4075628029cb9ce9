"""Distributions in a folder on the path, as pip leaves them, and a registry that looks for them anew."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from harness import outside
from harness.method import METHODS

METHOD = """
from harness.methods.full import Full

class PlugIn(Full):
    summary = "{summary}"
"""


def install(site: Path, name: str, version: str, module: str, text: str, *, entry: str | None = None) -> None:
    """Put a distribution of one module into a folder, in place of one of the same name.

    Args:
        site: The folder.
        name: Of the distribution.
        version: Its version.
        module: Path of the module, as ``plug/__init__.py``.
        text: What stands in it.
        entry: ``name = module:object`` of a method; None: it declares none.
    """
    file = site / module
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    about = site / f"{name}.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "RECORD").write_text(f"{module},,\n{name}.dist-info/METADATA,,\n")
    (about / "entry_points.txt").write_text("" if entry is None else f"[finetune_harness.methods]\n{entry}\n")


def look_again(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Forget what was found of plug-ins and templates, and modules that were imported from there."""
    classes = {name: cls for name, cls in METHODS._classes.items() if METHODS.plug_in(name) is None}
    for name, value in (("_found", False), ("_classes", classes), ("_plug_ins", {}), ("_broken", {})):
        monkeypatch.setattr(METHODS, name, value)
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    outside._plug_in.cache_clear()
    outside._template.cache_clear()
