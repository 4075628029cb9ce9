"""A typed registry: name -> class, found in a package of our own or through an entry-point group of a third party.

Modules of the package register themselves with the decorator when they are imported; a module whose name starts with an
underscore is shared code and is not looked at. Nothing is imported before the first look-up.

A plug-in that cannot be had, whatever it raises when it is imported, is a name that is refused with a sentence when
somebody asks for it, and is in nobody's way else. So is a name that two want: which of them was meant cannot be known.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import traceback
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
        self._plug_ins: dict[str, importlib.metadata.EntryPoint] = {}
        self._broken: dict[str, str] = {}
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
            HarnessError: no such name, and the sentence holds a near miss; or a plug-in that cannot be had.
        """
        self._find()
        if name in self._broken:
            raise HarnessError(self._broken[name])
        if name not in self._classes:
            raise HarnessError(f"there is no {self._kind} '{name}'{near_miss(name, self._classes)}")
        return self._classes[name]

    def names(self) -> list[str]:
        """Return every name that :meth:`get` has a class for, sorted."""
        self._find()
        return sorted(set(self._classes) - set(self._broken))

    def broken(self) -> dict[str, str]:
        """Return the names that plug-ins declare and nobody can have, each with the sentence that says why."""
        self._find()
        return dict(sorted(self._broken.items()))

    def plug_in(self, name: str) -> importlib.metadata.EntryPoint | None:
        """Return the entry point behind a name; None of our own."""
        self._find()
        return self._plug_ins.get(name)

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
            self._load(entry)
        self._found = True

    def _load(self, entry: importlib.metadata.EntryPoint) -> None:
        """Put the class of a plug-in under its name, or note why that cannot be."""
        name, called = entry.name, f"{entry.value}{_of(entry)}"
        if name in self._broken:
            return
        if name in self._plug_ins or name in self._classes:
            known = self._plug_ins.get(name)
            if known is not None and (known.value, _of(known)) == (entry.value, _of(entry)):
                return  # one distribution, found twice on the path
            first = f"{known.value}{_of(known)}" if known is not None else "the harness itself"
            self._broken[name] = (
                f"{self._kind} '{name}' is declared twice, by {first} and by {called}: which is meant cannot be known; "
                "uninstall one of the distributions"
            )
            return
        try:
            self._put(name, entry.load())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a stranger's module may raise anything, and end the interpreter
            said = next(iter(str(error).strip().splitlines()), "")
            kind = "" if isinstance(error, HarnessError) else f"{type(error).__name__}{': ' * bool(said)}"
            self._broken[name] = (
                f"the {self._kind} plug-in '{name}' ({called}) cannot be imported: {kind}{said}{_at(error)}; mend or "
                "uninstall the distribution that declares it"
            )
            self._classes.pop(name, None)
        else:
            self._plug_ins[name] = entry


def _of(entry: importlib.metadata.EntryPoint) -> str:
    """Return whose an entry point is, for a sentence."""
    return "" if entry.dist is None else f" of {entry.dist.metadata['Name']}"


def _at(error: BaseException) -> str:
    """Return the file and line in which a module fails to be imported, for a sentence; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" (line {error.lineno} of {error.filename})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<") and "importlib" not in frame.filename]
    at = own[-1] if own and own[-1].filename != __file__ else None
    return "" if at is None else f" (line {at.lineno} of {at.filename})"
