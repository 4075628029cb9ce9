"""``harness plan``: what runs will need, before they run, without a GPU or weights."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.assets.cache import cache_root
from harness.assets.hub import fetch_config, model_asset
from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.devices import DeviceSpec, find_device, load_devices
from harness.commands._output import Display, note, print_table, warn
from harness.commands._selection import Selection, existing, select
from harness.commands.plan_fit import Room, fits_as_json, fits_of, print_fits
from harness.commands.requests import SelectionRequest
from harness.device_profile import ASSUMED_CONTEXT_BYTES, DeviceProfile, Rates, packaged_profile, read_profile
from harness.errors import HarnessError
from harness.planning.questions import PlanAnswer, PlanTask, ask, planned_steps
from harness.record_training import Horizon, Prediction
from harness.report.units import NOTHING, gib, significant
from harness.silent_settings import Asked, said_of
from harness.source import package_checksum
from harness.spec import RunSpec
from harness.stand_ins import mark_of

UNITS = {"GIB": 2**30, "MIB": 2**20, "GB": 10**9, "MB": 10**6, "B": 1}
COLUMNS = (
    "peak GiB",
    "in",
    "fits",
    "weights",
    "gradients",
    "state",
    "activations",
    "trained M",
    "step s",
    "hours",
)


def plan(
    chosen: SelectionRequest,
    *,
    horizon: Horizon = "run",
    device_name: str | None = None,
    device_profile: str | None = None,
    device_memory: str | None = None,
    mfu: float | None = None,
    gpus: int | None = None,
    fit: bool = False,
    in_json: bool = False,
) -> int:
    """Print a line a run; return 0 when every run has a prediction, 1 when one has none.

    Args:
        chosen: What would be run.
        horizon: Which blocks a prediction lets be active.
        device_name: A device of ``harness list devices``.
        device_profile: A file with what was measured of a device, instead of what comes with the project.
        device_memory: A size such as ``24GiB``, instead of the device's.
        mfu: Share of the device's peak, for times, above 0 and at most 1.
        gpus: GPUs that share each run; None: as many as the suite says.
        fit: Print the largest batch and length of each label in their place, and what makes the others fit.
        in_json: Print JSON.

    Raises:
        HarnessError: something that is named is not known or not valid, or nothing says what is to be fitted into.
    """
    device = find_device(device_name, load_devices()) if device_name else None
    profile = _profile(device_profile, device)
    memory = _memory(device_memory, device, profile)
    selection = _selected(chosen)
    specs = [spec for spec in selection.specs if spec.train is not None]
    if not specs:
        raise HarnessError("nothing of what is chosen trains, so there is nothing to plan")
    asked = _Asked(horizon, device, profile, gpus or selection.suite.gpus_per_run)
    if fit:
        if memory is None:
            raise HarnessError("--fit: nothing says what is to be fitted into; give --device or --device-memory")
        found = _Against(memory, profile, device, mfu)
        title = device.name if device else f"a device of {device_memory}"
        room = Room(title, memory, found.context_bytes, asked.num_ranks)
        fits_found = fits_of(specs, room, lambda spec: _tasks(selection, [spec], asked)[0], package_checksum())
        if in_json:
            print(fits_as_json(fits_found, room))
        else:
            print_fits(fits_found, room)
        return 0 if all(one.answer.prediction for one in fits_found) else 1
    with Display() as display:
        answers = ask(_tasks(selection, specs, asked), package_checksum(), display.progress)
    against = _Against(memory, profile, device, mfu)
    lines = [
        _line(spec, answer, against, _trained_on(spec, selection), asked.num_ranks)
        for spec, answer in zip(specs, answers, strict=True)
    ]
    if in_json:
        print(json.dumps(lines, indent=1))
    else:
        _print(lines, answers, against)
    return 0 if all(answer.prediction for answer in answers) else 1


def _selected(chosen: SelectionRequest) -> Selection:
    """Return what is chosen, the configurations of models on the hub fetched that have no shape."""
    selection = select(chosen, tuned=False)
    unseen = [one for one in selection.models.values() if one.hub_id is not None and not one.can_be_built()]
    for model in unseen:
        fetch_config(model_asset(model))
    return select(chosen, tuned=False) if unseen else selection


@dataclass(frozen=True)
class _Asked:
    """What is asked of each run."""

    horizon: Horizon
    device: DeviceSpec | None
    profile: DeviceProfile | None
    num_ranks: int


@dataclass(frozen=True)
class _Against:
    """What predictions are held against."""

    memory: int | None
    profile: DeviceProfile | None
    device: DeviceSpec | None
    mfu: float | None

    @property
    def context_bytes(self) -> int:
        """Return what a process takes of the device beside torch's allocator."""
        measured = None if self.profile is None else self.profile.context_bytes
        return ASSUMED_CONTEXT_BYTES if measured is None else measured

    def rate(self, dtype: Literal["fp32", "bf16"]) -> float | None:
        """Return the FLOP/s of matrix products: measured where there is a profile, else the device's stated peak."""
        if self.profile is not None and (measured := self.profile.rates.flops(dtype)) is not None:
            return measured
        return None if self.device is None else self.device.peak_flops(dtype)

    def step_seconds(self, prediction: Prediction, dtype: Literal["fp32", "bf16"]) -> float | None:
        """Return the time of a step: at the given MFU of the stated peak, else every operation at :meth:`rate`."""
        if self.mfu is not None:
            peak = None if self.device is None else self.device.peak_flops(dtype)
            return None if peak is None else prediction.flops_per_step / (peak * self.mfu)
        rate = self.rate(dtype)
        return None if rate is None else (prediction.flops_per_step + prediction.recomputed_flops_per_step) / rate


