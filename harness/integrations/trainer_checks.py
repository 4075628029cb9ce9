"""Which arguments of a Trainer fit a method: what cannot be right, or would be ignored, is refused with the reason."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from harness.errors import Refused
from harness.method import MethodConfig
from harness.settings import Dtype, TrainSettings
from harness.toml_files import validate

IGNORED = ("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon")
"""Arguments that a Trainer with an optimizer of the caller's leaves unread."""
SCHEDULES = ("linear", "cosine", "constant")
LONGEST_ROW = 1024
"""Tokens of a row, where a configuration does not say how many positions there are; a Trainer does not know them."""


def check_arguments(args: Any, config: MethodConfig) -> None:
    """Refuse arguments of a Trainer under which a method cannot be right.

    Args:
        args: ``TrainingArguments``, or a class on top of them.
        config: Of the method.

    Raises:
        Refused: which, why, and what to give instead.
    """
    _check_placement(args)
    _check_optimizer(args, config)
    _check_course(args)


def _check_placement(args: Any) -> None:
    if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
        raise Refused(
            "DeepSpeed and FSDP cut parameters up or replace the optimizer after prepare, and methods step the "
            "parameters that they saw: train on one device, or share a run out with harness run --gpus-per-run"
        )
    if args.world_size > 1 or args.n_gpu > 1:
        raise Refused(
            f"the Trainer would spread over {max(args.world_size, args.n_gpu)} devices, and a wrapper that averages "
            "gradients knows only what required them when it was made, not the blocks that are drawn later: make one "
            "device visible (CUDA_VISIBLE_DEVICES), or share a run out with harness run --gpus-per-run"
        )
    if args.fp16:
        raise Refused(
            "fp16 multiplies the loss by a scale that changes, and gradients that are projected, observed or used in "
            "the backward pass would carry it: load the model in bfloat16 or float32 and leave fp16 out"
        )


def _check_optimizer(args: Any, config: MethodConfig) -> None:
    defaults = {one.name: one.default for one in fields(args) if one.default is not MISSING}
    for name in IGNORED:
        if getattr(args, name, None) != defaults.get(name):
            raise Refused(
                f"{name} = {getattr(args, name)!r} would be ignored, as the optimizer is the method's: leave it out; "
                "settings of the method go into prepare(..., settings={...})"
            )
    if args.weight_decay:
        raise Refused(
            f"weight_decay = {args.weight_decay} would be ignored, as the optimizer is the method's: leave it out and "
            "give prepare(..., settings={'weight_decay': ...}), which decays every trained parameter"
        )
    if config.two_pass_clipping:
        raise Refused(
            "two_pass_clipping takes the norm in a first backward pass and updates in a second, and a Trainer makes "
            "one: set two_pass_clipping = false"
        )
    if config.update_in_backward and args.max_grad_norm:
        raise Refused(
            "update_in_backward frees each gradient before the Trainer takes their norm, so max_grad_norm = "
            f"{args.max_grad_norm} (1.0 where it is not given) would clip nothing: set max_grad_norm = 0, or "
            "update_in_backward = false in settings"
        )


def _check_course(args: Any) -> None:
    kwargs = args.activation_checkpointing_kwargs
    if args.activation_checkpointing and isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
        raise Refused(
            "checkpointing with use_reentrant = True gives no gradient to blocks below which nothing requires one, as "
            "under a frozen embedding: leave use_reentrant out"
        )
    if args.auto_find_batch_size:
        raise Refused(
            "auto_find_batch_size begins again with weights, draws and optimizer state of the attempt that failed: "
            "give the batch size"
        )
    if args.restore_callback_states_from_checkpoint:
        raise Refused(
            "restore_callback_states_from_checkpoint makes a new callback in the place of the prepared one, without "
            "its model: leave it out; what the method saved is restored all the same"
        )


def train_settings(
    args: Any, num_steps: int | None, *, dtype: Dtype, positions: int | None = None, **training: Any
) -> TrainSettings:
    """Return what a method is told of a training, in the harness's own words.

    Args:
        args: ``TrainingArguments``.
        num_steps: Optimizer steps; None: their ``max_steps``.
        dtype: Of the weights.
        positions: Most tokens of a row that the model's configuration knows of.
        training: Further settings.

    Raises:
        Refused: the number of steps is not known.
        HarnessError: a value is not valid.
    """
    steps = num_steps if num_steps is not None else args.max_steps
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise Refused(f"the number of optimizer steps is a whole number, not {steps!r}")
    if steps < 1:
        raise Refused(
            "how many optimizer steps there will be is not known before the Trainer has the rows: set max_steps in "
            "TrainingArguments, or give prepare(..., num_steps=N)"
        )
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    values = {
        "data": "trainer",
        "prompt": "as_is",
        "loss_on": "all",
        "packing": False,
        "sequence_length": positions or LONGEST_ROW,
        "batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "num_steps": steps,
        "learning_rate": args.learning_rate,
        "lr_scheduler": schedule if schedule in SCHEDULES else "constant",
        "warmup_steps": args.get_warmup_steps(steps),
        "max_grad_norm": args.max_grad_norm or None,
        "dtype": dtype,
        "gradient_checkpointing": bool(args.activation_checkpointing),
    }
    return validate(TrainSettings, values | training, "TrainingArguments:")


def check_same(args: Any, prepared: TrainSettings, num_steps: int) -> None:
    """Refuse arguments that are not those with which a method was prepared.

    Args:
        args: Those of the Trainer.
        prepared: What the method was told.
        num_steps: Optimizer steps that the Trainer is going to make.

    Raises:
        Refused: which differs, and how.
    """
    now = train_settings(
        args,
        num_steps,
        dtype=prepared.dtype,
        positions=prepared.sequence_length,
        quantization=prepared.quantization,
        double_quantization=prepared.double_quantization,
    )
    for name, value in now:
        if value != (before := getattr(prepared, name)):
            how = "num_steps" if name == "num_steps" else "args"
            raise Refused(
                f"the Trainer has {name} = {value}, and prepare was told {before}: give it the Trainer's {how}"
            )
