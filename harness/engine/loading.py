"""Loads a base model and its tokenizer from a folder: safetensors only, no remote code, no network, one dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.errors import HarnessError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder.

    Raises:
        HarnessError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise HarnessError(f"{folder}: the tokenizer cannot be loaded: {_first_line(error)}") from error


def load_model(folder: Path, dtype: str, device: torch.device) -> nn.Module:
    """Return the causal language model in a folder, every floating parameter in ``dtype``, in training mode off.

    Args:
        folder: What ``save_pretrained`` wrote: config.json and safetensors.
        dtype: ``fp32`` or ``bf16``.
        device: Where the weights go.

    Raises:
        HarnessError: it cannot be read, or is not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise HarnessError(f"{folder}: the model cannot be loaded: {_first_line(error)}") from error
    model.to(device)
    model.eval()
    assert isinstance(model, nn.Module)
    return model


def save_weights(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save what ``from_pretrained`` loads: safetensors, config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
