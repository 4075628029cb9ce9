"""Optimizer state by parameter: dropped, moved to the host and back, counted by place, saved and loaded.

No paper and no reference implementation: the references keep every state for ever, on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from harness.method import StateBytes
from harness.methods._state_stream import StateStream
from harness.tensors.placement import on_host
from harness.tensors.sharded import Lying, place_of


class HeldState(torch.optim.Optimizer):
    """An optimizer over named parameters that answers for its state.

    What is held for a parameter is a dict of tensors and integers; a subclass says in it what it likes, ``step`` being
    Adam's counter.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        """Take the groups, whose ``params`` are pairs of base-model name and parameter."""
        self._offloaded: set[str] = set()
        self.stream: StateStream | None = None
        """What brings state over for each update; None: what is not offloaded stays on the device."""
        super().__init__(groups, {})
        self._names: dict[torch.Tensor, str] = {
            p: name
            for group in self.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        }

    # What becomes of it

    def drop_state(self, params: Iterable[torch.Tensor]) -> None:
        """Free all that is held for these parameters, step counters among it."""
        for p in params:
            self.state.pop(p, None)
            self._offloaded.discard(self._names[p])

    def offload_state(self, params: Iterable[torch.Tensor]) -> None:
        """Move the state tensors of these parameters to the host."""
        for p in params:
            if p in self.state and self._names[p] not in self._offloaded:
                with on_host():
                    self._move(p, torch.device("cpu"))
                self._offloaded.add(self._names[p])

    def restore_state(self, params: Iterable[torch.Tensor]) -> None:
        """Bring back what :meth:`offload_state` moved; parameters without state there are left alone."""
        for p in params:
            if self._names[p] in self._offloaded:
                self._move(p, p.device)
                self._offloaded.discard(self._names[p])

    def stream_state(self, blocks: Iterable[Iterable[torch.Tensor]], *, ahead: bool, descending: bool) -> None:
        """Keep the state of these blocks' parameters on the host between their updates, as :class:`StateStream` has it.

        Parameters of theirs that this optimizer does not have are left out.
        """
        known = [[p for p in block if p in self._names] for block in blocks]
        self.stream = StateStream(known, self.state, self._names, self._offloaded, ahead=ahead, descending=descending)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free the gradients: a step is over, and state that is streamed goes back to the host."""
        super().zero_grad(set_to_none)
        if self.stream is not None:
            self.stream.flush()

    def reset_step_counter(self, params: Iterable[torch.Tensor]) -> None:
        """Let the bias correction of these parameters begin again; the rest stays."""
        for p in params:
            if "step" in self.state.get(p, {}):
                self.state[p]["step"] = 0

    def _move(self, p: torch.Tensor, device: torch.device) -> None:
        state = self.state[p]
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                state[key] = value.to(device, copy=True)

    # What it takes

    def state_bytes(self) -> StateBytes:
        """Return the bytes of the storages behind all state tensors, by place.

        Whole storages are counted, each once, so that a view that keeps a larger tensor alive shows.
        """
        totals: StateBytes = {"device": 0, "host": 0}
        seen: set[int] = set()
        for p, tensors in self._state_tensors():
            on_device = self._names[p] not in self._offloaded
            for tensor in tensors:
                storage = tensor.untyped_storage()
                if storage._cdata not in seen:
                    seen.add(storage._cdata)
                    totals["device" if on_device else "host"] += storage.nbytes()
        return totals

    def device_tensors(self) -> list[torch.Tensor]:
        """Return the state tensors that are not on the host."""
        return [
            tensor
            for p, tensors in self._state_tensors()
            if self._names[p] not in self._offloaded
            for tensor in tensors
        ]

    def _state_tensors(self) -> Iterable[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Yield each parameter with state and the tensors held for it; a subclass with further tensors adds them."""
        for p, state in self.state.items():
            yield p, [value for value in state.values() if isinstance(value, torch.Tensor)]

    # Checkpoints

    def counters(self) -> dict[str, Any]:
        """Return what is counted beside the state of single parameters, JSON only; a subclass adds its own."""
        return {"offloaded": sorted(self._offloaded)}

    def load_counters(self, counters: dict[str, Any]) -> None:
        """Restore what :meth:`counters` returned."""
        self._offloaded.clear()
        self._offloaded.update(counters["offloaded"])

    def state_dict(self) -> dict[str, Any]:
        """Return ``state`` (tensors and integers by parameter index), ``param_groups`` and ``counters`` (both JSON)."""
        if self.stream is not None:
            self.stream.wait()
        return super().state_dict() | {"counters": self.counters()}

    def state_places(self, p: torch.Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Lying]:
        """Return how the tensors held for a parameter lie, where it is shared out over processes: as it does itself.

        Args:
            p: The parameter.
            shapes: Of these tensors, by their names in its state, or of parts of them: other rows, or other columns,
                as the parameter is cut.
        """
        return dict.fromkeys(shapes, place_of(p))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned: tensors copied, dtypes kept, offloaded ones on the host.

        Raises:
            ValueError: the groups are not those of this optimizer.
        """
        saved_names = [group["param_names"] for group in state_dict["param_groups"]]
        if saved_names != [group["param_names"] for group in self.param_groups]:
            raise ValueError("the saved optimizer state is of other parameters than this optimizer's")
        self.load_counters(state_dict["counters"])
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        params: list[Parameter] = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        for index, saved in state_dict["state"].items():
            p = params[int(index)]
            device = torch.device("cpu") if self._names[p] in self._offloaded else p.device
            self.state[p] = {
                key: value.detach().to(device, copy=True) if isinstance(value, torch.Tensor) else value
                for key, value in saved.items()
            }
        if self.stream is not None:
            self.stream.restart()
