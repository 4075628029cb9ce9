"""Settings of methods that scale the gradient itself by what Adam does in a subspace of it. No torch."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.methods._declared import BYTES
from harness.methods._settings import Dtype, ProjectionSettings


class ScalingSettings(ProjectionSettings):
    """A projection beside which the gradient itself moves the weights, scaled, its norm limited in its growth."""

    scaling: Literal["channel", "tensor"]
    """Factors of the gradient, as Adam changes norms in the subspace: ``channel``, one for each row or column of the
    side that is not projected; ``tensor``, one for the whole matrix."""
    growth_limit: Annotated[float, Field(gt=1.0)]
    """Most by which the norm of the scaled gradient grows from one update of a matrix to the next, as a factor."""
    limiter_dtype: Dtype
    """Of that norm, which is kept for each matrix, and of the limiter's arithmetic. In bf16 numbers are up to 0.8 %
    apart, so that a factor of 1.01 comes out as 1 to 1.02."""
    limiter_at_zero: Literal["reference", "skip"]
    """After an update whose gradient was zero: ``reference``, growth starts at zero, so that the matrix all but stands
    still for over a thousand updates; ``skip``, such an update is none for the limiter."""

    def bytes_beside_moments(self, projector: int) -> int:
        """Return the bytes of projector and norm."""
        return projector + BYTES[self.limiter_dtype]


class ApolloSettings(ScalingSettings):
    """Settings of APOLLO's projection."""

    projector: Literal["gaussian", "svd", "randomized"] | None = None  # type: ignore[assignment]
    """``gaussian``: independent normal numbers of variance 1 / rank, whatever the gradient; else singular vectors,
    exactly or by a randomized range finder."""
    store_projector: bool
    """Keep a gaussian projector as a tensor; false: keep its seed, and draw the same numbers at every update."""

    @model_validator(mode="after")
    def _projection_given(self) -> ApolloSettings:
        if self.projector is not None and self.projector != "gaussian" and not self.store_projector:
            raise ValueError(
                f"store_projector = false is for projector = 'gaussian': no seed makes the one of '{self.projector}'"
            )
        return self

    def size_of_update(self, shape: tuple[int, ...]) -> float:
        """Return about how much a number of a (rows, columns) matrix moves in one update, in learning rates.

        Formula: sqrt(scale rank / side), side being the length that is projected. Adam's direction in the subspace is
        1 a number, sqrt(rank) a channel of it, and the gaussian projection keeps norms on average.
        """
        low_rank = self.low_rank()
        side = min(shape) if low_rank.projection_side == "reference" else max(shape)
        return math.sqrt(low_rank.scale * min(low_rank.rank, *shape) / side)

    def bytes_beside_moments(self, projector: int) -> int:
        """Return the bytes of the norm, and of the projector unless its seed is kept in its place."""
        return super().bytes_beside_moments(projector if self.store_projector else 0)
