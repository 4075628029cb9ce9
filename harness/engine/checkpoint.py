"""Checkpoints within a run: what training changes, enough to end in the same weights bit by bit on a CPU.

A checkpoint is a folder ``step-N``, written beside and renamed: ``weights.safetensors`` (the optimizer's parameters,
frozen now or not), ``optimizer.safetensors`` (every tensor of its state), ``state.json`` (counters, schedule, the
method's own state, what was observed, and the SHA-256 of the two files). The order of the data and every random stream
follow from seed and step, so their position is the step. Never a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from harness.engine.training import TrainingLoop

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
FORMAT = 2
KEPT = 2
"""Newest checkpoints that stay on disk: one damaged by a crash of the machine leaves the other."""


class Checkpoints:
    """The checkpoints of one run in a folder of their own."""

    def __init__(self, folder: Path, loop: TrainingLoop) -> None:
        self._folder = folder
        self._loop = loop

    def save(self) -> None:
        """Write a checkpoint of the loop's present step; older ones but the newest few are removed."""
        loop = self._loop
        target = self._folder / f"step-{loop.step}"
        beside = self._folder / f".step-{loop.step}.{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        tensors: dict[str, torch.Tensor] = {}
        optimizer = _split(loop.optimizer.state_dict(), "", tensors)
        save_file(self._parameters(), beside / WEIGHTS)
        save_file(tensors, beside / OPTIMIZER)
        state = {
            "format": FORMAT,
            "loop": loop.state_dict(),
            "method": loop.method.state_dict(),
            "optimizer": optimizer,
            "checksums": {name: _sha256(beside / name) for name in (WEIGHTS, OPTIMIZER)},
        }
        with (beside / STATE).open("w") as stream:
            json.dump(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(self._folder / f"step-{old}", ignore_errors=True)

    def restore(self) -> int | None:
        """Bring the loop to the newest whole checkpoint; return its step, or None when there is none."""
        for step in reversed(self._steps()):
            folder = self._folder / f"step-{step}"
            state = _read_state(folder)
            if state is not None:
                self._restore(folder, state)
                return step
        return None

    def _restore(self, folder: Path, state: dict[str, Any]) -> None:
        loop = self._loop
        saved = load_file(folder / WEIGHTS)
        with torch.no_grad():
            for name, parameter in self._parameters().items():
                parameter.copy_(saved[name])
        tensors = load_file(folder / OPTIMIZER)
        loop.optimizer.load_state_dict(_joined(state["optimizer"], tensors))
        loop.method.load_state_dict(state["method"])
        loop.load_state_dict(state["loop"])
        loop.method.on_resume(loop.model, loop.optimizer, loop.step)

    def _parameters(self) -> dict[str, torch.Tensor]:
        known = {id(p) for group in self._loop.optimizer.param_groups for p in group["params"]}
        return {name: p.detach() for name, p in self._loop.model.named_parameters() if id(p) in known}

    def _steps(self) -> list[int]:
        names = [path.name for path in self._folder.glob("step-*")] if self._folder.is_dir() else []
        return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())


def _read_state(folder: Path) -> dict[str, Any] | None:
    """Return a checkpoint's state, or None where it is not whole."""
    try:
        state = json.loads((folder / STATE).read_text())
        whole = state["format"] == FORMAT and all(
            _sha256(folder / name) == checksum for name, checksum in state["checksums"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if whole else None


def _split(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return JSON with every tensor of ``value`` put into ``tensors`` and its path in its place; keys become pairs."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().contiguous()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, _split(inner, f"{path}/{key}", tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_split(inner, f"{path}/{index}", tensors) for index, inner in enumerate(value)]}
    return {"value": value}


def _joined(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _joined(part, tensors) for key, part in inner}
    if kind == "list":
        return [_joined(part, tensors) for part in inner]
    return inner


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
