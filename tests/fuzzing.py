"""Hostile files for the fuzzing tests: documents that are valid but for a few faults put in, and bytes of any kind.

A document is taken apart into nodes; faults drop, rename, double, nest or replace some, others spoil the text that is
written of it. What is read of the outcome must end in a clean value or in one ``HarnessError``, within a second of
processor time and without a great deal of memory.
"""

from __future__ import annotations

import copy
import json
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError

SECONDS = 1.0
"""Of processor time for one input: other processes on the machine do not count."""
SPARE_BYTES = 2 << 30
"""How far the address space of the tests' process may grow."""
SENTENCE = 2000
"""Characters of an error sentence at most: nobody reads ten megabytes."""
LONG = 10_000_000
DEEP = 50_000


class Hang(BaseException):
    """An input took too long; no handler of ``Exception`` catches it."""


@dataclass(frozen=True)
class Raw:
    """Text that stands in a document as it is."""

    text: str


class Pairs(list[Any]):
    """A table as ``[key, value]`` lists, so that a key may stand there twice."""


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    make: Callable[[Path], Callable[[bytes], object]]
    """Given a folder to work in, what reads an input."""
    inputs: st.SearchStrategy[bytes]


def nodes_of(value: Any) -> Any:
    """Return a document of dicts and lists as nodes that can be changed one by one."""
    if isinstance(value, dict):
        return Pairs([str(key), nodes_of(inner)] for key, inner in value.items())
    return [nodes_of(inner) for inner in value] if isinstance(value, list) else value


def as_json(node: Any) -> str:
    """Return nodes as JSON."""
    if isinstance(node, Raw):
        return node.text
    if isinstance(node, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {as_json(inner)}" for key, inner in node) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(as_json, node)) + "]"
    return json.dumps(node)


def as_toml(node: Any) -> str:
    """Return nodes as TOML, each top-level table in one line; None, which TOML lacks, becomes an empty string."""

    def inline(inner: Any) -> str:
        if isinstance(inner, Raw):
            return inner.text
        if isinstance(inner, Pairs):
            return "{" + ", ".join(f"{json.dumps(key)} = {inline(value)}" for key, value in inner) + "}"
        if isinstance(inner, list):
            return "[" + ", ".join(map(inline, inner)) + "]"
        return json.dumps("" if inner is None else inner, ensure_ascii=False)

    if not isinstance(node, Pairs):
        return inline(node)
    return "\n".join(f"{json.dumps(key)} = {inline(value)}" for key, value in node) + "\n"


COMMON = (
    *("0", "-1", "1", "true", "false", "[]", "{}", '""', "1.5", "-0.0", "1e999", "-1e999", "1e-320"),
    *("9" * 400, "-" + "9" * 400, "9" * 5000, "4294967296", "9223372036854775808"),
    *('"../../etc/passwd"', '"/etc/passwd"', '"a/../../b"', '"..\\\\x"', '"C:/x"', '"."'),
    *('"\\u0000"', '"\\u001b[2J\\u001b]0;x\\u0007"', '"{question.__class__} {0} %s"', '"[/bold] [red]"'),
    *('"nan"', '"inf"', '"1e999"', '"2026-01-01"', '"9999-12-31T23:59:59+23:59"', '"0001-01-01T00:00:00"'),
    *("[" * DEEP + "]" * DEEP, '{"a": ' * 200 + "1" + "}" * 200, "[" * 200 + "]" * 200),
    *('"' + "x" * LONG + '"', '"' + "a." * 5000 + '"', "[" + "0, " * 5000 + "0]"),
)
JSON_ONLY = ("null", "NaN", "Infinity", "-Infinity", '"\\ud800"', '{"a": ' * DEEP, '{"a": 1, "a": 2}')
TOML_ONLY = (
    *("nan", "inf", "-inf", "0x" + "f" * 5000, "07:32:00", "1979-05-27", "1979-05-27T07:32:00Z", "1979-13-99"),
    *("{a = " * DEEP, "'''" + "x" * 100 + "'''", "0x" + "f" * 400),
)
SPOILERS: tuple[Callable[[bytes, int], bytes], ...] = (
    lambda data, at: b"\xef\xbb\xbf" + data,
    lambda data, at: data.replace(b"\n", b"\r\n"),
    lambda data, at: data.replace(b"\n", b"\r"),
    lambda data, at: data[:at] + b"\0" + data[at:],
    lambda data, at: data[:at] + b"\xff\xfe" + data[at:],
    lambda data, at: data[:at] + b"\xed\xa0\x80" + data[at:],
    lambda data, at: data[:at],
    lambda data, at: data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :] if at < len(data) else data,
    lambda data, at: data + data[:at],
    lambda data, at: data[:at] + data[at : at + 40] * 50 + data[at + 40 :],
    lambda data, at: data.decode(errors="replace").encode("utf-16"),
    lambda data, at: data.replace(b'"', b"'"),
    lambda data, at: data[:at] + b"a." * 50_000 + data[at:],
    lambda data, at: data[:at] + b"[" * DEEP + data[at:],
    lambda data, at: b"",
)


