"""What a method says of a run beforehand: what it will train, what state that takes, how often it draws and refreshes.

It follows from settings and shapes alone, never from what an optimizer holds, so that a record can be held against it:
``harness.proof`` does.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Count = Annotated[int, Field(ge=0)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeclaredPart(_Declared):
    """One decoder block, or embedding, final norm, head or the rest, while it is trained."""

    num_params: Count = 0
    """Parameters that require grad while the part is trained; 0: it never is."""
    num_vector_params: Count = 0
    """Of these, those of no matrix: a norm's weights are near 1, where small updates round away."""
    dtypes: tuple[str, ...] = ()
    """Of these, sorted: ``bfloat16``, ``float32``."""
    state_bytes: Count = 0
    """Optimizer state once each of these was updated: moments, projectors, fp32 masters, corrections."""
    projected: tuple[str, ...] = ()
    """Base-model names of the matrices whose gradients are projected."""
    adapters: tuple[str, ...] = ()
    """Base-model names of the modules whose adapters are trained with the part, where blocks are drawn."""


class DeclaredSampling(_Declared):
    """A method that trains some blocks at a time."""

    interval_steps: PositiveInt
    """Optimizer steps from one draw to the next; the first is at step 0."""
    first_period_steps: PositiveInt | None = None
    """Steps from the first draw to the second; None: as many as between any other two."""
    num_active: Count | None
    """Blocks of a draw; None where chance decides how many."""
    in_turn: Literal["ascending", "descending"] | None = None
    """Blocks take turns from the first on or from the last, and round again; None: chance decides."""
    state_policy: Literal["drop", "keep", "offload"]
    """What becomes of the state of a block that a draw leaves out."""
    streams_state: bool = False
    """Between updates the state of blocks that are trained is on the host too."""
    resets_each_period: bool = False
    """A draw drops the state of all that is trained, that of the blocks it draws again too."""

    def turn(self, draw: int, num_blocks: int) -> set[int] | None:
        """Return the blocks of a draw, 0-based, where they take turns; None where chance decides."""
        if self.in_turn is None or self.num_active is None:
            return None
        first = draw * self.num_active
        ascending = {block % num_blocks for block in range(first, first + self.num_active)}
        return ascending if self.in_turn == "ascending" else {num_blocks - 1 - block for block in ascending}

    def draw_steps(self, num_steps: int) -> list[int]:
        """Return the steps, of so many, at which blocks are drawn."""
        first = self.first_period_steps or self.interval_steps
        return [step for step in (0, *range(first, num_steps, self.interval_steps)) if step < num_steps]


class DeclaredProjection(_Declared):
    """When the projector of a matrix is computed anew, beside its first update after its state was dropped."""

    update_gap: PositiveInt
    update_gap_counter: Literal["global", "parameter"]
    """``parameter``: after so many updates of the matrix; ``global``: at its first update in a window of so many steps
    of the run."""
    refresh_on_activation: bool
    """At the first update after a draw that takes the block in, too."""
    scale: PositiveFloat = 1.0
    """Factor of the update of a projected matrix."""


class Declaration(_Declared):
    """What a method declares of one run."""

    blocks: tuple[DeclaredPart, ...]
    """Of every decoder block, in order."""
    others: dict[str, DeclaredPart]
    """Of what else is trained, at every step: ``embedding``, ``final_norm``, ``head``, ``rest``. A tied head is in the
    embedding."""
    sampling: DeclaredSampling | None = None
    """None: all that is trained is trained at every step."""
    projection: DeclaredProjection | None = None
    adapters: tuple[str, ...] | None = None
    """Base-model names of the modules that get an adapter, whose own weights stay as they are; None: none do."""
    adapters_begin_at_zero: bool = True
    """False: with values of their own, which an update may leave as they are by rounding."""
    full_rank: tuple[str, ...] = ()
    """Base-model names of the matrices whose smaller side is no more than the rank: of these nothing is reduced."""
    unprojected: tuple[str, ...] = ()
    """Base-model names of what the blocks hold beside linear layers and vectors, where gradients are projected: experts
    in one tensor, transposed layers."""
    damping: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Of a gradient whose numbers are smaller on average, updates fall short of the learning rate in proportion: Adam's
    eps. 0: of none."""
