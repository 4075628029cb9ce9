"""MT-Bench's answers: FastChat's two-turn questions, asked of a model in batches.

Reference: fschat 0.2.36, llm_judge/gen_model_answer.py, ``get_model_answers``: prompts, temperatures, greedy under
1e-4, the cutting of an answer, and the file's fields are its. Deliberate differences:

- The conversation template is given by name, never guessed from the model's.
- Questions are answered side by side, in slots that are kept full (:mod:`harness.evaluation.slots`), of other models in
  batches padded on the left. Each answer draws from a random stream of its own, named by
  question and turn, so that the others of its batch do not touch it; FastChat seeds the global generator once a
  question.
- Sampling is temperature and the 50 likeliest tokens, the default of transformers that FastChat inherits. A model's own
  ``generation_config`` gives its end-of-sequence tokens and is taken away while answers are generated
  (:mod:`harness.evaluation.generation`), so that all models are sampled alike; FastChat lets its penalties, beams and
  limits act.
- A turn has the room that its own prompt leaves in the model's length, whatever shares its batch; a prompt that leaves
  none is an error. FastChat generates beyond the model's length.
- An answer stops at the template's stops as soon as they come; FastChat generates on and cuts there.
- What goes wrong is an error; FastChat writes the answer ``ERROR``.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from harness.assets.mt_bench import NUM_TURNS, Question
from harness.conversation import ConversationTemplate
from harness.encoding import text_encoder
from harness.errors import HarnessError
from harness.evaluation.generation import acting_fields, end_tokens, num_together, protocol_alone, until_end
from harness.evaluation.slots import Ask, Slots, most_slots, takes_slots
from harness.evaluation.token_choice import TokenChoice
from harness.files import said_as, write_file
from harness.tensors.causality import is_known_causal
from harness.tensors.rotary import reset_rotation, rotation_limit
from harness.tensors.sharded import is_sharded

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""By category. Source: fschat 0.2.36, llm_judge/common.py, ``temperature_config``."""
OTHER_TEMPERATURE = 0.7
"""Of any other category. Source: fschat 0.2.36, llm_judge/gen_model_answer.py."""
GREEDY_BELOW = 1e-4
"""Source: as above."""
TOP_K = 50
"""Source: transformers' ``GenerationConfig.top_k`` at the time of fschat 0.2.36."""
STOP_WINDOW = 16
"""Last tokens of an answer in which stop strings are looked for after each token."""


@dataclass(frozen=True)
class Answers:
    """A model's answers."""

    rows: tuple[dict[str, Any], ...]
    """One a question, in FastChat's fields, in the order of the questions."""
    num_cut: int
    """Turns that ended at the limit of new tokens."""
    num_short_of_room: int
    """Turns whose prompt left fewer tokens for an answer than ``max_new_tokens``."""
    num_empty: int
    """Turns to which nothing was answered."""
    overruled: dict[str, JsonValue]
    """Of the model's own generation settings those that would have acted."""


@dataclass
class _Ask:
    """One turn of one question."""

    question: Question
    turn: int
    ids: list[int]
    generator: torch.Generator
    temperature: float