def _places(node: Any) -> list[tuple[Any, int]]:
    """Return (container, index) of every value in a document."""
    if not isinstance(node, list):
        return []
    found = [(node, index) for index in range(len(node))]
    for inner in node:
        found += _places(inner[1] if isinstance(node, Pairs) else inner)
    return found


def _change(root: Any, fault: str, place: int, payload: Any, key: str) -> None:
    """Put one fault into a document."""
    places = _places(root)
    if not places:
        return
    container, index = places[place % len(places)]
    pairs = isinstance(container, Pairs)
    if fault == "drop":
        del container[index]
    elif fault == "double":
        container.append(copy.deepcopy(container[index]))
    elif fault == "rename" and pairs:
        container[index][0] = key
    elif fault == "add" and pairs:
        container.append([key, payload])
    elif pairs:
        container[index][1] = [container[index][1]] if fault == "nest" else payload
    else:
        container[index] = [container[index]] if fault == "nest" else payload


def documents(examples: list[Any], write: Callable[[Any], str], *payloads: str) -> st.SearchStrategy[bytes]:
    """Return hostile variants of some documents, and now and then bytes of any kind."""
    nodes = [nodes_of(example) for example in examples]
    raw = st.sampled_from((*COMMON, *payloads)).map(Raw)
    plain = st.one_of(st.text(max_size=20), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
    fault = st.tuples(
        st.sampled_from(("drop", "double", "rename", "add", "nest", "replace", "replace", "replace")),
        st.integers(0, 10_000),
        st.one_of(raw, plain),
        st.one_of(st.sampled_from(("name", "value", "", "x" * 70, "../x", "k" * 100_000)), st.text(max_size=10)),
    )
    spoilers = st.lists(st.tuples(st.sampled_from(SPOILERS), st.integers(0, 5000)), max_size=2)

    def build(which: int, faults: list[Any], spoil: list[Any]) -> bytes:
        root = copy.deepcopy(nodes[which])
        for one in faults:
            _change(root, *one)
        data = write(root).encode("utf-8", "surrogatepass")
        for spoiler, at in spoil:
            data = spoiler(data, min(at, len(data)))
        return data

    changed = st.builds(
        build, st.integers(0, len(nodes) - 1), st.lists(fault, max_size=2), st.one_of(*[st.just([])] * 4, spoilers)
    )
    return st.one_of(*[changed] * 9, st.binary(max_size=400))


@contextmanager
def watched() -> Iterator[None]:
    """Raise :class:`Hang` when the body takes more than a second of processor time."""

    def ring(_signal: int, _frame: object) -> None:
        raise Hang(f"an input took more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def little_memory() -> Iterator[None]:
    """Let the address space of this process grow by little, so that an input that takes much meets a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + SPARE_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def is_clean(read: Callable[[bytes], object], data: bytes) -> bool:
    """Return whether some input was read; False where it was refused in one short sentence. All else raises."""
    with watched():
        try:
            read(data)
        except HarnessError as error:
            sentence = str(error)
        else:
            return True
    assert sentence and len(sentence) <= SENTENCE, f"{len(sentence)} characters: {sentence[:200]}"
    return False


def fuzz(read: Callable[[bytes], object], strategy: st.SearchStrategy[bytes], num_examples: int) -> tuple[int, int]:
    """Read so many hostile inputs and return how many were read and how many refused.

    The inputs are the same every time. Hypothesis looks for no smaller input that fails, which would take long.
    """
    counts = [0, 0]

    @settings(
        max_examples=num_examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(data: bytes) -> None:
        counts[not is_clean(read, data)] += 1

    limit = sys.getrecursionlimit()
    with little_memory():
        run()
    assert sys.getrecursionlimit() == limit
    return counts[0], counts[1]
