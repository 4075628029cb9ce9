"""One optimizer step: from which random stream each micro-batch draws, and how norms of gradients are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from harness.data.batches import MicroBatch
from harness.method import ProbeRequest
from tests.unit.test_training import build, train

ACCUMULATED = {"batch_size": 2, "gradient_accumulation_steps": 2}
DROPOUT: dict[str, Any] = {"settings": {"lora_dropout": 0.5}, "max_grad_norm": None, **ACCUMULATED}
IN_BACKWARD = {"settings": {"update_in_backward": True, "two_pass_clipping": True}}
Gradients = dict[str, torch.Tensor]


def seeded(stream: str) -> None:
    """Seed torch as seed 1 and the name of a stream say."""
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"1:{stream}".encode()).digest()[:8], "big") >> 1)


def by_hand(model: Any, micro_batches: Sequence[MicroBatch], streams: Sequence[str]) -> Gradients:
    """Return the sum of gradients of passes that are made one by one, each from its own stream."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trained = sum(batch.num_trained_tokens for batch in micro_batches)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for batch, stream in zip(micro_batches, streams, strict=True):
        seeded(stream)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1].float()
        loss = cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum") / trained
        for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            total[name] += gradient
    return total


def gradients_of_step(loop: Any, step: int, micro_batches: Sequence[MicroBatch]) -> Gradients:
    """Return the gradients with which the optimizer would step, unclipped; it does not."""
    found: Gradients = {}

    def note() -> None:
        found.update({name: p.grad.clone() for name, p in loop.model.named_parameters() if p.grad is not None})

    loop.optimizer.step = note
    loop.stepping.begin_step(step)
    loop.stepping.take_step(step, micro_batches)
    return found


def differ(some: Gradients, others: Gradients) -> bool:
    return any(not torch.allclose(some[name], others[name], rtol=1e-3) for name in some)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_each_micro_batch_draws_from_a_stream_of_its_own(checkpointed: bool, tiny_llama: Path, tokenizer: Any) -> None:
    loop, _, data = build("lora", tiny_llama, tokenizer, gradient_checkpointing=checkpointed, **DROPOUT)
    loop.model.train()
    batches = data.step_batches()
    for step in range(2):
        micro_batches = [loop.placed(batch) for batch in next(batches)]
        streams = [f"forward/{step}", f"forward/{step}/1"]
        wanted = by_hand(loop.model, micro_batches, streams)
        torch.testing.assert_close(gradients_of_step(loop, step, micro_batches), wanted, rtol=1e-5, atol=1e-8)
        assert differ(by_hand(loop.model, micro_batches, streams[:1] * 2), wanted)


def test_what_a_micro_batch_draws_depends_on_its_number_alone(tiny_llama: Path, tokenizer: Any) -> None:
    loop, _, data = build("lora", tiny_llama, tokenizer, **DROPOUT)
    loop.model.train()
    one, two = (loop.placed(batch) for batch in next(data.step_batches()))
    found = []
    for order in ([(0, one), (1, two)], [(1, two), (0, one)]):
        loop.stepping._backward("forward/0", order, one.num_trained_tokens)
        found.append({name: p.grad for name, p in loop.model.named_parameters() if p.grad is not None})
        loop.optimizer.zero_grad()
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())  # a + b is b + a