def answer_questions(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    template: ConversationTemplate,
    *,
    model_id: str,
    max_new_tokens: int,
    batch_tokens: int,
    generator: Callable[[str], torch.Generator],
    progress: Callable[[int, int], None] = lambda done, total: None,
    agreed: Callable[[str], str] = lambda words: words,
) -> Answers:
    """Return a model's answers to both turns of every question; the model is left as it was.

    Of a model that processes share out all of them ask the same; memory that runs out in one ends it in all.

    Args:
        model: A transformers causal language model, peft-wrapped or not.
        tokenizer: The model's.
        questions: In the order in which their answers are returned.
        template: How turns become prompts.
        model_id: What the answers call the model.
        max_new_tokens: Of one turn's answer.
        batch_tokens: Tokens of all prompts and answers at once, as :func:`most_slots` counts them; halved for good when
            the device runs out of memory.
        generator: Makes the generator of a named random stream.
        progress: Called with (turns done, turns in all).
        agreed: Gives every process that shares the model out the words of the first, so that all go on with them.

    Raises:
        HarnessError: a prompt leaves no room for an answer in the model's length.
    """
    generation = _Generation(model, tokenizer, template, max_new_tokens)
    generation.batch_tokens = batch_tokens
    encoder = text_encoder(tokenizer)
    turns: dict[int, list[str]] = {question.question_id: [] for question in questions}
    histories: dict[int, list[str]] = {question.question_id: [] for question in questions}
    total, num_cut, num_short = NUM_TURNS * len(questions), 0, 0
    training = model.training
    model.eval()
    try:
        for turn in range(NUM_TURNS):
            asks = []
            for question in questions:
                history = histories[question.question_id]
                history.append(question.turns[turn])
                temperature = TEMPERATURES.get(question.category, OTHER_TEMPERATURE)
                ids = encoder.ids(template.render(history))
                stream = f"generation/mt_bench/{question.question_id}/{turn + 1}"
                asks.append(_Ask(question, turn, ids, generator(stream), temperature))
            asks.sort(key=lambda ask: len(ask.ids), reverse=True)
            num_short += sum(generation.room(ask) < max_new_tokens for ask in asks)
            while asks:
                done = turn * len(questions) + len(questions) - len(asks)
                generation.on_answered = lambda number, done=done: progress(done + number, total)  # type: ignore[misc]
                batch = asks[: generation.num_taken(asks)]
                states = [ask.generator.get_state() for ask in batch]
                try:
                    answers = generation.answer(batch)
                except torch.OutOfMemoryError:
                    if len(batch) == 1 or generation.sharded:
                        raise
                    generation.batch_tokens //= 2
                    for ask, state in zip(batch, states, strict=True):
                        ask.generator.set_state(state)
                    torch.cuda.empty_cache()
                    continue
                for ask, (text, cut) in zip(batch, json.loads(agreed(json.dumps(answers))), strict=True):
                    turns[ask.question.question_id].append(text)
                    histories[ask.question.question_id].append(text)
                    num_cut += cut
                asks = asks[len(batch) :]
                progress(done + len(batch), total)
    finally:
        model.train(training)
    now = time.time()
    return Answers(
        tuple(
            {
                "question_id": question.question_id,
                "answer_id": uuid.uuid4().hex[:22],
                "model_id": model_id,
                "choices": [{"index": 0, "turns": turns[question.question_id]}],
                "tstamp": now,
            }
            for question in questions
        ),
        num_cut,
        num_short,
        sum(not text for both in turns.values() for text in both),
        acting_fields(model, samples=any(TEMPERATURES.get(q.category, OTHER_TEMPERATURE) for q in questions)),
    )


def write_answers(path: Path, answers: Answers) -> None:
    """Write answers as FastChat's JSON Lines, whole and durably.

    Raises:
        HarnessError: it cannot be written.
    """
    with said_as(f"{path}: the answers could not be written"):
        write_file(path, "".join(f"{json.dumps(row)}\n" for row in answers.rows))


