"""Judges the proof in a record: whether what was trained, kept, drawn and refreshed is what the method declared.

A check that lacks its facts is *not judged*, never passed; one that asks what does not concern a run is not there. The
checks themselves are in ``harness.proof_checks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from harness.proof_checks import CHECKS, Verdict
from harness.proof_facts import Facts
from harness.record import Proof, Record, Status
from harness.record_training import TrainResult

NO_PROOF = Proof()


@dataclass(frozen=True)
class Check:
    """One question that a proof answers, or cannot."""

    name: str
    verdict: Verdict
    sentence: str = ""
    """What is wrong, or which fact is missing; empty where it passed."""


@dataclass(frozen=True)
class Judgement:
    """What a proof shows."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """Return the checks that fail."""
        return tuple(check for check in self.checks if check.verdict == "failed")

    @property
    def not_judged(self) -> tuple[Check, ...]:
        """Return the checks whose facts are missing."""
        return tuple(check for check in self.checks if check.verdict == "not judged")

    @property
    def is_whole(self) -> bool:
        """Return whether every check was judged and passed."""
        return all(check.verdict == "passed" for check in self.checks)

    def summary(self) -> str:
        """Return in how many checks the proof holds, fails or was not judged."""
        number = len(self.checks)
        if self.failed:
            return f"the proof fails in {len(self.failed)} of {number} checks"
        if self.is_whole:
            return f"the proof holds in all {number} checks"
        return f"the proof holds in {number - len(self.not_judged)} of {number} checks; the others could not be judged"

    def sentence(self) -> str:
        """Return the judgement in one sentence, with what fails or could not be judged."""
        names: dict[str, list[str]] = {}
        for check in self.failed or self.not_judged:
            names.setdefault(check.sentence, []).append(check.name)
        said = "; ".join(f"{', '.join(checks)}: {sentence}" for sentence, checks in names.items())
        return self.summary() + (f": {said}" if said else "")


def judge_record(record: Record) -> Judgement | None:
    """Return the judgement of a run that came to its end, or None where nothing was trained or there is no end."""
    if not (record.is_ok or record.is_unproven) or record.train is None:
        return None
    asked = record.train_settings
    return judge(record.train, record.proof or Proof(), None if asked is None else asked.max_grad_norm)


def ending_of(record: Record) -> tuple[Status, str | None]:
    """Return how a run ended and why: what was recorded as ok is unproven where its proof fails as it is judged now."""
    return ending_by(record, judge_record(record) if record.is_ok else None)


def ending_by(record: Record, judgement: Judgement | None) -> tuple[Status, str | None]:
    """Return the same of a record whose judgement is known."""
    if not record.is_ok:
        return record.ending
    if judgement is not None and judgement.failed:
        return "unproven", judgement.sentence()
    return record.ending


def judge(train: TrainResult, proof: Proof, max_grad_norm: float | None = None) -> Judgement:
    """Return what a proof shows of a training whose gradients were clipped to a norm, or None."""
    facts = Facts(train, proof, max_grad_norm)
    found = {name: answer for name, check in CHECKS.items() if (answer := check(facts)) is not None}
    if proof == NO_PROOF:
        found = dict.fromkeys(found, ("not judged", "the record holds no proof"))
    return _judgement(tuple((name, *answer) for name, answer in found.items()))


@lru_cache(maxsize=1024)
def _judgement(answers: tuple[tuple[str, Verdict, str], ...]) -> Judgement:
    """Return a judgement, the same for all runs of which the same is found: most proofs just hold."""
    return Judgement(tuple(Check(*answer) for answer in answers))