def parse_memory(text: str) -> int:
    """Return bytes from ``24GiB``, ``80GB`` or ``100B``.

    Raises:
        HarnessError: it is none, or has no unit: 24 are as few bytes as they are many.
    """
    upper = text.strip().upper()
    unit = next((unit for unit in UNITS if upper.endswith(unit)), "")
    try:
        number = float(upper.removesuffix(unit)) * UNITS.get(unit, 1)
    except ValueError:
        number = 0.0
    if not unit and 0 < number < float("inf"):
        size = text.strip()
        raise HarnessError(f"--device-memory {size}: has no unit; say {size}GB, {size}GiB or {size}B")
    if not 0 < number < float("inf"):
        raise HarnessError(f"--device-memory {text}: expected a size such as 24GiB or 80GB")
    return int(number)


def fits(prediction: Prediction, memory: int, context_bytes: int = ASSUMED_CONTEXT_BYTES) -> str:
    """Return ``yes``, ``no``, or ``tight``: the peak fits, what the allocator would like to hold does not."""
    peak = max(prediction.peak_bytes, prediction.probe_peak_bytes or 0)
    if peak + context_bytes > memory:
        return "no"
    return "yes" if max(prediction.reserved_bytes or 0, peak) + context_bytes <= memory else "tight"


def _profile(given: str | None, device: DeviceSpec | None) -> DeviceProfile | None:
    """Return the profile that is given, or the one that comes with the project for the device."""
    if given is not None:
        profile = read_profile(existing(given, "--device-profile"))
        if profile.device_type != "cuda":
            raise HarnessError(
                f"--device-profile {given}: was measured on {profile.device_name}, which is no CUDA "
                "device; give one of a CUDA device"
            )
        if device is not None and not device.is_called(profile.device_name):
            raise HarnessError(
                f"--device-profile {given}: was measured on {profile.device_name}, which is no "
                f"{device.name}: leave --device out, or give its own profile"
            )
        if profile.sizes == "smoke":
            warn([f"{given} was measured with tiny shapes (--smoke), which say little of a device"])
        return profile
    return None if device is None else next(filter(None, map(packaged_profile, device.names)), None)


def _memory(given: str | None, device: DeviceSpec | None, profile: DeviceProfile | None) -> int | None:
    if given is not None:
        return parse_memory(given)
    if profile is not None and profile.memory_bytes is not None:
        return profile.memory_bytes
    return device.memory_bytes if device else None


