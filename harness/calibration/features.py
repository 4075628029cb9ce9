"""What the engine does beside a plain step, each against the plain way on the same device."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from harness.calibration.bench import Bench, Found
from harness.calibration.tiny import STEPS, TinyRun, differences, label_with, tiny_run
from harness.calibration_log import Reading
from harness.errors import HarnessError
from harness.methods._projection import basis_for, captured_energy, exact_projector, randomized_projector
from harness.methods._update_rules import round_stochastically
from harness.record_training import OutOfMemoryAt
from harness.tensors.out_of_memory import is_out_of_memory

EXACT = 1e-5
"""Largest relative difference of two ways that only round differently, fp32. Chosen by us."""
MAX_NORM = 0.1
"""Below the tiny model's gradient norm, so that clipping does something."""
ENERGY = 0.99
"""Share of the exact projector's energy that the randomized one keeps at least."""
SIGMAS = 6.0
"""Of a mean of random roundings; one in 10^9 is farther by chance."""


def update_in_backward(bench: Bench, _: str | None) -> Found:
    """Compare updates in the backward pass with updates after it."""
    return _alike(bench, {"update_in_backward": True})


def two_pass_clipping(bench: Bench, _: str | None) -> Found:
    """Compare clipping in two passes with clipping of gradients that are all there."""
    return _alike(bench, {"update_in_backward": True, "two_pass_clipping": True}, {"max_grad_norm": MAX_NORM})


def checkpoints_on_the_host(bench: Bench, _: str | None) -> Found:
    """Compare checkpointing with its inputs on the host with plain checkpointing; they must have been there."""
    plain = {"gradient_checkpointing": True}
    label = label_with("adamw_rule")
    run = tiny_run(label, bench.device, train={**plain, "offload_checkpoints": True})
    found = _compared(run, tiny_run(label, bench.device, train=plain))
    moved = run.loop.result().offloaded_checkpoint_bytes
    if not moved:
        raise HarnessError("no input of a checkpointed block was moved to the host")
    return Found((*found, Reading(name="moved to the host", value=moved, unit="bytes")))


def states_on_the_host(bench: Bench, _: str | None) -> Found:
    """Compare optimizer states that wait on the host with states that stay; they must have been there."""
    label = label_with("state_policy")
    kept, offloaded = (
        tiny_run(label, bench.device, {"state_policy": policy, "returning_step_counter": "keep"})
        for policy in ("keep", "offload")
    )
    found = _compared(offloaded, kept, 2 * STEPS)
    on_host = offloaded.loop.optimizer.state_bytes()["host"]
    if not on_host:
        raise HarnessError("no optimizer state was moved to the host")
    return Found((*found, Reading(name="moved to the host", value=on_host, unit="bytes")))


def states_streamed(bench: Bench, _: str | None) -> Found:
    """Compare states that come over for each update, the next block's ahead, with states that stay."""
    label = label_with("state_policy")
    kept, streamed = (
        tiny_run(label, bench.device, {**settings, "returning_step_counter": "keep", "active_layers": 2})
        for settings in ({"state_policy": "keep"}, {"state_policy": "offload", "active_state": "prefetched"})
    )
    found = _compared(streamed, kept, 2 * STEPS)
    blocks = [p for block in streamed.loop.context.decoder.blocks for p in block.parameters()]
    held = {id(tensor) for tensor in streamed.loop.optimizer.device_tensors()}
    states = [streamed.loop.optimizer.state.get(p, {}) for p in blocks]
    if any(id(value) in held for state in states for value in state.values()):
        raise HarnessError("optimizer state of a block stayed on the device after a step")
    on_host = streamed.loop.optimizer.state_bytes()["host"]
    if not on_host:
        raise HarnessError("no optimizer state was moved to the host")
    return Found((*found, Reading(name="moved to the host", value=on_host, unit="bytes")))


def stochastic_rounding(bench: Bench, _: str | None) -> Found:
    """See that the mean of many roundings is the number, and that steps with them change bf16 weights."""
    number = 1.0 + 2.0**-10  # an eighth of the way from 1 to its upper neighbour, 1 + 2^-7
    many = bench.pick(1 << 22, 1 << 16)
    values = torch.full((many,), number, device=bench.device)
    rounded = round_stochastically(values, torch.Generator(bench.device).manual_seed(1))
    share = float((rounded.float() > 1.0).double().mean())
    away = abs(share - 0.125) / (0.125 * 0.875 / many) ** 0.5
    reading = Reading(name="mean, in sigmas", value=away, unit="ratio", at_most=SIGMAS)
    if not reading.reached:
        raise HarnessError(f"{share:.4%} of roundings went up where 12.5% should: {away:.1f} sigmas away")
    run = tiny_run(
        label_with("stochastic_rounding"),
        bench.device,
        {"stochastic_rounding": True, "moment_dtype": "fp32"},
        {"dtype": "bf16"},
    )
    before = run.checksums()
    run.take()
    if before == run.checksums():
        raise HarnessError("steps with stochastic rounding changed no weight")
    return Found((reading,))


