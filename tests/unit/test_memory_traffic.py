"""What a CPU does with less memory traffic gives the bits that it gave before: updates in slices, loss, clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import harness.methods._update_rules as rules
from harness.data.batches import IGNORED
from harness.engine.loss import ShiftedCrossEntropy
from harness.methods._settings import AdamWSettings
from harness.tensors.placement import computed_on_cpu, planned_for
from tests.unit.test_training import build

CACHED = 96


class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many numbers each operation is given first, by its name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[str, list[int]] = {}
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if args and isinstance(args[0], torch.Tensor):
            self.sizes.setdefault(name, []).append(args[0].numel())
        if isinstance(result, torch.Tensor) and not func.is_view and result.numel() >= 1000:
            self.made += all(result is not one for one in (*args, *(kwargs or {}).values()))
        return result


def settings(rule: str = "torch", decay: float = 0.0) -> AdamWSettings:
    return AdamWSettings.model_validate(
        {
            "adamw_rule": rule,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": decay,
            "moment_dtype": "fp32",
            "master_weights": False,
            "stochastic_rounding": False,
        }
    )


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def update(w: torch.Tensor, m: torch.Tensor, v: torch.Tensor, lr: float, of: AdamWSettings, steps: int = 4) -> None:
    """Make updates by gradients whose sizes differ a thousandfold."""
    for t in range(1, steps + 1):
        scale = 10.0 ** (-3.0 * numbers(*w.shape, seed=50 + t).abs())
        g = (numbers(*w.shape, seed=t) * scale).to(m.dtype)
        rules.adamw_update(w, g, {"exp_avg": m, "exp_avg_sq": v, "step": t}, lr, of)


@pytest.mark.parametrize("rule", ["torch", "transformers"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("lr", [0.0, 1e-3])
@pytest.mark.parametrize("shape", [(97,), (1000,), (31, 33), (5, 7, 11), (192, 4)])
def test_slices_give_the_bits_of_the_whole(
    rule: str, decay: float, lr: float, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for cached in (1 << 30, CACHED):
        monkeypatch.setattr(rules, "CACHED", cached)
        held = numbers(*shape), torch.zeros(shape), torch.zeros(shape)
        with Seen() as seen:
            update(*held, lr, settings(rule, decay))
        results.append(held)
        sizes = seen.sizes["sqrt"]
        assert max(sizes) <= (held[0].numel() if cached > CACHED else CACHED * torch.get_num_threads())
    for whole, sliced in zip(*results, strict=True):
        assert torch.equal(whole, sliced)


def test_slices_give_the_bits_of_torchs_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "CACHED", CACHED)
    p = torch.nn.Parameter(numbers(40, 41))
    reference = torch.optim.AdamW([p], lr=1e-3, weight_decay=0.1, foreach=False)
    w, m, v = p.detach().clone(), torch.zeros(40, 41), torch.zeros(40, 41)
    for t in range(1, 5):
        p.grad = numbers(40, 41, seed=t)
        reference.step()
        rules.adamw_update(w, p.grad, {"exp_avg": m, "exp_avg_sq": v, "step": t}, 1e-3, settings(decay=0.1))
    assert torch.equal(w, p.detach())


@pytest.mark.parametrize("rule", ["torch", "transformers"])
def test_a_part_of_a_parameter_gets_the_bits_that_it_has_in_the_whole(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the rows that a process of a sharded run holds."""
    monkeypatch.setattr(rules, "CACHED", CACHED)
    g = numbers(37, 20, seed=1)
    whole = [numbers(37, 20), torch.zeros(37, 20), torch.zeros(37, 20)]
    part = [one[11:30].clone() for one in whole]
    for (w, m, v), gradient in ((whole, g), (part, g[11:30])):
        rules.adamw_update(w, gradient, {"exp_avg": m, "exp_avg_sq": v, "step": 1}, 1e-3, settings(rule))
    for all_of_it, rows in zip(whole, part, strict=True):
        assert torch.equal(all_of_it[11:30], rows)


