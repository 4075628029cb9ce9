"""What became of text on its way to the model and of what was asked of it, as a record says it.

Facts alone, counted where they arise; the sentences that follow from them are in ``harness.remarks``. None: of a record
that is older than the field, or nothing of the kind took place.
"""

from __future__ import annotations

from pydantic import JsonValue

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
    """By task, the items of which a context lost its beginning to the model's length; tasks without one left out."""
    long_continuations: dict[str, int] | None = None
    """By task, the items with a continuation longer than the model's length: it was scored in pieces."""
    tied_items: dict[str, int] | None = None
    """By task, the items of which two different choices are the likeliest to the last bit: the first counts."""
    own_generation: dict[str, JsonValue] | None = None
    """Of the model's own settings for generation those that acted on tasks that generate, as they do under lm-eval."""
    overruled_generation: dict[str, JsonValue] | None = None
    """Of the same those that MT-Bench's protocol set aside."""
    num_short_of_room: int | None = None
    """MT-Bench's turns whose prompt left less room in the model's length than ``max_new_tokens``."""
