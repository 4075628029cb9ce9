"""What a method sees of gradients: complete, unclipped, in fp32, whatever the way in which updates are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from harness.engine import stepping
from harness.method import METHODS, GradientNorms
from harness.methods.full import Full
from harness.methods.lisa import Lisa
from tests.unit.test_training import build


class SeeingFull(Full):
    observes_gradients = True
    seen: list[tuple[int, dict[str, torch.Tensor]]]

    def on_gradients(self, step: int, norms: GradientNorms) -> None:
        known = {p: name for group in self._optimizer.param_groups for name, p in named(group)}  # type: ignore[union-attr]
        self.seen.append((step, {known[p]: norm for p, norm in norms.items()}))


class SeeingLisa(Lisa):
    observes_gradients = True
    seen: list[tuple[int, dict[str, torch.Tensor]]]
    on_gradients = SeeingFull.on_gradients  # type: ignore[assignment]


def named(group: dict[str, Any]) -> Any:
    return zip(group["param_names"], group["params"], strict=True)


def loop_of(label: str, folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    METHODS.names()
    for name, kind in (("full", SeeingFull), ("lisa", SeeingLisa)):
        monkeypatch.setitem(METHODS._classes, name, kind)  # type: ignore[arg-type]
    loop, _, data = build(label, folder, tokenizer, **changes)
    loop.method.seen = []
    return loop, data


def expected(loop: Any, micro_batches: Any) -> dict[str, float]:
    """Return squared norms of the gradients of the mean loss over all rows at once, by autograd alone."""
    trained = sum(batch.num_trained_tokens for batch in micro_batches)
    total = torch.zeros(())
    for batch in micro_batches:
        logits = loop.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1].float()
        total = total + cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")
    parameters = {name: p for name, p in loop.model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(total / trained, list(parameters.values()))
    return {name: float(g.double().square().sum()) for name, g in zip(parameters, gradients, strict=True)}


IN_BACKWARD = {"settings": {"update_in_backward": True}, "max_grad_norm": None}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"max_grad_norm": None},
    "clipped": {"max_grad_norm": 1e-3},
    "in backward": IN_BACKWARD,
    "two passes": {"settings": {"update_in_backward": True, "two_pass_clipping": True}, "max_grad_norm": 1e-3},
}
LAYOUTS = {"whole": {"batch_size": 4}, "accumulated": {"batch_size": 1, "gradient_accumulation_steps": 4}}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("label", ["full", "lisa"])
def test_norms_are_those_of_the_complete_unclipped_gradients(
    label: str, way: str, layout: str, tiny_llama: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, data = loop_of(label, tiny_llama, tokenizer, monkeypatch, **WAYS[way], **LAYOUTS[layout])
    batches = data.step_batches()
    for step in range(3):  # the draws of lisa change at step 2
        micro_batches = [loop.placed(batch) for batch in next(batches)]
        loop.stepping.begin_step(step)
        wanted = expected(loop, micro_batches)
        loop.stepping.take_step(step, micro_batches)
        at, norms = loop.method.seen[-1]
        assert (at, len(loop.method.seen)) == (step, step + 1)
        assert norms.keys() == wanted.keys()
        assert all(norm.shape == () and norm.dtype == torch.float32 for norm in norms.values())
        assert {name: float(norm) for name, norm in norms.items()} == pytest.approx(wanted, rel=1e-4, abs=1e-12)
    if label == "lisa":
        assert len({tuple(norms) for _, norms in loop.method.seen}) == 2


def test_norms_of_bf16_gradients_are_taken_in_fp32(
    tiny_llama: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, data = loop_of("full", tiny_llama, tokenizer, monkeypatch, dtype="bf16", max_grad_norm=None)
    held: dict[str, float] = {}

    def note() -> None:
        for group in loop.optimizer.param_groups:
            held.update({name: float(p.grad.double().square().sum()) for name, p in named(group)})

    monkeypatch.setattr(loop.optimizer, "step", note)
    loop.train_step(next(data.step_batches()))
    norms = loop.method.seen[0][1]
    assert {name: float(norm) for name, norm in norms.items()} == pytest.approx(held, rel=1e-5)


def test_a_step_is_the_same_seen_or_not(tiny_llama: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, data = loop_of("full", tiny_llama, tokenizer, monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(stepping, "squared_norm", lambda gradient: pytest.fail("a norm was taken unasked"))
    unseen, _, _ = build("full", tiny_llama, tokenizer)
    unseen.run(data.step_batches(), lambda done, loss: None)
    monkeypatch.undo()
    seen.run(data.step_batches(), lambda done, loss: None)
    assert [step for step, _ in seen.method.seen] == [0, 1, 2, 3]
    assert seen.result().curve.loss == unseen.result().curve.loss
    assert seen.result().tracked_peak.at_peak.gradients_bytes == unseen.result().tracked_peak.at_peak.gradients_bytes
