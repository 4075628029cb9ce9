"""Settings of LoRA's variants that begin elsewhere or learn at two rates: PiSSA, OLoRA, LoRA+. No torch.

Papers: PiSSA (arXiv 2404.02948), OLoRA (arXiv 2406.01775), LoRA+ (arXiv 2402.12354).
Reference: the peft 0.21.2 distribution, whose names the settings have; ``pissa_iterations = N`` is ``pissa_niter_N``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from harness.methods._settings import AdamWSettings
from harness.settings import Later

FROM_WEIGHTS = ("pissa", "olora")
"""Initial values that are a part of the base weights, which lose it."""


class LoraVariants(AdamWSettings):
    """Where adapters begin, and how fast their two matrices learn."""

    init_lora_weights: Annotated[Literal["kaiming", "gaussian", "pissa", "olora"], Later("kaiming")] = "kaiming"
    """``kaiming`` (peft's ``True``), ``gaussian``: A at random, B zero. ``pissa``: the largest singular values of the
    base weight and their vectors. ``olora``: the first columns and rows of its QR factors. What the last two take is
    taken out of the base weight."""
    pissa_iterations: Annotated[PositiveInt | None, Later(None)] = None
    """Of the randomized decomposition that finds the singular vectors of ``pissa``; None: an exact one."""
    loraplus_lr_ratio: Annotated[PositiveFloat | None, Later(None)] = None
    """Learning rate of B, and of DoRA's magnitudes, over that of A, which is the run's; None: one rate."""
    loraplus_lr_embedding: Annotated[PositiveFloat | None, Later(None)] = None
    """Learning rate of adapters beside embeddings under ``loraplus_lr_ratio``."""

    @property
    def begins_in_weights(self) -> bool:
        """Return whether adapters begin as a part of the base weights."""
        return self.init_lora_weights in FROM_WEIGHTS

    @model_validator(mode="after")
    def _given_where_used(self) -> LoraVariants:
        if self.pissa_iterations is not None and self.init_lora_weights != "pissa":
            raise ValueError(
                f"pissa_iterations is for init_lora_weights = 'pissa', not '{self.init_lora_weights}': leave it out"
            )
        if self.loraplus_lr_embedding is not None and self.loraplus_lr_ratio is None:
            raise ValueError("loraplus_lr_embedding is for LoRA+: give loraplus_lr_ratio too, or leave it out")
        return self


def excluded(config: Any) -> str | None:
    """Return why the variants that settings ask for exclude each other, or None where they do not.

    Args:
        config: Of LoRA: with ``lora_fa`` and ``use_dora``.
    """
    begins = f"init_lora_weights = '{config.init_lora_weights}'"
    if config.lora_fa and config.use_dora:
        return "lora_fa and use_dora exclude each other: the gradient correction is not defined for DoRA"
    if config.lora_fa and config.loraplus_lr_ratio is not None:
        return (
            "lora_fa and loraplus_lr_ratio exclude each other: the ratio is to the learning rate of A, which LoRA-FA "
            "freezes; set learning_rate"
        )
    if config.lora_fa and config.begins_in_weights:
        return f"lora_fa and {begins} exclude each other: LoRA-FA freezes an A that was drawn at random"
    if config.use_dora and config.begins_in_weights:
        return (
            f"use_dora and {begins} exclude each other: DoRA divides by the lengths of the rows of the base weight, "
            "of which the adapter takes a part"
        )
    return None
