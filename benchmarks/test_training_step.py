"""A training step beside the transformers Trainer's and peft's comparison's: equal weights, batches and optimizer.

All loops take turns, a step each, in an order that rotates, those of GaLore in processes of their own; each loop's time
runs from the end of one of its steps to the end of its next (``training_racers.py``). Models are LLaMAs of
SmolLM2-135M's shape, with fewer of its 30 blocks and random weights, in fp32. Label ``full`` and label ``lora`` are
raced with the Trainer's ``optim="adamw_torch"``, whose arithmetic is theirs: after the last step every weight is equal
bit by bit, and losses but for the order in which they are summed. Its default, ``adamw_torch_fused``, rounds otherwise
(``_update_rules.py``) and is shown beside, with no target. ``many tokens`` lets the passes dominate, ``few tokens`` the
optimizer.

GaLore is raced over refresh cycles with the settings of label ``galore`` on both sides: a step with a refresh and 199
times the median of the others, which is all 200 steps on a small model, and a few on a block as wide as TinyLlama's,
which stands for what a refresh costs at the width of the models that GaLore is for. The projectors differ, an exact
SVD there and a randomized range finder here, so that losses are close, not equal.

Bytes moved: each operation's arguments and results as the dispatcher sees them, over the parameters; of what is done in
slices that a core's cache holds, what enters and leaves it. In fp32 28 are the least. An 8-bit update is one operation
of bitsandbytes, and what goes on in it is not seen.

The first steps, which the harness's tracker follows, are left out. On a CPU the seconds are the process's own. Another
build of the harness is raced in an environment of its own, whose Python ``HARNESS_BENCH_BASELINE_PYTHON`` names.

    OMP_NUM_THREADS=1 pytest benchmarks/test_training_step.py -s

``HARNESS_BENCH_STEPS`` sets the steps of each loop (default 10), ``HARNESS_BENCH_BLOCKS`` the blocks (default 4).
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.catalogue.labels import load_labels
from harness.engine.run_log import WARMUP_STEPS
from harness.methods._optimizers import AdamW, Group
from harness.methods._projection import LowRankProjection, Side, basis_for, exact_projector, project, project_back
from harness.methods._settings import AdamWSettings, LowRank
from harness.methods._update_rules import CACHED
from harness.tensors.seeding import torch_generator

sys.path.insert(0, str(Path(__file__).parent))  # a folder of programs, which is no package

from training_racers import (
    Course,
    Elsewhere,
    Lap,
    Racer,
    comparison_loop,
    harness_racer,
    new_ids,
    new_model,
    trainer_racer,
)

STEPS = int(os.environ.get("HARNESS_BENCH_STEPS", "10"))
BASELINE = os.environ.get("HARNESS_BENCH_BASELINE_PYTHON")
SMOLLM2 = Course(
    label="full",
    hidden_size=576,
    intermediate_size=1536,
    num_blocks=int(os.environ.get("HARNESS_BENCH_BLOCKS", "4")),
    num_heads=9,
    num_kv_heads=3,
    vocabulary=49152,
    rows=4,
    length=64,
    steps=STEPS + WARMUP_STEPS,
)
TINYLLAMA_BLOCK = replace(
    SMOLLM2, label="galore", hidden_size=2048, intermediate_size=5632, num_blocks=1, num_heads=32, num_kv_heads=4,
    vocabulary=4096, rows=1, length=32, steps=16, update_gap=8,
)  # fmt: skip
SMALL = replace(
    TINYLLAMA_BLOCK, hidden_size=256, intermediate_size=688, num_blocks=2, num_heads=4, num_kv_heads=4,
    vocabulary=1024, steps=400, update_gap=200,
)  # fmt: skip
GAP = 200
"""Of label ``galore`` and of the paper's fine-tuning."""
TARGET, GALORE_TARGET = 1.0, 0.5
NOISE = 0.05
"""Of the ratio of two loops whose steps do the same in 30 ms."""
CLOSE = 0.05
"""Losses under two projectors that differ, over 400 steps: 1% apart when it was written."""
RATE = 1e-3
LEAST_BYTES = 28.0
"""Reading weight, gradient and both moments, writing all but the gradient, 4 bytes each."""

