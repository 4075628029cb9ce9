"""Predictions of runs whose peak is a projector refresh, against torch's own allocator on a CPU.

What a factorisation takes inside itself no operation on a fake tensor shows: on a CPU, too, it is measured and given as
a device profile gives it.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from harness.device_profile import SolverConstants
from harness.planning.predict import Question, predict
from tests.real_runs import SCORES, STEPS, peak_of_real_run, spec_of
from tests.unit.test_device_profile_planning import profile as device_profile
from tests.unit.test_prediction import SMALL, TINY

assert SMALL.shape is not None
SHAPE = SMALL.shape.model_copy(update={"vocab_size": 64})
MODEL = SMALL.model_copy(update={"shape": SHAPE})
"""With embedding and head so small that no update of theirs takes as much as a factorisation."""
EXACT = {"projector": "svd", "moment_dtype": "fp32", "projector_dtype": "fp32"}


def matrices_of_an_svd() -> float:
    """Return what an SVD of the largest matrix takes beside its input and results, in matrices."""
    G = torch.randn(SHAPE.intermediate_size, SHAPE.hidden_size)
    torch.linalg.svd(G, full_matrices=False)
    gc.collect()  # garbage of earlier tests, freed within, would be counted against it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = torch.linalg.svd(G, full_matrices=False)
    events = list(profiler.profiler.kineto_results.events())
    live = peak = 0
    for _, _, num_bytes in sorted(
        (e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]"
    ):
        live += num_bytes
        peak = max(peak, live)
    made = sum(result.untyped_storage().nbytes() for result in results)
    return (peak - made) / G.untyped_storage().nbytes()


@pytest.mark.parametrize("label", ["galore", "galore-layerwise", "owlore-code"])
def test_a_peak_in_a_projector_refresh_is_the_allocators_own(label: str) -> None:
    settings = {"max_grad_norm": None} if label == "galore-layerwise" else {}
    shape = {"sequence_length": 8, "batch_size": 1, "gradient_checkpointing": False}
    spec = spec_of(label, MODEL, {**TINY, **EXACT}, dtype="fp32", **shape, **settings)
    solver = SolverConstants(svd=matrices_of_an_svd())
    question = Question("cpu", num_steps=STEPS, profile=device_profile(device_type="cpu", solver=solver))
    told = predict(spec, MODEL, question, lambda request: SCORES)
    assert told.peak_phase in ("optimizer", "backward")
    assert told.peak_bytes == pytest.approx(peak_of_real_run(spec, MODEL, [8]), rel=0.002)
