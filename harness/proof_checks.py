"""The checks of a proof: each holds facts of different origin against each other.

There are four origins: what the loop observed, what checksums say, what the method declared from settings and shapes
(``harness.declaration``), and what it reports of its optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from harness.declaration import Declaration, DeclaredPart, DeclaredProjection
from harness.proof_facts import Facts, Span, cut_at, part, spans_of

Verdict = Literal["passed", "failed", "not judged"]
Answer = tuple[Verdict, str] | None
"""A verdict, with what is wrong or which fact is missing; None: the question does not concern the run."""

PASSED: Answer = ("passed", "")
UNDECLARED: Answer = ("not judged", "the method declared nothing of the run")
NO_CHECKSUMS: Answer = ("not judged", "checksums are missing")
MOST_NAMED = 4
"""Steps or matrices that a sentence names."""

LEAST_MOVE = {"float32": 1e-7, "bfloat16": 5e-3}
"""Parameters times learning rate from which on a part must have changed.

Adam moves a weight by about the learning rate. In bf16 that is lost unless the weight is below 2^8 times the rate, in
fp32 unless it is below 2^24 times. Of weights that scatter by 0.02 around 0 a share of 10^4 times the rate is so small
in bf16, and 2^16 times that share in fp32: at these limits some fifty weights move.
"""
SEEN_SHARE = 1e-3
"""Of an embedding's rows only those of tokens that were seen have a gradient: at least so many are taken to be."""
LEAST_NUMBER = 1e-37
"""About the smallest number that neither fp32 nor bf16 takes for zero: from that rate on an adapter's zeros move."""
LEAST_VECTOR_RATE = 1e-6
"""Learning rate from which on a part of vectors alone, whose weights are near 1, must have changed in fp32; in bf16 it
may stay as it is at any usual rate."""


