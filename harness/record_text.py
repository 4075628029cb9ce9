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
    num_source_rows: int | None = None
    """Rows of the data set, those held out and left out among them."""
    num_prompts: int | None = None
    """Different prompts in both parts, without regard to case, punctuation and spacing; None of a data set that comes
    with parts."""
    num_held_out_rows: int | None = None
    """Rows of the validation part, from which the held-out batch takes the first."""
    num_held_out_prompts: int | None = None
    num_repeated_rows: int | None = None
    """Rows to train on that repeat another, prompt and answer."""
    num_held_out_asked: int | None = None
    """Of texts that are trained on as a whole, held-out ones that ask what a training text asks: all but the last line
    is the same."""
    num_open_rows: int | None = None
    """Conversations in both parts that did not end with an answer: what stood behind the last was left out; None:
    there is none."""
    num_cut_tokens: int | None = None
    """Tokens that ``sequence_length`` left out of the rows trained on, as often as they were."""
    num_cut_answers: int | None = None
    """Rows trained on whose answer lost its end, as often as they were."""
    num_packed_tokens: int | None = None
    """Tokens of an epoch's packed rows; None where rows are not packed, as of the two below."""
    num_unpacked_tokens: int | None = None
    """Tokens behind the last whole packed row: left out."""
    num_untrained_rows: int | None = None
    """Packed rows without a token to train on: left out."""
    num_validated_rows: int | None = None
    """Rows of the held-out batch."""
    num_validated_cut_rows: int | None = None
    """Of these, rows that lost tokens to ``sequence_length``."""
    num_validated_cut_tokens: int | None = None


class EncodingFacts(Part):
    """How text became tokens, in training, scoring and generation alike (``harness.encoding``)."""

    beginning: tuple[str, ...] | None = None
    """Tokens that stand before every text, once; empty: the tokenizer has none."""
    left_out: tuple[str, ...] | None = None
    """Tokens that the tokenizer puts behind every text, and that were left out."""
    end: str | None = None
    """The token that ends a training example; None too of a tokenizer that has none."""
    num_rows_begun: int | None = None
    """Rows trained on whose text began with the beginning already, so that none was put before it."""
    num_rows_ended: int | None = None
    """Rows trained on whose text ended with the end already, so that none was put behind it."""


class ScoringFacts(Part):
    """How items were scored and answers generated."""

    cut_contexts: dict[str, int] | None = None
    """By task, the items of which a context lost its beginning to the model's length; tasks without one left out."""
    long_continuations: dict[str, int] | None = None
    """By task, the items with a continuation longer than the model's length: it was scored in pieces."""
    tied_items: dict[str, int] | None = None
    """By task, the items of which two different choices are the likeliest to the last bit: the first counts."""
    questions_in_shots: dict[str, int] | None = None
    """By task, the items whose question stands among the few-shot examples of its own prompt, with its answer."""
    repeated_answers: dict[str, tuple[str, ...]] | None = None
    """By task with several targets, the metrics that lm-eval gives the answer once for each target, because they stand
    behind ``exact_match``."""
    own_generation: dict[str, JsonValue] | None = None
    """Of the model's own settings for generation those that acted on tasks that generate, as they do under lm-eval."""
    overruled_generation: dict[str, JsonValue] | None = None
    """Of the same those that MT-Bench's protocol set aside."""
    num_empty_answers: int | None = None
    """MT-Bench's turns to which nothing was answered."""
    num_short_of_room: int | None = None
    """MT-Bench's turns whose prompt left less room in the model's length than ``max_new_tokens``."""
