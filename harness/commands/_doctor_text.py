"""A diagnosis as plain text for 80 columns, and paths without the user's home."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from harness.diagnosis import Diagnosis, PlaceFacts

WIDTH = 80
_INDENT = 13


def without_home(text: str) -> str:
    """Return text with the home folder written as ``~``."""
    home = str(Path.home())
    return text if home == "/" else re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)


def as_text(found: Diagnosis, width: int = WIDTH) -> str:
    """Return a diagnosis as lines of at most 80 columns, or of a width below; single words may be longer."""
    width = min(width, WIDTH)
    lines = []
    for name, value in _lines(found):
        lines += _wrapped(without_home(value), f"{name:<{_INDENT}}", " " * _INDENT, width)
    lines.append("")
    if not found.actions:
        return "\n".join([*lines, "nothing needs action"])
    lines.append("needs action:")
    for sentence in found.actions:
        lines += _wrapped(without_home(sentence), "- ", "  ", width)
    return "\n".join(lines)


def _wrapped(text: str, first: str, rest: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]


def _lines(found: Diagnosis) -> Iterator[tuple[str, str]]:
    commit = "" if found.commit is None else f", commit {found.commit[:12]}{' with changes' * bool(found.dirty)}"
    yield "harness", f"{found.harness}{commit}"
    yield "python", found.python
    yield "platform", found.platform
    there = {name: version for name, version in found.packages.items() if version is not None}
    yield "packages", ", ".join(f"{name} {version}" for name, version in there.items()) or "none"
    yield "absent", ", ".join(name for name in found.packages if name not in there) or "none"
    yield from _torch_lines(found)
    memory = f"{_gib(found.host_memory_bytes)}, {_gib(found.host_available_bytes)} available"
    yield "host", f"{found.cpus} CPUs, memory {memory}, OMP_NUM_THREADS {found.omp_num_threads or 'not set'}"
    yield "cache", _place(found.cache)
    yield "results", _place(found.results)
    network = found.network
    yield (
        "network",
        f"HF_HUB_OFFLINE {'on' if network.hub_offline else 'off'}, HF_ENDPOINT {_set(network.hub_endpoint_set)}, "
        f"HF_TOKEN {_set(network.hub_token_set)}, proxies: {', '.join(network.proxies_set) or 'none'}, pip: "
        f"{', '.join(network.pip_settings) or 'no variable set'}",
    )
    if found.suite is not None:
        yield "suite", f"{found.suite.name}: {', '.join(found.suite.missing) or 'everything is there'}"


def _torch_lines(found: Diagnosis) -> Iterator[tuple[str, str]]:
    torch = found.torch
    if torch is None:
        yield "torch", f"cannot be used: {found.torch_error}"
    else:
        yield "torch", f"{torch.version}, built for {torch.built_for}, {torch.num_threads} threads"
        for number, device in enumerate(torch.devices):
            capability = ".".join(map(str, device.capability))
            yield (
                f"device {number}",
                f"{device.name}, compute capability {capability}, {_gib(device.memory_bytes)}, "
                f"{_gib(device.free_bytes)} free, bf16 {'yes' if device.bf16 else 'no'}",
            )
        if not torch.devices:
            yield "devices", "torch sees no CUDA device: runs take place on the CPU"
        for said in torch.warnings:
            yield "torch says", said
    if found.nvidia is None:
        yield "driver", "nvidia-smi is not there, or fails"
    for seen in found.nvidia or ():
        yield (
            "driver",
            f"{seen.driver}: {seen.name}, {_gib(seen.memory_bytes)}, {_gib(seen.used_bytes)} in use",
        )


def _place(place: PlaceFacts) -> str:
    parts = [place.path if place.exists else f"{place.path} (does not exist yet)"]
    parts.append("writable" if place.writable else "not writable")
    if place.size_bytes is not None:
        parts.append(f"{_gib(place.size_bytes)} in use")
    parts.append(f"{_gib(place.free_bytes)} free")
    if place.locks is not None:
        parts.append("file locks work" if place.locks else "file locks do not work")
    return ", ".join(parts)


def _gib(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 2**30:.1f} GiB"


def _set(value: bool) -> str:
    return "set" if value else "not set"