def _tasks(selection: Selection, specs: Sequence[RunSpec], asked: _Asked) -> list[PlanTask]:
    device, profile = asked.device, asked.profile
    return [
        PlanTask(
            spec=spec,
            model=selection.models[spec.model_name],
            dataset=_trained_on(spec, selection),
            device="cuda",
            device_name=profile.device_name if profile else device.names[0] if device else None,
            profile=profile,
            compute_capability=_capability(device, profile),
            horizon=asked.horizon,
            num_ranks=asked.num_ranks,
            cache_folder=cache_root(),
        )
        for spec in specs
    ]


def _trained_on(spec: RunSpec, selection: Selection) -> DatasetSpec:
    assert spec.train is not None, "only runs that train are planned"
    return selection.datasets[spec.train.data]


def _capability(device: DeviceSpec | None, profile: DeviceProfile | None) -> str | None:
    measured = None if profile is None else profile.compute_capability
    return measured if measured is not None or device is None else device.compute_capability


def _line(spec: RunSpec, answer: PlanAnswer, against: _Against, dataset: DatasetSpec, num_ranks: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "run_id": spec.run_id,
        "model": spec.model_name,
        **({"stands_in": mark.strip(" ()")} if (mark := mark_of((spec,))) else {}),
        "method": spec.method,
        "label": spec.label,
        "seed": spec.seed,
        "num_ranks": num_ranks,
        "error": answer.error,
    }
    prediction = answer.prediction
    if prediction is None:
        return found
    train = spec.train
    assert train is not None
    step_seconds, memory = against.step_seconds(prediction, train.dtype), against.memory
    steps = planned_steps(spec, dataset)
    named = ("full_rank", "unprojected")
    found |= prediction.model_dump(mode="json", exclude={"at_peak", "predict_seconds", "num_ranks", *named})
    said = said_of(Asked(spec.config, train, steps, *(getattr(prediction, name) for name in named)))
    found["remarks"] = [{"kind": kind, "sentence": sentence} for kind, sentence in said.items()]
    found |= {
        "activations_bytes": prediction.at_peak.activations_bytes,
        "static_bytes": prediction.static_bytes,
        "at_peak": prediction.at_peak.model_dump(mode="json"),
        "predict_seconds": prediction.predict_seconds,
        "device_memory_bytes": memory,
        "fits": None if memory is None else fits(prediction, memory, against.context_bytes),
        "num_steps": steps,
        "step_seconds": step_seconds,
        "hours": None if step_seconds is None or steps is None else steps * step_seconds / 3600,
    }
    return found


