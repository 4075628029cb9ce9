"""Students whose important blocks are known: copies of a random teacher with some blocks disturbed, and its text.

The teacher's weights are Gaussian with a lognormal scale for each input feature, so that its blocks have outliers and
heavy tails as trained ones do, all of one distribution: before anything is disturbed no block stands out. Labels are
sampled from the teacher, so its own loss on held-out rows is the floor of a student's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.data.batches import MicroBatch, collate
from harness.data.examples import Example
from harness.tensors.linear import linear_layers
from harness.tensors.seeding import fenced, numpy_generator, torch_generator

BLOCKS, PLANTED, WIDTH, INNER, HEADS, VOCABULARY, LENGTH = 6, 2, 64, 128, 4, 64, 32
STEPS, ROWS, HELD_OUT_ROWS = 40, 8, 48
"""Optimizer steps of a run, rows of each, rows of the held-out batch."""
KINDS = ("noise", "shrunk", "reset", "permuted")


@dataclass(frozen=True)
class Student:
    """A disturbed copy of a teacher, and what the teacher wrote."""

    seed: int
    kind: str
    planted: tuple[int, ...]
    teacher: LlamaForCausalLM
    model: LlamaForCausalLM
    batches: tuple[MicroBatch, ...]
    held_out: tuple[MicroBatch, ...]


def make_teacher(seed: int) -> LlamaForCausalLM:
    """Return the teacher of a seed, in fp32."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    with fenced(seed):
        model = LlamaForCausalLM(config)
    generator = torch_generator(seed, "known_importance/teacher")
    with torch.no_grad():
        for block in model.model.layers:
            for layer in linear_layers(block):
                scale = torch.randn(layer.weight.shape[1], generator=generator).mul(0.7).exp()
                scale *= scale.square().mean().rsqrt()
                layer.weight.copy_(_gaussian(layer.weight, generator) * scale)
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight.copy_(torch.randn(WIDTH, generator=generator).mul(0.4).exp())
        model.model.embed_tokens.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))
        model.lm_head.weight.copy_(3.0 * _gaussian(model.lm_head.weight, generator))
    return model.eval()


def planted_blocks(seed: int) -> tuple[int, ...]:
    """Return the blocks that are disturbed, drawn alike from all, so that no law by depth is favoured."""
    drawn = numpy_generator(seed, "known_importance/planted").choice(BLOCKS, PLANTED, replace=False)
    return tuple(sorted(int(block) for block in drawn))


@torch.no_grad()
def disturbed(teacher: LlamaForCausalLM, kind: str, blocks: Sequence[int], seed: int) -> LlamaForCausalLM:
    """Return a copy of the teacher with the linear weights of some blocks disturbed.

    ``noise``: Gaussian noise as large as the weights is added. ``shrunk``: they are multiplied by 0.3. ``reset``: they
    are drawn anew, Gaussian of the same size without scales of features, as an untrained block is. ``permuted``: the
    heads of v and the inner features of down change places, so that the numbers of each matrix, its norm and its
    singular values stay what they were.
    """
    student = copy.deepcopy(teacher)
    generator = torch_generator(seed, f"known_importance/{kind}")
    for index in blocks:
        block = student.model.layers[index]
        for layer in linear_layers(block) if kind != "permuted" else ():
            size = layer.weight.square().mean().sqrt()
            fresh = torch.randn(layer.weight.shape, generator=generator) * size
            if kind == "noise":
                layer.weight.add_(fresh)
            elif kind == "shrunk":
                layer.weight.mul_(0.3)
            else:
                assert kind == "reset"
                layer.weight.copy_(fresh)
        if kind == "permuted":
            v, down = block.self_attn.v_proj.weight, block.mlp.down_proj.weight
            v.copy_(v.view(HEADS, -1, WIDTH).roll(1, 0).reshape(v.shape))
            down.copy_(down[:, torch.randperm(INNER, generator=generator)])
    return student


@torch.no_grad()
def written_by(teacher: LlamaForCausalLM, rows: int, generator: torch.Generator) -> torch.Tensor:
    """Return sequences that the teacher writes, each after a first token drawn alike: (rows, LENGTH) int64."""
    written, cache = [torch.randint(VOCABULARY, (rows, 1), generator=generator)], None
    while len(written) < LENGTH:
        out = teacher(input_ids=written[-1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        written.append(torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=generator))
    return torch.cat(written, 1)


def _gaussian(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[1])


def _batch(ids: torch.Tensor) -> MicroBatch:
    return collate([Example(tuple(row), (True,) * len(row)) for row in ids.tolist()], 0)


def students(seed: int, kinds: Sequence[str], steps: int = STEPS) -> Iterator[Student]:
    """Yield a student of each kind; all share the teacher, the planted blocks and what the teacher wrote."""
    teacher, planted = make_teacher(seed), planted_blocks(seed)
    generator = torch_generator(seed, "known_importance/rows")
    ids = written_by(teacher, steps * ROWS + HELD_OUT_ROWS, generator)
    held_out, trained = (_batch(ids[:HELD_OUT_ROWS]),), ids[HELD_OUT_ROWS:]
    batches = tuple(_batch(rows) for rows in trained.split(ROWS))
    for kind in kinds:
        model = disturbed(teacher, kind, planted, seed)
        yield Student(seed, kind, planted, teacher, model, batches, held_out)
