"""The judging of one run's answers: each judgment kept as soon as it is there, none asked for twice. No torch.

The file of judgments is FastChat's (``gpt-4_single.jsonl``: question_id, model, judge, user_prompt, judgment, score,
turn, tstamp) with fields beside: repeat, judge_version, prompt_version, max_tokens, and what the request was (sent,
temperature) and whether the judgment was cut at the limit. A judgment on file stands for a question when it was asked
the very same thing of the same judge. Which rating of a judgment is the score is decided when it is read.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock, Timeout

from harness.errors import HarnessError
from harness.evaluation.chat_request import SentTemperature, Temperature
from harness.evaluation.grading import Grading, Judged, parse_score
from harness.evaluation.judges import Judge, JudgeFailed, Reply, Stopped
from harness.evaluation.verdicts import NOT_PARSED, Verdict, has_several, thinks
from harness.files import append_line, make_folder, read_bytes_if_there, reason_of, said_as

MAX_FAILURES_IN_A_ROW = 3
"""After so many questions without a judgment no more are asked: the judge is not there."""
PROMPT_DIGITS = 12
"""Of the judge prompts' SHA-256, as it is recorded."""


@dataclass(frozen=True)
class JudgeSettings:
    """How judgments are asked for."""

    judge: str
    """Name of the judge."""
    model_id: str
    """What the answers call the model."""
    prompt_version: str
    max_tokens: int
    repeats: int
    verdict: Verdict = "first"
    """Which of several ratings counts."""
    temperature: Temperature = "protocol"


@dataclass
class Outcome:
    """What came of asking."""

    judged: list[Judged] = field(default_factory=list)
    """In the order of the questions, not of the replies."""
    versions: list[str] = field(default_factory=list)
    """Versions that the judge reported, each once."""
    failures: list[str] = field(default_factory=list)
    """Why judgments could not be had."""
    unparsed: list[str] = field(default_factory=list)
    """Judgments in which no score could be read."""
    num_asked: int = 0
    num_several: int = 0
    """Judgments that give several ratings that differ."""
    num_thinking: int = 0
    """Judgments that begin with thinking, which is left out."""
    num_cut: int = 0
    """Judgments that ended at the limit of tokens."""
    sent: list[dict[str, Any]] = field(default_factory=list)
    """What the requests were, beside model and messages, each once."""
    temperatures: set[str] = field(default_factory=set)
    """What became of the temperature in them."""
    num_called: int = 0
    """Judgments that came now, not out of the file."""
    hopeless: bool = False
    """The judge would fail any other question too."""
    interrupted: bool = False

    @property
    def num_missing(self) -> int:
        """Return how many judgments are not there."""
        return self.num_asked - len(self.judged)


def judgments_file(folder: Path, judge: str) -> Path:
    """Return the file of a judge's judgments in a folder."""
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', judge).strip('.') or 'judge'}_single.jsonl"


def calls_to_make(
    gradings: Sequence[Grading], file: Path, settings: JudgeSettings, version: str | None
) -> list[tuple[Grading, int]]:
    """Return what is still to be asked, with its repeat.

    Raises:
        HarnessError: the file cannot be read.
    """
    known = _known(file)
    return [
        (grading, repeat)
        for repeat in range(settings.repeats)
        for grading in gradings
        if _find(known, grading, repeat, settings, version) is None
    ]