def _print(lines: Sequence[dict[str, Any]], answers: Sequence[PlanAnswer], against: _Against) -> None:
    """Print one row for all seeds of a run that are told the same, and below it what the columns mean."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for line in lines:
        rows.setdefault(tuple(_cells(line).values()), []).append(str(line["seed"]))
    names = tuple(_cells(lines[0]))
    seeds_differ = any(len(seeds) > 1 for seeds in rows.values()) or len({line["seed"] for line in lines}) > 1
    print_table(
        [
            dict(zip(names[:2], cells[:2], strict=True))
            | ({"seeds": ", ".join(seeds)} if seeds_differ else {})
            | dict(zip(names[2:], cells[2:], strict=True))
            for cells, seeds in rows.items()
        ],
        keys=2 + seeds_differ,
    )
    print()
    for sentence in _notes(lines, answers, against):
        note(sentence)


def _cells(line: dict[str, Any]) -> dict[str, str]:
    mark = f" ({line['stands_in']})" if "stands_in" in line else ""
    found = {"model": f"{line['model']}{mark}", "label": str(line["label"])}
    if line["num_ranks"] > 1:
        found["GPUs"] = str(line["num_ranks"])
    if line["error"] is not None:
        return found | dict.fromkeys(COLUMNS, NOTHING) | {"peak GiB": "none: see below"}
    hours, seconds = line["hours"], line["step_seconds"]
    values = (
        gib(line["peak_bytes"]),
        line["peak_phase"],
        line["fits"] or NOTHING,
        gib(line["weights_bytes"]),
        gib(line["gradients_bytes"]),
        gib(line["optimizer_state_bytes"]),
        gib(line["activations_bytes"]),
        f"{line['trainable_params'] / 1e6:,.1f}",
        NOTHING if seconds is None else significant(seconds),
        NOTHING if hours is None else significant(hours),
    )
    return found | dict(zip(COLUMNS, values, strict=True))


def _notes(lines: Sequence[dict[str, Any]], answers: Sequence[PlanAnswer], against: _Against) -> list[str]:
    notes = [
        f"{line['model']} {line['label']}: {'refused' if answer.refused else 'no prediction'}: {line['error']}"
        for line, answer in zip(lines, answers, strict=True)
        if line["error"] is not None
    ]
    notes = list(dict.fromkeys(notes))
    notes += [
        f"Bytes, operations and times are those of one GPU of {number}, the one that holds most; trained M is of the "
        "whole model, and times leave out what GPUs send each other."
        for number in {line["num_ranks"] for line in lines} - {1}
    ]
    notes.append(
        "Peak: bytes of torch's CUDA allocator in the worst step within the horizon; gradients: the most that coexist; "
        f"activations: at the peak. {_constants(against.profile)}"
    )
    for label, bound in dict.fromkeys((line["label"], line.get("all_active_peak_bytes")) for line in lines):
        if bound is not None:
            notes.append(f"{label}: should its coin flips draw every block at once, {gib(bound)} GiB.")
    for label, probe in dict.fromkeys((line["label"], line.get("probe_peak_bytes")) for line in lines):
        if probe is not None:
            notes.append(f"{label}: its probe before the first step peaks at {gib(probe)} GiB; fits looks at both.")
    for label, moved, host in dict.fromkeys(
        (line["label"], line.get("streamed_state_bytes"), line.get("optimizer_state_host_bytes")) for line in lines
    ):
        if moved is not None and host:
            notes.append(
                f"{label}: state comes over from the host for each update: states are those after a step, in it up to "
                f"{gib(moved)} GiB more are on the device, {gib(host)} GiB on the host."
            )
    notes += _remarks(lines)
    if against.memory is not None:
        notes.append(
            f"fits: in {gib(against.memory)} GiB less {gib(against.context_bytes)} GiB for the CUDA context; tight: "
            "without what the allocator keeps cached."
        )
    if (times := _times(against)) is not None:
        notes.append(times)
    if any(line.get("num_steps") is None and line["error"] is None for line in lines):
        notes.append("hours: absent where the number of training rows is not known; give --max-steps.")
    assumed = dict.fromkeys(sentence for line in lines for sentence in line.get("assumptions", ()))
    notes += [f"Assumed: {sentence}." for sentence in assumed]
    hours = [line["hours"] for line in lines if line.get("hours") is not None]
    if len(hours) == len(lines):
        notes.append(f"Training of all {len(lines)} runs: {significant(sum(hours))} hours.")
    return notes


def _remarks(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Return what settings do not do in these runs, once for all labels alike."""
    said: dict[str, list[str]] = {}
    for line in lines:
        for remark in line.get("remarks", ()):
            said.setdefault(remark["sentence"], []).append(line["label"])
    return [f"{', '.join(dict.fromkeys(labels))}: {sentence}." for sentence, labels in said.items()]


def _constants(profile: DeviceProfile | None) -> str:
    if profile is None:
        return "Constants of CUDA libraries are not calibrated: no device profile is given."
    here = importlib.metadata.version("torch")
    other = "" if here == profile.torch else f"; torch here is {here}, which may need others"
    return f"Constants of CUDA libraries were measured on {profile.device_name} with torch {profile.torch}{other}."


def _times(against: _Against) -> str | None:
    """Return what times are made of, or None where there are none."""
    device, profile, mfu = against.device, against.profile, against.mfu
    if device is not None and mfu is not None:
        return f"Times: from the operations of a step on {device.name} at an MFU of {mfu:g}."
    if profile is not None and profile.rates != Rates():
        return (
            f"Times: from the operations of a step at the rate of matrix products measured on {profile.device_name}; "
            "what else a step takes comes on top."
        )
    if device is None:
        return None
    return f"Times: from the operations of a step on {device.name} at its whole stated peak, so at least."