pytestmark = [pytest.mark.timeout(0), pytest.mark.filterwarnings("ignore")]


def race(racers: Mapping[str, Racer | Elsewhere], steps: int) -> dict[str, list[Lap]]:
    """Return the laps of each loop, warm-up and all."""
    laps: dict[str, list[Lap]] = {name: [] for name in racers}
    names = list(racers)
    for step in range(steps):
        first = step % len(names)
        for name in (*names[first:], *names[:first]):
            laps[name].append(racers[name].step())
    return laps


def show(title: str, laps: Mapping[str, list[Lap]]) -> dict[str, float]:
    """Print medians; return of each loop the median ratio of our step to its neighbour."""
    print(f"\n{title}, {torch.get_num_threads()} threads, {len(laps['ours']) - WARMUP_STEPS} steps each")
    print(f"{'loop':34} {'CPU s':>9} {'quartiles':>19} {'clock s':>9} {'ours / it':>10}")
    ratios = {}
    for name, all_laps in laps.items():
        timed, ours = all_laps[WARMUP_STEPS:], laps["ours"][WARMUP_STEPS:]
        low, middle, high = statistics.quantiles([lap.seconds for lap in timed], n=4)
        clock = statistics.median(lap.clock_seconds for lap in timed)
        ratios[name] = statistics.median(our.seconds / its.seconds for our, its in zip(ours, timed, strict=True))
        print(f"{name:34} {middle:9.4f} {low:9.4f} {high:9.4f} {clock:9.4f} {ratios[name]:10.3f}")
    return ratios


def with_baseline(racers: dict[str, Racer | Elsewhere], course: Course) -> dict[str, Racer | Elsewhere]:
    if BASELINE is None:
        print("\nHARNESS_BENCH_BASELINE_PYTHON is unset: no other build is raced")
        return racers
    return {**racers, "the other build": Elsewhere(BASELINE, course)}


def assert_equal_weights(ours: Racer, theirs: Racer) -> None:
    other = dict(theirs.model.named_parameters())
    for name, p in ours.model.named_parameters():
        assert torch.equal(p, other[name]), name


@pytest.mark.parametrize("label", ["full", "lora"])
@pytest.mark.parametrize(("rows", "length"), [(4, 64), (1, 8)], ids=["many tokens", "few tokens"])
def test_a_step_takes_at_most_the_trainers_time(label: str, rows: int, length: int) -> None:
    course = replace(SMOLLM2, label=label, rows=rows, length=length)
    ours, trainer, comparison = harness_racer(course), trainer_racer(course, "adamw_torch"), comparison_loop(course)
    racers = with_baseline(
        {
            "ours": ours,
            "Trainer, adamw_torch": trainer,
            "Trainer, its default (fused)": trainer_racer(course, "adamw_torch_fused"),
            "peft's comparison, AdamW": comparison,
        },
        course,
    )
    laps = race(racers, course.steps)
    ratios = show(f"{label}, {rows} x {length} tokens, {course.num_blocks} blocks", laps)
    for racer in racers.values():
        racer.close()
    assert_equal_weights(ours, trainer)
    assert_equal_weights(ours, comparison)
    for name in racers:
        for our, its in zip(laps["ours"], laps[name], strict=True):
            assert our.loss == pytest.approx(its.loss, rel=1e-6 if "fused" not in name else 1e-4)
    if BASELINE is not None:  # another build's bits too
        assert [lap.loss for lap in laps["the other build"]] == [lap.loss for lap in laps["ours"]]
    assert ratios["Trainer, adamw_torch"] <= TARGET
    assert ratios["peft's comparison, AdamW"] <= TARGET


def median_seconds(act: Callable[[], object], times: int = 9) -> float:
    """Return the median CPU time of a call."""
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        act()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


def forward_and_backward(course: Course) -> float:
    """Return the CPU seconds of a forward and a backward pass of the course's model, and of nothing else."""
    model, ids = new_model(course), new_ids(course)[0]

    def passes() -> None:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()

    return median_seconds(passes)


