"""Keeps bitsandbytes, whoever imports it, from asking the hub for compiled code and from warning of it at every start.

peft, and with it half of what is used here, imports bitsandbytes where that is installed. On a CPU with AVX512-BF16
bitsandbytes then takes ``get_kernel`` of the package ``kernels``, which downloads a library from the hub and loads it;
without that package it warns. Nothing here asks for either: the network is for ``harness prepare``, and no code comes
from it. What bitsandbytes brings itself computes the same.

Source: the bitsandbytes 0.50.2 distribution, backends/cpu/ops.py:242-256.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # every command would wait for what it imports
    import logging

ASKING = "bitsandbytes.backends.cpu.ops"
"""The module that asks for a kernel while it is imported."""
ASKED = "kernels"
"""The package that would fetch it."""
TOLD = "Failed to load"
"""How the warning begins that there is none."""


def guard_imports() -> None:
    """Let the module be imported without the package, from now on and in this process; once is enough."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    if "logging" in sys.modules:  # else before the module runs
        _filter_what_is_told()


def _filter_what_is_told() -> None:
    """Keep the warning back; a logger takes a filter once."""
    import logging

    logging.getLogger(ASKING).addFilter(_is_told)


def _is_told(record: logging.LogRecord) -> bool:
    """Return whether a message is not that one."""
    return not (record.getMessage().startswith(TOLD) and ASKED in record.getMessage())


class _Finder:
    """Finds the module as Python does, and has it run where the package is not.

    No subclass of ``importlib.abc``, whose import takes longer than the rest of the harness's for ``--help``.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != ASKING:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _filter_what_is_told()
            loader: Any = _Loader(spec.loader)
            spec.loader = loader
        return spec


class _Loader:
    """Runs a module while the package cannot be imported."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        missing = object()
        before: Any = sys.modules.get(ASKED, missing)
        sys.modules[ASKED] = None  # type: ignore[assignment]  # as Python has it: an import of it raises
        try:
            self._loader.exec_module(module)
        finally:
            if before is missing:
                del sys.modules[ASKED]
            else:
                sys.modules[ASKED] = before
