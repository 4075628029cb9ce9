"""What a method says of itself, checked where it is said: a plug-in may say anything, a record must be read again."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import PydanticSerializationError

from harness.declaration import Declaration
from harness.errors import HarnessError
from harness.faults import first_fault
from harness.record import Proof
from harness.store import json_of_line

if TYPE_CHECKING:
    from harness.engine.training import TrainingLoop
    from harness.tensors.decoder import ModelChecksums

M = TypeVar("M", bound=BaseModel)


def declaration_of(method: str, said: object, num_blocks: int) -> Declaration | None:
    """Return what a method declares of a model with so many blocks.

    Raises:
        HarnessError: no record could hold it, or it is of another number of blocks.
    """
    if said is None:
        return None
    if not isinstance(said, Declaration):
        raise HarnessError(f"method '{method}': declare returned {type(said).__name__}, not a Declaration or None")
    declared = _checked(Declaration, said.model_dump(warnings=False), f"'{method}' declares")
    if len(declared.blocks) != num_blocks:
        raise HarnessError(f"method '{method}' declares {len(declared.blocks)} blocks of a model with {num_blocks}")
    return declared


def report_of(method: str, said: object) -> dict[str, JsonValue]:
    """Return what a method reports as its proof.

    Raises:
        HarnessError: no record could hold it.
    """
    return _checked(Proof, {"method": said}, f"'{method}' reports as its proof").method


def _checked(kind: type[M], said: object, what: str) -> M:
    """Return what is said as a part of a record that can be written, and read again."""
    try:
        found = kind.model_validate(said)
        json_of_line(found.model_dump_json().encode())
    except ValidationError as error:
        raise HarnessError(f"what method {what} is wrong:{first_fault(kind, error)}") from error
    except (ValueError, PydanticSerializationError) as error:
        raise HarnessError(f"what method {what} is wrong: {error}") from error
    return found


def proof_of(
    loop: TrainingLoop,
    reported: dict[str, JsonValue],
    declared: Declaration | None,
    before: ModelChecksums,
    after: ModelChecksums,
) -> Proof:
    """Return what shows that a method was on in a loop that has ended.

    Args:
        loop: With its log.
        reported: What the method says of itself, from :func:`report_of`.
        declared: What it said beforehand.
        before: Checksums of the model's parts before the first step.
        after: The same behind the last.
    """
    return Proof(
        block_checksums_before=before.blocks,
        block_checksums_after=after.blocks,
        other_checksums_before=before.others,
        other_checksums_after=after.others,
        base_checksums_before=before.base_blocks,
        base_checksums_after=after.base_blocks,
        declared=declared,
        ever_trainable_blocks=loop.log.ever_trainable_blocks,
        ever_trainable_others=loop.log.ever_trainable_others,
        optimizer_state_bytes=loop.result().curve.optimizer_state_bytes[-1],
        method=reported,
    )
