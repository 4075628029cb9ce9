"""YAML that is read and never run: plain values, where each key stands, and what would have been code as a mark.

lm-eval's loader imports what ``!function`` names. This one builds text, numbers, lists and tables; every other tag
becomes a :class:`Code`, which says where it stands. ``include`` is merged as lm-eval does: a later file goes before an
earlier one, a file's own keys before both. Sizes are bounded, as aliases can make a page of text fill a memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.errors import HarnessError
from harness.files import read_text, said_as

MOST_BYTES = 4 << 20
"""Of one file: few-shot examples may stand in it."""
MOST_NODES = 200_000
"""Of one file, with every alias written out."""
MOST_INCLUDES = 32
"""One in the other."""


@dataclass(frozen=True)
class Place:
    """A line of a file."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Code:
    """What a tag would have run, unread."""

    tag: str
    text: str
    place: Place


@dataclass(frozen=True)
class Table:
    """A file's table, what it includes merged in."""

    file: Path
    values: dict[str, Any]
    places: dict[str, Place] = field(default_factory=dict)
    """Where each key of the table stands."""

    def at(self, key: str) -> Place:
        """Return where a key stands, or the file's first line where it has none."""
        return self.places.get(key, Place(self.file, 1))


class _Loader(yaml.SafeLoader):
    """Builds plain values; the file of its marks is set by :func:`_read`."""

    file: Path


def _code(loader: _Loader, node: yaml.Node) -> Code:
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    return Code(str(node.tag), str(text), Place(loader.file, node.start_mark.line + 1))


_Loader.add_constructor(None, _code)


def read_table(file: Path, root: Path | None) -> Table:
    """Return what a YAML file says, with what it includes.

    Args:
        file: To read.
        root: A folder that neither it nor an included file may lie outside of, links followed; None: anywhere.

    Raises:
        HarnessError: it cannot be read, is no table of plain values, is too large, or includes what it may not.
    """
    return _merged(file, root, (), Place(file, 1))


def codes_in(value: Any) -> Iterator[Code]:
    """Yield every piece of code in a value."""
    if isinstance(value, Code):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from codes_in(inner)


def check_inside(file: Path, root: Path | None, what: str) -> None:
    """Refuse a file that lies outside of a folder, by its name or by a link.

    Raises:
        HarnessError: it does; the sentence begins with ``what``.
    """
    with said_as(f"{file}: cannot be read"):
        outside = root is not None and not file.resolve().is_relative_to(root.resolve())
    if outside:
        raise HarnessError(f"{what} is outside of the folder of tasks {root}: copy it into it, or trust it")


def _merged(file: Path, root: Path | None, above: tuple[Path, ...], asked: Place) -> Table:
    check_inside(file, root, f"{asked}: {file.name}")
    here = file.resolve()
    if here in above or len(above) > MOST_INCLUDES:
        raise HarnessError(f"{asked}: include = '{file.name}' goes round in a circle: leave it out")
    own = _read(file)
    if "include" not in own.values:
        return own
    place, includes = own.at("include"), own.values.pop("include")
    names = includes if isinstance(includes, list) else [includes]
    values: dict[str, Any] = {}
    places: dict[str, Place] = {}
    for name in names:
        if not isinstance(name, str) or not name:
            raise HarnessError(f"{place}: include is {name!r:.60}, expected the path of a YAML file")
        included = _merged(file.parent / name, root, (*above, here), place)
        values |= {key: value for key, value in included.values.items() if key != "task_list"}
        places |= included.places
    return Table(file, values | own.values, places | own.places)


def _read(file: Path) -> Table:
    with said_as(f"{file}: cannot be read"):
        if not file.is_file():
            raise HarnessError(f"{file}: {'is no file' if file.exists() else 'there is no such file'}")
        if (size := file.stat().st_size) > MOST_BYTES:
            raise HarnessError(f"{file}: is {size} bytes long, over {MOST_BYTES}: keep rows in a file of data")
    text = read_text(file)
    try:
        loader = _Loader(text)
        loader.file = file
        node = loader.get_single_node()
        _check_size(node, file)
        value = loader.construct_document(node) if node is not None else None  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        line = 1 if error.problem_mark is None else error.problem_mark.line + 1
        raise HarnessError(f"{file}:{line}: is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # a control character; a number or a date that there is not
        raise HarnessError(f"{file}: is not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise HarnessError(f"{file}: is not YAML that can be read: nested too deeply") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise HarnessError(f"{file}: is {type(value).__name__}, expected a table of keys that are text")
    _check_plain(value, file)
    assert node is not None  # there is a table
    places = {key.value: Place(file, key.start_mark.line + 1) for key, _ in node.value}
    return Table(file, value, places)


def _check_size(node: yaml.Node | None, file: Path) -> None:
    """Refuse a document that is too large with every alias written out, or holds itself."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            if sizes[id(node)] == 0:
                raise HarnessError(f"{file}:{node.start_mark.line + 1}: an anchor holds itself")
            return sizes[id(node)]
        sizes[id(node)] = 0
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = [key for key, count in Counter(keys).items() if count > 1 and key != "<<"]
            if twice:
                place = Place(file, node.start_mark.line + 1)
                raise HarnessError(f"{place}: the key '{twice[0]:.60}' stands twice in a table")
        elif isinstance(node, yaml.SequenceNode):
            inner = list(node.value)
        sizes[id(node)] = 1 + sum(map(size, inner))
        if sizes[id(node)] > MOST_NODES:
            raise HarnessError(f"{file}: holds over {MOST_NODES} values with its aliases written out")
        return sizes[id(node)]

    if node is not None:
        size(node)


def _check_plain(value: Any, file: Path) -> None:
    """Refuse values that JSON has not, as dates are."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str | int | bool):
                raise HarnessError(f"{file}: a key is {key!r:.60}, expected text")
            _check_plain(inner, file)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, file)
    elif isinstance(value, float) and not math.isfinite(value):
        raise HarnessError(f"{file}: holds {value}, expected a finite number")
    elif not (value is None or isinstance(value, str | bool | int | float | Code)):
        raise HarnessError(f"{file}: holds {value!s:.60}, a {type(value).__name__}: put it in quotes")
