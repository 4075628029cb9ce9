"""Kept weights say what they are: a folder with the run's name, its record, and a card of what the record says."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from harness.errors import HarnessError
from harness.kept import BASE, CARD, RECORD, Kept, Origin, Source
from harness.record import Record, Score
from harness.report.pages.model_card import model_card
from harness.run_names import folder_name
from harness.runs.child import RECORD_FILE
from harness.runs.describing import MARK, describe_again
from harness.runs.settling import WORK, recover, settle, work_folder
from harness.store import Store

from ..records import ENVIRONMENT, TRAIN, make_record, make_spec
from .test_files import Killed, watch

PIQA = Score(
    task="piqa",
    metric="acc",
    value=0.55,
    stderr=0.11,
    n=20,
    higher_is_better=True,
    task_version="1.0",
    num_fewshot=5,
    headline=True,
)
BOOLQ = PIQA.model_copy(update={"task": "boolq", "value": 0.75, "n": 40})
ORIGIN = Origin(
    model="tiny",
    folder="/home/somebody/models/tiny",
    base=Source(name="tiny", hub_id="org/Tiny-1B", licence="Apache-2.0", stands_in=True),
    data=Source(name="rows", hub_id="org/rows", licence="CC BY 4.0"),
)


def card_of(record: Record, added: tuple[Record, ...] = (), origin: Origin = ORIGIN, **how: bool) -> str:
    return model_card(Kept(record, added, origin, **{"has_adapter": True, "is_whole": True, **how}))


def front_matter(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    assert ModelCard(text).data.to_dict() == found
    return found


def test_the_front_matter_is_the_hub_s() -> None:
    assert front_matter(card_of(make_record(scores=(PIQA,)))) == {
        "base_model": "org/Tiny-1B",
        "base_model_relation": "finetune",
        "datasets": ["org/rows"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["finetune-harness", "full"],
    }


@pytest.mark.parametrize("whole", [True, False])
def test_weights_of_a_quantized_base_say_which_function_they_are(whole: bool) -> None:
    held = TRAIN.model_copy(update={"quantization": "nf4", "double_quantization": True, "dtype": "bf16"})
    text = card_of(make_record(spec=make_spec(train=held)), is_whole=whole)
    assert "bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)` under the adapter" in text
    assert ("not the function that was trained and scored" in text) is whole
    assert "quantized to" not in card_of(make_record())


def test_an_adapter_is_peft_s() -> None:
    text = card_of(make_record(), is_whole=False)
    found = front_matter(text)
    assert (found["library_name"], found["base_model_relation"]) == ("peft", "adapter")
    assert 'from_pretrained("org/Tiny-1B")' in text and "FOLDER/adapter" in text
    assert "AutoTokenizer" not in text


def test_what_is_not_known_is_left_out_and_not_made_up() -> None:
    text = card_of(make_record(), origin=Origin())
    found = front_matter(text)
    assert not {"base_model", "base_model_relation", "datasets", "license"} & set(found)
    assert "not known to the harness" in text
    assert "None: the weights were not scored." in text
    assert "commit of the harness: not known" in text


@pytest.mark.parametrize(
    ("licence", "license", "name"),
    [
        ("Llama 2 Community License", "llama2", None),
        ("MIT", "mit", None),
        ("Our Own, 1.0", "other", "our-own-1-0"),
        ("?!", "other", "other"),
    ],
)
def test_a_licence_is_one_of_the_hub_s_or_another_by_name(licence: str, license: str, name: str | None) -> None:
    origin = Origin(base=Source(name="tiny", licence=licence))
    found = front_matter(card_of(make_record(), origin=origin))
    assert (found["license"], found.get("license_name")) == (license, name)


def test_data_of_the_user_s_do_not_name_the_hub_s() -> None:
    assert ORIGIN.data is not None
    origin = ORIGIN.model_copy(update={"data": ORIGIN.data.model_copy(update={"stands_in": True})})
    text = card_of(make_record(), origin=origin)
    assert "datasets" not in front_matter(text)
    assert "The data were a local file in that place." in text


def test_scores_stand_with_items_and_the_interval_of_the_report() -> None:
    added = make_record(uuid="later", minute=9, kind="evaluation", of="u", scores=(BOOLQ,))
    text = card_of(make_record(scores=(PIQA,)), (added,))
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["task", "metric", "value", "95% interval", "n", "shots", "scored"]
    assert rows[2] == ["piqa", "acc", "55.0%", "34.2% to 74.2%", "20", "5", "by the run"]  # Wilson's, by hand
    assert rows[3] == ["boolq", "acc", "75.0%", "59.8% to 85.8%", "40", "5", "later, 2026-01-01"]


def test_a_card_tells_training_proof_and_commit_and_no_local_path() -> None:
    environment = ENVIRONMENT.model_copy(update={"commit": "c" * 40, "dirty": True})
    spec = make_spec(
        label="owlore[probability_file=/home/somebody/p.json]",
        config={"rank": 8, "probability_file": "/home/somebody/p.json"},
        files={"probability_file": "d" * 64},
    )
    record = make_record(spec=spec, reason="failed in /home/somebody/x", notes=("read /home/somebody/y",))
    record = record.model_copy(update={"environment": environment, "weights_error": "/home/somebody/z: full"})
    text = card_of(record, is_whole=False)
    assert "cccc, with uncommitted changes" in text
    assert f"probability_file=file with SHA-256 {'d' * 64}" in text and "rank=8" in text
    body = text.replace(record.label, "").replace("owlore[probability_file=", "")
    assert "/home/somebody/models" not in text
    for path in ("/home/somebody/x", "/home/somebody/y", "/home/somebody/z"):
        assert path not in body


def test_hostile_names_break_neither_front_matter_nor_table() -> None:
    spec = make_spec(label="x\n---\nlicense: mit | <script>", method="full")
    origin = Origin(base=Source(name="t", hub_id="a/b\nlicense: mit", licence='"\n---\n'))
    text = card_of(make_record(spec=spec, scores=(PIQA,)), origin=origin)
    found = front_matter(text)
    assert "base_model" not in found and found["license"] == "other"
    assert "<script>" not in text
    assert text.splitlines().count("---") == 2


def finished(store: Store, **changes: Any) -> tuple[Path, Record]:
    """Return the work folder of a run that left its record and weights, and the record."""
    record = make_record(uuid=uuid.uuid4().hex, weights="weights", scores=(PIQA,), **changes)
    work = work_folder(store, record.run_id, record.uuid)
    (work / "weights").mkdir(parents=True)
    (work / "weights" / "model.safetensors").write_bytes(b"weights")
    (work / "weights" / "config.json").write_text("{}")
    (work / "weights" / BASE).write_text(ORIGIN.model_dump_json())
    (work / RECORD_FILE).write_text(record.model_dump_json())
    return work, record


def evaluated(store: Store, run: Record) -> tuple[Path, Record]:
    """Return the work folder of an evaluation of a run's weights, and its record."""
    record = make_record(uuid=uuid.uuid4().hex, minute=5, kind="evaluation", of=run.uuid, scores=(BOOLQ,))
    work = work_folder(store, record.run_id, record.uuid)
    work.mkdir(parents=True)
    (work / RECORD_FILE).write_text(record.model_dump_json())
    return work, record


