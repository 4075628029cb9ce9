"""Our ``LM`` for lm-eval: log-likelihoods and greedy generation of a transformers causal language model.

Tokenisation, truncation and scores are those of lm-eval's own ``HFLM`` (lm_eval 0.4.13, models/huggingface.py): the
continuation is what the encoding of context + continuation adds to that of the context, a context too long is cut from
the left, the first token of an empty context is the tokenizer's bos (else eos). Deliberate differences:

- What requests share is encoded once (:mod:`harness.evaluation.packing`): the context of several choices, and the
  few-shot prefix of many items, whose keys and values are kept. HFLM shares one-token continuations only.
- Batches are made by length under a budget of padded tokens, halved for good when memory runs out; of a model that
  processes share out it is not, as all of them must make the same passes.
- Answers are generated in slots that are kept full (:mod:`harness.evaluation.text_generation`), and what is drawn for a
  request comes from a stream of its own; HFLM waits for the longest answer of a batch and draws from one stream.
- Rows that padding would change are batched with rows of their own length alone: of architectures whose code was not
  read (:mod:`harness.tensors.causality`), those that positions scaled by length rotate otherwise
  (:mod:`harness.tensors.rotary`), and prompts to which the model's own generation settings apply. HFLM pads them.
- A model whose outputs depend on what follows is refused; HFLM scores it as if they did not.
- On a CPU in fp32 rows lie one behind another in a pass (:mod:`harness.evaluation.flat_passes`): nothing is padded.
- The head is applied at the scored positions only, and the log-softmax is taken in fp32 whatever the weights' dtype.
- What a tokenizer puts behind every text is left out (:mod:`harness.encoding`); HFLM scores that alone.
- An empty continuation is an error with a sentence instead of an ``assert``; one that is longer than the model's length
  is scored in pieces, each behind what the model's length holds of the text before it.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import DynamicCache

from harness.encoding import text_encoder
from harness.errors import HarnessError
from harness.evaluation.flat_passes import PASS_TOKENS, SMALLEST_PASS, can_lay_flat, flat_logits, flat_passes
from harness.evaluation.looking_ahead import refuse_looking_ahead
from harness.evaluation.packing import Family, Row, Scored, batches, plan_families, plan_rows
from harness.evaluation.text_generation import TextGeneration
from harness.evaluation.token_scores import token_scores
from harness.tensors.causality import is_known_causal
from harness.tensors.out_of_memory import is_out_of_memory
from harness.tensors.rotary import reset_rotation, rotation_limit
from harness.tensors.sharded import is_sharded

SHARING_ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""``model_type`` of the decoders that take a 4D boolean mask and explicit positions under sdpa attention."""

ATTENTION_SLOWNESS = 4.0
"""How much slower a FLOP of masked attention is than one of a matrix product: rows grow less far. Chosen by us."""

MIN_ROW_TOKENS = 2048
"""How long a row that saves tokens may grow under a smaller budget: apart, its sequences would cost more."""


