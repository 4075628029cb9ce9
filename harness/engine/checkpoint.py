"""Checkpoints within a run: what training changes, enough to end in the same weights bit by bit on a CPU.

A checkpoint is a folder ``step-N``, put into its place durably: ``weights.safetensors`` (the optimizer's parameters,
frozen now or not), ``optimizer.safetensors`` (every tensor of its state), ``state.json`` (counters, schedule, the
method's own state, what was observed, whose run it is, the SHA-256 of the two files, and in a second line its own). The
order of the data and every random stream follow from seed and step, so their position is the step. Never a pickle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from harness.engine.training import TrainingLoop
from harness.errors import HarnessError
from harness.files import make_folder, reason_of, replacing, sweep_beside

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
FORMAT = 5
KEPT = 2
"""Newest checkpoints that stay on disk: one damaged by a crash of the machine leaves the other."""


class Checkpoints:
    """The checkpoints of one run in a folder of their own, named after the run."""

    def __init__(self, folder: Path, loop: TrainingLoop) -> None:
        self._folder = folder
        self._loop = loop
        self.notes: list[str] = []
        """A sentence for each checkpoint that ``restore`` could not use."""

    def save(self) -> None:
        """Write a checkpoint of the loop's present step; older ones but the newest few are removed.

        Raises:
            HarnessError: it cannot be written; the earlier ones are as they were.
        """
        try:
            make_folder(self._folder)
            sweep_beside(self._folder / "step-*")
            with replacing(self._folder / f"step-{self._loop.step}") as part:
                self._write(part)
        except (OSError, SafetensorError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else error
            raise HarnessError(
                f"{self._folder}: the checkpoint of step {self._loop.step} cannot be written: {reason}; "
                "the same command goes on at the last one"
            ) from error
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(self._folder / f"step-{old}", ignore_errors=True)

    def _write(self, part: Path) -> None:
        loop = self._loop
        part.mkdir()
        tensors: dict[str, torch.Tensor] = {}
        optimizer = _split(loop.optimizer.state_dict(), "", tensors)
        save_file(self._parameters(), part / WEIGHTS)
        save_file(tensors, part / OPTIMIZER)
        state = {
            "format": FORMAT,
            "run": self._folder.name,
            "loop": loop.state_dict(),
            "method": loop.method.state_dict(),
            "optimizer": optimizer,
            "checksums": {name: _sha256(part / name) for name in (WEIGHTS, OPTIMIZER)},
        }
        line = json.dumps(state).encode()
        (part / STATE).write_bytes(line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")

    def restore(self) -> int | None:
        """Bring the loop to the newest whole checkpoint of this run; return its step, or None when there is none."""
        for step in reversed(self._steps()):
            folder = self._folder / f"step-{step}"
            fault, state = _read_state(folder, self._folder.name)
            if fault is None:
                self._restore(folder, state)
                return step
            self.notes.append(f"the checkpoint of step {step} was passed over: {fault}")
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


def _read_state(folder: Path, run: str) -> tuple[str | None, dict[str, Any]]:
    """Return what is wrong with a checkpoint (None: nothing), and its state."""
    try:
        line, _, checksum = (folder / STATE).read_bytes().partition(b"\n")
        if hashlib.sha256(line).hexdigest().encode() != checksum.strip():
            return f"{STATE} is damaged", {}
        state = json.loads(line)
        if state["format"] != FORMAT:
            return f"its format is {state['format']}, not {FORMAT}", {}
        if state["run"] != run:
            return f"it is of run {state['run']}, not of {run}", {}
        damaged = [name for name, known in state["checksums"].items() if _sha256(folder / name) != known]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"it is not whole ({error})", {}
    return (f"{' and '.join(damaged)} are damaged" if damaged else None), state


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
