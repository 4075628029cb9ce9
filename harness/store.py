"""The records on disk: one JSON Lines file a suite, only ever appended to, each line under an exclusive lock.

Many parents may append to one folder at once; a child process never writes here. A line cut off by a crash is moved to
``<file>.cut`` by the next append, so that nothing is lost and the file stays readable. Readers take what is whole and
report the rest as warnings.
"""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic_core import from_json

from harness.errors import HarnessError
from harness.files import append_line, make_folder, reason_of, said_as
from harness.record import Record
from harness.record_lines import RecordLines, may_hold_long_number
from harness.record_versions import parse_record

LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Contents:
    """What a store holds: records ordered by (started_at, uuid), and a sentence for each line that is none."""

    records: tuple[Record, ...]
    warnings: tuple[str, ...] = field(default=())


class Store:
    """A folder of records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file_of(self, suite: str) -> Path:
        """Return the file that holds a suite's records."""
        return self.folder / f"{suite}.jsonl"

    def check_writable(self) -> None:
        """Make the folder, and fail before hours are spent when nothing can be written there.

        Raises:
            HarnessError: it cannot be made or written.
        """
        probe = self.folder / f".write-{os.getpid()}"
        try:
            make_folder(self.folder)
            probe.write_bytes(b"probe")
            probe.unlink()
        except OSError as error:
            raise HarnessError(
                f"the results folder {self.folder} cannot be written: {reason_of(error)}; name another with --results"
            ) from error

    def append(self, record: Record) -> None:
        """Append one record and make it durable before returning.

        Raises:
            HarnessError: the line could not be written; nothing of it stays in the file.
        """
        file = self.file_of(record.suite)
        try:
            make_folder(self.folder)
            with self._locked(file):
                append_line(file, record.model_dump_json().encode() + b"\n")
        except OSError as error:
            raise HarnessError(f"{file}: the record could not be written: {reason_of(error)}") from error

    def read(self, suite: str | None = None) -> Contents:
        """Return the records of one suite, or of all.

        Raises:
            HarnessError: a file is there but cannot be read.
        """
        files = [self.file_of(suite)] if suite is not None else sorted(self.folder.glob("*.jsonl"))
        return parse_files((str(file), lines_if_there(file)) for file in files)

    @contextmanager
    def _locked(self, file: Path) -> Iterator[None]:
        try:
            with FileLock(f"{file}.lock", timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            raise HarnessError(f"{file}: another process has held its lock for {LOCK_SECONDS:.0f} s") from error


class Following:
    """The records of a suite while processes append to them: what was read once is not read again."""

    def __init__(self, store: Store, suite: str) -> None:
        self._file = store.file_of(suite)
        self._size = -1
        self._contents = Contents(())

    def contents(self) -> Contents:
        """Return the records as they are now; a file that is only appended to, and has the same size, is the same.

        Raises:
            HarnessError: the file is there but cannot be read.
        """
        file = self._file
        size = file.stat().st_size if file.exists() else 0
        if size != self._size:
            appended = self._appended(size)
            if appended is None:
                self._contents = parse_files([(str(file), self._lines())])
            else:
                self._contents, self._size = self._with(appended), size
        return self._contents

    def _lines(self) -> Iterator[bytes]:
        """Yield all lines, and count the bytes that were read: meanwhile there may be more."""
        self._size = 0
        for line in lines_if_there(self._file):
            self._size += len(line)
            yield line

    def _appended(self, size: int) -> tuple[Record, ...] | None:
        """Return what was appended to whole lines, or None where all is to be read."""
        file = self._file
        if not 0 < self._size < size:
            return None
        with said_as(f"{file}: cannot be read"), file.open("rb") as stream:
            stream.seek(self._size - 1)
            end, more = stream.read(1), stream.read(size - self._size)
        if end != b"\n" or not more.endswith(b"\n"):
            return None
        found = parse_files([(str(file), more)])
        return None if found.warnings else found.records  # a warning names a line by its number in the file

    def _with(self, appended: tuple[Record, ...]) -> Contents:
        records = sorted((*self._contents.records, *appended), key=lambda record: record.in_time)
        return Contents(tuple(records), self._contents.warnings)


def lines_if_there(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file with their ends, one in memory at a time; none where there is no file.

    Raises:
        HarnessError: it is there but cannot be read.
    """
    with said_as(f"{file}: cannot be read"):
        try:
            stream = file.open("rb")
        except FileNotFoundError:
            return
        with stream:
            yield from stream


def parse_files(parts: Iterable[tuple[str, bytes | Iterable[bytes]]]) -> Contents:
    """Return what records files hold.

    Args:
        parts: What a file is called in a warning, and its bytes, whole or line by line.
    """
    records: list[Record] = []
    warnings: list[str] = []
    reader = RecordLines()
    with no_collection():
        for where, data in parts:
            lines = io.BytesIO(data) if isinstance(data, bytes) else data
            for number, line in enumerate(_cut_at_returns(lines), start=1):
                if (record := reader.record(line)) is not None:
                    records.append(record)
                else:
                    _read_line(line, f"{where} line {number}", records, warnings)
    records.sort(key=lambda record: record.in_time)
    return Contents(tuple(records), tuple(warnings))


def _cut_at_returns(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines that end where ``bytes.splitlines`` has ends: a lone carriage return is one too."""
    for line in lines:
        if b"\r" in line:
            yield from line.splitlines(keepends=True)
        else:
            yield line


@contextmanager
def no_collection(*, keep: bool = False) -> Iterator[None]:
    """Hold the garbage collector off: records have no cycles, and looking for some takes most of a long reading.

    Args:
        keep: What was made inside stays to the end of the process, and is not looked through later either.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if keep:
            gc.freeze()
        if was:
            gc.enable()


def runs_of(records: Iterable[Record], run_id: str) -> list[Record]:
    """Return the records of one run, without later evaluations of it."""
    return [record for record in records if record.run_id == run_id and record.is_run]


def newest_outcomes(records: Iterable[Record], environment_id: str | None) -> dict[str, Record]:
    """Return the newest outcome of each run by its id, in this environment (None: in any).

    The newest decides, so that a success after an out-of-memory is a success.

    Args:
        records: In the order of time.
        environment_id: Whose records count.
    """
    return {
        record.run_id: record
        for record in records
        if record.is_run and record.ran_in(environment_id) and record.has_outcome()
    }


def has_outcome(records: Iterable[Record], run_id: str, environment_id: str | None, retry: frozenset[str]) -> bool:
    """Return whether a run has an outcome in this environment (None: in any), of a status not to be retried."""
    newest = newest_outcomes(runs_of(records, run_id), environment_id).get(run_id)
    return newest is not None and newest.has_outcome(retry)


def _read_line(line: bytes, where: str, records: list[Record], warnings: list[str]) -> None:
    if not line.strip():
        return
    if not line.endswith(b"\n"):
        warnings.append(f"{where}: {cut_off(line)}, and the next run does that work again")
        return
    try:
        records.append(parse_record(json_of_line(line), where))
    except ValueError as error:
        warnings.append(f"{where}: is not JSON ({error}); it is passed over")
    except HarnessError as error:
        warnings.append(f"{error}; it is passed over")


def cut_off(line: bytes) -> str:
    """Return what is said of a line without an end."""
    return f"is cut off after {len(line)} bytes, as by a crash while it was written; it is passed over"


def json_of_line(line: bytes) -> Any:
    """Return the JSON value of a line.

    Raises:
        ValueError: it is none, or holds an integer that no report could show.
    """
    value = from_json(line)
    if may_hold_long_number(line) and _holds_long_number(value):
        raise ValueError("it holds a number of more than 64 bits")
    return value


def _holds_long_number(value: Any) -> bool:
    """Return whether a JSON value holds an integer of more than 64 bits, which no sum of floats takes."""
    if isinstance(value, dict | list):
        return any(map(_holds_long_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) >= 2**63
