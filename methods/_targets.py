"""Which layers of a model get an adapter, by the ends of their names, and what is refused of them.

Reference: the peft 0.21.2 distribution, peft/tuners/tuners_utils.py (``check_target_module_exists``), whose rule for a
list of names is ours. Deliberate differences from the reference:
- every name must be the end of a layer's name, where peft is content with one that fits;
- what peft cannot adapt, and DoRA on rows of zeros, are told in a sentence, where peft prints a module or divides by 0;
- a merge into a matrix that two layers share changes the adapted one alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from harness.errors import Refused, near_miss
from harness.tensors.linear import stacked_weights

FUSED: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("qkv_proj", "query_key_value", "qkv", "c_attn", "Wqkv", "W_pack"),
    "k_proj": ("qkv_proj", "query_key_value", "qkv", "c_attn", "Wqkv", "W_pack"),
    "v_proj": ("qkv_proj", "query_key_value", "qkv", "c_attn", "Wqkv", "W_pack"),
    "gate_proj": ("gate_up_proj", "w1w3"),
    "up_proj": ("gate_up_proj", "w1w3"),
}
"""Layers of Llama's naming, and what single layers are called that hold them together with others: in Phi-3, GPT-NeoX,
GPT-2, MPT, Baichuan and their like."""
MOST_LISTED = 12
"""Names that a sentence lists."""


def target_layers(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """Return the layers whose names end in one of ``targets``, by name.

    Raises:
        Refused: one of the targets is the end of no layer's name, or of that of a module which takes no adapter; the
            sentence says which layers there are.
    """
    from transformers.pytorch_utils import Conv1D

    adaptable = (nn.Linear, nn.Embedding, Conv1D)
    named = dict(model.named_modules())
    known = [name for name, module in named.items() if isinstance(module, adaptable)]
    ends = tuple(f".{target}" for target in targets)
    found = {name: module for name, module in named.items() if f".{name}".endswith(ends)}
    if missing := [end[1:] for end in ends if not any(f".{name}".endswith(end) for name in found)]:
        raise Refused(_not_there(missing, known, [name for name, _ in model.named_parameters()]))
    for name in stacked_weights(model):
        if (end := next((end for end in ends if f".{name}".endswith(end)), None)) is not None:
            inner = sorted({".".join(layer.split(".")[-2:]) for layer in found if f".{layer}".endswith(end)})
            raise Refused(
                f"target_modules: {end[1:]} is the name of layers and of the stacked weights {name} of experts, which "
                f"take no adapter and would be passed over; name the layers as {' or '.join(inner)}"
            )
    for name, module in found.items():
        if not isinstance(module, adaptable):
            inside = kinds(other.removeprefix(f"{name}.") for other in known if other.startswith(f"{name}."))
            advice = f"name what it holds: {', '.join(inside)}" if inside else f"layers are {', '.join(kinds(known))}"
            raise Refused(
                f"target_modules: {name} is a {type(module).__name__}, and adapters stand beside linear layers and "
                f"embeddings; {advice}"
            )
    return found


def _not_there(missing: Sequence[str], known: Sequence[str], parameters: Sequence[str]) -> str:
    """Return the sentence about targets that are the end of no layer's name."""
    present = list(kinds(known))
    fused: dict[str, list[str]] = {}
    for name in missing:
        if (layer := next((other for other in FUSED.get(name, ()) if other in present), None)) is not None:
            fused.setdefault(layer, []).append(name)
    bare = [name for name in missing if any(f".{one}".endswith(f".{name}") for one in parameters)]
    said = [f"here {layer} holds {_words(names)} in one layer" for layer, names in fused.items()]
    said += [f"{name} is a parameter of a module of several, no layer of its own" for name in bare]
    more = len(present) - MOST_LISTED
    there = ", ".join(present[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
    alone = [name for name in missing if name not in bare and not any(name in names for names in fused.values())]
    hints = [hint[2:-1] for name in alone if "did you mean" in (hint := near_miss(name, present))]
    tail = "; ".join([*said, f"its layers are called {there}"])
    question = f" ({', '.join(hints)}?)" if hints else ""
    return f"the model has no layer called {', '.join(missing)} for target_modules{question}; {tail}"


def kinds(names: Iterable[str]) -> dict[str, int]:
    """Return the last words of layers' names, in order, and how many layers are called so."""
    return dict(Counter(name.rpartition(".")[2] for name in names))


def refuse_rows_of_zeros(wrapped: nn.Module) -> None:
    """Refuse DoRA on weights with a row of zeros, whose direction is 0 divided by 0; on ``meta`` none are known.

    Raises:
        Refused: there is one.
    """
    for name, module in wrapped.named_modules():
        magnitudes: Any = getattr(module, "lora_magnitude_vector", None)
        for magnitude in magnitudes.values() if magnitudes else ():
            weight: torch.Tensor = magnitude.weight
            if not weight.is_meta and (zeros := int((weight == 0).sum())):
                layer = name.removeprefix("base_model.model.")
                raise Refused(
                    f"use_dora divides each row of a weight by its length, and {zeros} of {layer} are all zeros, as "
                    "rows of padding tokens are: leave it out of target_modules or set use_dora = false"
                )


def untie_targets(wrapped: Any) -> None:
    """Give adapted layers that share their matrix with another one of their own, so that a merge changes them alone."""
    holders: dict[int, int] = Counter(
        id(module.weight)
        for module in wrapped.modules()
        if isinstance(module, (nn.Linear, nn.Embedding)) and not hasattr(module, "base_layer")
    )
    for module in wrapped.modules():
        base: Any = getattr(module, "base_layer", None)
        if base is not None and hasattr(module, "merge") and holders[id(base.weight)] > 1:
            holders[id(base.weight)] -= 1
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=base.weight.requires_grad)
            wrapped.config.tie_word_embeddings = False


def _words(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
