"""A stand-in for Slurm's programs: ``sbatch`` runs what it is given as processes of this machine, the others tell.

As Slurm does, it sends signals to every process of a job, in whichever session that is: they are found by their
environment. ``hold`` in the folder keeps jobs queued; ``fate`` in it is how Slurm ends the next job that starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

NAMES = ("sbatch", "srun", "scancel", "sacct", "scontrol")


def install(folder: Path) -> dict[str, str]:
    """Put the programs into a folder, and return the environment variables with which they are found."""
    (folder / "bin").mkdir(parents=True)
    for name in NAMES:
        file = folder / "bin" / name
        file.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        file.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "SLURM_STAND_IN": str(folder)}


def jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what is known of each job, by its id."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.job"))}


def processes(job: str) -> list[psutil.Process]:
    """Return the processes of a job that run."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("SLURM_JOB_ID") == job
        except psutil.Error:
            continue
        if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def send(job: str, number: int) -> None:
    """Send a signal to every process of a job."""
    for process in processes(job):
        try:
            process.send_signal(number)
        except psutil.Error:
            continue


def say(folder: Path, job: str, **what: Any) -> None:
    """Write down what is known of a job."""
    file = folder / f"{job}.job"
    known = json.loads(file.read_text()) if file.exists() else {}
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(known | what))
    beside.replace(file)


def state_of(folder: Path, job: str) -> str:
    """Return the state of a job."""
    return str(jobs(folder)[job]["state"])


def sbatch(folder: Path, script: str) -> None:
    job = str(100 + len(list(folder.glob("*.job"))))
    say(folder, job, state="PENDING", script=Path(script).read_text())
    command = [sys.executable, __file__, "run", job, script]
    subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {job}")


def run(folder: Path, job: str, script: str) -> None:
    """Be the node: wait for a place, run the job, note how it ended."""
    while (folder / "hold").exists() or (folder / f"{job}_submitted").exists():
        if state_of(folder, job) == "CANCELLED":
            return
        time.sleep(0.05)
    text = Path(script)
    while not text.exists():  # submitit renames it once it knows the id
        text = next(iter(text.parent.glob(f"{job}_submission.sh")), text)
        time.sleep(0.05)
    own = {"SLURM_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0"}
    say(folder, job, state="RUNNING")
    process = subprocess.Popen(["/bin/bash", str(text)], env={**os.environ, **own})
    fate = folder / "fate"
    how = fate.read_text().strip() if fate.exists() else ""
    fate.unlink(missing_ok=True)
    if how:
        while not any("harness.runs.child" in " ".join(one.cmdline()) for one in processes(job)):
            time.sleep(0.05)
        end(folder, job, how)
    process.wait()
    told = state_of(folder, job)
    if told == "REQUEUED":
        say(folder, job, state="PENDING", requeued=1)
        run(folder, job, script)
    elif told == "RUNNING":
        say(folder, job, state="COMPLETED" if process.returncode == 0 else "FAILED")


def end(folder: Path, job: str, how: str) -> None:
    """End a job as Slurm would: first told, then killed; what runs out of memory is killed."""
    say(folder, job, state=how)
    if how != "OUT_OF_MEMORY":
        send(job, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while processes(job) and time.monotonic() < deadline:
            time.sleep(0.05)
    send(job, signal.SIGKILL)


def scancel(folder: Path, job: str) -> None:
    state = state_of(folder, job)
    say(folder, job, state="CANCELLED by 0" if state == "RUNNING" else "CANCELLED")
    if state == "RUNNING":
        send(job, signal.SIGTERM)


def sacct(folder: Path, *arguments: str) -> None:
    wanted = [arguments[i + 1] for i, word in enumerate(arguments) if word == "-j"]
    print("JobID|State|NodeList")
    for job, known in jobs(folder).items():
        if job in wanted:
            print(f"{job}|{known['state']}|here\n{job}.batch|{known['state']}|here")


def srun(*arguments: str) -> None:
    command = list(arguments)
    while command[0].startswith("--"):
        option = command.pop(0)
        if option in ("--output", "--error"):
            place = command.pop(0).replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
            number = 1 if option == "--output" else 2
            opened = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(opened, number)
    os.execvp(command[0], command)


if __name__ == "__main__":
    here, (called, *rest) = Path(os.environ["SLURM_STAND_IN"]), sys.argv[1:]
    if called == "srun":
        srun(*rest)
    else:
        {"sbatch": sbatch, "run": run, "scancel": scancel, "sacct": sacct}[called](here, *rest)
