"""Rows laid one behind another in forward passes over a single long row: no padding, no mask of all pairs.

For a CPU in fp32, where a padded batch costs more than its tokens: padding goes through every matrix, sdpa computes
what a mask of all pairs hides, the stem's keys are copied for every row, and activations of a long row leave the
processor's cache. Here a batch is cut into passes of at most :data:`PASS_TOKENS`, wherever rows begin and end, and
every module sees ``(1, tokens, features)``. Attention alone has to know the rows: it is a function registered with
transformers (:mod:`harness.evaluation.flat_attention`), which the model's own attention modules call behind their
projections, so that adapters, hooks and layers of other kinds act as in any pass. Keys and values of a row that is cut
are held to its end.

Behind the attention of the last decoder layer the tokens whose logits are asked for go on alone: of the others nobody
reads more than keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.evaluation.flat_attention import FLAT_ATTENTION, Block, FlatPass, Held, Piece
from harness.evaluation.packing import Row
from harness.tensors.rotary import reset_rotation

PASS_TOKENS = 512
"""Of a pass: more leave the cache, fewer are slower in matrix products. Measured on a core with 2 MB of its own."""

SMALLEST_PASS = 64
"""However small the budget: a shorter pass takes hardly less memory, and reads all weights for few tokens."""

BLOCK_QUERIES = 192
"""Queries, over the heads that share keys, whose scores are computed at once. Measured likewise."""


def can_lay_flat(model: nn.Module, device: torch.device) -> bool:
    """Return whether a model's passes may be laid flat: on a CPU, all fp32, every attention ruled by its configuration.

    That it is one of the decoders which take positions and masks of ours is for the caller to know.
    """
    config: Any = model.config
    return (
        device.type == "cpu"
        and config._attn_implementation == "sdpa"
        and all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.is_floating_point())
        and all(getattr(module, "config", None) is config for module in _attention(model).values())
    )


def flat_passes(rows: Sequence[Row], stem: Any, *, pass_tokens: int, heads_per_key: int) -> list[FlatPass]:
    """Return passes that hold the rows in order, all of about one size.

    Args:
        rows: Behind one stem.
        stem: Its cache, or None.
        pass_tokens: Most tokens of a pass.
        heads_per_key: Query heads that share a head of keys and values.
    """
    total = sum(len(row.tokens) for row in rows)
    size = -(-total // -(-total // pass_tokens))
    block = max(1, BLOCK_QUERIES // heads_per_key)
    passes = [FlatPass(stem)]
    for row in rows:
        length, first = len(row.tokens), 0
        scored = np.unique(np.concatenate([places for _, places, _ in row.scored]))
        visible = row.visible()
        held = Held(length) if length > size - len(passes[-1].tokens) % size else None
        while first < length:
            if len(passes[-1].tokens) == size:
                passes.append(FlatPass(stem))
            one = passes[-1]
            place = len(one.tokens)
            end = min(length, first + size - place)
            kept = scored[(scored >= first) & (scored < end)]
            begin = min(end, row.branches[0][1]) if first == 0 and stem is None else first
            blocks = _blocks(visible, np.arange(begin, end), place + begin - first, block)
            if begin > first:
                blocks = (Block(slice(place, place + begin - first), begin, is_causal=True), *blocks)
            last_blocks = _blocks(visible, kept, len(one.kept), block)
            one.pieces.append(Piece(place, first, end, blocks, last_blocks, held))
            one.tokens += row.tokens[first:end]
            one.positions += row.positions[first:end]
            one.kept += (place - first + kept).tolist()
            first = end
    return passes


def flat_logits(model: nn.Module, passes: list[FlatPass], device: torch.device) -> Iterator[torch.Tensor]:
    """Yield the logits at the kept places of each pass that has some, (places, vocab); empties the list.

    Args:
        model: For which :func:`can_lay_flat` holds, in evaluation mode.
        passes: In the order in which they were made.
        device: Where inputs go.
    """
    attention = _attention(model)
    last = max(attention, key=lambda name: attention[name].layer_idx)  # type: ignore[arg-type, return-value]
    layer = model.get_submodule(last.rpartition(".")[0])
    while passes:
        one = passes.pop(0)
        reset_rotation(model)
        with _laid_flat(model, layer, one):
            logits = model(
                input_ids=torch.tensor([one.tokens], device=device),
                position_ids=torch.tensor([one.positions], device=device),
                use_cache=False,
                flat_pass=one,
            ).logits[0]
        assert one.num_attended == len(attention) + 1, "attention that knows no rows lets them see each other"
        if one.kept:
            yield logits


@contextmanager
def _laid_flat(model: nn.Module, last_layer: nn.Module, one: FlatPass) -> Iterator[None]:
    """Have a model's attention see rows in place of one long row, and its last layer go on with the kept places alone.

    The layer's own modules are called twice: up to its keys and values with every token, then whole with the kept.
    """
    config: Any = model.config
    keep = torch.tensor(one.kept or [0], device=next(model.parameters()).device)  # a head may not take nothing

    def keep_places(
        layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (hidden,) = args  # (1, tokens, features)
        one.is_last = True
        layer.self_attn(hidden_states=layer.input_layernorm(hidden), **kwargs)
        kept = {
            "position_embeddings": tuple(part[:, keep] for part in kwargs["position_embeddings"]),
            "position_ids": kwargs["position_ids"][:, keep],
        }
        return (hidden[:, keep],), {**kwargs, **kept}

    before, config._attn_implementation = config._attn_implementation, FLAT_ATTENTION
    hook = last_layer.register_forward_pre_hook(keep_places, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        config._attn_implementation = before


def _attention(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if type(module).__name__.endswith("Attention")}


def _blocks(visible: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any], place: int, size: int) -> tuple[Block, ...]:
    """Return blocks, of about one size, of ascending tokens of a row, the first of which has its query at ``place``."""
    blocks = []
    for some in np.array_split(tokens, -(-len(tokens) // size)) if len(tokens) else []:
        end = int(some[-1]) + 1
        seen = visible[some, :end]
        by_all = seen.all(axis=0)
        common = end if by_all.all() else int(by_all.argmin())
        mask = np.where(seen[:, common:], np.float32(0), np.float32("-inf"))
        queries = slice(place, place + len(some))
        blocks.append(Block(queries, end, torch.from_numpy(mask) if common < end else None))
        place += len(some)
    return tuple(blocks)
