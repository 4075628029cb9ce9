"""Whether the tensors of a checkpoint are those of the model that is loaded from it.

What transformers ignores on purpose (buffers of old checkpoints, as ``rotary_emb.inv_freq``) and a tied head that is
not stored apart are no fault. Everything else that is missing would hold random values, and what is there under another
name would be dropped, both with no more than a line in a log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel or DeepSpeed",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "base_model.model.": "peft",
    "base_layer.": "peft",
    "pretrained_model.": "TRL",
    "language_model.": "a model of text and images",
}
"""Parts of a tensor's name that were put there by what a model was wrapped in when it was saved."""
SHOWN = 4


def misfit(model: nn.Module, found: Mapping[str, Any], *, values: bool = True) -> str | None:
    """Return in words what of a checkpoint does not fit its model; None where all of it does.

    Args:
        model: As transformers made it.
        found: What ``from_pretrained`` returns beside it: missing, unexpected and mismatched keys.
        values: Whether the model has any; without them a stored head is not told from the embedding.
    """
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    shapes = [
        f"{name} {tuple(saved)} for {tuple(wanted)}"
        for name, saved, wanted in sorted(found["mismatched_keys"], key=lambda key: str(key[0]))
    ]
    parts = [
        f"{_count(names)} {words} ({_some(names)})"
        for names, words in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
        if names
    ]
    if errors := found.get("error_msgs"):
        parts.append(str(errors[0]).strip().splitlines()[0])
    if not parts:
        return _loose_head(model) if values else None
    known = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return f"does not hold the tensors of {type(model).__name__}: {'; '.join(parts)}{_advice(unexpected, known)}"


def _loose_head(model: Any) -> str | None:
    """Return in words that a head which the configuration ties to the embedding was stored with other values."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not model.config.get_text_config().tie_word_embeddings or head is None or head.weight is embedding.weight:
        return None
    return (
        "config.json says that head and embedding share their weights (tie_word_embeddings), and the checkpoint holds "
        "two that differ: set it to false if the model was trained so"
    )


def _advice(unexpected: Iterable[str], known: Collection[str]) -> str:
    """Return what to do where names were changed by a known wrapper, or hold an adapter."""
    names = [f".{name}" for name in unexpected]
    wrapped = [part for part in WRAPPERS if any(f".{part}" in name and _unwrapped(name) in known for name in names)]
    if wrapped:
        said = " and ".join(f"'{part}' ({WRAPPERS[part]})" for part in wrapped)
        return f"; {said} stands in their names: save the model without what it was wrapped in"
    if any(".lora_" in name for name in names):
        return "; they are an adapter's: merge it into its base before saving"
    return ""


def _unwrapped(name: str) -> str:
    """Return a name that begins with a dot without that and without what wrappers put into it."""
    for part in WRAPPERS:
        name = name.replace(f".{part}", ".")
    return name[1:]


def _count(names: Collection[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