def _answer(faults: Iterable[str]) -> Answer:
    """Return a failure that names the first of some faults and counts the rest; passed where there are none."""
    found = list(faults)
    if not found:
        return PASSED
    more = len(found) - MOST_NAMED
    return "failed", "; ".join(found[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _numbered(blocks: Iterable[int]) -> str:
    found = sorted(blocks)
    return f"block{'s' * (len(found) > 1)} {' and '.join(map(str, found))}"


def frozen_parts(facts: Facts) -> Answer:
    """Judge that what was never trainable has the weights that it began with."""
    blocks, others = facts.changed_blocks, facts.changed_others
    if blocks is None or others is None:
        return NO_CHECKSUMS
    wrong = blocks - set(facts.proof.ever_trainable_blocks)
    names = [_numbered(wrong)] if wrong else []
    names += sorted(others - set(facts.proof.ever_trainable_others))
    return _answer([f"changed without being trained: {', '.join(names)}"] if names else [])


def trained_parts(facts: Facts) -> Answer:
    """Judge that what was trained moved, as far as its updates cannot all have been rounded away."""
    blocks, others = facts.changed_blocks, facts.changed_others
    if blocks is None or others is None:
        return NO_CHECKSUMS
    proof, declared = facts.proof, facts.declared
    if declared is None:
        least = max(LEAST_MOVE.values())
        moves = facts.largest_rate * max(facts.curve.trainable_params, default=0) >= least
        nothing = moves and not blocks and not others
        return ("failed", "nothing at all changed") if nothing else UNDECLARED
    rates = facts.largest_rates
    scale = 1.0 if declared.projection is None else declared.projection.scale
    still = [
        block
        for block in proof.ever_trainable_blocks
        if block not in blocks and _must_move(part(declared, block), rates.get(block, 0.0), scale)
    ]
    names = [_numbered(still)] if still else []
    names += [
        role
        for role, declared_part in declared.others.items()
        if role in proof.ever_trainable_others
        and role not in others
        and _must_move(declared_part, facts.largest_rate, scale, SEEN_SHARE if role == "embedding" else 1.0)
    ]
    return _answer([f"trained without any change: {', '.join(names)}"] if names else [])


def _must_move(declared: DeclaredPart, rate: float, scale: float, share: float = 1.0) -> bool:
    """Return whether updates at a learning rate, those of projected matrices scaled, cannot all be rounded away."""
    if declared.projected:
        rate *= min(scale, 1.0)
    if not declared.dtypes or any(dtype not in LEAST_MOVE for dtype in declared.dtypes):
        return False
    matrices = declared.num_params - declared.num_vector_params
    if matrices == 0:
        return declared.dtypes == ("float32",) and rate >= LEAST_VECTOR_RATE
    return matrices * share * rate >= max(LEAST_MOVE[dtype] for dtype in declared.dtypes)


def trainable_counts(facts: Facts) -> Answer:
    """Judge that the numbers of trainable parameters and blocks agree with each other and with the declaration."""
    train, declared, counts = facts.train, facts.declared, facts.curve.trainable_params
    if len(counts) != facts.num_steps:
        return "not judged", "the trainable parameters of some steps are missing"
    faults = []
    if train.num_steps != facts.num_steps:
        faults.append(f"{train.num_steps} steps are stated, the curve holds {facts.num_steps}")
    if facts.changed_blocks is not None and facts.visited != set(facts.proof.ever_trainable_blocks):
        stated = len(facts.proof.ever_trainable_blocks)
        faults.append(f"{len(facts.visited)} blocks were trainable at some step, {stated} are stated")
    mean = math.fsum(counts) / len(counts) if counts else 0.0
    if not math.isclose(mean, train.trainable_params_mean, rel_tol=1e-9):
        faults.append(f"{train.trainable_params_mean:,.1f} parameters a step are stated, the steps hold {mean:,.1f}")
    if declared is None:
        return _answer(faults) if faults else UNDECLARED
    always = sum(one.num_params for one in declared.others.values())
    for first, end, blocks in facts.spans:
        wanted = always + sum(part(declared, block).num_params for block in blocks)
        if (step := _first_other(counts, first, end, wanted)) is not None:
            faults.append(f"at step {step} {counts[step]:,} parameters were trainable, declared are {wanted:,}")
    ever = always + sum(part(declared, block).num_params for block in facts.visited)
    if train.trainable_params_ever != ever:
        faults.append(f"{train.trainable_params_ever:,} parameters were ever trainable, declared are {ever:,}")
    return _answer(faults)


def _first_other(values: Sequence[int], first: int, end: int, wanted: int) -> int | None:
    """Return the first step of a span at which a value is not the wanted one."""
    return next((step for step in range(first, end) if values[step] != wanted), None)


def draws(facts: Facts) -> Answer:
    """Judge that the draws that the method reports are those that the loop saw, as many and as often as declared."""
    reported, declared = facts.proof.method.get("draws"), facts.declared
    sampling = None if declared is None else declared.sampling
    drawn = _draws(reported)
    if drawn is None:
        if sampling is not None:
            return "failed", "the method reports no draws"
        return None if reported is None else ("not judged", "the draws are reported in a form of their own")
    faults = []
    if (differs := _first_difference(spans_of(drawn, facts.num_steps), facts.spans)) is not None:
        step, said, seen = differs
        faults.append(f"at step {step} {sorted(said)} were drawn, and {sorted(seen)} trained")
    if sampling is not None:
        if [step for step, _ in drawn] != sampling.draw_steps(facts.num_steps):
            faults.append(f"{len(drawn)} draws are reported, due was one each {sampling.interval_steps} steps")
        wrong = [(step, len(set(blocks))) for step, blocks in drawn if len(set(blocks)) != sampling.num_active]
        if sampling.num_active is not None:
            faults += [f"at step {s} {n} blocks were drawn, declared are {sampling.num_active}" for s, n in wrong]
        for draw, (step, blocks) in enumerate(drawn):
            turn = sampling.turn(draw, facts.train.num_blocks)
            if turn is not None and set(blocks) != turn:
                faults.append(f"at step {step} {sorted(set(blocks))} were drawn, the turn was of {sorted(turn)}")
    return _answer(faults)


def _draws(value: Any) -> list[tuple[int, list[int]]] | None:
    """Return the draws that a method reports, or None where they are no list of steps and blocks."""
    if not isinstance(value, list):
        return None
    found = []
    for entry in value:
        step, blocks = (entry.get("step"), entry.get("blocks")) if isinstance(entry, dict) else (None, None)
        if not isinstance(step, int) or not isinstance(blocks, list) or not all(isinstance(b, int) for b in blocks):
            return None
        found.append((step, blocks))
    return found


def _first_difference(said: Sequence[Span], seen: Sequence[Span]) -> tuple[int, frozenset[int], frozenset[int]] | None:
    """Return the first step at which two lists of spans differ, with the blocks of both; they cover the same steps."""
    i = j = 0
    while i < len(said) and j < len(seen):
        one, other = said[i], seen[j]
        if one.blocks != other.blocks:
            return max(one.first, other.first), one.blocks, other.blocks
        i += one.end <= other.end
        j += other.end <= one.end
    return None


def optimizer_state(facts: Facts) -> Answer:
    """Judge that the optimizer's state took what is declared after every step, on the device and on the host.

    Declared is a part for each of the devices that end the run: of steps of another number of them nothing is.
    """
    declared, curve, own = facts.declared, facts.curve, facts.train.other_ranks_before_step
    if declared is None:
        return UNDECLARED
    readings = {"device": curve.optimizer_state_bytes, "host": curve.optimizer_state_host_bytes}
    if any(len(values) != facts.num_steps for values in readings.values()):
        return "not judged", "the bytes of some steps are missing"
    policy = "keep" if declared.sampling is None else declared.sampling.state_policy
    streams = declared.sampling is not None and declared.sampling.streams_state
    always = sum(one.state_bytes for one in declared.others.values())
    seen: frozenset[int] = frozenset()
    faults = []
    for first, end, active in facts.spans:
        seen |= active
        wanted = {
            "device": always + _state(declared, () if streams else seen if policy == "keep" else active),
            "host": _state(declared, seen if streams else seen - active if policy == "offload" else ()),
        }
        for place, values in readings.items():
            if (step := _first_other(values, max(first, own), end, wanted[place])) is not None:
                faults.append(
                    f"after step {step} it takes {values[step]:,} bytes on the {place}, declared are {wanted[place]:,}"
                )
    largest = max(curve.optimizer_state_bytes[own:], default=facts.train.peak_optimizer_state_bytes if own else 0)
    last = curve.optimizer_state_bytes[-1] if curve.optimizer_state_bytes else 0
    if facts.train.peak_optimizer_state_bytes != largest:
        faults.append(f"{facts.train.peak_optimizer_state_bytes:,} bytes are stated as the peak of {largest:,}")
    if facts.proof.optimizer_state_bytes not in (None, last):
        faults.append(f"{facts.proof.optimizer_state_bytes:,} bytes are stated as the last of {last:,}")
    return _answer(faults)


def _state(declared: Declaration, blocks: Iterable[int]) -> int:
    return sum(part(declared, block).state_bytes for block in blocks)


def projectors(facts: Facts) -> Answer:
    """Judge that every projected matrix had the updates of its block, and a new projector whenever one was due."""
    reported, declared = facts.proof.method.get("projected"), facts.declared
    if declared is None:
        return None if reported is None else UNDECLARED
    projection = declared.projection
    if projection is None:
        return None if not reported else ("failed", "matrices are projected, and none was declared to be")
    if not isinstance(reported, dict):
        return "failed", "the method reports no projected matrix"
    wanted: dict[str, tuple[int, int]] = {}
    for block, one in enumerate(declared.blocks):
        wanted |= dict.fromkeys(one.projected, _due(facts, declared, projection, block))
    for one in declared.others.values():
        wanted |= dict.fromkeys(one.projected, _due(facts, declared, projection, None))
    faults = [f"{name} is projected and was not declared to be" for name in reported if name not in wanted]
    for name, due in wanted.items():
        entry = reported.get(name)
        found = (entry.get("num_updates"), entry.get("num_refreshes")) if isinstance(entry, dict) else (None, None)
        if found != due:
            faults.append(f"{name} had {found[1]} projectors in {found[0]} updates, due were {due[1]} in {due[0]}")
    return _answer(faults)


def _due(facts: Facts, declared: Declaration, projection: DeclaredProjection, block: int | None) -> tuple[int, int]:
    """Return how many updates a matrix of a block had, and how many projectors were due; None: always trained.

    A first update computes one, and so does each that finds the last to be ``update_gap`` updates old, or, counted by
    the run, of an earlier window of ``update_gap`` steps.
    """
    gap, by_run = projection.update_gap, projection.update_gap_counter == "global"
    sampling = declared.sampling
    forgets = (sampling is not None and sampling.state_policy == "drop") or projection.refresh_on_activation
    resets = sampling.draw_steps(facts.num_steps) if sampling is not None and sampling.resets_each_period else []
    reset_at = set(resets)
    updates = refreshes = 0
    next_due: int | None = None  # an update, or a window; None: at once
    active_until = 0
    for first, end, blocks in cut_at(facts.spans, resets):
        if block is not None and block not in blocks:
            continue
        if first in reset_at or (forgets and active_until != first):
            next_due = None
        active_until = end
        from_, to = (first // gap, (end - 1) // gap) if by_run else (updates, updates + end - first - 1)
        start = from_ if next_due is None else max(next_due, from_)
        if start <= to:
            every = 1 if by_run else gap
            number = (to - start) // every + 1
            refreshes += number
            next_due = start + number * every
        updates += end - first
    return updates, refreshes


def adapters(facts: Facts) -> Answer:
    """Judge that every declared module has an adapter, no other has one, and each moved from where it began."""
    reported, declared = facts.proof.method.get("adapters"), facts.declared
    if declared is None:
        return None if reported is None else UNDECLARED
    if declared.adapters is None:
        return None if not reported else ("failed", "adapters are reported, and none was declared")
    found, moved = (_names(reported, key) for key in ("found", "moved"))
    if found is None or moved is None:
        return "failed", "the method reports no adapter"
    faults = [f"{name} has no adapter" for name in declared.adapters if name not in found]
    faults += [f"{name} has an adapter that was not declared" for name in sorted(found - set(declared.adapters))]
    rates = facts.largest_rates
    idle = {
        name
        for block, one in enumerate(declared.blocks)
        if rates.get(block, 0.0) < LEAST_NUMBER
        for name in one.adapters
    }
    faults += [f"the adapter of {name} moved without being trained" for name in sorted(moved & idle)]
    if facts.largest_rate >= _least_rate(declared):
        faults += [f"the adapter of {name} did not move" for name in sorted(found - moved - idle)]
    return _answer(faults)


def _least_rate(declared: Declaration) -> float:
    """Return the learning rate from which on every adapter must have moved: zeros move at any.

    Other values do as those of a part of the model do; of an adapter the mean number of parameters is known.
    """
    if declared.adapters_begin_at_zero or not declared.adapters:
        return LEAST_NUMBER
    parts = (*declared.blocks, *declared.others.values())
    size = sum(one.num_params for one in parts) / len(declared.adapters)
    limits = [LEAST_MOVE.get(dtype, math.inf) for one in parts for dtype in one.dtypes]
    return max(limits) / size if size and limits else math.inf


def _names(value: Any, key: str) -> set[str] | None:
    names = value.get(key) if isinstance(value, dict) else None
    return {str(name) for name in names} if isinstance(names, list) else None


def base_weights(facts: Facts) -> Answer:
    """Judge that beside adapters the blocks' own weights are those they began with."""
    declared, changed = facts.declared, facts.changed_base
    if declared is None or declared.adapters is None:
        return None
    if changed is None:
        return "not judged", "checksums of the blocks without their adapters are missing"
    return _answer([f"the base weights of {_numbered(changed)} changed"] if changed else [])


CHECKS: Mapping[str, Callable[[Facts], Answer]] = {
    "frozen parts": frozen_parts,
    "trained parts": trained_parts,
    "trainable counts": trainable_counts,
    "draws": draws,
    "optimizer state": optimizer_state,
    "projectors": projectors,
    "adapters": adapters,
    "base weights": base_weights,
}
"""By name, in the order in which they are told."""
