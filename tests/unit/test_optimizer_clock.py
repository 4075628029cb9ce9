"""The time of a step's updates: inside the step's own, wherever they are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.calibration.tiny import tiny_run
from harness.engine import optimizer_clock
from harness.engine.optimizer_clock import OptimizerClock


class FakeEvent:
    """Of a stream on which each recording takes two milliseconds."""

    now = 0.0
    made = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        FakeEvent.made += 1

    def record(self) -> None:
        FakeEvent.now += 2.0
        self.at = FakeEvent.now

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


def test_on_cuda_the_stream_is_asked_and_events_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_clock.torch.cuda, "Event", FakeEvent)
    clock = OptimizerClock(torch.device("cuda"))
    for _ in range(3):
        for _ in range(5):
            with clock.running():
                pass
        assert clock.take() == pytest.approx(5 * 0.002)
    assert FakeEvent.made == 10
    assert clock.take() == 0.0


@pytest.mark.parametrize("in_backward", [False, True])
def test_updates_are_timed_in_the_backward_pass_and_after_it(
    in_backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("full", torch.device("cpu"), {"update_in_backward": in_backward})
    calls: list[Any] = []
    update = run.loop.optimizer.step_parameters
    monkeypatch.setattr(
        run.loop.optimizer, "step_parameters", lambda params: (calls.append(torch.is_grad_enabled()), update(params))[1]
    )
    run.loop.run(iter([[batch] for batch in run.batches]), lambda step, loss: None)
    result = run.loop.result()
    assert len(result.curve.optimizer_seconds) == result.num_steps
    assert all(
        0 < ours < whole for ours, whole in zip(result.curve.optimizer_seconds, result.curve.seconds, strict=True)
    )
    assert result.optimizer_seconds_mean == pytest.approx(
        sum(result.curve.optimizer_seconds[3:]) / (result.num_steps - 3)
    )
    assert len(calls) == result.num_steps * (len(list(run.loop.model.parameters())) if in_backward else 1)