def test_weights_are_kept_under_the_run_s_name_with_record_and_card(tmp_path: Path) -> None:
    store = Store(tmp_path)
    work, record = finished(store)
    kept = settle(work, record, store, None, model_card)
    assert kept.weights == f"weights/{folder_name(record)}"
    assert re.fullmatch(r"weights/tiny-full-1-[0-9a-f]{8}", kept.weights)
    folder = tmp_path / kept.weights
    assert Record.model_validate_json((folder / RECORD).read_bytes()) == kept == store.read("tiny").records[0]
    text = (folder / CARD).read_text()
    assert front_matter(text)["base_model"] == "org/Tiny-1B"
    assert "piqa" in text and text.endswith(f"{MARK}\n")


def test_scores_that_are_added_come_into_the_card(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = settle(*finished(store), store, None, model_card)
    folder = tmp_path / str(kept.weights)
    assert "boolq" not in (folder / CARD).read_text()
    settle(*evaluated(store, kept), store, None, model_card)
    text = (folder / CARD).read_text()
    assert "piqa" in text and "boolq" in text
    assert Record.model_validate_json((folder / RECORD).read_bytes()) == kept


def test_scores_of_a_judge_come_into_the_card_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = settle(*finished(store), store, None, model_card)
    judged = make_record(uuid="j", minute=7, kind="evaluation", of=kept.uuid, scores=(BOOLQ,))
    store.append(judged)
    describe_again(store, judged, model_card)
    assert "boolq" in (tmp_path / str(kept.weights) / CARD).read_text()


def test_a_card_that_somebody_made_theirs_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = settle(*finished(store), store, None, model_card)
    card = tmp_path / str(kept.weights) / CARD
    card.write_text("mine")
    settle(*evaluated(store, kept), store, None, model_card)
    assert card.read_text() == "mine"


def test_weights_of_older_records_are_described_where_they_lie(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = make_record(uuid="old")
    old = record.model_copy(update={"weights": f"weights/{record.file_stem}"})
    (tmp_path / str(old.weights)).mkdir(parents=True)
    store.append(old)
    settle(*evaluated(store, old), store, None, model_card)
    text = (tmp_path / str(old.weights) / CARD).read_text()
    assert "boolq" in text and "license" not in front_matter(text)


def test_weights_that_are_gone_are_not_described(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = make_record(uuid="old", weights="weights/gone")
    store.append(old)
    settle(*evaluated(store, old), store, None, model_card)
    assert not (tmp_path / "weights").exists()
    assert len(store.read("tiny").records) == 2


def test_a_folder_for_a_card_is_one_sentence_and_the_record_is_stored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = settle(*finished(store), store, None, model_card)
    card = tmp_path / str(kept.weights) / CARD
    card.unlink()
    card.mkdir()
    with pytest.raises(HarnessError, match="cannot be"):
        settle(*evaluated(store, kept), store, None, model_card)
    assert len(store.read("tiny").records) == 2
    card.rmdir()
    assert recover(store, model_card) == 0
    assert "boolq" in card.read_text()


@pytest.mark.parametrize("what", ["run", "evaluation"])
def test_a_parent_killed_between_any_two_steps_leaves_a_card_that_the_next_makes_right(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 100):
        store = Store(tmp_path / str(number))
        work, record = finished(store)
        if what == "evaluation":
            kept = settle(work, record, store, None, model_card)
            work, record = evaluated(store, kept)
        steps = iter(range(number))

        def kill(steps: Any = steps) -> None:
            if next(steps, None) is None:
                raise Killed

        ended = False
        with monkeypatch.context() as patch:
            watch(store.folder, patch, kill)
            try:
                settle(work, record, store, None, model_card)
                ended = True
            except Killed:
                pass
        recover(store, model_card)
        records = store.read("tiny").records
        assert len(records) == (1 if what == "run" else 2)
        folder = store.folder / str(records[0].weights)
        text = (folder / CARD).read_text()
        assert "piqa" in text and ("boolq" in text) == (what == "evaluation")
        assert Record.model_validate_json((folder / RECORD).read_bytes()) == records[0]
        assert (folder / "model.safetensors").read_bytes() == b"weights"
        assert [one.name for one in (store.folder / "weights").iterdir()] == [folder.name]
        assert list((store.folder / WORK).iterdir()) == []
        if ended:
            assert number > 6
            return
    raise AssertionError("storing never ended")
