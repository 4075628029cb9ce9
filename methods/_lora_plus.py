"""Groups of adapters' parameters with learning rates of their own: LoRA+.

Paper: LoRA+ (arXiv 2402.12354). References: nikhil-ghosh-berkeley/loraplus@a0c44bf:lora_plus.py and the peft 0.21.2
distribution, peft/optimizers/loraplus.py (``create_loraplus_optimizer``), whose groups these are.

Deliberate differences from the references:
- ``weight_decay`` is the decay of every group, where peft takes ``loraplus_weight_decay`` and passes the general one
  over; peft's group without decay is for biases, and none is trained here;
- the rate of embeddings' adapters has no default.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import Parameter

from harness.errors import Refused
from harness.methods._lora_variants import LoraVariants
from harness.methods._optimizers import Group

Named = Sequence[tuple[str, Parameter]]


def kind_of(name: str, p: Parameter) -> str:
    """Return which matrix of an adapter a parameter is: ``A``, ``B`` (DoRA's magnitudes among them), ``embedding``.

    An adapter's own matrices beside an embedding are told by their names; a magnitude beside one counts as a B.
    """
    if ".lora_embedding_" in name:
        return "embedding"
    return "B" if ".lora_B." in name or p.dim() == 1 else "A"


def rates(config: LoraVariants, learning_rate: float) -> dict[str, float]:
    """Return the learning rate of each kind of parameter, before any schedule."""
    assert config.loraplus_lr_ratio is not None
    found = {"A": learning_rate, "B": learning_rate * config.loraplus_lr_ratio}
    return found if config.loraplus_lr_embedding is None else {**found, "embedding": config.loraplus_lr_embedding}


def groups(named: Named, config: LoraVariants, learning_rate: float) -> dict[str, Group]:
    """Return the trained parameters by kind, none empty, each group with its rate.

    Raises:
        Refused: an embedding has an adapter and no rate is given for it.
    """
    by_kind: dict[str, list[tuple[str, Parameter]]] = {"A": [], "B": [], "embedding": []}
    for name, p in named:
        by_kind[kind_of(name, p)].append((name, p))
    of_kind = rates(config, learning_rate)
    if by_kind["embedding"] and "embedding" not in of_kind:
        raise Refused(
            f"loraplus_lr_ratio says nothing of {by_kind['embedding'][0][0]}, beside an embedding: give "
            "loraplus_lr_embedding, which peft takes to be 1e-6"
        )
    return {kind: Group(found, learning_rate=of_kind[kind]) for kind, found in by_kind.items() if found}
