"""What makes a run need less memory: settings, told apart by whether they leave losses and weights as they are.

Exact settings leave them, but for rounding and for the masks of dropout, drawn by micro-batch; the others make
another run. docs/memory.md states which is which, and ``tests/contract/test_savers.py`` tests it for every method. No
method is named: a saver is for whatever has its settings. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue, ValidationError

from harness.method import METHODS
from harness.settings import TrainSettings
from harness.spec import RunSpec

LOSS_COLUMNS = 4096
UPDATE_ELEMENTS = 1 << 24

Changes = Mapping[str, JsonValue]


@dataclass(frozen=True)
class Saver:
    """Settings that need less."""

    changes: Changes
    """By setting, as ``--set`` takes them."""
    exact: bool
    """Whether losses and weights stay as they are."""


def as_arguments(changes: Changes) -> str:
    """Return ``--set KEY=VALUE`` for each change."""
    return " ".join(
        f"--set {key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()
    )


def changed(spec: RunSpec, changes: Changes) -> RunSpec | None:
    """Return a run with other settings, of training or of its method; None where they do not go together.

    Args:
        spec: Trains.
        changes: By setting; each must be there.
    """
    assert spec.train is not None
    of_train = {key: value for key, value in changes.items() if key in TrainSettings.model_fields}
    of_method = {key: value for key, value in changes.items() if key not in of_train}
    try:
        train = TrainSettings.model_validate({**spec.train.model_dump(mode="json"), **of_train})
        config = METHODS.get(spec.method).Config.model_validate({**spec.config, **of_method})
    except ValidationError:
        return None
    return spec.model_copy(update={"train": train, "config": config.model_dump(mode="json")})


def savers(spec: RunSpec) -> tuple[Saver, ...]:
    """Return what a run does not use yet and its method has, in no order."""
    assert spec.train is not None
    known = METHODS.get(spec.method).Config.model_validate(spec.config).model_dump(mode="json")
    known |= spec.train.model_dump(mode="json")
    clips = known["max_grad_norm"] is not None
    found = []
    for saver, applies in _KNOWN:
        has = all(key in known for key in saver.changes)
        if (
            has
            and any(known[key] != value for key, value in saver.changes.items())
            and applies({**known, "clips": clips})
        ):
            found.append(saver)
    return tuple(saver for saver in found if changed(spec, saver.changes) is not None)


def _always(known: Mapping[str, Any]) -> bool:
    return True


_KNOWN: tuple[tuple[Saver, Callable[[Mapping[str, Any]], bool]], ...] = (
    (Saver({"update_in_backward": True}, exact=True), lambda known: not known["clips"]),
    (Saver({"update_in_backward": True, "two_pass_clipping": True}, exact=True), lambda known: known["clips"]),
    (
        Saver({"update_slice_elements": UPDATE_ELEMENTS}, exact=True),
        lambda known: known["update_slice_elements"] is None and not known.get("stochastic_rounding"),
    ),
    (Saver({"loss_chunk_columns": LOSS_COLUMNS}, exact=True), lambda known: known["loss_chunk_columns"] is None),
    (Saver({"gradient_checkpointing": True}, exact=True), _always),
    (Saver({"gradient_checkpointing": True, "checkpoint_granularity": "nested"}, exact=True), _always),
    (
        Saver({"gradient_checkpointing": True, "offload_checkpoints": True}, exact=True),
        _always,
    ),
    (
        Saver({"state_policy": "offload"}, exact=True),
        lambda known: known["state_policy"] == "keep",
    ),
    (Saver({"moment_dtype": "bf16"}, exact=False), lambda known: known["moment_dtype"] != "int8"),
    (Saver({"adapter_dtype": "bf16"}, exact=False), _always),
    (Saver({"projector_dtype": "bf16"}, exact=False), lambda known: known["projector_dtype"] is not None),
    (Saver({"moment_dtype": "int8"}, exact=False), _always),
    (Saver({"master_weights": False}, exact=False), _always),
    (
        Saver({"state_policy": "drop", "returning_step_counter": "reset"}, exact=False),
        lambda known: known["state_policy"] != "drop",
    ),
    (Saver({"gradient_accumulation_steps": 1}, exact=False), _always),
    (Saver({"project_vocabulary": True}, exact=False), lambda known: known.get("rank") is not None),
)
"""Each with when it applies, given a run's settings and whether it ``clips``. Those that change the result come in the
order in which they are tried: precision first, then states, then fewer rows a step, then what is projected."""
