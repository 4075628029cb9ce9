"""AdamW for LoRA-FA: the gradient of B is corrected for the frozen A before Adam sees it.

Paper: LoRA-FA (arXiv 2308.03303). Reference: the peft 0.21.2 distribution, peft/optimizers/lorafa.py.
Deliberate differences from the reference: in fp32, not bf16; the matrix is computed once a run, not once a step,
since A does not change. It is counted in the optimizer's state, but not saved: it follows from A.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from harness.methods._optimizers import AdamW
from harness.tensors.sharded import whole

DAMPING = 1e-8
"""Added to the diagonal of A Aᵀ before it is inverted. Source: peft/optimizers/lorafa.py, ``delta``."""


class LoraFaAdamW(AdamW):
    """AdamW over B matrices whose gradients are multiplied by (A Aᵀ)⁻¹ / s², s the adapter's scaling."""

    _corrections: dict[torch.Tensor, torch.Tensor]
    _frozen: dict[torch.Tensor, tuple[torch.Tensor, float]]

    def pair_adapters(self, model: nn.Module) -> None:
        """Find the A matrix and the scaling that belong to each B."""
        self._corrections, self._frozen = {}, {}
        for module in model.modules():
            lora_A: Any = getattr(module, "lora_A", None)
            lora_B: Any = getattr(module, "lora_B", None)
            scaling: Any = getattr(module, "scaling", None)
            if isinstance(lora_A, nn.ModuleDict) and isinstance(lora_B, nn.ModuleDict):
                for adapter in lora_A:
                    A: Any = lora_A[adapter].weight
                    B: Any = lora_B[adapter].weight
                    self._frozen[B] = (A, float(scaling[adapter]))

    def gradient(self, p: torch.Tensor) -> torch.Tensor:
        """Return s⁻² g (A Aᵀ + δ I)⁻¹ in the dtype of the gradient g: (out_features, rank)."""
        g = super().gradient(p)
        if p not in self._corrections:
            A, scaling = self._frozen[p]
            A = whole(A.detach()).float()  # (rank, in_features)
            gram = A @ A.t() + DAMPING * torch.eye(A.shape[0], device=A.device)
            self._corrections[p] = torch.linalg.pinv(gram) / scaling**2
        return (g.float() @ self._corrections[p]).to(g.dtype)

    def _state_tensors(self) -> Iterable[tuple[torch.Tensor, list[torch.Tensor]]]:
        yield from super()._state_tensors()
        for p, correction in self._corrections.items():
            yield p, [correction]
