"""What became of text on its way to the model and of what was asked of it, as a record says it.

Facts alone, counted where they arise; the sentences that follow from them are in ``harness.remarks``. None: of a record
that is older than the field, or nothing of the kind took place.
"""

from __future__ import annotations

from harness.record_part import Part


class RowFacts(Part):
    """The rows of the training data, before they are batches."""

    num_rows: int | None = None
    """Rows to train on, what is held out or left out not among them."""
    num_blank_rows: int | None = None
    """Rows without a token to train on: left out."""


class EncodingFacts(Part):
    """How text became tokens, in training, scoring and generation alike."""


class ScoringFacts(Part):
    """How items were scored and answers generated."""

    cut_contexts: dict[str, int] | None = None
    """By task, the requests whose context lost its beginning to the model's length; tasks without one left out."""
