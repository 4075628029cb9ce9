"""What ``harness calibrate`` found: one line a part, in ``calibration/parts.jsonl`` of a results folder.

Lines are only ever appended, as answers come. A part is one question to a device: a rate, one step of a method, a
constant that planning assumes. What was not measured is absent. Runs of the ladder are ordinary records and lie in
their suite's file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import (
    AfterValidator,
    AwareDatetime,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)

from harness.errors import HarnessError
from harness.faults import first_fault
from harness.files import append_line, make_folder, read_bytes_if_there, reason_of
from harness.record_environment import Environment
from harness.redaction import redacted
from harness.settings import ComputeCapability, Strict
from harness.store import LOCK_SECONDS, cut_off, json_of_line

FOLDER, FILE = "calibration", "parts.jsonl"
Group = Literal["checks", "sharded", "constants", "ladder", "evaluation"]
"""In the order in which they are worth their time. ``sharded``: what several devices share.
``ladder``: runs, whose answers are records."""
GROUPS: tuple[Group, ...] = ("checks", "sharded", "constants", "ladder", "evaluation")
Outcome = Literal["ok", "failed", "out_of_memory", "skipped"]
"""``skipped``: cannot be asked of this device or without these files; the sentence says why."""
Sizes = Literal["full", "smoke"]
"""``smoke``: tiny shapes, which show that the machinery works and nothing of the device."""
SUITES: dict[Sizes, str] = {"full": "calibration", "smoke": "calibration-small"}
"""Whose runs are the ladder."""
LONGEST_FAULT = 200
"""Characters of what is wrong with a line."""
Unit = Literal["bytes", "bytes/s", "FLOP/s", "tokens/s", "s", "ratio", "B/head/token", "matrices", "relative"]


class Reading(Strict):
    """One number that a part measured."""

    name: str
    value: FiniteFloat
    unit: Unit
    expected: FiniteFloat | None = None
    """What was assumed or stated of it; None: nothing was."""
    expected_by: str | None = None
    """Who says so: the planner, a data sheet, the CPU."""
    at_least: FiniteFloat | None = None
    at_most: FiniteFloat | None = None

    @property
    def difference(self) -> float | None:
        """Return by which fraction of the measured value the expected one is larger; None where there is none."""
        return None if self.expected is None or self.value == 0 else self.expected / self.value - 1.0

    @property
    def reached(self) -> bool | None:
        """Return whether the value keeps the bounds that were asked for; None where none was."""
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


class Facts(Strict):
    """The facts that a device profile is made of, each in the part that measures it; others are passed by."""

    model_config = ConfigDict(extra="ignore")

    compute_capability: ComputeCapability | None = None
    context_bytes: NonNegativeInt | None = None
    forward_bytes: NonNegativeInt | None = None
    """Of cuBLAS's work space, as ``backward_bytes``."""
    svd: NonNegativeFloat | None = None
    qr: NonNegativeFloat | None = None
    eigh: NonNegativeFloat | None = None
    kernel: str | None = None
    head_size: PositiveInt | None = None
    kept_bytes: NonNegativeFloat | None = None
    backward_bytes: NonNegativeInt | NonNegativeFloat | None = None


def _checked(facts: dict[str, JsonValue]) -> dict[str, JsonValue]:
    Facts.model_validate(facts)
    return facts


class PartResult(Strict):
    """The answer to one part."""

    schema_version: Literal[1] = 1
    part: str
    group: Group
    sizes: Sizes
    outcome: Outcome
    sentence: Annotated[str, AfterValidator(redacted)] | None = None
    """Why it is not ok, or what the reader must know."""
    readings: tuple[Reading, ...] = ()
    facts: Annotated[dict[str, JsonValue], AfterValidator(_checked)] = Field(default_factory=dict)
    """What a device profile is made of, beside the readings."""
    seconds: NonNegativeFloat
    started_at: AwareDatetime
    environment_id: str
    environment: Environment

    @property
    def known_facts(self) -> Facts:
        """Return the facts that a device profile is made of."""
        return Facts.model_validate(self.facts)


@dataclass(frozen=True)
class Log:
    """What a file of parts holds, in the order of its lines, and a sentence for each line that is none."""

    results: tuple[PartResult, ...] = ()
    warnings: tuple[str, ...] = ()

    def latest(self, sizes: Sizes | None = None, environment_id: str | None = None) -> tuple[PartResult, ...]:
        """Return the newest answer of each part, in the order of their first; of these sizes, in this environment."""
        newest: dict[str, PartResult] = {}
        for result in self.results:
            fits = sizes in (None, result.sizes) and environment_id in (None, result.environment_id)
            if fits:
                newest[result.part] = result
        return tuple(newest.values())


def log_file(results: Path) -> Path:
    """Return where the parts of a results folder are written."""
    return results / FOLDER / FILE


def append_result(results: Path, result: PartResult) -> None:
    """Append one answer and make it durable before returning.

    Raises:
        HarnessError: it could not be written.
    """
    file = log_file(results)
    try:
        make_folder(file.parent)
        with FileLock(f"{file}.lock", timeout=LOCK_SECONDS):
            append_line(file, result.model_dump_json().encode() + b"\n")
    except OSError as error:
        raise HarnessError(f"{file}: the part could not be written: {reason_of(error)}") from error


def read_log(results: Path) -> Log:
    """Return the parts that a results folder holds; none where there is no file.

    Raises:
        HarnessError: the file is there but cannot be read.
    """
    file = log_file(results)
    if (data := read_bytes_if_there(file)) is None:
        return Log()
    found, warnings = [], []
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        where = f"{file} line {number}"
        if not line.endswith(b"\n"):
            warnings.append(f"{where}: {cut_off(line)}")
            continue
        try:
            found.append(PartResult.model_validate(json_of_line(line)))
        except ValidationError as error:
            why = first_fault(PartResult, error).strip()[:LONGEST_FAULT]
            warnings.append(f"{where}: is no part of a calibration that this harness reads ({why}); it is passed over")
        except ValueError as error:
            warnings.append(f"{where}: is not JSON ({error}); it is passed over")
    return Log(tuple(found), tuple(warnings))
