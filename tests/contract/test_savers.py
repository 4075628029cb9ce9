"""The savers on fake tensors, as planning runs them: no value is read, no shape depends on one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.data.batches import MicroBatch
from harness.engine.activation_checkpointing import enable_checkpointing
from harness.engine.training import TrainingLoop
from harness.tensors.decoder import active_blocks

SAVERS = {
    "loss_chunk_columns": 10,
    "gradient_checkpointing": True,
    "checkpoint_granularity": "nested",
    "offload_checkpoints": True,
    "max_grad_norm": 1.0,
}
OWN = {"update_in_backward": True, "update_slice_elements": 100}


def one_step(tiny, label):
    """Return the loop after one step with every saver."""
    run = tiny.start(label, **OWN)
    run.method.config = run.method.config.model_copy(update={"two_pass_clipping": True})
    run.context.train = tiny.train_settings(**SAVERS)
    decoder = run.context.decoder
    enable_checkpointing(run.base, decoder, run.context.train)
    loop = TrainingLoop(run.model, run.method, run.optimizer, run.context)
    ids = torch.zeros((2, 8), dtype=torch.int64)
    batch = MicroBatch(ids, ids, None, num_tokens=16, num_trained_tokens=14)
    loop.model.train()
    with loop.memory.step(0):
        loop.train_step([batch])
    return loop


def test_every_saver_runs_on_fake_tensors_and_sees_the_same_bytes(tiny, trained, monkeypatch):
    if tiny.settings_of(trained)[0].has_adapter:
        pytest.skip("peft cannot wrap a model inside FakeTensorMode; planning wraps on the meta device")
    real = one_step(tiny, trained)
    monkeypatch.setattr(tiny.context, "read_scalar", lambda self, tensor: 1.0)
    with FakeTensorMode():
        fake = one_step(tiny, trained)
    decoder = real.context.decoder
    lowest = 0 if decoder.embedding.weight.requires_grad else min(active_blocks(decoder))
    held = (tiny.num_blocks - lowest) * 4 * 16 * 32  # no pass goes back below what is trained
    assert fake.stepping.offloaded_bytes == real.stepping.offloaded_bytes == held
    # The causal mask of fake tensors apart, which planning leaves out.
    assert fake.memory.tracked_peak.at_peak.weights_bytes == real.memory.tracked_peak.at_peak.weights_bytes
    assert fake.optimizer.state_bytes() == real.optimizer.state_bytes()


def test_positions_without_loss_need_their_list(tiny):
    run = tiny.start("full")
    run.context.train = tiny.train_settings(loss_chunk_columns=10)
    loop = TrainingLoop(run.model, run.method, run.optimizer, run.context)
    ids = torch.zeros((2, 8), dtype=torch.int64)
    batch = MicroBatch(ids, ids, None, num_tokens=16, num_trained_tokens=14)
    loop.train_step([batch])
    with pytest.raises(AssertionError, match="trained_positions are missing"):
        loop.train_step([replace(batch, num_trained_tokens=13)])
