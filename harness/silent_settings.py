"""Settings of a run that do nothing, or less than they say, in this run: told from what was asked, before it or after.

None of them is wrong, and published configurations hold some: they are carried out as they are, and said.

The arithmetic: numbers of p significant bits are m 2^e, 1 <= m < 2, and 2^(e-p+1) apart, half as much below m = 1.
Scaled by 1 - d, such a number changes by d m 2^e, and is rounded back to itself where that is at most half of the way
to its lower neighbour: for every m when d <= 2^-(p+1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from harness.settings import TrainSettings

SIGNIFICANT_BITS = {"bf16": 8, "fp32": 24}


@dataclass(frozen=True)
class Asked:
    """A run that trains."""

    config: Mapping[str, JsonValue]
    """Of its method."""
    train: TrainSettings
    num_steps: int | None
    """Optimizer steps; None: not known."""
    full_rank: tuple[str, ...] = ()
    """Matrices that the rank does not reduce."""
    unprojected: tuple[str, ...] = ()
    """Tensors of the blocks that a projection leaves out, as they are no linear layers."""


def lost_share(dtype: str) -> float:
    """Return the largest d for which scaling any number of a dtype by 1 - d rounds back to it."""
    return float(2.0 ** -(SIGNIFICANT_BITS[dtype] + 1))


def _second_moment(asked: Asked) -> str | None:
    """Return that a second moment never falls: its own decay is rounded away."""
    dtype, betas = asked.config.get("moment_dtype"), asked.config.get("betas")
    if asked.config.get("moment_rounding", "nearest") != "nearest" or dtype not in SIGNIFICANT_BITS:
        return None
    if not isinstance(betas, (list, tuple)) or len(betas) != 2 or not isinstance(betas[1], (int, float)):
        return None
    if 1.0 - betas[1] > lost_share(str(dtype)):
        return None
    return (
        f"{dtype} moments at beta2 = {betas[1]:g} never fall, as {betas[1]:g} v is rounded back to v: set moment_dtype "
        "= 'fp32' or moment_rounding = 'stochastic' where that matters"
    )


def _weight_decay(asked: Asked) -> str | None:
    """Return that weight decay is rounded away at every learning rate of the run."""
    decay, dtype = asked.config.get("weight_decay"), asked.config.get("adapter_dtype", asked.train.dtype)
    if not isinstance(decay, (int, float)) or decay <= 0.0 or dtype not in SIGNIFICANT_BITS:
        return None
    if asked.config.get("master_weights") or asked.config.get("stochastic_rounding"):
        return None
    share, ratio = lost_share(str(dtype)), asked.config.get("loraplus_lr_ratio")
    if asked.train.learning_rate * max(1.0, ratio if isinstance(ratio, (int, float)) else 1.0) * decay > share:
        return None
    return (
        f"weight_decay = {decay:g} does nothing to {dtype} weights at learning_rate = {asked.train.learning_rate:g}: "
        f"less than {share / asked.train.learning_rate:.3g} is rounded away"
    )


def _one_draw(asked: Asked) -> str | None:
    """Return that blocks are drawn once, so that the others are never trained."""
    interval, first = asked.config.get("interval_steps"), asked.config.get("first_period_steps")
    name, length = ("interval_steps", interval) if first is None else ("first_period_steps", first)
    drawn = asked.config.get("active_layers") or asked.config.get("active_share") not in (None, 1.0)
    if not isinstance(length, int) or asked.num_steps is None or not drawn:
        return None
    if length < asked.num_steps:
        return None
    return (
        f"{name} = {length} outlasts the run's {asked.num_steps} steps: blocks are drawn once, the others never trained"
    )


def _no_look(asked: Asked) -> str | None:
    """Return that the importance of blocks is never looked at, so that all are drawn alike."""
    interval = asked.config.get("score_interval")
    if not isinstance(interval, int) or asked.num_steps is None or interval < asked.num_steps:
        return None
    return (
        f"score_interval = {interval} outlasts the run's {asked.num_steps} steps: the importance of blocks is never "
        "looked at, and all are drawn alike"
    )


def _no_stage(asked: Asked) -> str | None:
    """Return that the probabilities stay those of the probe, though their settings say that they follow training."""
    stage = asked.config.get("stage_steps")
    if not isinstance(stage, int) or asked.num_steps is None or stage < asked.num_steps:
        return None
    return (
        f"stage_steps = {stage} outlasts the run's {asked.num_steps} steps: probabilities stay those of the probe, as "
        "under stage_steps = 'none'"
    )


def _no_score(asked: Asked) -> str | None:
    """Return which settings are of a score that blocks are not drawn by."""
    drawn_by = asked.config.get("probability")
    if not isinstance(drawn_by, str):
        return None
    of = {"tau": "outlier", "alpha_estimator": "alpha", "alpha_mapping": "alpha"}
    unused = [key for key, score in of.items() if drawn_by.removesuffix("_reverse") != score]
    idle = [f"{key} = {asked.config[key]}" for key in unused if asked.config.get(key) is not None]
    if not idle:
        return None
    return f"{' and '.join(idle)} {'do' if len(idle) > 1 else 'does'} nothing under probability = '{drawn_by}'"


def _one_projector(asked: Asked) -> str | None:
    """Return that every projector is that of the first gradient."""
    gap, config = asked.config.get("update_gap"), asked.config
    if not isinstance(gap, int) or asked.num_steps is None or gap < asked.num_steps:
        return None
    if config.get("state_policy") == "drop" or config.get("refresh_on_activation"):
        return None
    return (
        f"update_gap = {gap} outlasts the run's {asked.num_steps} steps: projectors stay those of the first gradients"
    )


def _full_rank(asked: Asked) -> str | None:
    """Return which matrices are no larger than the rank."""
    if not asked.full_rank:
        return None
    number, rank = len(asked.full_rank), asked.config.get("rank")
    which = f"of {number} matrices, {asked.full_rank[0]} among them" if number > 1 else f"of {asked.full_rank[0]}"
    return f"rank = {rank} is no less than the smaller side {which}: of these nothing is reduced"


def _unprojected(asked: Asked) -> str | None:
    """Return which tensors of the blocks are trained in full beside projected ones."""
    if not asked.unprojected:
        return None
    return (
        f"{len(asked.unprojected)} tensors of the blocks are no linear layers and are not projected, "
        f"{asked.unprojected[0]} among them"
    )


def _warm_up(asked: Asked) -> str | None:
    """Return that the warm-up is none, or never ends."""
    train, steps = asked.train, asked.num_steps
    if not train.warmup_steps:
        return None
    if train.lr_scheduler == "constant":
        return f"warmup_steps = {train.warmup_steps} does nothing under lr_scheduler = 'constant', which has no warm-up"
    if steps is None or steps > train.warmup_steps:
        return None
    most = train.learning_rate * (steps - 1) / train.warmup_steps
    reached = f"never more than {most:g}" if most else "0 throughout, so that nothing is trained"
    return f"warmup_steps = {train.warmup_steps} outlasts the run's {steps} steps: the learning rate is {reached}"


def _held_out(asked: Asked) -> str | None:
    """Return that the held-out loss is read at the ends alone."""
    every = asked.train.validation_every_steps
    if every is None or asked.num_steps is None or every < asked.num_steps:
        return None
    return f"validation_every_steps = {every} outlasts the run's {asked.num_steps} steps: read before and after alone"


SILENT: Mapping[str, Callable[[Asked], str | None]] = {
    "second moments": _second_moment,
    "weight decay": _weight_decay,
    "one draw": _one_draw,
    "no look at the importance": _no_look,
    "no stage": _no_stage,
    "a score that is not drawn by": _no_score,
    "one projector": _one_projector,
    "full rank": _full_rank,
    "not projected": _unprojected,
    "warm-up": _warm_up,
    "held-out readings": _held_out,
}
"""Every kind: how it is called, and what it says of a run."""


def said_of(asked: Asked) -> dict[str, str]:
    """Return the sentences that there are for a run, by kind."""
    return {kind: sentence for kind, say in SILENT.items() if (sentence := say(asked)) is not None}
