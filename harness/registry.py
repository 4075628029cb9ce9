"""A typed registry: name -> class, found in a package of our own or through an entry-point group of a third party.

Modules of the package register themselves with the decorator when they are imported; a module whose name starts with an
underscore is shared code and is not looked at. Nothing is imported before the first look-up.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from harness.errors import HarnessError, near_miss

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes of base ``T`` by name."""

    def __init__(self, kind: str, base: type[T], *, package: str, entry_points: str) -> None:
        self._kind = kind
        self._base = base
        self._package = package
        self._entry_points = entry_points
        self._classes: dict[str, type[T]] = {}
        self._found = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a decorator that puts a class under ``name``.

        Raises:
            HarnessError: the name is taken by another class, or the class is not a subclass of the base.
        """

        def put(cls: type[T]) -> type[T]:
            self._put(name, cls)
            return cls

        return put

    def get(self, name: str) -> type[T]:
        """Return the class under ``name``.

        Raises:
            HarnessError: no such name; the sentence holds a near miss.
        """
        self._find()
        if name not in self._classes:
            raise HarnessError(f"there is no {self._kind} '{name}'{near_miss(name, self._classes)}")
        return self._classes[name]

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self._find()
        return sorted(self._classes)

    def _put(self, name: str, cls: type[T]) -> None:
        if not (isinstance(cls, type) and issubclass(cls, self._base)):
            raise HarnessError(f"{self._kind} '{name}' is {cls!r}, which is not a subclass of {self._base.__name__}")
        known = self._classes.setdefault(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise HarnessError(
                f"{self._kind} '{name}' is registered twice, by {known.__module__} and by {cls.__module__}"
            )
        self._classes[name] = cls

    def _find(self) -> None:
        if self._found:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self._package}.{module.name}")
        for entry in importlib.metadata.entry_points(group=self._entry_points):
            try:
                cls = entry.load()
            except (ImportError, AttributeError) as error:
                raise HarnessError(
                    f"the {self._kind} plug-in '{entry.name}' ({entry.value}) cannot be imported: {error}; "
                    "mend or uninstall the distribution that declares it"
                ) from error
            self._put(entry.name, cls)
        self._found = True
