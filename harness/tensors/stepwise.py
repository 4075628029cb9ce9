"""Any optimizer of ``torch.optim``, or one written like it, as the engine and planning need one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, is_fake
from torch.utils._python_dispatch import TorchDispatchMode

from harness.errors import Refused
from harness.method import StateBytes
from harness.tensors.optimizer_state import storage_bytes, tensors_in

SAME, TUPLE = "__same_as__", "__tuple__"
"""Keys of what stands in a saved state for a tensor that is another one's too, and for a tuple."""
PLAIN = (bool, int, float, str, type(None))


class Stepwise(torch.optim.Optimizer):
    """Steps optimizers for some of their parameters at a time, accounts for their state, and saves it exactly.

    State is what an optimizer holds for each parameter in its ``state``: tensors, numbers, lists and tables of them. It
    stays where the optimizer puts it, and nothing is refreshed. What cannot be stepped, counted or saved so is refused
    with a sentence: an optimizer that evaluates the loss again (``LBFGS``), takes sparse gradients alone, keeps objects
    in its state or tensors in its groups; and, with ``update_in_backward``, one that counts in its groups.

    Where a group leaves ``foreach`` open it becomes False, on every device: one parameter after the other, with the
    least memory, as planning does. ``foreach = True`` is done and planned as said.
    """

    def __init__(self, *wrapped: torch.optim.Optimizer) -> None:
        """Take an optimizer, or several, over every parameter that may ever be trained, frozen now or not.

        Raises:
            Refused: one cannot be stepped as said above, or two hold the same parameter.
        """
        self.wrapped = wrapped
        self.defaults = wrapped[0].defaults
        self._owner: dict[torch.Tensor, tuple[torch.optim.Optimizer, int]] = {}
        for optimizer in wrapped:
            _refuse_unfit(optimizer)
            for index, group in enumerate(optimizer.param_groups):
                for p in group["params"]:
                    if p in self._owner:
                        raise Refused(f"a parameter is in two of the optimizers {', '.join(map(_name, wrapped))}")
                    self._owner[p] = (optimizer, index)
        self._looked_at: set[torch.Tensor] = set()
        self._fake = any(is_fake(p) for p in self._owner)
        self.reads_answered = 0
        """Numbers that a step read from tensors without values, as planning has them, and that were taken as 1."""
        for group in self.param_groups:
            _settle(group, self._fake)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Return the wrapped optimizers' own groups."""
        return [group for optimizer in self.wrapped for group in optimizer.param_groups]

    @property
    def state(self) -> Any:  # type: ignore[override]
        """Return the wrapped optimizer's own state, or that of several as one."""
        return self.wrapped[0].state if len(self.wrapped) == 1 else _States(self._owner, self.wrapped)

    @property
    def refresh_seconds(self) -> float | None:
        """Return None: nothing is refreshed."""
        return None

    def begin_step(self, step: int) -> None:
        """Take the number of the step, which no optimizer of ``torch.optim`` asks for."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that holds a gradient."""
        assert closure is None
        with self._answering():
            for optimizer in self.wrapped:
                optimizer.step()
        self._look_at(self._owner)

    def step_parameters(self, params: Iterable[torch.Tensor]) -> None:
        """Update these parameters and nothing else: meanwhile they are all that the groups hold.

        Raises:
            Refused: an optimizer counts in its groups, so that a step of some parameters moves what the others use.
        """
        wanted: dict[torch.optim.Optimizer, dict[int, list[torch.Tensor]]] = {}
        for p in params:
            optimizer, index = self._owner[p]
            wanted.setdefault(optimizer, {}).setdefault(index, []).append(p)
        self._opt_called = True  # torch's schedulers warn where step() was never called
        for optimizer, groups in wanted.items():
            with _holding(optimizer, groups), self._answering():
                before = [dict(group) for group in optimizer.param_groups]
                optimizer.step()
                moved = _moved(before, optimizer.param_groups)
            if moved and len(self._owner) > sum(map(len, groups.values())):
                raise Refused(
                    f"{_name(optimizer)} counts in its groups for all parameters together ({', '.join(moved)}), so it "
                    "cannot update one at a time: set update_in_backward = false"
                )
            self._look_at(p for held in groups.values() for p in held)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free the gradients."""
        for optimizer in self.wrapped:
            optimizer.zero_grad(set_to_none)

    def state_bytes(self) -> StateBytes:
        """Return the bytes of the state tensors, by where they lie."""
        on_device = storage_bytes(self.device_tensors())
        return {"device": on_device, "host": storage_bytes(self._state_tensors()) - on_device}

    def device_tensors(self) -> list[torch.Tensor]:
        """Return the state tensors on the parameters' device: torch keeps step counters on the host beside one."""
        device = next(iter(self._owner)).device.type
        return [tensor for tensor in self._state_tensors() if tensor.device.type == device]

    def expire_projectors(self, params: Iterable[torch.Tensor]) -> bool:
        """Return False: nothing is computed anew."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the state by the parameter's number and the groups' settings: tensors, and JSON with integer keys."""
        known: dict[tuple[Any, ...], list[Any]] = {}
        hosts: list[list[Any]] = []
        states = {index: self.state[p] for index, p in enumerate(self._owner) if self.state.get(p)}
        state = {index: _saved(own, [index], known) for index, own in states.items()}
        for index, p in enumerate(self._owner):
            hosts += _elsewhere(states.get(index), [index], p.device.type)
        numbers = {p: index for index, p in enumerate(self._owner)}
        groups = [_settings(group) | {"params": [numbers[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": state, "param_groups": groups, "hosts": hosts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, bit by bit: dtypes, places, and what tensors share."""
        params = list(self._owner)
        hosts = {tuple(path) for path in state_dict.get("hosts", ())}
        loaded: dict[Any, Any] = {}
        for index, saved in sorted((int(index), saved) for index, saved in state_dict["state"].items()):
            _Loading(loaded, hosts, params[index].device).put(loaded, index, saved, (index,))
        for p in params:
            self.state.pop(p, None)
        for index, own in loaded.items():
            self.state[params[index]] = own
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for key, value in saved.items():
                if key != "params":
                    group[key] = tuple(value) if isinstance(group.get(key), tuple) else value

    def _state_tensors(self) -> list[torch.Tensor]:
        return tensors_in([state for optimizer in self.wrapped for state in optimizer.state.values()])

    def _look_at(self, params: Iterable[torch.Tensor]) -> None:
        """Refuse a state that cannot be counted and saved, at a parameter's first update."""
        for p in params:
            if p in self._looked_at or not self.state.get(p):
                continue
            self._looked_at.add(p)
            if (kind := _foreign(self.state[p])) is not None:
                raise Refused(
                    f"{_name(self._owner[p][0])} keeps a {kind} for each parameter, whose memory cannot be counted and "
                    "which no checkpoint holds: it has to keep tensors and numbers in its state"
                )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        with answering_reads(self._owner) as answering:
            yield
        self.reads_answered += 0 if answering is None else answering.count


class _States(MutableMapping[torch.Tensor, Any]):
    """The states of several optimizers by parameter."""

    def __init__(self, owner: dict[torch.Tensor, tuple[torch.optim.Optimizer, int]], wrapped: Iterable[Any]) -> None:
        self._owner, self._wrapped = owner, tuple(wrapped)

    def __getitem__(self, p: torch.Tensor) -> Any:
        states = self._owner[p][0].state
        if p not in states:  # torch's own makes an empty one
            raise KeyError(p)
        return states[p]

    def __setitem__(self, p: torch.Tensor, value: Any) -> None:
        self._owner[p][0].state[p] = value

    def __delitem__(self, p: torch.Tensor) -> None:
        del self._owner[p][0].state[p]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (p for optimizer in self._wrapped for p in optimizer.state)

    def __len__(self) -> int:
        return sum(len(optimizer.state) for optimizer in self._wrapped)


class _Answering(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers 1 where a number is read from a tensor without a value; what is read as true or false is not answered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten._local_scalar_dense.default or args[0].dtype == torch.bool:
            return func(*args, **(kwargs or {}))
        try:
            return func(*args)
        except DataDependentOutputException:
            self.count += 1
            return 1.0 if args[0].is_floating_point() else 1


@contextmanager
def answering_reads(params: Iterable[torch.Tensor]) -> Iterator[_Answering | None]:
    """Let what is done inside the ``with`` read numbers from tensors without values, where the parameters have none."""
    if not any(is_fake(p) for p in params):
        yield None
        return
    with _Answering() as answering:
        yield answering


def _name(optimizer: object) -> str:
    return type(optimizer).__name__


def _refuse_unfit(optimizer: torch.optim.Optimizer) -> None:
    """Raise Refused where an optimizer cannot be stepped, counted or saved, as far as that shows before a step."""
    name = _name(optimizer)
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise Refused(f"{name} evaluates the loss again in its step, and a run makes one pass a step: take another")
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise Refused(f"{name} takes sparse gradients alone, and those of a run are dense: take Adam")
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key != "params" and tensors_in(value):
                raise Refused(f"{name} has a tensor as '{key}' of its groups, which no checkpoint holds: give a number")
        if not isinstance(group.get("lr"), int | float):
            raise Refused(f"{name} has lr = {group.get('lr')!r}: give a number, which the run's schedule then moves")
        if group.get("capturable") and any(p.device.type == "cpu" and not is_fake(p) for p in group["params"]):
            raise Refused(f"{name} has capturable = True, which is for CUDA, and this run is on a CPU: leave it out")


def _settle(group: dict[str, Any], fake: bool) -> None:
    """Decide what torch would decide by the device, so that planning sees the steps that a run takes."""
    if "foreach" in group and group["foreach"] is None and not group.get("fused"):
        group["foreach"] = False
    if fake and group.get("capturable"):  # refused by torch on what it takes for a CPU; it moves a counter
        group["capturable"] = False


@contextmanager
def _holding(optimizer: torch.optim.Optimizer, wanted: dict[int, list[torch.Tensor]]) -> Iterator[None]:
    """Let an optimizer have some of its groups with some of their parameters."""
    every = list(optimizer.param_groups)
    held = [group["params"] for group in every]
    try:
        optimizer.param_groups[:] = [every[index] for index in sorted(wanted)]
        for index, params in wanted.items():
            every[index]["params"] = params
        yield
    finally:
        optimizer.param_groups[:] = every
        for group, params in zip(every, held, strict=True):
            group["params"] = params


def _moved(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """Return the settings of groups that a step has changed, sorted."""
    pairs = [
        (one.get(key), value, key) for one, other in zip(before, after, strict=True) for key, value in other.items()
    ]
    return sorted({key for old, new, key in pairs if key != "params" and old is not new and old != new})


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Return what a group says beside its parameters, as far as it is JSON: other objects come with its making."""
    found = {}
    for key, value in group.items():
        if key == "params":
            continue
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            continue
        found[key] = list(value) if isinstance(value, list) else value
    return found


def _foreign(value: Any) -> str | None:
    """Return what kind of thing in a state is none that can be counted and saved; None: there is none."""
    if isinstance(value, dict):
        if any(not isinstance(key, str | int) for key in value):
            return "table whose keys are no text"
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((kind for one in value if (kind := _foreign(one)) is not None), None)
    plain = isinstance(value, torch.Tensor) and not value.is_sparse
    return None if plain or isinstance(value, PLAIN) else type(value).__name__


def _saved(value: Any, path: list[Any], known: dict[tuple[Any, ...], list[Any]]) -> Any:
    """Return a state with a path in the place of a tensor that stands at an earlier one too."""
    if isinstance(value, torch.Tensor):
        if value.numel() == 0 or is_fake(value):
            return value
        same = known.setdefault((value.data_ptr(), value.dtype, value.shape, value.stride(), value.device), path)
        return value if same is path else {SAME: same}
    if isinstance(value, dict):
        return {key: _saved(inner, [*path, key], known) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        parts = [_saved(inner, [*path, index], known) for index, inner in enumerate(value)]
        return {TUPLE: parts} if isinstance(value, tuple) else parts
    return value


def _elsewhere(value: Any, path: list[Any], device: str) -> list[list[Any]]:
    """Return the paths of the tensors of a state that are not on the parameter's kind of device."""
    if isinstance(value, torch.Tensor):
        return [path] if value.device.type != device else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [found for key, inner in pairs for found in _elsewhere(inner, [*path, key], device)]


class _Loading:
    """Brings one parameter's saved state back."""

    def __init__(self, loaded: dict[Any, Any], hosts: set[tuple[Any, ...]], device: torch.device) -> None:
        """Take what is loaded so far, by parameter; which tensors stay on the host; and where the others go."""
        self._loaded, self._hosts, self._device = loaded, hosts, device

    def put(self, container: Any, key: Any, value: Any, path: tuple[Any, ...]) -> None:
        """Put a saved value, copied, into a table or list."""
        if isinstance(value, torch.Tensor):
            container[key] = value.detach().to("cpu" if path in self._hosts else self._device, copy=True)
        elif isinstance(value, dict) and SAME in value:
            container[key] = self._loaded
            for part in value[SAME]:
                container[key] = container[key][part]
        elif isinstance(value, dict) and TUPLE in value:
            parts: list[Any] = [None] * len(value[TUPLE])
            self._fill(parts, enumerate(value[TUPLE]), path)
            container[key] = tuple(parts)
        elif isinstance(value, dict):
            container[key] = {}
            self._fill(container[key], value.items(), path)
        elif isinstance(value, list):
            container[key] = [None] * len(value)
            self._fill(container[key], enumerate(value), path)
        else:
            container[key] = value

    def _fill(self, made: Any, pairs: Iterable[tuple[Any, Any]], path: tuple[Any, ...]) -> None:
        for key, inner in pairs:
            self.put(made, key, inner, (*path, key))