class _Generation:
    """Generates the answers of a batch of prompts with one model and template."""

    def __init__(self, model: Any, tokenizer: Any, template: ConversationTemplate, max_new_tokens: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        self._device = next(model.parameters()).device
        self.sharded = any(is_sharded(p) for p in model.parameters())
        known = {token: tokenizer.convert_tokens_to_ids(token) for token in template.stop_tokens}
        missing = [token for token, number in known.items() if number in (None, tokenizer.unk_token_id)]
        self._stop_ids = {*template.stop_token_ids, *(known[token] for token in known if token not in missing)}
        self._stop_strings = (*template.stop_strings, *missing)
        self._eos_ids = end_tokens(model, tokenizer)
        self._takes_padding, self._rotation_limit = is_known_causal(model), rotation_limit(model)
        self.batch_tokens: int | None = None
        """The budget of slots; None: one for every prompt."""
        self.on_answered: Callable[[int], None] = lambda number: None
        """Called with the number of answers so far while a batch is answered."""
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self._eos_ids)

    def room(self, ask: _Ask) -> int:
        """Return how many tokens a prompt leaves in the model's length.

        Raises:
            HarnessError: none.
        """
        room = int(self._model.config.max_position_embeddings) - len(ask.ids)
        if room < 1:
            raise HarnessError(
                f"question {ask.question.question_id}: its prompt has {len(ask.ids)} tokens, as many as the model's "
                "length or more; lower max_new_tokens, so that the first turn leaves room"
            )
        return room

    def num_together(self, asks: Sequence[_Ask], batch_tokens: int) -> int:
        """Return how many of the first prompts, the longest first, are answered at once and each as if it were alone.

        Padding is for prompts that all have room for a whole answer, and positions that are rotated alike.
        """
        whole = len(asks[0].ids) + self._max_new_tokens
        padded = (
            self._takes_padding
            and self.room(asks[0]) >= self._max_new_tokens
            and (self._rotation_limit is None or whole <= self._rotation_limit)
        )
        return num_together([len(ask.ids) for ask in asks], batch_tokens // whole, padded=padded)

    def num_taken(self, asks: Sequence[_Ask]) -> int:
        """Return how many of the first prompts, the longest first, one call of :meth:`answer` takes."""
        assert self.batch_tokens is not None
        if not self._takes_slots(asks):
            return self.num_together(asks, self.batch_tokens)
        return len(asks) if most_slots(self.batch_tokens, self._longest(asks), self._device) > 1 else 1

    def answer(self, batch: Sequence[_Ask]) -> list[tuple[str, bool]]:
        """Return the text of each answer, and whether it ended at the limit of new tokens."""
        return self._answer_in_slots(batch) if self._takes_slots(batch) else self._answer_in_batch(batch)

    def _takes_slots(self, asks: Sequence[_Ask]) -> bool:
        return takes_slots(self._model, self._longest(asks))

    def _longest(self, asks: Sequence[_Ask]) -> int:
        return max(len(ask.ids) + min(self._max_new_tokens, self.room(ask)) for ask in asks)

    def _answer_in_slots(self, batch: Sequence[_Ask]) -> list[tuple[str, bool]]:
        if self.batch_tokens is None:
            self.batch_tokens = len(batch) * self._longest(batch)
        answers: dict[int, tuple[str, bool]] = {}
        stop = _StopStrings(self._tokenizer, self._stop_strings, 0)
        end_ids = self._eos_ids | self._stop_ids

        def ended(ask: Ask, written: list[int]) -> None:
            answers[ask.index] = self._cut(written)
            self.on_answered(len(answers))

        def ends(written: list[int]) -> bool:
            return written[-1] in end_ids or stop.ends(written)

        slots = Slots(
            self._model,
            self._device,
            batch_tokens=lambda: self.batch_tokens or 1,
            back_off=self._back_off,
            on_end=ended,
        )
        slots.answer(
            [
                Ask(n, tuple(one.ids), min(self._max_new_tokens, self.room(one)), ends, _choice(one))
                for n, one in enumerate(batch)
            ]
        )
        return [answers[number] for number in range(len(batch))]

    def _back_off(self) -> None:
        self.batch_tokens = (self.batch_tokens or 1) // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _answer_in_batch(self, batch: Sequence[_Ask]) -> list[tuple[str, bool]]:
        longest = max(len(ask.ids) for ask in batch)
        room = min(self.room(ask) for ask in batch)
        tokens = torch.full((len(batch), longest), self._pad, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for row, ask in enumerate(batch):
            tokens[row, longest - len(ask.ids) :] = torch.tensor(ask.ids)
            mask[row, longest - len(ask.ids) :] = 1
        stop = _StopStrings(self._tokenizer, self._stop_strings, longest)
        reset_rotation(self._model)
        with protocol_alone(self._model):
            written = self._model.generate(
                input_ids=tokens.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=GenerationConfig(
                    max_new_tokens=min(self._max_new_tokens, room),
                    do_sample=False,
                    eos_token_id=sorted(self._eos_ids | self._stop_ids),
                    pad_token_id=self._pad,
                ),
                logits_processor=LogitsProcessorList([_Sampling(batch)]),
                stopping_criteria=StoppingCriteriaList([stop] if self._stop_strings else []),
                synced_gpus=self.sharded,
            )
        return [self._cut(row.tolist()) for row in written[:, longest:]]

    def _cut(self, ids: list[int]) -> tuple[str, bool]:
        """Return the answer in what was generated, cut as FastChat cuts it, and whether nothing had ended it."""
        ids, ended = until_end(ids, self._eos_ids | self._stop_ids)
        text = str(self._tokenizer.decode(ids, spaces_between_special_tokens=False))
        stops = [place for stop in self._stop_strings if (place := text.find(stop)) > 0]
        if stops:
            text = text[: min(stops)]
        for token in self._tokenizer.special_tokens_map.values():
            for special in token if isinstance(token, list) else [token]:
                text = text.replace(str(special), "")
        return text.strip(), not ended and not stops


def _choice(ask: _Ask) -> TokenChoice | None:
    """Return how an answer's tokens are chosen; None: each is the likeliest."""
    if ask.temperature < GREEDY_BELOW:
        return None
    sampling = _Sampling([ask])
    return lambda logits, before: int(sampling(torch.empty(1, 0), logits).argmax())


class _Sampling(LogitsProcessor):  # type: ignore[misc]
    """Makes the likeliest token of each row a sample: of its temperature, from its own generator (Gumbel's trick).

    ``argmax(x_i / T + g_i)`` with ``g_i = -log(-log(u_i))`` over the ``TOP_K`` largest logits is a draw from the
    softmax of ``x / T`` over them. Rows without a temperature stay as they are.
    """

    def __init__(self, batch: Sequence[_Ask]) -> None:
        self._batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the logits (rows, vocab) whose largest is the token to take."""
        sampled = [row for row, ask in enumerate(self._batch) if ask.temperature >= GREEDY_BELOW]
        if not sampled:
            return scores
        scores = scores.clone()
        for row in sampled:
            ask = self._batch[row]
            values, places = scores[row].float().topk(min(TOP_K, scores.shape[-1]))
            uniform = torch.rand(len(values), generator=ask.generator, dtype=torch.float64).clamp_min(1e-300)
            gumbel = -torch.log(-torch.log(uniform))
            best = (values.double().cpu() / ask.temperature + gumbel).argmax()
            scores[row] = -torch.inf
            scores[row, places[best]] = 0.0
        return scores


class _StopStrings(StoppingCriteria):  # type: ignore[misc]
    """Ends a row as soon as FastChat would cut it: a stop string stands in its answer, not at the very beginning."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt_length: int) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_arguments: Any) -> torch.Tensor:
        """Return which rows end: (rows,) bool."""
        ends = [self.ends(row) for row in input_ids[:, self._prompt_length :].tolist()]
        return torch.tensor(ends, device=input_ids.device)

    def ends(self, ids: list[int]) -> bool:
        """Return whether an answer ends with the last of its tokens."""
        tail = self._tokenizer.decode(ids[-STOP_WINDOW:])
        if not any(stop in tail for stop in self._stops):
            return False
        text = self._tokenizer.decode(ids, spaces_between_special_tokens=False)
        return any(text.find(stop) > 0 for stop in self._stops)
