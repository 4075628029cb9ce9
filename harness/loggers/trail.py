"""How far a run is logged, kept in a small file, so that a process that goes on with it logs no step twice.

The file is written before a step is logged: a process that is killed between the two loses one step, and repeats none.
What is lost so, and what was never told, is taken from the record at the end.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from harness.files import read_bytes_if_there


class Trail:
    """The key of a run's log, and the last step and held-out loss in it."""

    def __init__(self, file: Path | None, key: str, *, goes_on: bool) -> None:
        """Take up what an earlier attempt left, or begin.

        Args:
            file: Of this run and logger; None: no attempt will go on with it.
            key: Of the log, if it begins now.
            goes_on: Whether the run may go on where an earlier attempt ended.
        """
        self.key, self.resumed = key, False
        self._last = {True: -1, False: 0}
        """The last step with a held-out loss, and the last step."""
        self._file = file
        left = _left(file) if goes_on and file is not None else None
        if left is not None:
            self.key, self._last[False], self._last[True] = left
            self.resumed = True
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        self._note()

    @property
    def step(self) -> int:
        """Return the last step that is logged; 0: none."""
        return self._last[False]

    def is_new(self, step: int, *, held_out: bool) -> bool:
        """Note a step, or the held-out loss at it, as logged; return False where it was before."""
        if step <= self._last[held_out]:
            return False
        self._last[held_out] = step
        self._note()
        return True

    def forget(self) -> None:
        """Remove the file: no attempt will go on with this log."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)

    def _note(self) -> None:
        if self._file is not None:
            # One short line of one length: whatever moment a kill comes at, it is there whole.
            with self._file.open("r+b" if self._file.exists() else "wb") as file:
                file.write(f"{self.key} {self._last[False]:12d} {self._last[True]:12d}\n".encode())


def _left(file: Path) -> tuple[str, int, int] | None:
    """Return what a file says; None where it says nothing."""
    try:
        key, step, held_out = (read_bytes_if_there(file) or b"").decode().split()
        return key, int(step), int(held_out)
    except (OSError, ValueError):
        return None
