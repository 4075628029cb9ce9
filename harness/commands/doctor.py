"""``harness doctor``: what this machine has and lacks, as plain text that a report of a bug can hold, or as JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
from pathlib import Path

from harness import __version__
from harness.assets.cache import cache_root
from harness.commands._doctor_actions import actions
from harness.commands._doctor_text import as_text, without_home
from harness.commands._output import console, say
from harness.commands._places import place_facts
from harness.commands._selection import select
from harness.commands.requests import SelectionRequest
from harness.diagnosis import Diagnosis, NetworkFacts, SuiteFacts
from harness.preparing.runs import missing_for
from harness.printable import as_json
from harness.runs.device_probe import ask_nvidia, ask_torch
from harness.source import checkout_state

PACKAGES = (
    *("torch", "transformers", "peft", "lm-eval", "tokenizers", "safetensors", "accelerate", "datasets", "numpy"),
    *("huggingface-hub", "pydantic", "filelock", "ray", "submitit", "fschat", "openai", "anthropic", "nvidia-ml-py"),
)
"""Those that can move a number or stop a run, and those of the extras."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
PIP_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CERT")


def diagnose(chosen: SelectionRequest | None, *, results: Path, in_json: bool = False) -> int:
    """Print the diagnosis, of a suite too where one is chosen; return 1 when something needs action."""
    found = _facts(chosen, results)
    found = found.model_copy(update={"actions": tuple(actions(found))})
    say(without_home(as_json(found.model_dump(mode="json"))) if in_json else as_text(found, console().width))
    return 1 if found.actions else 0


def _facts(chosen: SelectionRequest | None, results: Path) -> Diagnosis:
    cache = place_facts(cache_root(), size=True)
    commit, dirty = checkout_state()
    torch = ask_torch()
    total, available = _host_memory()
    return Diagnosis(
        harness=__version__,
        commit=commit,
        dirty=dirty,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        platform=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        torch=None if isinstance(torch, str) else torch,
        torch_error=torch if isinstance(torch, str) else None,
        nvidia=ask_nvidia(),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS"),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        host_memory_bytes=total,
        host_available_bytes=available,
        cache=cache,
        results=place_facts(results, locks=True),
        network=_network(),
        suite=None if chosen is None else _suite(chosen),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _host_memory() -> tuple[int | None, int | None]:
    """Return total and available bytes; None where the system does not say (it is no Linux)."""
    found: dict[str, int] = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if value.endswith(" kB"):
                found[name] = int(value.removesuffix(" kB")) * 1024
    except (OSError, ValueError):
        return None, None
    return found.get("MemTotal"), found.get("MemAvailable")


def _network() -> NetworkFacts:
    def is_set(name: str) -> bool:
        return bool(os.environ.get(name))

    token_file = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "token"
    return NetworkFacts(
        # As huggingface_hub 2.4.0 reads it: constants.py, HF_HUB_OFFLINE.
        hub_offline=(os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper()
        in ("1", "ON", "YES", "TRUE"),
        hub_endpoint_set=is_set("HF_ENDPOINT"),
        hub_token_set=is_set("HF_TOKEN") or token_file.is_file(),
        proxies_set=tuple(name for name in PROXIES if is_set(name) or is_set(name.upper())),
        pip_settings=tuple(name for name in PIP_SETTINGS if is_set(name)),
    )


def _suite(chosen: SelectionRequest) -> SuiteFacts:
    selection = select(chosen, tuned=False)
    command = ["harness", "prepare", "--suite", chosen.suite]
    for option, values in (("--model", chosen.models), ("--label", chosen.labels), ("--data", chosen.data)):
        for value in values:
            command += [option, value]
    if chosen.catalogue is not None:
        command += ["--catalogue", str(chosen.catalogue)]
    return SuiteFacts(
        name=selection.suite.name,
        missing=tuple(missing_for(selection.specs, selection.models.values(), selection.datasets)),
        command=shlex.join(command),
    )
