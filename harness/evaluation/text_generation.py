"""Answers of lm-eval's ``generate_until``: in slots where the model is known to take them, else in static batches.

What is written is that of ``HFLM`` at batch size 1 (lm_eval 0.4.13, models/huggingface.py): the same cutting of long
prompts, the same ends, looked for after each token in as many of the last tokens, and the same text behind them.
Settings that act on more than one row's next token (beams, limits of time, assistants) keep ``model.generate`` and its
static batches.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from harness.errors import HarnessError
from harness.evaluation.generation import acting_fields, num_together, own_generation_config
from harness.evaluation.packing import Family, Scored
from harness.evaluation.slots import Ask, Slots, takes_slots
from harness.evaluation.token_choice import ROW_FIELDS, TokenChoice, needs_choice, token_choice
from harness.tensors.out_of_memory import is_out_of_memory
from harness.tensors.rotary import reset_rotation
from harness.tensors.seeding import fenced, stream_seed

if TYPE_CHECKING:
    from harness.evaluation.language_model import HarnessLM, StemCache

DEFAULT_GENERATED_TOKENS = 256
"""Source: lm_eval 0.4.13, models/huggingface.py, ``HFLM.max_gen_toks``."""

MIN_ROWS_BEHIND_STEM = 16
"""Fewest prompts that are answered apart from all others because they share a stem: fewer would leave slots empty.
Chosen by us."""


class StopTexts:
    """Tells whether an answer has ended, as lm-eval's stopping criteria tell it of a row alone.

    Source: lm_eval 0.4.13, models/utils_hf.py, ``MultiTokenEOSCriteria``: a stop text is looked for in the last tokens
    of the answer, two more than its own encoding has, so that it is found in other tokens than its own, too.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], end_tokens: Sequence[int]) -> None:
        """Take the texts and the tokens that end an answer."""
        self._tokenizer, self._end_tokens = tokenizer, frozenset(end_tokens)
        self._stops: dict[int, list[str]] = defaultdict(list)
        for stop in stops:
            self._stops[len(tokenizer.encode(stop, add_special_tokens=False)) + 2].append(stop)

    def __call__(self, written: list[int]) -> bool:
        """Return whether the answer ends with the last of its tokens."""
        if written[-1] in self._end_tokens:
            return True
        for window, stops in self._stops.items():
            tail = self._tokenizer.decode(written[-window:])
            if any(stop in tail for stop in stops):
                return True
        return False


@dataclass(frozen=True)
class _Group:
    """Requests with the same settings."""

    settings: dict[str, Any]
    """As lm-eval normalises them, without stops and number of tokens."""
    stops: list[str]
    new_tokens: int
    prompts: list[Scored]
    own: dict[str, Any]
    """Of the model's own settings those that act."""
    seeds: dict[int, int]
    """By the request's place; of what is drawn for it."""

    @property
    def fields(self) -> dict[str, Any]:
        """Return the settings that act, the call's before the model's own."""
        given = {name: value for name, value in self.settings.items() if value is not None}
        if not given.get("do_sample"):
            given.pop("temperature", None)
        return {**self.own, **given}


