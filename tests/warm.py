"""Runs ``python -m harness...`` in processes that are forked from one that has torch and transformers imported.

To import them takes longer than most of what tests ask of a process. A warm process stands for ``python``: it is
forked, given descriptors, folder, environment and arguments, and runs the module as ``__main__``. What that module
starts as ``python -P -m harness...`` begins warm too: beside every warm process waits a fork of it, made before it had
threads, which forks again for each, and the children of that become the warm process's own (it is made the reaper of
its orphans), so that it waits for them and reads what they used as ever. Linux alone; elsewhere everything is started
cold. Tests of kills, interrupts and of two calls at once start real processes.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = ("torch", "harness", "peft", "safetensors.torch", "tokenizers", "scipy.stats", "rich.console")
"""The harness before peft: it keeps that from asking for kernels."""
CLASSES = ("AutoModelForCausalLM", "AutoTokenizer", "LlamaConfig", "LlamaForCausalLM", "get_scheduler")
PR_SET_CHILD_SUBREAPER = 36
"""Of <linux/prctl.h>."""


def harness(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``python -P -m harness`` and return what it printed, as ``subprocess.run`` does; warm unless ``cold``.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    command = [sys.executable, "-P", "-m", "harness", *arguments]
    if cold or sys.platform != "linux":
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env=dict(env), timeout=timeout, check=False
        )
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, Path(os.devnull).open("rb") as nothing:
        descriptors = [nothing.fileno(), out.fileno(), err.fileno()]
        status = _Server.here().run(["harness", *arguments], descriptors, str(cwd), dict(env), timeout)
        out.seek(0)
        err.seek(0)
        said, told = out.read().decode(), err.read().decode()
    if status is None:
        raise subprocess.TimeoutExpired(command, timeout, said, told)
    return subprocess.CompletedProcess(command, status, said, told)


class _Server:
    """The warm process of a process of tests."""

    _one: _Server | None = None

    @classmethod
    def here(cls) -> _Server:
        """Return the one of this process."""
        if cls._one is None:
            cls._one = cls()
        return cls._one

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        atexit.register(self._process.kill)

    def run(
        self, words: list[str], descriptors: list[int], cwd: str, env: dict[str, str], timeout: float
    ) -> int | None:
        """Return the exit status, or None after ``timeout`` seconds."""
        _send(self._line, {"words": words, "cwd": cwd, "env": env, "waited": True}, descriptors)
        pid = _receive(self._line)[0]["pid"]
        killer = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
        killer.start()
        status: int = _receive(self._line)[0]["status"]
        late = not killer.is_alive()
        killer.cancel()
        return None if late else status


def _send(line: socket.socket, content: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    data = json.dumps(content).encode()
    socket.send_fds(line, [len(data).to_bytes(4, "big")], list(descriptors))
    line.sendall(data)


def _receive(line: socket.socket) -> tuple[Any, list[int]]:
    size, descriptors, _, _ = socket.recv_fds(line, 4, 16)
    if len(size) < 4:
        raise EOFError
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += line.recv(1 << 20)
    return json.loads(data), descriptors


def serve(line: socket.socket) -> None:
    """Fork for every request until the other end is gone."""
    while True:
        try:
            asked, descriptors = _receive(line)
        except (EOFError, OSError):
            return
        if asked.get("waited"):
            pid = os.fork()
            if pid == 0:
                line.close()
                _become(asked, descriptors)
            _send(line, {"pid": pid})
            _close(descriptors)
            _, status = os.waitpid(pid, 0)
            _send(line, {"status": os.waitstatus_to_exitcode(status)})
        else:
            between = os.fork()
            if between == 0:
                between = os.getpid()
                pid = os.fork()
                if pid == 0:
                    line.close()
                    while os.getppid() == between:  # until it is gone, and what asked has taken this one on
                        os.sched_yield()
                    if os.getppid() != asked["parent"]:  # what asked is gone too
                        os._exit(1)
                    _become(asked, descriptors)
                _send(line, {"pid": pid})
                os._exit(0)
            _close(descriptors)
            os.waitpid(between, 0)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _become(asked: Mapping[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Be the process that was asked for, to its end."""
    if asked.get("new_session"):
        os.setsid()
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    os.closerange(3, 1024)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    module, *arguments = asked["words"]
    sys.path[:0] = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each not in ("", *sys.path)]
    sys.argv = [module, *arguments]
    _let_children_be_warm()
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does at its end
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _let_children_be_warm() -> None:
    """Let this process's ``Popen`` of a module of the harness be a fork; needs a process without threads."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        serve(theirs)
        os._exit(0)
    theirs.close()
    lock = threading.Lock()
    cold = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    named = inspect.signature(cold)

    def execute_child(self: subprocess.Popen[Any], *values: Any) -> None:
        given = named.bind(self, *values).arguments
        words = given["args"] if isinstance(given["args"], list) else []
        if words[:3] != [sys.executable, "-P", "-m"] or not words[3].startswith("harness.") or given["pass_fds"]:
            cold(self, *values)
            return
        ends = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        content = {
            "words": words[3:],
            "cwd": os.fspath(given["cwd"] or Path.cwd()),
            "env": dict(os.environ if given["env"] is None else given["env"]),
            "new_session": given["start_new_session"],
            "parent": os.getpid(),
        }
        with lock:
            _send(ours, content, [number if end == -1 else end for number, end in enumerate(ends)])
            self.pid = _receive(ours)[0]["pid"]
        self._child_created = True  # type: ignore[attr-defined]
        self._close_pipe_fds(*(given[name] for name in (  # type: ignore[attr-defined]
            "p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"
        )))  # fmt: skip

    subprocess.Popen._execute_child = execute_child  # type: ignore[attr-defined]


def main() -> None:
    """Import, then serve the process of tests that started this one."""
    for name in IMPORTED:
        importlib.import_module(name)
    transformers = importlib.import_module("transformers")
    for name in CLASSES:
        getattr(transformers, name)
    sys.path.remove(str(Path(__file__).parent))
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
