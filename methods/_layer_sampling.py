"""Which blocks are trained: draws at the start of each period, freezing, and the state policy.

Papers: LISA (arXiv 2403.17919), algorithm 1 (coin flips); OwLore/OWS (arXiv 2405.18380).
Reference: pixeli99/OwLore@e415973:src/lmflow/pipeline/finetuner.py, class DynamicLayerActivationCallback; the
uniform draw is that of OptimalScale/LMFlow@f3597db:src/lmflow/pipeline/utils/lisa_trainer.py.

Deliberate differences from the reference:
- draws come from a generator of their own; ``legacy_draws_seed`` gives the references' draws, undisturbed by other
  users of numpy's global generator;
- state of a block that is frozen again may be dropped or moved to the host, and all state be dropped at every draw;
  the references keep it;
- blocks may take turns, as in BAdam (arXiv 2404.02827; Ledzy/BAdam@bf989dc:src/badam/block_optim.py, whose first block
  has a period one step short: ``first_period_steps``);
- gradients of a block that is frozen are freed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import JsonValue
from torch import nn

from harness.method import RunContext
from harness.methods._block_probabilities import drawable
from harness.methods._optimizers import AdamW
from harness.methods._settings import LayerSamplingSettings


class Draws(Protocol):
    """What the two generators of numpy share."""

    def choice(self, a: int, size: int, *, replace: bool, p: Sequence[float] | None) -> Any:
        """Return ``size`` of ``range(a)``."""


def draw_blocks(
    settings: LayerSamplingSettings,
    num_blocks: int,
    probabilities: Sequence[float] | None,
    generator: np.random.Generator | np.random.RandomState,
) -> list[int]:
    """Return the blocks of one period, in the order of the draw.

    ``without_replacement``: one after the other, each with its probability among those left (so a block's chance to be
    drawn is not ``active_layers`` times its probability). ``bernoulli``: each by itself with ``active_layers`` times
    its probability.
    """
    if settings.sampling == "without_replacement":
        drawn = generator.choice(num_blocks, settings.active_layers, replace=False, p=probabilities)
        return [int(block) for block in drawn]
    assert isinstance(generator, np.random.Generator)
    shares = [1.0 / num_blocks] * num_blocks if probabilities is None else probabilities
    coins = generator.random(num_blocks)
    return [block for block in range(num_blocks) if coins[block] < settings.active_layers * shares[block]]


def tour_stop(period: int, active_layers: int, num_blocks: int) -> list[int]:
    """Return the blocks of one period of a tour: the next ``active_layers`` in order, after the last the first."""
    first = period * active_layers
    return [block % num_blocks for block in range(first, first + active_layers)]


class BlockSampler:
    """Draws blocks, freezes the others, and applies the state policy to an optimizer."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        settings: LayerSamplingSettings,
        probabilities: Sequence[float] | None,
        context: RunContext,
        *,
        renew: bool = False,
        of_block: Callable[[nn.Module], Sequence[torch.Tensor]] | None = None,
    ) -> None:
        """Take the blocks.

        Args:
            blocks: Of the decoder.
            settings: Of the draws and of what becomes of state.
            probabilities: One a block, summing to 1; None: equal.
            context: Whose stream the draws come from.
            renew: A block that becomes active gets new projectors.
            of_block: Which parameters of a block are trained with it, the others being left as they are; None: all.
        """
        self._blocks = blocks
        self._renew = renew
        self._of_block = of_block or (lambda block: list(block.parameters()))
        self._settings = settings
        self._probabilities = None if probabilities is None else list(probabilities)
        self._changes: list[tuple[int, list[float]]] = []
        self._round: list[int] = []
        self._generator: np.random.Generator | np.random.RandomState
        if settings.legacy_draws_seed is None:
            self._generator = context.numpy_generator("layer_sampling")
        else:
            self._generator = np.random.RandomState(settings.legacy_draws_seed)
        self._draws: list[tuple[int, list[int]]] = []
        self._visited = False

    @property
    def active(self) -> list[int]:
        """Blocks of the current period, in the order of the draw; none before the first."""
        return self._draws[-1][1] if self._draws else []

    def on_step_begin(self, step: int, optimizer: AdamW) -> None:
        """Draw at the begin of a period, once, then freeze, unfreeze, and move state."""
        if self._visited:
            self._visited = False
            return
        if not self._settings.begins_period(step) or (self._draws and self._draws[-1][0] == step):
            return
        self._activate(step, self._draw(), optimizer)

    def visit(self, blocks: Sequence[int], optimizer: AdamW) -> None:
        """Activate these blocks as if they had been drawn; the next step draws nothing."""
        self._activate(optimizer.global_step, list(blocks), optimizer)
        self._visited = True

    @property
    def probabilities(self) -> list[float]:
        """Return the probability of each block in the next draw."""
        blocks = len(self._blocks)
        return [1.0 / blocks] * blocks if self._probabilities is None else list(self._probabilities)

    def set_probabilities(self, step: int, weights: Sequence[float]) -> None:
        """Let draws from an optimizer step on follow probabilities in proportion to weights; it is kept in the proof.

        Raises:
            Refused: from these the settings cannot draw.
        """
        assert not self._settings.takes_turns, "blocks that take turns are not drawn by probabilities"
        assert len(weights) == len(self._blocks)
        if not self._changes:
            self._changes.append((0, self.probabilities))
        self._probabilities = drawable(self._settings, weights)
        self._changes.append((step, self._probabilities))

    def _draw(self) -> list[int]:
        settings, num_blocks = self._settings, len(self._blocks)
        if settings.sampling == "reshuffle":
            return self._next_of_round(settings.active_layers)
        if settings.takes_turns:
            turn = tour_stop(len(self._draws), settings.active_layers, num_blocks)
            return [num_blocks - 1 - block for block in turn] if settings.sampling == "descending" else turn
        return draw_blocks(settings, num_blocks, self._probabilities, self._generator)

    def _next_of_round(self, number: int) -> list[int]:
        if not self._round:
            assert isinstance(self._generator, np.random.Generator)
            self._round = [int(block) for block in self._generator.permutation(len(self._blocks))]
        drawn, self._round = self._round[:number], self._round[number:]
        return drawn

    def _activate(self, step: int, drawn: list[int], optimizer: AdamW) -> None:
        before = set(self.active)
        self._draws.append((step, drawn))
        self.apply()
        if self._settings.reset_each_period:
            optimizer.drop_state([p for group in optimizer.param_groups for p in group["params"]])
        self._retire(self._parameters(before - set(drawn)), optimizer)
        self._welcome(self._parameters(set(drawn) - before), optimizer)

    def apply(self) -> None:
        """Let the active blocks require gradients and no others; free the gradients of the others."""
        active = set(self.active)
        for index, block in enumerate(self._blocks):
            for p in self._of_block(block):
                p.requires_grad_(index in active)
                if index not in active:
                    p.grad = None

    def _parameters(self, blocks: Iterable[int]) -> list[torch.Tensor]:
        return [p for index in sorted(blocks) for p in self._of_block(self._blocks[index])]

    def _retire(self, params: list[torch.Tensor], optimizer: AdamW) -> None:
        if self._settings.state_policy == "drop":
            optimizer.drop_state(params)
        elif self._settings.state_policy == "offload":
            optimizer.offload_state(params)

    def _welcome(self, params: list[torch.Tensor], optimizer: AdamW) -> None:
        if self._settings.active_state == "resident":
            optimizer.restore_state(params)
        if self._settings.returning_step_counter == "reset":
            optimizer.reset_step_counter(params)
        if self._renew:
            optimizer.drop_projectors(params)

    def state_dict(self) -> dict[str, JsonValue]:
        """Return draws, probabilities with their changes, what is left of a round, and the generator's state."""
        legacy = isinstance(self._generator, np.random.RandomState)
        state = self._generator.get_state(legacy=False) if legacy else self._generator.bit_generator.state  # type: ignore[union-attr]
        return {
            "draws": [[step, list(blocks)] for step, blocks in self._draws],
            "probabilities": None if self._probabilities is None else list(self._probabilities),
            "changes": [[step, list(vector)] for step, vector in self._changes],
            "round": list(self._round),
            "generator": _plain(state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them. Probabilities are the saved ones, whatever scores were computed since."""
        self._draws = [(int(step), [int(block) for block in blocks]) for step, blocks in state["draws"]]
        self._probabilities = state["probabilities"]
        self._changes = [(int(step), list(vector)) for step, vector in state["changes"]]
        self._round = list(state["round"])
        generator = _arrays(state["generator"])
        if isinstance(self._generator, np.random.RandomState):
            self._generator.set_state(generator)
        else:
            self._generator.bit_generator.state = generator

    def proof(self) -> dict[str, JsonValue]:
        """Return the law, the probabilities (the last, and where they changed all of them) and every draw."""
        history: JsonValue = [{"step": step, "probabilities": list(vector)} for step, vector in self._changes]
        return {
            "sampling": self._settings.sampling,
            "probability": "ignored" if self._settings.takes_turns else self._settings.probability,
            "probabilities": [*self.probabilities],
            **({"probability_history": history} if self._changes else {}),
            "draws": [{"step": step, "blocks": list(drawn)} for step, drawn in self._draws],
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"dtype", "values"}:
            return np.asarray(value["values"], dtype=value["dtype"])
        return {key: _arrays(inner) for key, inner in value.items()}
    return value