class TextGeneration:
    """Answers the requests of one call: the part of :class:`HarnessLM` that generates, and a friend of it."""

    def __init__(self, lm: HarnessLM) -> None:
        """Take the model, whose facts about the call are written meanwhile."""
        self._lm = lm
        self._answers: dict[int, str] = {}

    def answer(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Return what the model writes after each (context, settings), up to the first stop text.

        Raises:
            HarnessError: there is no room for a prompt, or the model's own settings cannot be used.
        """
        for group in self._groups(requests):
            longest = max(len(prompt.inputs) for prompt in group.prompts) + group.new_tokens
            in_slots = (
                group.fields.keys() <= ROW_FIELDS
                and all(prompt.inputs for prompt in group.prompts)
                and takes_slots(self._lm.model, longest)
            )
            with _naming(group.own):
                if in_slots:
                    self._answer_in_slots(group)
                else:
                    self._answer_in_batches(group, longest)
        return [self._answers[index] for index in range(len(requests))]

    def _groups(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[_Group]:
        """Yield the requests by their settings."""
        lm, seen = self._lm, Counter[str]()
        groups: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
        seeds = {}
        for index, (context, asked) in enumerate(requests):
            groups.setdefault(repr(asked), []).append((index, context, asked))
            name = hashlib.sha256(f"{asked!r}\n{context}".encode()).hexdigest()
            seeds[index] = stream_seed(lm.seed, f"generation/{name}/{seen[name]}")
            seen[name] += 1
        for group in groups.values():
            settings = normalize_gen_kwargs(group[0][2], DEFAULT_GENERATED_TOKENS)
            stops = handle_stop_sequences(settings.pop("until", None), eos=lm.tokenizer.decode(lm.eot_token_id))
            new_tokens = int(settings.pop("max_gen_toks"))
            room = lm.max_length - new_tokens
            if room < 1:
                raise HarnessError(
                    f"a task generates up to {new_tokens} tokens, but the model's length is {lm.max_length}; "
                    "there is no room for a prompt"
                )
            own = acting_fields(lm.model, samples=bool(settings.get("do_sample")))
            own = {name: value for name, value in own.items() if name not in settings}
            lm.own_generation_fields |= own
            prompts = []
            for index, context, _ in group:
                tokens = lm.tok_encode(context)
                if len(tokens) > room:
                    lm.cut_requests.add(index)
                prompts.append(Scored(index, tuple(tokens[-room:]), (lm.eot_token_id,)))
            yield _Group(settings, stops, new_tokens, prompts, own, seeds)

    def _answer_in_slots(self, group: _Group) -> None:
        """Answer prompts in slots; those behind a stem that many share are answered together."""
        lm, new_tokens = self._lm, group.new_tokens
        ends = _end_tokens(lm)
        stopped = StopTexts(lm.tokenizer, group.stops, ends)

        def end(ask: Ask, written: list[int]) -> None:
            self._keep(ask.index, written, group.stops)

        slots = Slots(
            lm.model,
            lm._device,
            batch_tokens=lambda: lm.batch_tokens,
            back_off=lm._back_off,
            on_end=end,
            on_read=self._count,
            shares=lm.share_prefixes,
        )
        families = lm._families(group.prompts)
        apart = [family for family in families if family.stem and len(family.sequences) >= MIN_ROWS_BEHIND_STEM]
        loose = [family for family in families if family not in apart]
        # the longest first, and prompts beside each other that begin alike: a slot's keys are taken over from another
        loose.sort(key=lambda family: -max(len(prompt.inputs) for prompt in family.sequences))
        together = [prompt for family in loose for prompt in _longest_first(family.sequences)]
        for stem, prompts in ((), together), *((one.stem, _longest_first(one.sequences)) for one in apart):
            asks = [
                Ask(prompt.index, prompt.inputs, new_tokens, stopped, self._choice(group, prompt, ends))
                for prompt in prompts
            ]
            slots.answer(asks, lambda stem=stem: _kept(lm._encode_stem(stem)))  # type: ignore[misc]

    def _choice(self, group: _Group, prompt: Scored, ends: list[int]) -> TokenChoice | None:
        if not needs_choice(group.fields):
            return None
        draws = torch.Generator().manual_seed(group.seeds[prompt.index]) if group.fields.get("do_sample") else None
        return token_choice(
            group.fields,
            prompt_tokens=len(prompt.inputs),
            limit=group.new_tokens,
            end_tokens=ends,
            device=self._lm._device,
            generator=draws,
        )

    def _keep(self, index: int, written: list[int], stops: list[str]) -> None:
        text = str(self._lm.tokenizer.decode(written, skip_special_tokens=True))
        self._answers[index] = postprocess_generated_text(text, stops, None)
        self._lm._report([index])

    def _count(self, tokens: int) -> None:
        self._lm.num_processed_tokens += tokens

    def _answer_in_batches(self, group: _Group, longest: int) -> None:
        """Answer prompts in batches that wait for their longest answer; where tokens are drawn, one by one."""
        lm, drawn = self._lm, bool(group.settings.get("do_sample"))
        alike = lm._takes_padding and not group.own and not lm._is_long(longest)
        for family in lm._families(group.prompts) if alike else [Family((), group.prompts)]:
            prompts = _longest_first(family.sequences)
            stem: StemCache | None = None
            while prompts:
                lengths = [len(prompt.inputs) for prompt in prompts]
                most = 1 if drawn else lm.batch_tokens // (lengths[0] + group.new_tokens)
                batch = prompts[: num_together(lengths, most, padded=alike)]
                try:
                    stem = stem or lm._encode_stem(family.stem)
                    written = self._generate(batch, stem, group)
                except (MemoryError, RuntimeError) as error:
                    if len(batch) == 1 or lm._sharded or not is_out_of_memory(error):
                        raise
                    written = None
                if written is None:  # not inside except: the error holds the tensors of the failed pass
                    stem = None
                    lm._back_off()
                    continue
                for prompt, tokens in zip(batch, written, strict=True):
                    self._keep(prompt.index, tokens, group.stops)
                prompts = prompts[len(batch) :]

    @torch.no_grad()
    def _generate(self, prompts: Sequence[Scored], stem: StemCache | None, group: _Group) -> list[list[int]]:
        """Return what the model writes after each prompt; padding stands before what follows the stem."""
        from lm_eval.models.utils_hf import stop_sequences_criteria

        lm = self._lm
        longest = max(len(prompt.inputs) for prompt in prompts)
        known = (lm.tokenizer.pad_token_id, lm.tokenizer.unk_token_id, lm.tokenizer.eos_token_id)
        pad = next(token for token in known if token is not None)
        before = 0 if stem is None else stem.get_seq_length()
        tokens = torch.full((len(prompts), longest), pad, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            begin = before + longest - len(prompt.inputs)
            tokens[row, :before] = torch.tensor(prompt.inputs[:before])
            tokens[row, begin:] = torch.tensor(prompt.inputs[before:])
            mask[row, :before] = mask[row, begin:] = 1
            self._count(longest - begin)
        settings = group.settings
        if not settings.get("do_sample"):
            settings = {key: value for key, value in settings.items() if key != "temperature"}
        if stem is not None:
            settings = {**settings, "past_key_values": stem.copy_for(len(prompts))}
        if "stop_strings" in group.own:
            settings = {**settings, "tokenizer": lm.tokenizer}
        reset_rotation(lm.model)
        with fenced(group.seeds[prompts[0].index]):
            written = lm.model.generate(
                input_ids=tokens.to(lm._device),
                attention_mask=mask.to(lm._device),
                max_new_tokens=group.new_tokens,
                stopping_criteria=stop_sequences_criteria(lm.tokenizer, group.stops, longest, len(prompts)),
                pad_token_id=pad,
                use_cache=True,
                synced_gpus=lm._sharded,
                **settings,
            )
        return written[:, longest:].tolist()  # type: ignore[no-any-return]


def _longest_first(prompts: Sequence[Scored]) -> list[Scored]:
    return sorted(prompts, key=lambda prompt: (-len(prompt.inputs), prompt.index))


def _end_tokens(lm: HarnessLM) -> list[int]:
    """Return the tokens at which ``generate`` ends a row."""
    own = own_generation_config(lm.model).eos_token_id
    return [int(token) for token in (own if isinstance(own, list) else [own]) if token is not None]


def _kept(stem: StemCache | None) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    return None if stem is None else [(layer.keys, layer.values) for layer in stem.layers]


@contextmanager
def _naming(own_fields: Mapping[str, Any]) -> Iterator[None]:
    """Say of which of the model's own settings it is that transformers refuses to generate."""
    try:
        yield
    except (ValueError, OSError) as error:
        if not own_fields:
            raise
        raise HarnessError(
            f"the model's own generation settings ({', '.join(own_fields)}) cannot be used: "
            f"{str(error).splitlines()[0]}; take them out of its generation_config.json"
        ) from error