@pytest.mark.parametrize("odd", ["transposed", "bf16", "empty", "gradient transposed"])
def test_what_is_not_fp32_in_order_is_updated_whole(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "CACHED", CACHED)
    dtype = torch.bfloat16 if odd == "bf16" else torch.float32
    shape = (0, 9) if odd == "empty" else (30, 9)
    w, m, v = (numbers(*shape, dtype=dtype), *(torch.zeros(shape, dtype=dtype) for _ in range(2)))
    if odd == "transposed":
        w, m, v = (one.t() for one in (w, m, v))
    g = numbers(*w.shape, seed=1, dtype=dtype)
    if odd == "gradient transposed":
        g = g.t().contiguous().t()
    p = torch.nn.Parameter(w.clone())
    p.grad = g
    reference = torch.optim.AdamW([p], lr=1e-3, weight_decay=0.0, foreach=False)
    reference.step()
    with Seen() as seen:
        rules.adamw_update(w, g, {"exp_avg": m, "exp_avg_sq": v, "step": 1}, 1e-3, settings())
    assert torch.equal(w, p.detach())
    assert seen.sizes["sqrt"] == [w.numel()]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_takes_slices_for_a_cpu_alone(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "CACHED", CACHED)
    with FakeTensorMode(), planned_for(device), Seen() as seen:
        held = [torch.empty(50, 50) for _ in range(3)]
        assert computed_on_cpu(held[0]) == (device == "cpu")
        rules.adamw_update(
            held[0], torch.empty(50, 50), {"exp_avg": held[1], "exp_avg_sq": held[2], "step": 1}, 1e-3, settings()
        )
    sliced = [CACHED * torch.get_num_threads()]  # one stands for all
    assert seen.sizes["sqrt"] == (sliced if device == "cpu" else [2500])


def plain(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


@pytest.mark.parametrize("shape", [(1, 2, 5), (4, 9, 37), (3, 64, 1000), (2, 1, 7), (5, 33, 16)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_shifted_loss_is_the_librarys_bit_by_bit(shape: tuple[int, int, int], share: float) -> None:
    rows, length, vocabulary = shape
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, vocabulary, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < share] = IGNORED
    results = []
    for loss_of in (plain, ShiftedCrossEntropy.apply):
        logits = (4 * numbers(*shape)).requires_grad_()
        loss = loss_of(logits, labels) / 7
        loss.backward()
        results.append((loss.detach(), logits.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_the_shifted_loss_makes_two_tensors_as_large_as_the_logits() -> None:
    labels = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(3))
    made = []
    for loss_of in (plain, ShiftedCrossEntropy.apply):
        logits = numbers(4, 16, 50).requires_grad_()
        with Seen() as seen:
            loss_of(logits, labels).backward()
        made.append(seen.made)
    assert made[1] == 2 < made[0]


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_gradients_are_clipped_as_torch_clips_them(share: float, tiny_llama: Path, tokenizer: Any) -> None:
    loop, _, data = build("full", tiny_llama, tokenizer)
    batch = loop.placed(next(data.step_batches())[0])
    loop.stepping._backward("forward/0", [(0, batch)], batch.num_trained_tokens)
    ours = [p for p in loop.model.parameters() if p.grad is not None]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    for p, other in zip(ours, theirs, strict=True):
        assert p.grad is not None
        other.grad = p.grad.clone()
    most = share * float(torch.nn.utils.get_total_norm([p.grad for p in ours], foreach=False))
    norm = torch.nn.utils.clip_grad_norm_(theirs, most, foreach=False)
    with Seen() as seen:
        assert loop.stepping._clip(most) == float(norm)
    assert all(torch.equal(p.grad, other.grad) for p, other in zip(ours, theirs, strict=True))
    assert ("mul_" in seen.sizes) == (share <= 1.0)  # above it a pass over every gradient would change none
