"""What of a diagnosis needs action: one sentence each, with what to do."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator

from packaging.requirements import InvalidRequirement, Requirement

from harness.diagnosis import Diagnosis, PlaceFacts, TorchFacts

DISTRIBUTION = "finetune-harness"
CACHE_BYTES = 2 * 10**9
"""Free room below which the cache is warned of: suite quickstart takes 0.73 GB in it (wheels, rows, one model)."""
RESULTS_BYTES = 10**9
"""The same for results: kept weights of the embedded model take 0.54 GB."""
IDLE_BYTES = 10**9
"""An idle device with one fresh context holds well under this."""


def actions(found: Diagnosis) -> list[str]:
    """Return one sentence for each thing that needs action."""
    sentences = [*_packages(), *_torch(found)]
    if found.torch is not None:
        sentences += _devices(found.torch)
    sentences += _place(found.cache, "the cache", "HARNESS_CACHE", CACHE_BYTES)
    sentences += _place(found.results, "the results folder", "--results", RESULTS_BYTES)
    if found.results.locks is False:
        sentences.append(
            f"{found.results.path}: its file system takes no file locks, which keep two processes from doing one run: "
            "choose another with --results, or mount it with locks"
        )
    if found.suite is not None and found.suite.missing:
        offline = " on a machine with a network: HF_HUB_OFFLINE is set here" if found.network.hub_offline else ""
        sentences.append(
            f"suite '{found.suite.name}' lacks {', '.join(found.suite.missing)}: run '{found.suite.command}'{offline}"
        )
    return sentences


def _packages() -> Iterator[str]:
    """Say which distributions the installed harness asks for and are absent or of another version."""
    try:
        wanted = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield f"{DISTRIBUTION} runs from a folder and is not installed, so no version is checked: pip install it"
        return
    for text in wanted:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        asked = f"{requirement.name}{requirement.specifier}"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed, and the harness needs {asked}: pip install '{asked}'"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} is {version}, and the harness needs {asked}: pip install '{asked}'"


def _torch(found: Diagnosis) -> Iterator[str]:
    torch, seen = found.torch, found.nvidia or ()
    if torch is None:
        if found.packages.get("torch") is not None:
            yield f"torch cannot be imported ({found.torch_error}), and nothing can run: install it anew"
        return
    if torch.devices or not seen:
        return
    gpus = f"nvidia-smi shows {len(seen)} GPU{'s' * (len(seen) != 1)} ({seen[0].name})"
    if torch.built_for == "CPU":
        yield f"{gpus}, but torch {torch.version} is built for the CPU alone: install a CUDA build of torch"
    elif any("driver" in said and "too old" in said for said in torch.warnings):
        yield (
            f"the driver {seen[0].driver} is too old for {torch.built_for}, which torch {torch.version} is built for: "
            "update the driver, or install a build of torch for an older CUDA"
        )
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        yield f"{gpus}, but CUDA_VISIBLE_DEVICES hides all: unset it, or name the devices to use"
    else:
        said = f": it says '{torch.warnings[0]}'" if torch.warnings else ""
        yield f"{gpus}, but torch {torch.version} sees none{said}: mend the driver, or start the machine anew"


def _devices(torch: TorchFacts) -> Iterator[str]:
    for number, device in enumerate(torch.devices):
        name = f"device {number} ({device.name})"
        capability = ".".join(map(str, device.capability))
        if not device.supported:
            yield (
                f"{name} has compute capability {capability}, and torch {torch.version} holds code for "
                f"{' '.join(torch.architectures)} alone: install a build of torch for it, or use another device"
            )
        elif not device.bf16:
            yield (
                f"{name} has compute capability {capability} and computes no bf16: use suites whose [train] dtype is "
                "fp32, or a device of at least 8.0"
            )
        if device.free_bytes is not None and device.memory_bytes - device.free_bytes > IDLE_BYTES:
            used = (device.memory_bytes - device.free_bytes) / 2**30
            yield (
                f"{name} is used by others ({used:.1f} GiB), so that peaks and times may be wrong: wait, or choose "
                "another with --devices"
            )


def _place(place: PlaceFacts, name: str, option: str, least: int) -> Iterator[str]:
    if not place.writable:
        yield f"{place.path}: {name} cannot be written: choose another folder with {option}, or mend its permissions"
    elif place.free_bytes is not None and place.free_bytes < least:
        yield (
            f"{place.path}: {name} has {place.free_bytes / 1e9:.1f} GB of free disk, under {least / 1e9:.0f} GB: make "
            f"room, or choose another folder with {option}"
        )
