"""Benchmark and comparison harness for memory-efficient fine-tuning of large language models.

From Python: ``harness.read`` gives records as frames of pandas, ``harness.run`` runs a suite. What a type checker sees
stands in ``__init__.pyi``; here nothing of it is imported before it is asked for.
"""

from __future__ import annotations

from harness.import_guard import guard_imports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.2.0"
__all__ = ["HarnessError", "Report", "Results", "__version__", "read", "run"]
_PLACES = {
    "HarnessError": "errors",
    "Report": "api.reports",
    "Results": "api.results",
    "read": "api.results",
    "run": "api.running",
}
"""In which module of this package each name is."""


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'harness' has no attribute '{name}'")
    import importlib  # by name, so that no module of a run counts what stands above it as its source

    value = globals()[name] = getattr(importlib.import_module(f"harness.{_PLACES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


guard_imports()
