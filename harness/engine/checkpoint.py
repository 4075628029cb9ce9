"""Checkpoints within a run: what training changes, enough to end in the same weights bit by bit on a CPU.

A checkpoint is a folder ``step-N``, put into its place durably: ``weights.safetensors`` (the optimizer's parameters,
frozen now or not), ``optimizer.safetensors`` (every tensor of its state), ``state.json`` (counters, schedule, the
method's own state, what was observed, whose run it is, the SHA-256 of the other files, and in a second line its own).
The order of the data and every random stream follow from seed and step, so their position is the step. Never a pickle.

Where processes share a run out, each writes what it holds: ``weights-R-of-N.safetensors``, ``optimizer-R-of-N...``. The
first one writes ``state.json`` last, and puts the folder into its place once all have written; what one of them cannot
do, none has done. What the others observed of their own devices stands in ``figures-R-of-N.json``. Another number of
processes takes a checkpoint up as well (``checkpoint_parts.py``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from harness.engine.checkpoint_parts import Cuts, Parts, cuts_of, own_parts, part_names, places_of
from harness.engine.together import curve_together
from harness.engine.training import TrainingLoop
from harness.errors import HarnessError
from harness.files import beside, make_folder, put, reason_of, remove, sweep_beside, sync
from harness.record_training import StepCurve
from harness.tensors.sharded import local, place_of

WEIGHTS, OPTIMIZER, STATE = "weights", "optimizer", "state.json"
FORMAT = 6
READ = (5, FORMAT)
"""Formats that are read: the first is of one process, in whose words nothing is said of parts."""
KEPT = 2
"""Newest checkpoints that stay on disk: one damaged by a crash of the machine leaves the other."""


class Checkpoints:
    """The checkpoints of one run in a folder of their own, named after the run."""

    def __init__(self, folder: Path, loop: TrainingLoop) -> None:
        self._folder = folder
        self._loop = loop
        self._ranks = loop.ranks
        self.notes: list[str] = []
        """A sentence for each checkpoint that ``restore`` could not use."""

    def save(self) -> None:
        """Write a checkpoint of the loop's present step; older ones but the newest few are removed.

        Every process of the run asks at the same step.

        Raises:
            HarnessError: it cannot be written, by whichever process, or the processes are no longer at one about the
                run; the earlier ones are as they were. Each process raises it.
        """
        first, target = self._ranks.first, self._folder / f"step-{self._loop.step}"
        part = Path(self._together(self._begin, target)[0])
        try:
            written = self._together(self._write, part)
            self._check_alike([one.pop("alike") for one in written])
            self._together(self._end, part, target, written)
        finally:
            if first:
                remove(part)
        for old in self._steps()[:-KEPT] if first else ():
            shutil.rmtree(self._folder / f"step-{old}", ignore_errors=True)

    def _together(self, act: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what ``act`` returns in every process, JSON only; each waits for all.

        Raises:
            HarnessError: the system refuses it to one of them, or more.
        """
        try:
            said = {"value": act(*args)}
        except (OSError, SafetensorError) as error:
            said = {"error": reason_of(error) if isinstance(error, OSError) else str(error)}
            cause: Exception | None = error
        else:
            cause = None
        heard = [json.loads(words) for words in self._ranks.exchange(json.dumps(said))]
        faults = [(rank, one["error"]) for rank, one in enumerate(heard) if "error" in one]
        if not faults:
            return [one["value"] for one in heard]
        rank, reason = faults[0]
        by = f" by rank {rank} of {len(heard)}" if len(heard) > 1 else ""
        raise HarnessError(
            f"{self._folder}: the checkpoint of step {self._loop.step} cannot be written{by}: {reason}; "
            "the same command goes on at the last one"
        ) from cause

    def _begin(self, target: Path) -> str:
        """Return the folder in which a checkpoint is made; the first process makes it."""
        if not self._ranks.first:
            return ""
        make_folder(self._folder)
        sweep_beside(self._folder / "step-*")
        part = beside(target)
        part.mkdir()
        return str(part)

    def _write(self, part: Path) -> dict[str, Any]:
        """Write this process's tensors; return their checksums, and what else the first one needs of each."""
        loop, ranks = self._loop, self._ranks
        held = loop.optimizer.state_dict()
        tensors: dict[str, torch.Tensor] = {}
        self._optimizer = _split(held, "", tensors)
        self._cuts = {
            WEIGHTS: cuts_of({name: place_of(p) for name, p in self._parameters().items()}),
            OPTIMIZER: cuts_of(places_of(loop.optimizer, held["state"], several=ranks.several)),
        }
        for kind, these in ((WEIGHTS, self._parameters()), (OPTIMIZER, tensors)):
            name = part_names(kind, ranks.size)[ranks.rank]
            save_file(own_parts(these, self._cuts[kind], first=ranks.first), part / name)
        if not ranks.first:
            figures = {"log": loop.log.state_dict(), "memory": loop.memory.state_dict()}
            (part / _figures_name(ranks.rank, ranks.size)).write_text(json.dumps(figures))
        checksums = {}
        for name in self._own_names():
            sync(part / name)  # here, by each: the others would wait for the first
            checksums[name] = _sha256(part / name)
        return {"checksums": checksums, "alike": self._alike()}

    def _own_names(self) -> list[str]:
        """Return the names of the files that this process writes of a checkpoint, beside its state."""
        rank, size = self._ranks.rank, self._ranks.size
        tensors = [part_names(kind, size)[rank] for kind in (WEIGHTS, OPTIMIZER)]
        return tensors if rank == 0 else [*tensors, _figures_name(rank, size)]

    def _end(self, part: Path, target: Path, written: list[dict[str, Any]]) -> None:
        """Write the state and put the checkpoint into its place: the first process does."""
        if not self._ranks.first:
            return
        loop = self._loop
        state = {
            "format": FORMAT,
            "run": self._folder.name,
            "num_ranks": self._ranks.size,
            "loop": loop.state_dict(),
            "method": loop.method.state_dict(),
            "optimizer": self._optimizer,
            "cuts": self._cuts,
            "checksums": {name: known for one in written for name, known in one["checksums"].items()},
        }
        line = json.dumps(state).encode()
        (part / STATE).write_bytes(line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")
        put(part, target)

    def _alike(self) -> dict[str, str]:
        """Return digests of what has to be equal in every process."""
        loop = self._loop
        parts = {
            "the method's own state": loop.method.state_dict(),
            "the schedule": loop.stepping.state_dict(),
            "the optimizer's counts": dict(self._optimizer["dict"])["state"],
        }
        return {what: hashlib.sha256(json.dumps([loop.step, one]).encode()).hexdigest() for what, one in parts.items()}

    def _check_alike(self, digests: list[dict[str, str]]) -> None:
        for rank, own in enumerate(digests):
            apart = [what for what, known in digests[0].items() if own[what] != known]
            if apart:
                raise HarnessError(
                    f"{self._folder}: no checkpoint of step {self._loop.step}: in rank {rank} of {len(digests)} "
                    f"{' and '.join(apart)} {'is' if len(apart) == 1 else 'are'} not that of rank 0, so the processes "
                    "of this run no longer train one model; a fault of the method, which has to decide alike in each"
                )

    def restore(self) -> int | None:
        """Bring the loop to the newest whole checkpoint of this run; return its step, or None when there is none.

        Every process of a run asks, and takes up the same.

        Raises:
            Refused: another number of processes wrote it, and this one cannot take its optimizer state up.
        """
        steps = json.loads(self._ranks.exchange(json.dumps(self._steps()))[0])
        for step in reversed(steps):
            folder = self._folder / f"step-{step}"
            fault, state = _read_state(folder, self._folder.name)
            faults = [
                json.loads(one) for one in self._ranks.exchange(json.dumps(fault or self._damaged(folder, state)))
            ]
            fault = next((one for one in faults if one is not None), None)
            if fault is None:
                self._restore(folder, state, step)
                return int(step)
            self.notes.append(f"the checkpoint of step {step} was passed over: {fault}")
        return None

    def _damaged(self, folder: Path, state: dict[str, Any]) -> str | None:
        """Return which of the files that fall to this process are damaged; None: none."""
        try:
            own = [name for _, name in self._ranks.share(sorted(state["checksums"]))]
            damaged = [name for name in own if _sha256(folder / name) != state["checksums"][name]]
        except OSError as error:
            return f"it is not whole ({error})"
        return f"{' and '.join(damaged)} are damaged" if damaged else None

    def _restore(self, folder: Path, state: dict[str, Any], step: int) -> None:
        loop, ranks = self._loop, self._ranks
        number, cuts = state.get("num_ranks", 1), state.get("cuts", {WEIGHTS: {}, OPTIMIZER: {}})
        if number != ranks.size:
            self.notes.append(f"at step {step} the run went on from a checkpoint of a run on {number} devices")

        def parts(kind: str) -> Parts:
            files = [folder / name for name in part_names(kind, number)]
            return Parts(files, Cuts(cuts[kind]), rank=ranks.rank, size=ranks.size)

        with parts(WEIGHTS) as weights, parts(OPTIMIZER) as saved:
            blank = saved.blank()
            places = places_of(loop.optimizer, _joined(state["optimizer"], blank)["state"], several=ranks.several)
            saved.refuse_apart(places, step)
            with torch.no_grad():
                for name, parameter in self._parameters().items():
                    local(parameter).copy_(weights.take(name, place_of(parameter)))
            tensors = {path: saved.take(path, places.get(path)) for path in blank}
        loop.optimizer.load_state_dict(_joined(state["optimizer"], tensors))
        loop.method.load_state_dict(state["method"])
        if number == ranks.size:
            own = {} if ranks.first else _figures(folder, ranks.rank, number)
            loop.load_state_dict(state["loop"] | own)
        else:
            figures = [state["loop"], *(_figures(folder, rank, number) for rank in range(1, number))]
            curves = [StepCurve.model_validate(one["log"]["curve"]) for one in figures]
            together = {"curve": curve_together(curves).model_dump(mode="json")}
            log = state["loop"]["log"] | together
            loop.load_state_dict(state["loop"] | {"log": log}, of_other_ranks=True)
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
        if state["format"] not in READ:
            return f"its format is {state['format']}, not {FORMAT}", {}
        if state["run"] != run:
            return f"it is of run {state['run']}, not of {run}", {}
        dict(state["checksums"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"it is not whole ({error})", {}
    return None, state


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


def _figures_name(rank: int, size: int) -> str:
    return f"figures-{rank}-of-{size}.json"


def _figures(folder: Path, rank: int, size: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / _figures_name(rank, size)).read_bytes())
    return found


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
