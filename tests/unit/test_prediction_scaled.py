"""What APOLLO, APOLLO-Mini and Fira are planned to take on LLaMA-2-7B, against arithmetic by hand."""

from __future__ import annotations

from typing import Any

import pytest

from harness.catalogue.models import load_models
from harness.planning.predict import Question, predict
from tests.real_runs import spec_of

# Weights 13.477 GB; gradients of all, or of one matrix of 32,000 x 4,096 at a time (0.262); moments of the blocks, of
# rank r (r 256: 1.619), and of embedding, head and norms at full rank (1.05); projectors (r 256: 0.470). All bf16.
# The two bytes of a norm for each of 224 matrices are in the plan, and in no digit of these.
HOOK = {"update_in_backward": True}
ARITHMETIC = [
    ("apollo", {"rank": 256}, 30.09),
    ("apollo", HOOK, 15.83),
    ("apollo-mini", HOOK, 14.80),
    ("fira", {"rank": 128}, 29.05),
]


@pytest.mark.slow
@pytest.mark.parametrize(("label", "settings", "expected"), ARITHMETIC)
def test_static_memory_is_the_arithmetic(label: str, settings: dict[str, Any], expected: float) -> None:
    entry = load_models()["llama2-7b"]
    train: dict[str, Any] = {"batch_size": 1, "sequence_length": 16, "max_grad_norm": None}
    spec = spec_of(label, entry, {"projector": "randomized" if label == "fira" else "gaussian", **settings}, **train)
    told = predict(spec, entry, Question("cuda", "first"), lambda request: None)  # type: ignore[arg-type, return-value]
    assert told.static_bytes / 1e9 == pytest.approx(expected, rel=0.0005)
