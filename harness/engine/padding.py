"""Whether rows padded on the right go through a model without an attention mask, and lose nothing by it.

A token with a loss stands before all padding of its row. Where attention is causal it sees nothing behind itself, so
what padding holds reaches no loss and no gradient, and the mask can be left out: losses and gradients differ from those
under a mask in rounding alone. Without a mask attention runs in torch's faster kernels, on CUDA in flash attention, and
keys and values of grouped heads are not repeated, which transformers does under a mask.

The mask stays wherever this was not read in the model's code (:mod:`harness.tensors.causality`).

Rows whose length changes the rotation of their positions (:mod:`harness.tensors.rotary`) are another matter: there
padding itself changes what a token is, under a mask or without.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from harness.errors import Refused
from harness.settings import TrainSettings
from harness.tensors.causality import is_known_causal
from harness.tensors.rotary import rotation_limit


def needs_padding_mask(model: nn.Module, *, other_attention: Collection[str] = ()) -> bool:
    """Return whether rows padded on the right need their mask.

    Args:
        model: What is trained, after the method has prepared it.
        other_attention: Names of registered attention functions that stand for ``sdpa``, as planning's do.
    """
    return not is_known_causal(model, other_attention=other_attention)


def check_padded_rotation(model: nn.Module, settings: TrainSettings) -> None:
    """Refuse rows that would be rotated by the length of another row of their batch.

    Raises:
        Refused: rows of different lengths are padded to more positions than those that are rotated alike.
    """
    limit = rotation_limit(model)
    if limit is None or settings.packing or settings.sequence_length <= limit:
        return
    raise Refused(
        f"the model's rotary positions change with the length of a row beyond {limit} tokens, and rows padded to "
        f"sequence_length = {settings.sequence_length} would be rotated by the longest of their batch; take "
        f"sequence_length = {limit} or less, or packing = true"
    )