class StemCache(DynamicCache):  # type: ignore[misc]
    """Keys and values of one stem, lent to every row of a batch: nothing that follows is kept."""

    def __init__(self, stem: DynamicCache) -> None:
        """Take the cache of a forward pass over the stem alone."""
        super().__init__()
        self.layers = stem.layers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stem's keys and values before those of each row: (rows, heads, stem + new tokens, head size)."""
        layer = self.layers[layer_idx]
        rows = key_states.shape[0]
        return (
            torch.cat([layer.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([layer.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )

    def copy_for(self, rows: int) -> DynamicCache:
        """Return a cache that begins with the stem in each of so many rows and keeps what follows."""
        copy = DynamicCache()
        for number, layer in enumerate(self.layers):
            copy.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
        return copy


class HarnessLM(TemplateLM):  # type: ignore[misc]
    """A causal language model as lm-eval asks for it; the model must be in evaluation mode."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        device: str | torch.device,
        batch_tokens: int,
        max_length: int | None = None,
        share_prefixes: bool = True,
        on_progress: Callable[[Sequence[int]], None] | None = None,
        seed: int = 0,
    ) -> None:
        """Wrap a model.

        Args:
            model: A transformers causal language model on ``device``, peft-wrapped or not.
            tokenizer: Its tokenizer.
            device: Where inputs go.
            batch_tokens: Padded tokens of one forward pass.
            max_length: Most tokens of one sequence; None: what the model's config says.
            share_prefixes: False: every request is a row of its own.
            on_progress: Called after each forward pass with the indices of the requests it answered.
            seed: Of what is drawn where a task samples; each request has a stream of its own.
        """
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.max_length = max_length if max_length is not None else resolve_max_length(model.config, tokenizer)
        self.share_prefixes = share_prefixes
        self.on_progress = on_progress
        self.seed = seed
        self.token_counts: list[tuple[int, int]] = []
        """Tokens of context and continuation of each request of the last call of :meth:`loglikelihood`."""
        self.cut_requests: set[int] = set()
        """Places of the requests of the last call whose context lost its beginning to the model's length."""
        self.own_generation_fields: dict[str, Any] = {}
        """Of the model's own generation settings those that acted in the last call of :meth:`generate_until`."""
        self.num_processed_tokens = 0
        """Tokens that went through the model for the last call, padding and what it wrote left out."""
        self.num_out_of_memory = 0
        """How often memory ran out, and the budget was halved."""
        self._device = torch.device(device)
        self._text = text_encoder(tokenizer)
        self._encode = lru_cache(maxsize=32)(self._encode_afresh)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        self._takes_padding = is_known_causal(model)
        self._rotation_limit = rotation_limit(model)
        self._sharded = any(is_sharded(p) for p in model.parameters())
        self._can_lay_flat = (
            share_prefixes
            and self._takes_padding
            and self._keeps_logits
            and model.config.model_type in SHARING_ARCHITECTURES
            and can_lay_flat(model, self._device)
        )

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return the token that stands for an empty context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text; unless False, behind the tokenizer's beginning, which stands once."""
        return self._encode(string, add_special_tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of each continuation given its context."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)  # type: ignore[no-any-return]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each text, in windows of the model's length where it is longer."""
        self.cut_requests = set()
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._score(windows, lambda index: owners[index]), strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return what the model writes after each context, up to the first stop text."""
        self.num_processed_tokens = 0
        self.cut_requests, self.own_generation_fields = set(), {}
        return TextGeneration(self).answer([request.args for request in requests])

    def _encode_afresh(self, string: str, add_special_tokens: bool | None) -> list[int]:
        return self._text.bare(string) if add_special_tokens is False else self._text.ids(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        self.token_counts = [(len(context), len(continuation)) for _, context, continuation in requests]
        self.cut_requests = {
            index for index, counts in enumerate(self.token_counts) if sum(counts) > self.max_length + 1
        }
        pieces = [
            (owner, piece) for owner, request in enumerate(requests) for piece in _pieces(request, self.max_length)
        ]
        found = self._score([piece for _, piece in pieces], lambda index: pieces[index][0])
        results = [(0.0, True)] * len(requests)
        for (owner, _), (value, greedy) in zip(pieces, found, strict=True):
            results[owner] = (results[owner][0] + value, results[owner][1] and greedy)
        return results

    def _score(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], reported_as: Callable[[int], int]
    ) -> list[tuple[float, bool]]:
        """Return sum of log-probabilities and greediness of each (text, context tokens, continuation tokens)."""
        if not self._takes_padding:
            refuse_looking_ahead(self.model, self._device)
        sequences = [self._sequence(index, *request) for index, request in enumerate(requests)]
        alike = [one for one in sequences if self._takes_padding and not self._is_long(len(one.inputs))]
        others = [one for one in sequences if not self._takes_padding or self._is_long(len(one.inputs))]
        shares = self._takes_tree_masks(alike)
        room, tokens_per_key = (max(self.batch_tokens, MIN_ROW_TOKENS), self._tokens_per_key()) if shares else (0, 0.0)
        pending = deque(
            (family.stem, family.rows(row_tokens=room, tokens_per_key=tokens_per_key), True)
            for family in self._families(alike)
        )
        pending.append(((), plan_rows(others, row_tokens=0, tokens_per_key=0.0), False))
        results: list[tuple[float, bool]] = [(float("nan"), False)] * len(requests)
        self.num_processed_tokens = 0
        while pending:
            tokens, rows, padded = pending.popleft()
            stem: StemCache | None = None
            while rows:
                copied = 0 if padded and self._can_lay_flat else len(tokens)  # of the stem, into every row
                batch = next(batches(rows, self.batch_tokens, copied, padded=padded))
                indivisible = len(batch) == 1 and batch[0].is_chain and not tokens
                try:
                    stem = stem or self._encode_stem(tokens)
                    scores = self._score_batch(batch, stem)
                except (MemoryError, RuntimeError) as error:
                    if indivisible or self._sharded or not is_out_of_memory(error):
                        raise
                    scores = None
                if scores is None:  # not inside except: the error holds the tensors of the failed pass
                    stem = None
                    self._back_off()
                    if len(batch) == 1:  # the last resort: its sequences one by one, from their first token
                        alone = [sequences[index] for index, _, _ in batch[0].scored]
                        pending.append(((), plan_rows(alone, row_tokens=0, tokens_per_key=0.0), padded))
                        rows = rows[1:]
                    continue
                for index, value, greedy in scores:
                    results[index] = (value, greedy)
                self.num_processed_tokens += sum(len(row.tokens) for row in batch)
                self._report([reported_as(index) for index, _, _ in scores])
                rows = rows[len(batch) :]
        return results

    def _families(self, sequences: Sequence[Scored]) -> list[Family]:
        if self._takes_tree_masks(sequences):
            return plan_families(sequences)
        return [Family((), list(sequences))]

    def _sequence(self, index: int, text: Any, context: list[int], continuation: list[int]) -> Scored:
        if not context or not continuation:
            raise HarnessError(
                f"request {index} has an empty context or continuation after tokenisation: {text!r:.120}"
            )
        assert len(continuation) <= self.max_length
        inputs = (context + continuation)[-(self.max_length + 1) :][:-1]
        return Scored(index, tuple(inputs), tuple(continuation))

    def _is_long(self, num_tokens: int) -> bool:
        """Return whether a row of so many tokens is rotated otherwise than shorter ones, and must not be beside one."""
        return self._rotation_limit is not None and num_tokens > self._rotation_limit

    def _takes_tree_masks(self, sequences: Sequence[Scored]) -> bool:
        config = self.model.config
        if (
            not self.share_prefixes
            or config.model_type not in SHARING_ARCHITECTURES
            or config._attn_implementation != "sdpa"
        ):
            return False
        return self._window_holds(max((len(sequence.inputs) for sequence in sequences), default=0))

    def _window_holds(self, num_tokens: int) -> bool:
        window = getattr(self.model.config, "sliding_window", None)
        return window is None or num_tokens <= window

    def _lays_flat(self, batch: Sequence[Row]) -> bool:
        """Return whether a batch goes through the model without padding and masks, its rows behind one another."""
        longest = 1 + max(max(row.positions) for row in batch)
        return self._can_lay_flat and self._window_holds(longest) and not self._is_long(longest)

    def _tokens_per_key(self) -> float:
        """Return how many keys a token can attend to for the cost of its matrix products.

        FLOPs of one decoder layer and token: ``2 (4 h^2 + 3 h f)`` in its matrices, ``4 h`` for each key, with h the
        hidden and f the intermediate size (grouped keys and values make the former a little less).
        """
        config = self.model.config
        return float(4 * config.hidden_size + 3 * config.intermediate_size) / 2 / ATTENTION_SLOWNESS

    @torch.no_grad()
    def _encode_stem(self, stem: Sequence[int]) -> StemCache | None:
        """Return the keys and values of a stem; None for an empty one."""
        if not stem:
            return None
        cache = DynamicCache()
        inputs = {"input_ids": torch.tensor([stem], device=self._device), "past_key_values": cache, "use_cache": True}
        self.model(**inputs, **({"logits_to_keep": 1} if self._keeps_logits else {}))
        self.num_processed_tokens += len(stem)
        return StemCache(cache)

    @torch.no_grad()
    def _score_batch(self, batch: Sequence[Row], stem: StemCache | None) -> list[tuple[int, float, bool]]:
        """Return (index, sum of log-probabilities, greedy) of every continuation in a batch of rows behind a stem."""
        longest = max(len(row.tokens) for row in batch)
        tokens = np.zeros((len(batch), longest), dtype=np.int64)
        kept = np.zeros((len(batch), longest), dtype=np.bool_)
        for number, row in enumerate(batch):
            tokens[number, : len(row.tokens)] = row.tokens
            for _, places, _ in row.scored:
                kept[number, places] = True
        logits = self._logits(batch, tokens, kept, stem)
        places_of = np.cumsum(kept.reshape(-1)) - 1
        take = np.concatenate(
            [places_of[number * longest + places] for number, row in enumerate(batch) for _, places, _ in row.scored]
        )
        targets = np.concatenate([np.asarray(targets) for row in batch for _, _, targets in row.scored])
        values, greedy = token_scores(logits, take, targets)
        scores, end = [], 0
        for row in batch:
            for index, _, wanted in row.scored:
                begin, end = end, end + len(wanted)
                scores.append((index, float(values[begin:end].sum()), bool(greedy[begin:end].all())))
        return scores

    def _logits(
        self,
        batch: Sequence[Row],
        tokens: np.ndarray[Any, Any],
        kept: np.ndarray[Any, Any],
        stem: StemCache | None,
    ) -> Iterator[torch.Tensor]:
        """Yield the logits at the kept positions, row by row, in one part or several: (kept positions, vocab).

        Padding stands on the right, where no causal token sees it, so that rows of one sequence each need no mask of
        their own, and none at all without a stem.
        """
        if self._lays_flat(batch):
            config = self.model.config
            passes = flat_passes(
                batch,
                stem,
                pass_tokens=min(max(self.batch_tokens, SMALLEST_PASS), PASS_TOKENS),
                heads_per_key=config.num_attention_heads // config.num_key_value_heads,
            )
            yield from flat_logits(self.model, passes, self._device)
            return
        longest = tokens.shape[1]
        before = 0 if stem is None else stem.get_seq_length()
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(tokens).to(self._device), "use_cache": stem is not None}
        if stem is not None:
            inputs["past_key_values"] = stem
        chains = all(row.is_chain for row in batch)
        if stem is not None or not chains:
            visible = np.ones((1 if chains else len(batch), 1, longest, before + longest), dtype=np.bool_)
            visible[..., before:] = np.tri(longest, dtype=np.bool_)
            positions = np.full(tokens.shape, before)  # of padding: none that a row does not reach, lest it is scaled
            for number, row in enumerate(batch):
                length = len(row.tokens)
                if not chains:
                    visible[number, 0, :length, before : before + length] = row.visible()
                positions[number, :length] = row.positions
            inputs["attention_mask"] = torch.from_numpy(visible).to(self._device)
            inputs["position_ids"] = torch.from_numpy(positions).to(self._device)
        elif not self._takes_padding:
            inputs["attention_mask"] = torch.ones(tokens.shape, dtype=torch.int64, device=self._device)
        reset_rotation(self.model)
        keep = torch.from_numpy(kept).to(self._device)
        yield (
            self.model(**inputs, logits_to_keep=keep).logits
            if self._keeps_logits
            else self.model(**inputs).logits[keep]
        )

    def _back_off(self) -> None:
        self.num_out_of_memory += 1
        self.batch_tokens = max(1, self.batch_tokens // 2)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _report(self, indices: Sequence[int]) -> None:
        if self.on_progress is not None:
            self.on_progress(indices)


def _pieces(request: tuple[Any, list[int], list[int]], max_length: int) -> Iterator[tuple[Any, list[int], list[int]]]:
    """Yield a request, or parts of its continuation, each behind what stands before it, that the model's length holds.

    A part is half the model's length, so that as much or more is seen before each of its tokens but those of the first.
    """
    text, context, continuation = request
    size = len(continuation) if len(continuation) <= max_length else max(1, max_length // 2)
    for first in range(0, max(1, len(continuation)), max(1, size)):
        yield text, context + continuation[:first], continuation[first : first + size]
