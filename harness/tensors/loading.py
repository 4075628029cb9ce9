"""Loads a base model and its tokenizer from a folder: safetensors only, no remote code, no network, one dtype.

Or builds the model from its shape alone: with random values for suites that measure memory and speed, or on ``meta``,
without any, for planning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from harness.catalogue.models import BaseModelSpec
from harness.checkpoint_files import check_checkpoint
from harness.errors import HarnessError
from harness.settings import Quantization
from harness.tensors.dtypes import DTYPES
from harness.tensors.fitting import misfit
from harness.tensors.quantized import layers_to_quantize, loading, mismatched, settle

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError)
"""What transformers raises of a folder whose files are damaged or of other types than it expects."""


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder.

    Raises:
        HarnessError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if not isinstance(error, UNREADABLE) and type(error) is not Exception:  # what the tokenizers library raises
            raise
        raise HarnessError(f"{folder}: the tokenizer cannot be loaded: {_first_line(error)}") from error


def load_model(folder: Path, dtype: str, device: torch.device, quantization: Quantization | None = None) -> nn.Module:
    """Return the causal language model in a folder, every floating parameter in ``dtype``, in training mode off.

    Args:
        folder: What ``save_pretrained`` wrote: config.json and safetensors.
        dtype: ``fp32`` or ``bf16``.
        device: Where the weights go.
        quantization: How linear layers but the head are packed, each as it is read, so that the model is never there
            whole in ``dtype``; None: they are not.

    Raises:
        HarnessError: it cannot be read, is not a causal language model, or lacks tensors, has others or such of other
            shapes: transformers would fill random values in.
        Refused: it is to be quantized, and bitsandbytes is missing, or it has no such layers.
    """
    from transformers import AutoModelForCausalLM

    check_checkpoint(folder)
    with _said_of(folder):
        packing: dict[str, Any] = {}
        if quantization is not None:
            config = config_in(folder)
            if getattr(config, "quantization_config", None) is not None:
                raise HarnessError(f"{folder}: its weights are quantized already: set quantization = 'none'")
            with torch.device("meta"):
                layers_to_quantize(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
            packing = loading(quantization, dtype, device)
        model, found = _from_pretrained(folder, dtype, **packing)
    if quantization is not None:
        found["mismatched_keys"] |= mismatched(model)
    if fault := misfit(model, found):
        raise HarnessError(f"{folder}: {fault}")
    if quantization is None:
        model.to(device)
    else:
        settle(model)
    model.eval()
    return model


def load_on_meta(folder: Path, dtype: str) -> nn.Module:
    """Return what :func:`load_model` does, without values: every tensor on ``meta``, in its final dtype.

    That the checkpoint holds the model's tensors and no others is checked as there; of a head that the configuration
    ties to the embedding and that is stored, too, it is not known whether its values are the embedding's: they stay
    two parameters.

    Raises:
        HarnessError: as :func:`load_model`.
    """
    check_checkpoint(folder)
    with _said_of(folder):
        model, found = _from_pretrained(folder, dtype, device_map={"": "meta"})
    if fault := misfit(model, found, values=False):
        raise HarnessError(f"{folder}: {fault}")
    model.eval()
    return model


def _from_pretrained(folder: Path, dtype: str, **how: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model in a folder, and what of its checkpoint did not fit it."""
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=DTYPES[dtype],
        attn_implementation=attention_for(config_in(folder)),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are refused by name
        output_loading_info=True,
        **how,
    )
    assert isinstance(model, nn.Module)
    return model, found


@contextmanager
def _said_of(folder: Path) -> Iterator[None]:
    """Say in a sentence what transformers raises inside of a folder's model.

    Raises:
        HarnessError: it raises, but for want of memory.
    """
    try:
        yield
    except UNREADABLE as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise HarnessError(f"{folder}: the model cannot be loaded: {_first_line(error)}") from error


def model_config(spec: BaseModelSpec) -> Any:
    """Return transformers' configuration of a base model: from its local folder if it has one, else from its shape.

    Raises:
        HarnessError: the folder's config.json cannot be read, the model has no shape either, or transformers does not
            know its architecture.
    """
    import transformers

    if (file := spec.config_file()) is not None and (spec.folder is not None or spec.shape is None):
        return config_in(file.parent)
    if spec.shape is None:
        raise HarnessError(f"model '{spec.name}' has no shape in models.toml, so it cannot be built from one")
    assert spec.architecture is not None
    model_class = getattr(transformers, spec.architecture, None)
    if model_class is None:
        raise HarnessError(f"model '{spec.name}': transformers {transformers.__version__} has no {spec.architecture}")
    return model_class.config_class(**spec.shape.config_settings(spec.architecture), architectures=[spec.architecture])


def config_in(folder: Path) -> Any:
    """Return transformers' configuration of the model in a folder.

    Raises:
        HarnessError: its config.json cannot be read, or transformers does not know the kind of model.
    """
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except UNREADABLE as error:
        raise HarnessError(f"{folder}: the configuration cannot be read: {_first_line(error)}") from error


def attention_for(config: Any, wanted: str = "sdpa") -> str:
    """Return an implementation of attention: the one that is wanted, or ``eager`` of a class that has its own alone.

    Source: transformers, modeling_utils.py, ``PreTrainedModel._sdpa_can_dispatch``, which refuses such a class.
    """
    from transformers import AutoModelForCausalLM

    try:
        model_class = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:  # no causal language model: building it says so
        return wanted
    return wanted if getattr(model_class, "_supports_sdpa", False) else "eager"


def build_model(spec: BaseModelSpec, dtype: str, device: torch.device | str, *, attention: str = "sdpa") -> nn.Module:
    """Return the causal language model of a spec with random initial values, in training mode off.

    Every parameter is made on the device in its dtype: no copy on the host, none in fp32. Values come from the global
    generator, which the caller seeds.

    Args:
        spec: Shape or local folder say what the model looks like.
        dtype: ``fp32`` or ``bf16``.
        device: Where the weights go; on ``meta`` there are none.
        attention: Implementation, by the name that transformers knows; a model that has its own alone keeps it.

    Raises:
        HarnessError: as :func:`model_config`; or the configuration is of no causal language model.
    """
    from transformers import AutoModelForCausalLM

    config = model_config(spec)
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=DTYPES[dtype],
                attn_implementation=attention_for(config, attention),
                trust_remote_code=False,
            )
    except ValueError as error:
        raise HarnessError(f"model '{spec.name}' cannot be built: {_first_line(error)}") from error
    model.eval()
    assert isinstance(model, nn.Module)
    return model


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