def products(course: Course) -> float:
    """Return the CPU seconds of the products of one plain step of GaLore: down into each subspace, and back."""
    rank = load_labels()["galore"].values()["rank"]
    seconds = 0.0
    for name, p in new_model(course).named_parameters():
        if ".layers." in name and p.dim() == 2:
            grad, basis = torch.randn_like(p), basis_for(p.shape, rank, "reference")
            projector = exact_projector(grad[: basis.rank] if basis.side == "right" else grad[:, : basis.rank], basis)
            seconds += median_seconds(partial(there_and_back, grad, projector, basis.side))
    return seconds


def there_and_back(grad: torch.Tensor, projector: torch.Tensor, side: Side) -> None:
    project_back(project(grad, projector, side), projector, side)


def galore_cycles(course: Course) -> float:
    """Race two cycles and print the second; return the ratio of ours to the Trainer's for a cycle of ``GAP`` steps."""
    pytest.importorskip("galore_torch", reason="the Trainer's galore_adamw needs galore-torch")
    # Each in a process of its own: what an SVD does to one allocator's thresholds would be in the steps of both.
    racers = with_baseline(
        {
            "ours": Elsewhere(sys.executable, course),
            "Trainer, galore_adamw": Elsewhere(sys.executable, course, "galore_adamw"),
        },
        course,
    )
    laps = race(racers, course.steps)
    for racer in racers.values():
        racer.close()
    gap = course.update_gap
    assert course.steps == 2 * gap
    print(
        f"\ngalore, {course.rows} x {course.length} tokens, {course.num_blocks} blocks {course.hidden_size} wide, CPU s"
    )
    print(f"{'loop':24} {'refresh step':>13} {'plain step':>11} {f'all of {gap} steps':>18} {f'cycle of {GAP}':>13}")
    cycles: dict[str, tuple[float, float]] = {}
    for name, all_laps in laps.items():
        seconds = [lap.seconds for lap in all_laps[gap:]]
        plain = statistics.median(seconds[1:])
        cycles[name] = sum(seconds), seconds[0] + (GAP - 1) * plain
        print(f"{name:24} {seconds[0]:13.3f} {plain:11.4f} {cycles[name][0]:18.3f} {cycles[name][1]:13.2f}")
    for name in list(cycles)[1:]:
        ratios = [ours / its for ours, its in zip(cycles["ours"], cycles[name], strict=True)]
        print(f"ours / {name}: all of {gap} steps {ratios[0]:.3f}, cycle of {GAP} {ratios[1]:.3f}")
    least = forward_and_backward(course), products(course)
    bound = GAP * sum(least) / cycles["Trainer, galore_adamw"][1]
    print(f"forward and backward {least[0]:.4f}, products into the subspaces and back {least[1]:.4f} of a plain step;")
    print(f"with these alone, and refreshes for nothing, the cycle would take {bound:.3f} of the Trainer's")
    for our, its in zip(laps["ours"], laps["Trainer, galore_adamw"], strict=True):
        assert our.loss == pytest.approx(its.loss, rel=CLOSE)
    return cycles["ours"][1] / cycles["Trainer, galore_adamw"][1]


def test_a_refresh_cycle_of_galore_takes_half_the_trainers_time() -> None:
    assert galore_cycles(TINYLLAMA_BLOCK) <= GALORE_TARGET


def test_a_whole_cycle_of_galore_on_a_small_model() -> None:
    """Where an SVD is quick the steps between take all of the time, and they do the same: no more is asked."""
    assert galore_cycles(SMALL) <= 1.0 + NOISE


