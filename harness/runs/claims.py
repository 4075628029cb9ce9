"""Claims on runs: several ``harness run`` on one results folder, on one machine or many, do each run once.

A claim is a file ``.claims/NAME.lease`` that says whose it is. It ends with its owner:

- Every process holds an OS lock on a file of its own for as long as it lives, however it ends. A lease whose owner's
  lock can be taken, by a process under the same kernel, is free at once.
- Of an owner on another machine, whose lock may not be seen, a lease is free when its heartbeat has stood still for
  ``LEASE_SECONDS`` on the observer's own monotonic clock. The clocks of two machines are never compared, so one that is
  wrong or set back moves nothing. A machine that stood still for longer has lost its claims.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import HarnessError
from harness.files import make_folder, reason_of

LEASE_SECONDS = 180.0
"""Longer than a network file system keeps attributes it has read (60 s by default with NFS), and three heartbeats."""
BEAT_SECONDS = 15.0
GUARD_SECONDS = 60.0
LOOK_SECONDS = 5.0
"""How soon a claim that is held is looked at again while its lease is there: so late a dead owner may be found out."""
FOLDER = ".claims"


class Lease(BaseModel):
    """What a lease file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str
    """Kernel under which the owner's lock can be seen, a hyphen, and a name of its own."""
    work: str
    """Name of the work folder that the owner uses for this claim."""


def kernel_identity() -> str:
    """Return what tells this running system from any other, and from itself before it was started anew."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{platform.node()}-{uuid.getnode():x}"


class Claims:
    """The claims of one process on the runs of one results folder; a context manager.

    Args:
        results: Folder of the records.
        kernel: Of the machine.
        clock: Monotonic seconds.
    """

    def __init__(self, results: Path, kernel: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = results / FOLDER
        self._kernel = kernel if kernel is not None else kernel_identity()
        self._owner = f"{self._kernel}-{uuid.uuid4().hex}"
        self._clock = clock
        self._alive = self._lock_of(self._owner)
        self._mine: set[str] = set()
        self._seen: dict[str, tuple[tuple[bytes, int], float]] = {}
        self._held: dict[str, float] = {}
        self._closing = threading.Event()

    def __enter__(self) -> Claims:
        try:
            make_folder(self._folder)
            self._alive.acquire()
        except OSError as error:
            raise _unusable(self._folder, error) from error
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for name in tuple(self._mine):
            self.release(name)
        with contextlib.suppress(OSError):
            self._file(self._owner, "alive").unlink(missing_ok=True)
        self._alive.release()

    def take(self, name: str, work: str) -> bool:
        """Claim ``name``; return False when somebody else holds it.

        Args:
            name: What is claimed.
            work: Name of the work folder that will be used.

        Raises:
            HarnessError: claims cannot be written in the results folder.
        """
        lease = Lease(owner=self._owner, work=work)
        file = self._file(name, "lease")
        with self._guard():
            if not self._is_free(name):
                self._held[name] = self._clock()
                return False
            file.unlink(missing_ok=True)
            try:
                # Exclusive: where the guard is not seen by another machine, one of two still wins.
                with file.open("xb", buffering=0) as stream:
                    stream.write(lease.model_dump_json().encode())
            except FileExistsError:
                return False
            except OSError:
                file.unlink(missing_ok=True)
                raise
            self._mine.add(name)
        return True

    def release(self, name: str) -> None:
        """Give a claim back; one that was lost meanwhile stays with its new owner."""
        self._mine.discard(name)
        with contextlib.suppress(OSError, HarnessError), self._guard():
            lease = self._read(name)
            if lease is not None and lease.owner == self._owner:
                self._file(name, "lease").unlink()

    def of_others(self) -> frozenset[str]:
        """Return what others hold a lease of, whether or not they are gone; one listing of the folder says it."""
        with contextlib.suppress(OSError), os.scandir(self._folder) as found:
            names = {entry.name.removesuffix(".lease") for entry in found if entry.name.endswith(".lease")}
            return frozenset(names - self._mine)
        return frozenset()

    def was_held(self, name: str) -> bool:
        """Return whether a claim was seen to be held within the last ``LOOK_SECONDS``.

        While its lease is there, another look is a lock and two files each time, for every run under way elsewhere and
        every device that waits here.
        """
        seen = self._held.get(name)
        return seen is not None and self._clock() - seen < LOOK_SECONDS

    @contextlib.contextmanager
    def abandoned(self, work: Path) -> Iterator[list[Path]]:
        """Remove the leases of owners that are gone, and yield their work folders while nobody can make a claim.

        Raises:
            HarnessError: claims cannot be written in the results folder.
        """
        with self._guard():
            held = set()
            for file in self._folder.glob("*.lease"):
                if self._is_free(file.stem):
                    file.unlink(missing_ok=True)
                elif (lease := self._read(file.stem)) is not None:
                    held.add(lease.work)
            for file in self._folder.glob(f"{self._kernel}-*.alive"):
                self._is_alive(file.stem)
            yield [folder for folder in sorted(work.glob("*")) if folder.name not in held]

    def _is_free(self, name: str) -> bool:
        """Return whether a lease is absent or its owner gone; the caller holds the guard."""
        file = self._file(name, "lease")
        lease = self._read(name)
        if lease is not None and lease.owner.rpartition("-")[0] == self._kernel:
            return not self._is_alive(lease.owner)
        try:
            state = file.read_bytes(), file.stat().st_mtime_ns
        except FileNotFoundError:
            return True
        seen, since = self._seen.get(name, (None, 0.0))
        if seen != state:
            self._seen[name] = state, self._clock()
            return False
        return self._clock() - since >= LEASE_SECONDS

    def _is_alive(self, owner: str) -> bool:
        """Return whether a process under this kernel holds its lock; the file of one that is gone is removed."""
        if owner == self._owner:
            return True
        lock = self._lock_of(owner)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        self._file(owner, "alive").unlink(missing_ok=True)
        lock.release()
        return False

    def _read(self, name: str) -> Lease | None:
        try:
            return Lease.model_validate_json(self._file(name, "lease").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _beat(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            for name in tuple(self._mine):
                with contextlib.suppress(OSError):
                    os.utime(self._file(name, "lease"))

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            with FileLock(self._folder / "lock", timeout=GUARD_SECONDS):
                yield
        except Timeout as error:
            raise HarnessError(
                f"{self._folder}: another process has held its lock for {GUARD_SECONDS:.0f} s"
            ) from error
        except OSError as error:
            raise _unusable(self._folder, error) from error

    def _lock_of(self, owner: str) -> FileLock:
        return FileLock(self._file(owner, "alive"), thread_local=False)

    def _file(self, name: str, ending: str) -> Path:
        return self._folder / f"{name}.{ending}"


def _unusable(folder: Path, error: OSError) -> HarnessError:
    return HarnessError(
        f"{folder}: the claims that keep two processes from doing one run cannot be written: {reason_of(error)}"
    )
