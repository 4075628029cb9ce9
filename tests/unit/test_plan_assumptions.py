"""Of a kind of model whose attention nobody read, a plan says what it took for granted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.engine.ranks import ALONE
from harness.planning.predict import _assumptions

OWN = "gptj has no attention but its own, which was taken operation by operation"
OTHER = "falcon was taken to call attention as Llama and its kin do, which nobody measured"


@pytest.mark.parametrize(
    ("kind", "implementation", "said"),
    [("gptj", "eager", [OWN]), ("falcon", "sdpa", [OTHER]), ("llama", "sdpa", [])],
)
def test_what_is_not_known_of_a_kind_is_said(kind: str, implementation: str, said: list[str]) -> None:
    config = SimpleNamespace(model_type=kind, _attn_implementation=implementation, num_attention_heads=None)
    train = SimpleNamespace(packing=True, sequence_length=16, dtype="bf16")
    run: Any = SimpleNamespace(train=train, masked=False, model=SimpleNamespace(config=config), ranks=ALONE)
    question: Any = SimpleNamespace(device="cuda", profile=None, compute_capability="9.0")
    found = _assumptions(run, question)
    assert [one for one in found if kind in one] == said
    assert any("flash attention" in one for one in found) == (implementation == "sdpa")