def projector(bench: Bench, kind: str | None) -> Found:
    """See how much of a gradient's energy a projector keeps, and how long it takes at the shape of a large block.

    The gradient is a product G = L R of known inner size, whose energy at a rank is that of the small matrix between
    the orthonormal parts of L and R.
    """
    rows = bench.pick(4096 if kind == "randomized" else 1024, 96)  # no rung takes exact ones, which take long
    columns, rank = bench.pick(11008, 160) if kind == "randomized" else rows, bench.pick(128, 8)
    spectrum = torch.arange(1, 2 * rank + 1, device=bench.device).float().pow(-1.0)
    L, R = bench.random(rows, 2 * rank, seed=1) * spectrum, bench.random(2 * rank, columns, seed=2)
    G = L @ R
    basis = basis_for(G.shape, rank, "reference")
    begin = time.perf_counter()
    if kind == "svd":
        found = exact_projector(G, basis)
    else:
        found = randomized_projector(G, basis, torch.Generator().manual_seed(3))
    bench.synchronize()
    seconds = time.perf_counter() - begin
    small = torch.linalg.qr(L.double().cpu()).R @ torch.linalg.qr(R.double().cpu().t()).R.t()
    energies = torch.linalg.svdvals(small).square()
    possible = float(energies[:rank].sum() / energies.sum())
    kept = captured_energy(G, found, basis.side)
    share = Reading(name="energy, to the most possible", value=kept / possible, unit="ratio", at_least=ENERGY)
    if not share.reached:
        raise HarnessError(f"the projector keeps {kept:.4f} of the energy where {possible:.4f} is possible")
    what = f"first projector of {rows} x {columns}, rank {rank}"
    return Found((share, Reading(name=what, value=seconds, unit="s")))


def checkpoint_and_resume(bench: Bench, _: str | None) -> Found:
    """See that a run that goes on from a checkpoint ends like one that was not cut."""
    label = label_with("projector")
    whole = tiny_run(label, bench.device)
    with tempfile.TemporaryDirectory() as folder:
        whole.take()
        whole.checkpoints(Path(folder)).save()
        expected = whole.take()[STEPS:]
        resumed = tiny_run(label, bench.device)
        checkpoints = resumed.checkpoints(Path(folder))
        if checkpoints.restore() != STEPS:
            raise HarnessError(f"the checkpoint was not taken up: {'; '.join(checkpoints.notes) or 'none there'}")
        found = resumed.take()
    return Found((_reading(differences(found, expected)),))


def out_of_memory(bench: Bench, _: str | None) -> Found:
    """Let memory run out in a backward pass; see that it is known as that and where, and that the device goes on."""
    at = _run_out(bench)
    if at is None or (at.moment, at.step) != ("backward", 0):
        raise HarnessError(f"memory ran out in the backward pass of step 0, and was noted as {at}")
    if bench.cuda:
        torch.cuda.empty_cache()
    tiny_run(label_with("adamw_rule"), bench.device).take(1)
    return Found(sentence="noted as out of memory in the backward pass, and the device went on")


def _run_out(bench: Bench) -> OutOfMemoryAt | None:
    """Return what a loop notes when memory runs out; nothing of the step is alive after it."""
    run = tiny_run(label_with("adamw_rule"), bench.device)
    hook = _ask_for_too_much(run, bench.device)
    try:
        run.take(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return run.loop.memory.out_of_memory
    finally:
        hook.remove()
    raise HarnessError("memory did not run out although more was asked for than there is")


def _ask_for_too_much(run: TinyRun, device: torch.device) -> Any:
    def hook(_: torch.Tensor) -> None:
        torch.empty(1 << 60, dtype=torch.uint8, device=device)

    parameter = run.loop.optimizer.param_groups[0]["params"][0]
    return parameter.register_hook(hook)


def _alike(bench: Bench, settings: dict[str, Any], train: dict[str, Any] | None = None) -> Found:
    """Compare steps with these settings of the method with steps without them."""
    label = label_with("adamw_rule")
    return Found(_compared(tiny_run(label, bench.device, settings, train), tiny_run(label, bench.device, train=train)))


def _compared(run: TinyRun, plain: TinyRun, steps: int = STEPS) -> tuple[Reading, ...]:
    return (_reading(differences(run.take(steps), plain.take(steps))),)


def _reading(difference: float) -> Reading:
    """Return the reading of a difference that should be rounding.

    Raises:
        HarnessError: it is more.
    """
    reading = Reading(name="difference to the plain way", value=difference, unit="relative", at_most=EXACT)
    if not reading.reached:
        raise HarnessError(f"losses are {difference:.2g} from those of the plain way, more than {EXACT:g}")
    return reading