class BytesMoved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes that operations read and write, as the dispatcher sees their arguments and results.

    Views move nothing, nor does a number alone. A tensor that a cache holds is read and written once, not at every
    operation: of those below a size a second touch at the same address moves nothing.
    """

    def __init__(self, cached: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cached = cached
        self.num_bytes = 0
        self._touched: set[tuple[int, str]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.is_view or "empty" in func._schema.name:
            return result
        given = [
            (argument, one)
            for number, argument in enumerate(func._schema.arguments)
            for one in tree_leaves(args[number] if number < len(args) else kwargs.get(argument.name))
            if isinstance(one, torch.Tensor)
        ]
        seen = {id(one) for _, one in given}
        for argument, one in given:
            # Fused updates may write gradients, but only where they scale them.
            changed = (
                argument.alias_info is not None and argument.alias_info.is_write and argument.name not in GRADIENTS
            )
            if argument.name != "out":
                self._move(one, "read")
            if changed:
                self._move(one, "written")
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and id(one) not in seen:
                self._move(one, "written")
        return result

    def _move(self, tensor: torch.Tensor, how: str) -> None:
        if tensor.ndim == 0:
            return
        if tensor.numel() <= self.cached:
            address = tensor.data_ptr()
            known = {(address, how), (address, "written")} & self._touched
            self._touched.add((address, how))
            if known:
                return
        self.num_bytes += tensor.numel() * tensor.element_size()


def settings(rule: str = "torch", moments: str = "fp32") -> AdamWSettings:
    return AdamWSettings.model_validate(
        {
            "adamw_rule": rule, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "moment_dtype": moments,
            "master_weights": False, "stochastic_rounding": False,
        }
    )  # fmt: skip


def ours_over(p: torch.nn.Parameter, of: AdamWSettings, projection: LowRankProjection | None = None) -> AdamW:
    group = Group([("w", p)], projection)
    return AdamW([group], of, learning_rate=RATE, streams=lambda name: torch_generator(1, name))


def projection() -> LowRankProjection:
    low_rank = LowRank(
        rank=64, update_gap=GAP, update_gap_counter="parameter", projection_side="reference", projector="randomized",
        scale=0.25, projector_dtype="fp32",
    )  # fmt: skip
    return LowRankProjection(low_rank, streams=lambda name: torch_generator(1, name), read_scalar=float)


def galore_over(p: torch.nn.Parameter) -> torch.optim.Optimizer:
    from galore_torch import GaLoreAdamW

    group = {"params": [p], "rank": 64, "update_proj_gap": GAP, "scale": 0.25, "proj_type": "std"}
    return GaLoreAdamW([group], lr=RATE, eps=1e-8, no_deprecation_warning=True)


GRADIENTS = ("grads", "g")
"""What torch and bitsandbytes call them."""
WAYS: dict[str, Callable[[torch.nn.Parameter], Any]] = {
    "ours, fp32": lambda p: ours_over(p, settings()),
    "torch, for loop": lambda p: torch.optim.AdamW([p], lr=RATE, weight_decay=0.0, foreach=False),
    "torch, foreach": lambda p: torch.optim.AdamW([p], lr=RATE, weight_decay=0.0, foreach=True),
    "torch, fused": lambda p: torch.optim.AdamW([p], lr=RATE, weight_decay=0.0, fused=True),
    "ours, 8-bit moments": lambda p: ours_over(p, settings(moments="int8")),
    "ours, GaLore of rank 64": lambda p: ours_over(p, settings("transformers"), projection()),
    "galore-torch, of rank 64": galore_over,
}


def test_an_update_moves_little_more_than_it_has_to() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(1024, 1024, generator=generator) for _ in range(2))
    moved, weights = {}, {}
    for name, optimizer_over in WAYS.items():
        p = torch.nn.Parameter(start.clone())
        optimizer = optimizer_over(p)
        p.grad = gradient.clone()
        optimizer.step()  # makes state and projector
        p.grad = gradient.clone()
        with BytesMoved(CACHED * torch.get_num_threads() if name == "ours, fp32" else 0) as counted:
            optimizer.step()
        moved[name], weights[name] = counted.num_bytes / p.numel(), p.detach()
    print("\nbytes moved a parameter of a 1024 x 1024 matrix, plain steps")
    for name, number in moved.items():
        print(f"{name:26} {number:6.1f}")
    assert torch.equal(weights["ours, fp32"], weights["torch, for loop"])
    assert moved["torch, fused"] == LEAST_BYTES
    assert moved["ours, fp32"] <= 1.1 * LEAST_BYTES
