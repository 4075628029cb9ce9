"""What every method has to hold: checks by name, each of which ends in what was seen or in what is wrong."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.calibration.bench import Skip
from harness.calibration.tiny import MODEL, TinyRun
from harness.catalogue.resolved import Catalogue
from harness.checking.subject import TAKEN, Subject, subject_of
from harness.engine.statements import declaration_of, proof_of, report_of
from harness.errors import HarnessError, Refused
from harness.planning.predict import Question, predict
from harness.proof import judge
from harness.tensors.decoder import model_checksums
from harness.tensors.loading import build_model

HALF = 3
"""Steps before a run is saved and gone on with; within a period of two."""
RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerances of logits before and after adapters are merged."""
PEAK_TOLERANCE = 0.02
"""Relative: at this size the batch is a part of the peak that planning rounds."""


@dataclass(frozen=True)
class Checked:
    """How one check went."""

    name: str
    ok: bool
    reason: str
    """What was seen, or what is wrong."""


def check_method(name: str, *, only: Iterable[str] | None = None, catalogue: Catalogue | None = None) -> list[Checked]:
    """Return how a method holds its contract; where it cannot be started, or trains nothing, that alone.

    Args:
        name: A label, or a method's name.
        only: Names of ``CHECKS``; None: all.
        catalogue: What labels stand for; None: the packaged one.

    Raises:
        HarnessError: there is no such label, method or check, or the plug-in cannot be imported.
    """
    subject = subject_of(name, catalogue)
    wanted = list(CHECKS if only is None else only)
    if unknown := [check for check in wanted if check not in CHECKS]:
        raise HarnessError(f"there is no check '{unknown[0]}'; there are {', '.join(CHECKS)}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them add in another order, and bits are compared
    try:
        begun = _tried("starts", _starts, subject)
        if not begun.ok or not subject.method.trains:
            return [begun]
        return [begun if check == "starts" else _tried(check, CHECKS[check], subject) for check in wanted]
    finally:
        torch.set_num_threads(threads)


def _tried(name: str, check: Callable[[Subject], str], subject: Subject) -> Checked:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(99)  # nothing may hang on the global generator
            return Checked(name, True, check(subject))
    except Skip as error:
        return Checked(name, False, f"{error}: give them in a label, [methods.LABEL] of a suite or a --catalogue file")
    except HarnessError as error:
        return Checked(name, False, str(error))
    except Exception as error:
        return Checked(name, False, _in_a_line(error))


def _in_a_line(error: Exception) -> str:
    """Return an error with where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    said = next(iter(str(error).strip().splitlines()), "")
    at = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    outside = [frame for frame in frames if "/torch/" not in frame.filename and "/transformers/" not in frame.filename]
    if outside and outside[-1] is not frames[-1]:
        at = f" ({outside[-1].filename}:{outside[-1].lineno})"
    return f"{type(error).__name__}{': ' * bool(said)}{said}{at}"


def _starts(subject: Subject) -> str:
    """The model is prepared, and the optimizer is built over parameters of it."""
    if not subject.method.trains:
        return "it trains nothing: there is no more to check"
    run = subject.run()
    held = _held(run)
    if len({id(p) for p in held}) < len(held):
        raise HarnessError("its optimizer holds a parameter twice")
    known = {id(p) for p in run.loop.model.parameters()}
    if others := [p for p in held if id(p) not in known]:
        raise HarnessError(f"its optimizer holds {len(others)} parameters that are none of the prepared model's")
    return f"its optimizer holds {sum(p.numel() for p in held):,} of {_size(run.loop.model):,} parameters"


def _trains_what_it_says(subject: Subject) -> str:
    """In every step what requires gradients changes, over all of them, and nothing else ever does."""
    run = subject.run()
    held = {id(p) for p in _held(run)}
    named = dict(run.loop.model.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    ever: set[str] = set()
    for step in range(4):
        last = {name: p.detach().clone() for name, p in named.items()}
        run.take(1)
        now = {name for name, p in named.items() if p.requires_grad}
        ever |= now
        if moved := [name for name, p in named.items() if name not in now and not torch.equal(p, last[name])]:
            raise HarnessError(f"{moved[0]} changed in step {step}, in which it required no gradient")
    if foreign := [name for name in ever if id(named[name]) not in held]:
        raise HarnessError(f"{foreign[0]} requires gradients and is not in its optimizer, so it is never updated")
    if still := [name for name in sorted(ever) if torch.equal(named[name], before[name])]:
        raise HarnessError(f"{still[0]} required gradients and did not change in 4 steps")
    if not ever:
        raise HarnessError("nothing required gradients in 4 steps: it trains nothing")
    return f"{len(ever)} of {len(named)} tensors changed in 4 steps, the others not at all"


def _repeats(subject: Subject) -> str:
    """The same seed gives the same bits, whatever stands in the global generators."""
    first = _trained(subject.run())
    torch.manual_seed(4321)
    second = _trained(subject.run())
    _compare(first, second, "two runs of one seed")
    return f"two runs of {TAKEN} steps are equal bit by bit"


def _resumes(subject: Subject) -> str:
    """A run that is saved, ended and gone on with ends in the same bits, with the same state."""
    whole = _trained(subject.run())
    part, rest = subject.run(), subject.run()
    with tempfile.TemporaryDirectory() as folder:
        part.take(HALF)
        part.checkpoints(Path(folder)).save()
        if rest.checkpoints(Path(folder)).restore() != HALF:
            raise HarnessError("what it saved could not be read again")
        rest.take(TAKEN - HALF)
    _compare(whole, rest, f"a run that went on at step {HALF} and one that was not interrupted")
    for what, one, other in (
        ("state", whole.loop.optimizer.state_bytes(), rest.loop.optimizer.state_bytes()),
        ("state_dict", whole.loop.method.state_dict(), rest.loop.method.state_dict()),
    ):
        if one != other:
            raise HarnessError(f"the {what} of a run that went on is {other}, of one that was not interrupted {one}")
    return f"a run that went on at step {HALF} of {TAKEN} ends in the same bits"


def _updates_in_backward(subject: Subject) -> str:
    """Updates in the backward pass give the same bits as those behind it."""
    after = _trained(subject.run({"update_in_backward": False, "two_pass_clipping": False}))
    try:
        during = subject.run({"update_in_backward": True, "two_pass_clipping": False})
        _trained(during)
    except Refused as error:
        return f"it refuses them: {error}"
    _compare(after, during, "updates in the backward pass and behind it")
    return "updates in the backward pass and behind it are equal bit by bit"


def _keeps_dtypes(subject: Subject) -> str:
    """Base weights keep the dtype that the run has, in training too."""
    said = []
    for dtype, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        try:
            run = subject.run(dtype=dtype)
        except Refused as error:
            said.append(f"{dtype} is refused ({error})")
            continue
        names = run.loop.context.decoder.names
        run.take(2)
        if wrong := [p for p in run.loop.model.parameters() if id(p) in names and p.dtype != kind]:
            raise HarnessError(f"{names[id(wrong[0])]} is {wrong[0].dtype} after two steps of a run in {dtype}")
        said.append(dtype)
    return f"weights keep their dtype: {', '.join(said)}"


def _declares_what_is_seen(subject: Subject) -> str:
    """What the method declares of a run is what the run shows."""
    run = subject.run()
    loop = run.loop
    decoder = loop.context.decoder
    declared = declaration_of(subject.method_name, loop.method.declare(loop.model, loop.context), len(decoder.blocks))
    before = model_checksums(decoder)
    loop.run(iter([[batch] for batch in run.batches]), lambda done, loss: None)
    after = model_checksums(decoder)
    reported = report_of(subject.method_name, loop.method.proof())
    result = loop.result()
    judgement = judge(result, proof_of(loop, reported, declared, before, after))
    if judgement.failed:
        raise HarnessError(judgement.sentence())
    if declared is None:
        return "it declares nothing beforehand (declare returns None), so no run of it can be held against that"
    return judgement.sentence()


def _is_planned(subject: Subject) -> str:
    """Planning foresees the bytes of optimizer state that a run measures, and its peak."""
    run = subject.run()
    scores = [float(number + 1) for number in range(len(run.loop.context.decoder.blocks))]  # those of a tiny run
    planned = predict(subject.spec(run), MODEL, Question(device="cpu", num_steps=TAKEN), lambda request: scores)
    run.loop.run(iter([[batch] for batch in run.batches]), lambda done, loss: None)
    result = run.loop.result()
    measured = max(result.curve.optimizer_state_bytes)
    foreseen = planned.optimizer_state_bytes
    if foreseen != measured if planned.horizon == "run" else foreseen < measured:
        raise HarnessError(f"planning foresees {foreseen:,} bytes of optimizer state, and a run has {measured:,}")
    tracked = run.loop.memory.tracked_peak
    assert tracked is not None
    peak = tracked.at_peak.total_bytes
    # A run whose blocks change may have its peak later than in the steps that are tracked.
    over = 0 if subject.method.samples_blocks else planned.peak_bytes - peak
    if max(over, peak - planned.peak_bytes) > PEAK_TOLERANCE * peak:
        raise HarnessError(
            f"planning foresees a peak of {planned.peak_bytes:,} bytes, and the first steps have {peak:,}"
        )
    return f"as planned: {measured:,} bytes of optimizer state, a peak of {planned.peak_bytes:,} (tracked: {peak:,})"


def _exports(subject: Subject) -> str:
    """What is saved is the base architecture, and computes what was trained."""
    run = subject.run()
    run.take(HALF)
    fresh = build_model(MODEL, "fp32", torch.device("cpu"))
    evaluated = run.loop.method.finalize(run.loop.model).eval()
    ids = run.batches[0].input_ids[:1]
    with torch.no_grad():
        wanted = evaluated(input_ids=ids).logits
        exported = run.loop.method.export(evaluated)
        found = exported(input_ids=ids).logits
    shapes = [{name: p.shape for name, p in model.state_dict().items()} for model in (exported, fresh)]
    if type(exported) is not type(fresh) or shapes[0] != shapes[1]:
        raise HarnessError(f"it exports a {type(exported).__name__}, not the base model's {type(fresh).__name__}")
    if not torch.allclose(found, wanted, rtol=RELATIVE, atol=ABSOLUTE):
        raise HarnessError(f"exported weights give other logits, by up to {float((found - wanted).abs().max()):.2g}")
    return "it exports the base architecture, with the trained model's logits"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "starts": _starts,
    "trains what it says": _trains_what_it_says,
    "repeats": _repeats,
    "resumes": _resumes,
    "updates in backward": _updates_in_backward,
    "keeps dtypes": _keeps_dtypes,
    "declares what is seen": _declares_what_is_seen,
    "is planned": _is_planned,
    "exports": _exports,
}
"""By name, in order. Of a method that does not train the first is all there is."""


def _trained(run: TinyRun) -> TinyRun:
    run.take(TAKEN)
    return run


def _held(run: TinyRun) -> list[torch.Tensor]:
    return [p for group in run.loop.optimizer.param_groups for p in group["params"]]


def _size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _compare(one: TinyRun, other: TinyRun, what: str) -> None:
    theirs = dict(other.loop.model.named_parameters())
    for name, p in one.loop.model.named_parameters():
        if not torch.equal(p, theirs[name]):
            largest = float((p - theirs[name]).detach().abs().max())
            raise HarnessError(f"{what} differ: {name} by up to {largest:.2g}")