def judge_answers(
    judge: Judge,
    gradings: Sequence[Grading],
    file: Path,
    settings: JudgeSettings,
    *,
    concurrency: int = 1,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Ask for every judgment that is not on file, and return all there are.

    An interrupt asks nothing more, keeps what is under way, and returns; a second one raises.

    Args:
        judge: Who is asked.
        gradings: What it is asked, once a repeat.
        file: Where judgments are and go.
        settings: How they are asked for.
        concurrency: Calls at a time.
        stop: Set on an interrupt, to end the judge's waiting.
        progress: Called with (judgments there, judgments in all).

    Raises:
        HarnessError: the file cannot be read or written, or another process judges into it.
    """
    with _locked(file):
        todo = calls_to_make(gradings, file, settings, judge.known_version)
        outcome = Outcome(num_asked=settings.repeats * len(gradings))
        there = outcome.num_asked - len(todo)
        progress(there, outcome.num_asked)
        for grading, repeat, reply in _replies(judge, todo, concurrency, stop or threading.Event(), outcome):
            _append(file, _row(grading, repeat, reply, settings))
            outcome.num_called += 1
            progress(there + outcome.num_called, outcome.num_asked)
        _collect(outcome, gradings, file, settings, judge.known_version)
    return outcome


def _replies(
    judge: Judge,
    todo: Sequence[tuple[Grading, int]],
    concurrency: int,
    stop: threading.Event,
    outcome: Outcome,
) -> Iterator[tuple[Grading, int, Reply]]:
    """Yield replies as they come; failures go into the outcome."""
    waiting = iter(todo)
    pending: dict[Future[Reply], tuple[Grading, int]] = {}
    in_a_row = 0
    with ThreadPoolExecutor(concurrency, thread_name_prefix="judge") as pool:
        while True:
            try:
                if not (stop.is_set() or outcome.hopeless):
                    for grading, repeat in islice(waiting, concurrency - len(pending)):
                        pending[pool.submit(judge.ask, grading.messages)] = grading, repeat
                if not pending:
                    return
                # A finite wait lets Ctrl-C through on every platform.
                done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                if stop.is_set():
                    raise
                outcome.interrupted = True
                stop.set()
                continue
            for future in done:
                grading, repeat = pending.pop(future)
                try:
                    reply = future.result()
                except Stopped:
                    continue
                except JudgeFailed as error:
                    outcome.failures.append(str(error))
                    in_a_row += 1
                    outcome.hopeless |= error.hopeless or in_a_row >= MAX_FAILURES_IN_A_ROW
                    continue
                in_a_row = 0
                yield grading, repeat, reply


def _row(grading: Grading, repeat: int, reply: Reply, settings: JudgeSettings) -> dict[str, Any]:
    # Lone surrogates, which JSON can spell, are no text that a record can hold.
    text, version = (said.encode(errors="replace").decode() for said in (reply.text, reply.version))
    return {
        "question_id": grading.question_id,
        "model": settings.model_id,
        "judge": [settings.judge, grading.prompt_name],
        "user_prompt": grading.user_prompt,
        "judgment": text,
        "score": parse_score(text, settings.verdict),
        "turn": grading.turn,
        "tstamp": time.time(),
        "repeat": repeat,
        "judge_version": version,
        "prompt_version": settings.prompt_version,
        "max_tokens": settings.max_tokens,
        "sent": dict(reply.sent),
        "temperature": reply.temperature,
        "cut": reply.cut,
    }


def _append(file: Path, row: dict[str, Any]) -> None:
    with said_as(f"{file}: the judgment could not be written"):
        append_line(file, json.dumps(row).encode() + b"\n")


def _known(file: Path) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return the judgments on file by what identifies them; a line cut off by a crash is none."""
    lines = (read_bytes_if_there(file) or b"").splitlines(keepends=True)
    known: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            continue
        try:
            row = json.loads(line)
            key = tuple(row[name] for name in ("question_id", "turn", "repeat", "prompt_version", "max_tokens"))
            key = (*key, *row["judge"], row["user_prompt"])
            kept: dict[str, Any] = {name: row[name] for name in ("judgment", "judge_version")}
            if not all(isinstance(text, str) for text in kept.values()):
                raise TypeError("judgment and judge_version are texts")
            "".join(kept.values()).encode()
            kept |= {"sent": row.get("sent") or {}, "temperature": row.get("temperature", "protocol")}
            if not isinstance(kept["sent"], dict) or kept["temperature"] not in get_args(SentTemperature):
                raise TypeError("sent is an object, and temperature one of the words for it")
            known.setdefault(key, []).append({**kept, "cut": row.get("cut") is True})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise HarnessError(f"{file} line {number}: is no judgment of ours ({error}); move it aside") from error
    return known


def _find(
    known: dict[tuple[Any, ...], list[dict[str, Any]]],
    grading: Grading,
    repeat: int,
    settings: JudgeSettings,
    version: str | None,
) -> dict[str, Any] | None:
    """Return the first judgment on file that answers a question; of a local judge, by the same weights."""
    key = (
        *(grading.question_id, grading.turn, repeat, settings.prompt_version, settings.max_tokens),
        *(settings.judge, grading.prompt_name, grading.user_prompt),
    )
    wanted = ("protocol", "refused") if settings.temperature == "protocol" else ("default", "refused")
    return next(
        (row for row in known.get(key, []) if version in (None, row["judge_version"]) and row["temperature"] in wanted),
        None,
    )


def _collect(
    outcome: Outcome, gradings: Sequence[Grading], file: Path, settings: JudgeSettings, version: str | None
) -> None:
    known = _known(file)
    for repeat in range(settings.repeats):
        for grading in gradings:
            row = _find(known, grading, repeat, settings, version)
            if row is None:
                continue
            score = parse_score(row["judgment"], settings.verdict)
            outcome.num_several += has_several(row["judgment"])
            outcome.num_thinking += thinks(row["judgment"])
            outcome.num_cut += row["cut"]
            outcome.temperatures.add(row["temperature"])
            if row["sent"] and row["sent"] not in outcome.sent:
                outcome.sent.append(row["sent"])
            outcome.judged.append(Judged(grading.question_id, grading.category, grading.turn, repeat, score))
            if row["judge_version"] not in outcome.versions:
                outcome.versions.append(row["judge_version"])
            if score == NOT_PARSED:
                outcome.unparsed.append(row["judgment"])


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    try:
        make_folder(file.parent)
        with FileLock(f"{file}.lock", timeout=0):
            yield
    except Timeout as error:
        raise HarnessError(f"{file}: another process judges into it; wait for its end") from error
    except OSError as error:
        raise HarnessError(f"{file}: cannot be written: {reason_of(error)}") from error
