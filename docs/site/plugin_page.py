"""The page of what a method of one's own is written with: the public names of ``harness.plugin``, by docstrings."""

from __future__ import annotations

import inspect

import harness.plugin

HEAD = """# What a plug-in imports

`harness.plugin` is kept stable; [adding-a-method.md](../adding-a-method.md) says how a method is written with it.
Nothing of it imports torch but `Stepwise`, when that is asked for.
"""
REGISTRY = """## How it is found

```{eval-rst}
.. autoclass:: harness.registry.Registry
   :members: register, get, names, broken
```
"""


def page() -> str:
    """Return the page as Markdown with Sphinx's directives."""
    return "\n".join([HEAD, *(_section(name) for name in sorted(harness.plugin.__all__)), REGISTRY])


def _section(name: str) -> str:
    """Return the section of a name."""
    if name == "Stepwise":  # it imports torch, which is not there where the site is built
        place, kind = "harness.tensors.stepwise.Stepwise", "autoclass"
    else:
        value = getattr(harness.plugin, name)
        kind = "autoclass" if inspect.isclass(value) else "autodata"
        place = f"{value.__module__}.{name}" if inspect.isclass(value) else f"harness.plugin.{name}"
    options = "   :members:\n   :show-inheritance:\n" if kind == "autoclass" else ""
    return f"## {name}\n\n```{{eval-rst}}\n.. {kind}:: {place}\n{options}```\n"