@pytest.mark.parametrize("each_micro_batch", [False, True])
def test_a_probe_draws_by_micro_batch_too(
    each_micro_batch: bool, tiny_llama: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _, data = build("lora", tiny_llama, tokenizer, **DROPOUT)
    seen: list[dict[str, float]] = []
    names = {p: name for name, p in loop.model.named_parameters()}

    def note(index: int, norms: Any) -> None:
        seen.append({names[p]: float(norm) for p, norm in norms.items()})

    monkeypatch.setattr(loop.method, "on_probe", note)
    loop.model.train()
    micro_batches = [loop.placed(batch) for batch in next(data.step_batches())]
    passes = [[batch] for batch in micro_batches] if each_micro_batch else [micro_batches]
    loop.probe(data.step_batches(), ProbeRequest(num_batches=1, consumes_rows=False, each_micro_batch=each_micro_batch))
    assert len(seen) == len(passes)
    for index, (found, one) in enumerate(zip(seen, passes, strict=True)):
        wanted = by_hand(loop.model, one, [f"probe/{index}", f"probe/{index}/1"][: len(one)])
        assert found == pytest.approx({name: float(g.square().sum()) for name, g in wanted.items()}, rel=1e-4)


def test_recomputed_blocks_draw_what_they_drew(tiny_llama: Path, tokenizer: Any) -> None:
    plain, _, _ = train("lora", tiny_llama, tokenizer, **DROPOUT)
    for granularity in ("block", "nested"):
        changes = {"gradient_checkpointing": True, "checkpoint_granularity": granularity, **DROPOUT}
        again, _, _ = train("lora", tiny_llama, tokenizer, **changes)
        assert again.curve.loss == plain.curve.loss


def norm_in_fp64(gradients: Gradients) -> float:
    return float(sum(g.double().square().sum() for g in gradients.values()).sqrt())  # type: ignore[union-attr]


@pytest.mark.parametrize("way", [{}, IN_BACKWARD], ids=["one pass", "two passes"])
@pytest.mark.parametrize("label", ["full", "lisa"])
def test_norms_of_bf16_gradients_are_taken_in_fp32(
    label: str, way: dict[str, Any], tiny_llama: Path, tokenizer: Any
) -> None:
    options = {"dtype": "bf16", **ACCUMULATED}
    free, _, data = build(label, tiny_llama, tokenizer, max_grad_norm=None, **options)
    micro_batches = [free.placed(batch) for batch in next(data.step_batches())]
    gradients = gradients_of_step(free, 0, micro_batches)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.bfloat16}
    wanted = norm_in_fp64(gradients)
    loop, _, _ = build(label, tiny_llama, tokenizer, max_grad_norm=0.05, **way, **options)
    loop.stepping.begin_step(0)
    assert loop.stepping.take_step(0, micro_batches).grad_norm == pytest.approx(wanted, rel=1e-5)
    coarse = torch.nn.utils.get_total_norm(list(gradients.values()), foreach=False)
    assert float(coarse) != pytest.approx(wanted, rel=1e-4)  # what torch's own gives, in the gradients' dtype


def test_clipped_bf16_gradients_have_the_asked_norm(tiny_llama: Path, tokenizer: Any) -> None:
    loop, _, data = build("full", tiny_llama, tokenizer, max_grad_norm=0.05, dtype="bf16")
    gradients = gradients_of_step(loop, 0, next(data.step_batches()))
    # Each number is rounded to bf16, to 2**-9 at most, up as often as down.
    assert norm_in_fp64(gradients) == pytest.approx(0.05, rel=1e-3)


def test_fp32_gradients_are_clipped_bit_by_bit_as_torch_does(tiny_llama: Path, tokenizer: Any) -> None:
    free, _, data = build("full", tiny_llama, tokenizer, max_grad_norm=None)
    loop, _, _ = build("full", tiny_llama, tokenizer, max_grad_norm=0.05)
    micro_batches = [free.placed(batch) for batch in next(data.step_batches())]
    gradients = gradients_of_step(free, 0, micro_batches)
    names = [name for group in free.optimizer.param_groups for name in group["param_names"]]
    parameters = [torch.nn.Parameter(torch.empty_like(gradients[name])) for name in names]
    for name, parameter in zip(names, parameters, strict=True):
        parameter.grad = gradients[name].clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.05, foreach=False)
    clipped: Gradients = {}
    loop.optimizer.step = lambda: clipped.update({n: p.grad.clone() for n, p in loop.model.named_parameters()})
    loop.stepping.begin_step(0)
    assert loop.stepping.take_step(0, micro_batches).grad_norm == float(norm)
    assert all(torch.equal(clipped[name], p.grad) for name, p in zip(names, parameters, strict=True))  # type: ignore[arg-type]
