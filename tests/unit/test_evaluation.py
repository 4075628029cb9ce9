"""Evaluation on tiny random models: our scores, requests and texts against those of lm-eval's own HFLM."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import datasets
import lm_eval.evaluator
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from harness.catalogue.tasks import TaskPlaces, TaskRows
from harness.errors import HarnessError
from harness.evaluation import tasks as evaluation_tasks
from harness.evaluation.language_model import HarnessLM
from harness.evaluation.packing import Scored, batches, plan_rows
from harness.evaluation.scoring import evaluate, read_items, write_items
from harness.evaluation.tasks import _from_hub, load_tasks
from harness.settings import EvaluationSettings

EIGHT = ("boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
SENTENCE = (
    "the a river mill naïve 水车 turns slowly café stone 7 grain flour because water is heavy blue old (and) wheel"
)
WORDS = SENTENCE.split()


def close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-4, abs_tol=1e-3)


def phrase(draw: random.Random, low: int, high: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))


def stock_row(task: str, draw: random.Random) -> dict[str, Any]:
    """One row in the stock columns of a task."""
    letters = list("ABCD")
    choices = {"text": [phrase(draw, 1, 4) for _ in letters], "label": letters}
    return {
        "boolq": {"question": phrase(draw, 3, 6), "passage": phrase(draw, 8, 20), "label": draw.randint(0, 1)},
        "piqa": {
            "goal": phrase(draw, 3, 8),
            "sol1": phrase(draw, 2, 6),
            "sol2": phrase(draw, 2, 6),
            "label": draw.randint(0, 1),
        },
        "social_iqa": {
            "context": phrase(draw, 3, 8),
            "question": phrase(draw, 2, 5),
            **{f"answer{letter}": phrase(draw, 1, 4) for letter in "ABC"},
            "label": str(draw.randint(1, 3)),
        },
        "hellaswag": {
            "activity_label": phrase(draw, 1, 3),
            "ctx_a": phrase(draw, 3, 9),
            "ctx_b": phrase(draw, 1, 3),
            "endings": [f"{phrase(draw, 2, 5)} [title] {phrase(draw, 1, 3)}" for _ in range(4)],
            "label": str(draw.randint(0, 3)),
        },
        "winogrande": {
            "sentence": f"{phrase(draw, 2, 6)} _ {phrase(draw, 2, 5)}.",
            "option1": phrase(draw, 1, 2),
            "option2": phrase(draw, 1, 2),
            "answer": str(draw.randint(1, 2)),
        },
        "arc_easy": {"question": phrase(draw, 3, 8), "choices": choices, "answerKey": draw.choice(letters)},
        "arc_challenge": {"question": phrase(draw, 3, 8), "choices": choices, "answerKey": draw.choice(letters)},
        "openbookqa": {"question_stem": phrase(draw, 3, 8), "choices": choices, "answerKey": draw.choice(letters)},
    }[task]


@pytest.fixture(scope="module")
def rows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    draw = random.Random(5)
    for task in EIGHT:
        for part, number in (("all", 9), ("fewshot", 6), ("scored", 5)):
            path = folder / task / f"{part}.jsonl"
            path.parent.mkdir(exist_ok=True)
            rows = [json.dumps(stock_row(task, draw), ensure_ascii=False) for _ in range(number)]
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    draw = random.Random(3)
    tokenizer.train_from_iterator([f"Question: {phrase(draw, 5, 20)}\nAnswer: no yes" for _ in range(200)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def tiny(kind: str = "llama", **changes: Any) -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        **changes,
    }
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**{"sliding_window": None, **shape})).eval()
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


def settings(**changes: Any) -> EvaluationSettings:
    return EvaluationSettings(**{"tasks": EIGHT, "rows": "packaged-scored", "num_fewshot": 0, **changes})


def scored(model: Any, tokenizer: Any, wanted: EvaluationSettings, rows_folder: Path, **kwargs: Any) -> Any:
    return evaluate(
        model,
        tokenizer,
        wanted,
        rows_folder=rows_folder,
        datasets_cache=rows_folder / "cache",
        device="cpu",
        offline=True,
        **kwargs,
    )


def reference(model: Any, tokenizer: Any, wanted: EvaluationSettings, rows_folder: Path) -> Any:
    """lm-eval's own evaluation of its own HFLM on the same tasks."""
    loaded = load_tasks(wanted, rows_folder=rows_folder, datasets_cache=rows_folder / "cache", offline=True)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    return lm_eval.evaluator.evaluate(lm, {"tasks": loaded}, limit=wanted.limit, bootstrap_iters=1, log_samples=True)


def ask(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]  # type: ignore[arg-type]


@pytest.mark.parametrize("shots", [0, 2])
def test_scores_of_the_eight_tasks_equal_those_of_hflm(
    shots: int, model: Any, tokenizer: Any, rows_folder: Path
) -> None:
    wanted = settings(num_fewshot=shots, batch_tokens=512)
    ours = scored(model, tokenizer, wanted, rows_folder)
    theirs = reference(model, tokenizer, wanted, rows_folder)

    found = {(score.task, score.metric): score for score in ours.scores}
    assert {task for task, _ in found} == set(EIGHT)
    for (task, metric), score in found.items():
        assert score.value == theirs["results"][task][f"{metric},none"], (task, metric)
        assert score.stderr == pytest.approx(theirs["results"][task][f"{metric}_stderr,none"])
        assert score.task_version == str(theirs["versions"][task])
        assert (score.n, score.num_fewshot, score.headline) == (5, shots, metric == "acc")
    for task in EIGHT:
        assert sum(f"{task}" == key[0] for key in found) == sum(
            key.endswith(",none") and "_stderr" not in key for key in theirs["results"][task]
        )
        items = [item for item in ours.items if item["task"] == task]
        samples = sorted(theirs["samples"][task], key=lambda sample: sample["doc_id"])
        assert len(items) == len(samples) == 5
        for item, sample in zip(items, samples, strict=True):
            assert item["index"] == sample["doc_id"]
            assert (item["doc_hash"], item["prompt_hash"]) == (sample["doc_hash"], sample["prompt_hash"])
            assert item["metrics"] == {metric: sample[metric] for metric in sample["metrics"]}
            for value, greedy, answer in zip(item["loglikelihoods"], item["greedy"], sample["resps"], strict=True):
                assert close(value, answer[0][0])
                assert greedy == answer[0][1]


@pytest.mark.parametrize("shots", [0, 2])
def test_requests_are_byte_for_byte_those_of_the_stock_tasks_on_the_same_rows(
    shots: int, rows_folder: Path, tmp_path: Path
) -> None:
    wanted = settings(num_fewshot=shots, fewshot_seed=99)
    ours = load_tasks(wanted, rows_folder=rows_folder, datasets_cache=tmp_path, offline=True)
    manager = TaskManager(
        include_defaults=False,
        include_path=[
            str(Path(lm_eval.tasks.__file__).parent / folder)
            for folder in ("super_glue/boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc", "openbookqa")
        ],
    )
    for task in EIGHT:
        files = {
            "train": str(rows_folder / task / "fewshot.jsonl"),
            "validation": str(rows_folder / task / "scored.jsonl"),
            "test": str(rows_folder / task / "scored.jsonl"),
        }
        overlay = tmp_path / f"{task}.yaml"
        overlay.write_text(
            json.dumps(
                {
                    "include": str(manager.task_index[task].yaml_path),
                    "task": task,
                    "dataset_path": "json",
                    "dataset_name": None,
                    "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path / "cache")},
                }
            )
        )
        stock = manager.load(str(overlay))["tasks"][task]
        stock.set_config(key="num_fewshot", value=shots)
        stock.set_fewshot_seed(seed=99)
        stock.build_all_requests()
        ours[task].build_all_requests()
        assert [request.args for request in ours[task].instances] == [request.args for request in stock.instances]
        assert ours[task].VERSION == stock.VERSION


def test_few_shot_examples_come_from_the_few_shot_rows_alone(rows_folder: Path, tmp_path: Path) -> None:
    drawn = {row["question"] for row in read_rows(rows_folder / "arc_easy" / "fewshot.jsonl")}
    for rows in ("packaged", "packaged-scored"):
        wanted = settings(tasks=("arc_easy",), num_fewshot=2, rows=rows)
        task = load_tasks(wanted, rows_folder=rows_folder, datasets_cache=tmp_path, offline=True)["arc_easy"]
        task.build_all_requests()
        for request in task.instances:
            *examples, asked = request.args[0].split("\n\n")
            assert len(examples) == 2
            assert all(example.removeprefix("Question: ").partition("\nAnswer:")[0] in drawn for example in examples)
            assert asked == f"Question: {request.doc['question']}\nAnswer:"


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_those_of_the_setting_and_limit_takes_the_first(rows_folder: Path, tmp_path: Path) -> None:
    for rows, part in (("packaged", "all"), ("packaged-scored", "scored")):
        every = read_rows(rows_folder / "piqa" / f"{part}.jsonl")
        for limit in (None, 3):
            wanted = settings(tasks=("piqa",), rows=rows, limit=limit)
            task = load_tasks(wanted, rows_folder=rows_folder, datasets_cache=tmp_path, offline=True)["piqa"]
            assert list(task.eval_docs) == every[:limit]


def test_same_seed_draws_the_same_shots_and_another_seed_others(rows_folder: Path, tmp_path: Path) -> None:
    def prompts(seed: int) -> list[str]:
        wanted = settings(tasks=("piqa",), num_fewshot=2, fewshot_seed=seed)
        task = load_tasks(wanted, rows_folder=rows_folder, datasets_cache=tmp_path, offline=True)["piqa"]
        task.build_all_requests()
        return [request.args[0] for request in task.instances]

    assert prompts(1) == prompts(1) != prompts(2)


def test_evaluation_leaves_model_and_global_generators_as_they_were(
    model: Any, tokenizer: Any, rows_folder: Path
) -> None:
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    states = (random.getstate(), str(np.random.get_state()), torch.get_rng_state())
    scored(model, tokenizer, settings(tasks=("piqa",)), rows_folder)
    assert [module.training for module in model.modules()] == modes
    assert states[:2] == (random.getstate(), str(np.random.get_state()))
    assert torch.equal(states[2], torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_progress_counts_items_up_to_all(model: Any, tokenizer: Any, rows_folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    wanted = settings(tasks=("arc_easy", "winogrande"), batch_tokens=64)
    scored(model, tokenizer, wanted, rows_folder, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 10)
    assert seen[-1] == (10, 10)
    assert len(seen) > 3
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_items_whose_context_was_cut_are_counted_by_task(tokenizer: Any, rows_folder: Path) -> None:
    wanted = settings(tasks=("arc_easy", "winogrande", "piqa"), num_fewshot=2)
    length = 30
    found = scored(tiny(max_position_embeddings=length), tokenizer, wanted, rows_folder)
    long = {"arc_easy": 0, "winogrande": 0, "piqa": 0}
    for item in found.items:
        pairs = zip(item["num_context_tokens"], item["num_continuation_tokens"], strict=True)
        long[item["task"]] += any(context + continuation > length + 1 for context, continuation in pairs)
    assert any(long.values())
    assert found.facts.cut_contexts == {task: count for task, count in long.items() if count}
    assert scored(tiny(), tokenizer, wanted, rows_folder).facts.cut_contexts == {}


def test_choices_that_are_equally_likely_are_counted_but_not_the_same_choice_twice(
    model: Any, tokenizer: Any, rows_folder: Path, tmp_path: Path
) -> None:
    wanted = settings(tasks=("arc_easy",))
    assert scored(model, tokenizer, wanted, rows_folder).facts.tied_items == {}
    blind = tiny()
    blind.lm_head.weight.data.zero_()
    rows = read_rows(rows_folder / "arc_easy" / "scored.jsonl")
    for row in rows:  # of one token, so that all are as likely
        row["choices"]["text"] = ["mill", "river", "stone", "water"]
    rows[0]["choices"]["text"] = ["mill"] * 4
    (tmp_path / "arc_easy").mkdir()
    (tmp_path / "arc_easy" / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "arc_easy" / "fewshot.jsonl").write_text(json.dumps(rows[1]) + "\n")
    found = scored(blind, tokenizer, wanted, tmp_path)
    assert {len(set(item["num_continuation_tokens"])) for item in found.items} == {1}
    assert found.facts.tied_items == {"arc_easy": len(rows) - 1}


def test_outputs_that_are_not_finite_are_an_error(tokenizer: Any, rows_folder: Path) -> None:
    broken = tiny()
    broken.model.norm.weight.data[:] = float("nan")
    with pytest.raises(HarnessError, match="task 'piqa', item 0: the log-likelihood of a choice is nan"):
        scored(broken, tokenizer, settings(tasks=("piqa",)), rows_folder)


ODD_REQUESTS = [
    ("", " water"),
    ("", "<s>water is"),
    ("<s>the mill", " turns"),
    ("the old mill  ", "turns"),
    ("the old mill", " turns"),
    ("the old mill", " turns"),
    ("the old mill", " x"),
    ("the old mill", " y"),
    ("naïve 水车 café", " naïve 水车 (and) 🌊"),
    ("water " * 90, "is heavy"),
    ("water " * 90, "is blue and the stone is old"),
    ("the", " water" * 60),
    ("a", " river"),
]


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_odd_log_likelihoods_equal_those_of_hflm(kind: str, shares: bool, batch_tokens: int, tokenizer: Any) -> None:
    model = tiny(kind, max_position_embeddings=64)
    ours = HarnessLM(model, tokenizer, device="cpu", batch_tokens=batch_tokens, share_prefixes=shares)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3)
    requests = ask("loglikelihood", *ODD_REQUESTS)
    found, wanted = ours.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    for (value, _), (right, _) in zip(found, wanted, strict=True):
        assert close(value, right)
    assert found[4] == found[5]


def test_greedy_continuations_are_marked(model: Any, tokenizer: Any) -> None:
    lm = HarnessLM(model, tokenizer, device="cpu", batch_tokens=4096)
    context = tokenizer("the old mill", return_tensors="pt").input_ids
    likeliest = int(model(context).logits[0, -1].argmax())
    other = (likeliest + 1) % 400
    context_tokens = context[0].tolist()
    found = lm._loglikelihood_tokens([(None, context_tokens, [likeliest]), (None, context_tokens, [other])])
    assert [greedy for _, greedy in found] == [True, False]
    assert lm.num_processed_tokens == len(context_tokens)
    assert lm.token_counts == [(len(context_tokens), 1)] * 2


def test_scores_do_not_depend_on_who_shares_a_row(model: Any, tokenizer: Any) -> None:
    requests = ask("loglikelihood", *[(f"the mill {'is old ' * 9}and", f" {word} {word}") for word in WORDS])
    apart = HarnessLM(model, tokenizer, device="cpu", batch_tokens=4096, share_prefixes=False)
    together = HarnessLM(model, tokenizer, device="cpu", batch_tokens=4096)
    for (left, greedy), (right, wanted) in zip(
        together.loglikelihood(requests), apart.loglikelihood(requests), strict=True
    ):
        assert close(left, right)
        assert greedy == wanted
    assert together.num_processed_tokens * 3 < apart.num_processed_tokens


@pytest.mark.parametrize(
    "changes", [{"attn_implementation": "eager"}, {"sliding_window": 8}], ids=["eager", "sliding_window"]
)
def test_models_that_take_no_tree_mask_are_scored_one_sequence_a_row(changes: dict[str, Any], tokenizer: Any) -> None:
    model = tiny("mistral", **changes)
    ours = HarnessLM(model, tokenizer, device="cpu", batch_tokens=4096)
    requests = ask("loglikelihood", *[(f"the mill {'is old ' * 9}and", f" {word} {word}") for word in WORDS])
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3).loglikelihood(requests, disable_tqdm=True)
    for (value, _), (right, _) in zip(ours.loglikelihood(requests), theirs, strict=True):
        assert close(value, right)


def test_a_peft_model_is_scored_with_its_adapter(tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(tiny(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    wrapped.eval()
    requests = ask("loglikelihood", ("the old mill", " turns slowly"), ("the old mill", " is blue"))
    found = HarnessLM(wrapped, tokenizer, device="cpu", batch_tokens=4096).loglikelihood(requests)
    plain = HarnessLM(tiny(), tokenizer, device="cpu", batch_tokens=4096).loglikelihood(requests)
    merged = wrapped.merge_and_unload()
    wanted = HFLM(pretrained=merged, tokenizer=tokenizer, batch_size=1).loglikelihood(requests, disable_tqdm=True)
    for (value, _), (right, _), (unadapted, _) in zip(found, wanted, plain, strict=True):
        assert close(value, right)
        assert not close(value, unadapted)


def test_rolling_log_likelihoods_equal_those_of_hflm(tokenizer: Any) -> None:
    model = tiny(max_position_embeddings=32)
    requests = ask("loglikelihood_rolling", ("the mill turns slowly " * 20,), ("naïve 水车",), ("a",))
    ours = HarnessLM(model, tokenizer, device="cpu", batch_tokens=64).loglikelihood_rolling(requests)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2).loglikelihood_rolling(
        requests, disable_tqdm=True
    )
    assert all(close(left, right) for left, right in zip(ours, theirs, strict=True))


def test_generated_texts_equal_those_of_hflm(tokenizer: Any) -> None:
    model = tiny(max_position_embeddings=64)
    settings = {"until": ["mill", "\n\n"], "max_gen_toks": 12, "do_sample": False}
    contexts = ["the old mill", "naïve 水车", "water " * 80, "a", "the stone is blue because"]
    requests = ask("generate_until", *[(context, dict(settings)) for context in contexts])
    requests += ask("generate_until", ("the river", {"until": ["e"], "max_gen_toks": 5}))
    ours = HarnessLM(model, tokenizer, device="cpu", batch_tokens=100).generate_until(requests)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).generate_until(requests, disable_tqdm=True)
    assert ours == theirs
    assert any(ours)
    assert settings["until"] == ["mill", "\n\n"]


def test_out_of_memory_halves_the_batch_and_goes_on(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = ask("loglikelihood", *[(phrase(random.Random(seed), 9, 9), " x y") for seed in range(12)])
    wanted = HarnessLM(model, tokenizer, device="cpu", batch_tokens=2048).loglikelihood(requests)
    lm = HarnessLM(model, tokenizer, device="cpu", batch_tokens=2048)
    forward, sizes = lm._logits, []

    def cramped(batch: Any, tokens: Any, kept: Any, stem: Any) -> torch.Tensor:
        sizes.append(tokens.size)
        if tokens.size > 200:
            raise torch.OutOfMemoryError("no room")
        return forward(batch, tokens, kept, stem)

    monkeypatch.setattr(lm, "_logits", cramped)
    found = lm.loglikelihood(requests)
    assert all(close(left[0], right[0]) for left, right in zip(found, wanted, strict=True))
    assert sizes[0] > 200
    assert lm.batch_tokens < 2048


def test_out_of_memory_on_a_shared_row_scores_its_sequences_one_by_one(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = ask("loglikelihood", *[(f"the mill {'is old ' * 9}and", f" {word} {word}") for word in WORDS])
    lm = HarnessLM(model, tokenizer, device="cpu", batch_tokens=16)
    wanted = lm.loglikelihood(requests)
    forward, refused = lm._logits, []

    def cramped(batch: Any, tokens: Any, kept: Any, stem: Any) -> torch.Tensor:
        if not all(row.is_chain for row in batch):
            refused.append(len(batch))
            raise torch.OutOfMemoryError("no room")
        return forward(batch, tokens, kept, stem)

    monkeypatch.setattr(lm, "_logits", cramped)
    found = lm.loglikelihood(requests)
    assert all(close(left[0], right[0]) for left, right in zip(found, wanted, strict=True))
    assert 1 in refused


def test_out_of_memory_on_a_single_row_is_raised(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = HarnessLM(model, tokenizer, device="cpu", batch_tokens=64)

    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(lm, "_logits", full)
    with pytest.raises(torch.OutOfMemoryError):
        lm.loglikelihood(ask("loglikelihood", ("the", " mill")))


def test_a_request_without_a_continuation_is_an_error(tokenizer: Any) -> None:
    lm = HarnessLM(tiny(max_position_embeddings=64), tokenizer, device="cpu", batch_tokens=64)
    with pytest.raises(HarnessError, match="empty context or continuation"):
        lm.loglikelihood(ask("loglikelihood", ("", "<s>")))


def test_a_continuation_longer_than_the_model_is_scored_in_pieces(model: Any, tokenizer: Any) -> None:
    """Each half of the model's length stands behind the text before it, as far as the model's length holds it."""
    context, continuation = tokenizer("the old mill")["input_ids"], tokenizer(" water is blue" * 12)["input_ids"]
    length, half = 16, 8
    wanted, greedy = 0.0, True
    for first in range(0, len(continuation), half):
        part = continuation[first : first + half]
        seen = [*context, *continuation[: first + len(part)]][-(length + 1) :]
        logits = model(torch.tensor([seen[:-1]])).logits[0, -len(part) :].log_softmax(-1)
        wanted += float(logits.gather(1, torch.tensor(part)[:, None]).sum())
        greedy &= logits.argmax(-1).tolist() == part
    lm = HarnessLM(model, tokenizer, device="cpu", batch_tokens=64, max_length=length)
    short = (None, context, continuation[:2])
    (value, is_greedy), (other, _) = lm._loglikelihood_tokens([(None, context, continuation), short])
    assert close(value, wanted)
    assert is_greedy == greedy
    assert close(other, lm._loglikelihood_tokens([short])[0][0])
    assert lm.token_counts == [(len(context), 2)]


def test_requests_that_lost_the_beginning_of_their_context_are_known(model: Any, tokenizer: Any) -> None:
    lm = HarnessLM(model, tokenizer, device="cpu", batch_tokens=64, max_length=16)
    lengths = [(15, 1), (16, 1), (17, 1), (12, 5), (12, 6), (1, 16), (2, 16), (1, 30)]
    lm._loglikelihood_tokens([(None, [5] * context, [6] * continuation) for context, continuation in lengths])
    assert lm.cut_requests == {2, 4, 6, 7}
    lm._loglikelihood_tokens([(None, [5], [6])])
    assert lm.cut_requests == set()
    texts = [tokenizer.decode([40 + n] * number) for n, number in enumerate((11, 12, 13))]
    assert [len(tokenizer(text)["input_ids"]) for text in texts] == [11, 12, 13]
    settings = {"until": ["zz"], "max_gen_toks": 4}
    lm.generate_until(ask("generate_until", *[(text, dict(settings)) for text in texts]))
    assert lm.cut_requests == {2}
    lm.loglikelihood_rolling(ask("loglikelihood_rolling", ("the mill turns slowly " * 20,)))
    assert lm.cut_requests == set()


def test_rows_hold_every_sequence_whatever_is_shared() -> None:
    draw = random.Random(1)
    sequences = []
    for index in range(200):
        inputs = tuple(draw.choice((1, 2)) for _ in range(draw.randint(1, 12)))
        length = draw.randint(1, len(inputs))
        sequences.append(Scored(index, inputs, tuple(range(length))))
    for row_tokens, tokens_per_key in ((0, 0.0), (20, 1e9), (10**6, 1e9), (10**6, 5.0)):
        rows = plan_rows(sequences, row_tokens=row_tokens, tokens_per_key=tokens_per_key)
        seen = set()
        for row in rows:
            visible = row.visible()
            for index, places, targets in row.scored:
                wanted = sequences[index]
                assert targets == wanted.targets
                path = np.flatnonzero(visible[places[-1]])
                assert tuple(row.tokens[place] for place in path) == wanted.inputs
                assert [row.positions[place] for place in path] == list(range(len(wanted.inputs)))
                assert list(places) == list(path[len(path) - len(targets) :])
                seen.add(index)
        assert seen == set(range(200))
        assert [len(row.tokens) for row in rows] == sorted((len(row.tokens) for row in rows), reverse=True)
        assert all(row.is_chain or len(row.tokens) <= row_tokens for row in rows)
        assert [row for batch in batches(rows, 30) for row in batch] == rows
        for batch in batches(rows, 30):
            assert len(batch) == 1 or len(batch) * max(len(row.tokens) for row in batch) <= 30


def test_items_read_back_as_written_and_a_cut_file_is_an_error(tmp_path: Path) -> None:
    items = [{"task": "piqa", "index": 0, "loglikelihoods": [-1.25, -0.1], "text": "水车\u2028\n"}, {"task": "boolq"}]
    path = tmp_path / "items" / "x.jsonl.zst"
    write_items(path, items)
    assert read_items(path) == items
    assert list(path.parent.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(HarnessError, match="is no file of items, or was cut off"):
        read_items(path)
    with pytest.raises(HarnessError, match="cannot be read"):
        read_items(tmp_path / "missing")


def test_wrong_tasks_and_missing_rows_are_one_sentence(rows_folder: Path, tmp_path: Path) -> None:
    def load(folder: Path | None, **changes: Any) -> None:
        load_tasks(settings(**changes), rows_folder=folder, datasets_cache=tmp_path, offline=True)

    with pytest.raises(HarnessError, match="lm-eval has no task 'arc_eazy'; did you mean 'arc_easy'"):
        load(rows_folder, tasks=("arc_eazy",))
    with pytest.raises(HarnessError, match=r"there are no packaged rows .*boolq.scored\.jsonl"):
        load(tmp_path, tasks=("boolq",))
    with pytest.raises(HarnessError, match="need a folder of packaged rows"):
        load(None)
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "fewshot.jsonl").write_bytes((rows_folder / "piqa" / "fewshot.jsonl").read_bytes())
    (tmp_path / "piqa" / "scored.jsonl").write_text("")
    with pytest.raises(HarnessError, match=r"scored\.jsonl: holds no rows"):
        load(tmp_path, tasks=("piqa",))
    (tmp_path / "piqa" / "scored.jsonl").write_text('{"goal": \n')
    with pytest.raises(HarnessError, match=r"scored\.jsonl line 1: is not JSON"):
        load(tmp_path, tasks=("piqa",))


def test_hub_rows_that_are_not_cached_are_refused_offline(tmp_path: Path) -> None:
    wanted = settings(tasks=("piqa",), rows="hub")
    with pytest.raises(HarnessError, match="the rows of task 'piqa' are not in the cache, and --offline forbids"):
        load_tasks(wanted, rows_folder=None, datasets_cache=tmp_path, offline=True)


def test_rows_that_a_script_on_the_hub_makes_are_refused(tmp_path: Path) -> None:
    """The error is that of ``datasets`` itself, of a script in a local folder."""
    script = tmp_path / "scripted" / "scripted.py"
    script.parent.mkdir()
    script.write_text("")

    class Manager:
        def load(self, name: str) -> Any:
            return datasets.load_dataset(str(script.parent))

    with pytest.raises(HarnessError, match=r"of task 'pubmedqa' are made by a script on the hub, .* in \[tasks.rows\]"):
        _from_hub(Manager(), "pubmedqa", offline=True)  # type: ignore[arg-type]


def test_pubmedqa_takes_rows_of_the_authors_files(tmp_path: Path) -> None:
    """As docs/suites.md has it: 5-shot from rows in files, with the fields of the authors' repository."""
    files = {}
    for part in ("scored", "fewshot"):
        rows = [
            {"QUESTION": f"{part} {i}?", "CONTEXTS": ["One.", "Two."], "final_decision": ("yes", "no", "maybe")[i % 3]}
            for i in range(6)
        ]
        files[part] = tmp_path / f"{part}.jsonl"
        files[part].write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = TaskPlaces(rows={"pubmedqa": TaskRows(scored=files["scored"], fewshot=files["fewshot"])})
    wanted = settings(tasks=("pubmedqa",), rows="hub", num_fewshot=5)
    task = load_tasks(wanted, rows_folder=None, datasets_cache=tmp_path, offline=True, places=places)["pubmedqa"]
    task.build_all_requests()
    assert len(task.instances) == 6 * 3
    context, choice = task.instances[0].args
    assert context.endswith("Abstract: One.\nTwo.\nQuestion: scored 0?\nAnswer:") and choice == " yes"
    assert context.count("Question: fewshot") == 5


def test_mmlu_has_its_own_splits(tmp_path: Path) -> None:
    folder = tmp_path / "mmlu" / "anatomy"
    folder.mkdir(parents=True)
    for split, number in (("dev", 3), ("test", 4)):
        rows = [
            {"question": f"{split} {index}?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 1}
            for index in range(number)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = settings(tasks=("mmlu_anatomy",), rows="packaged", num_fewshot=2, limit=2)
    task = load_tasks(wanted, rows_folder=tmp_path, datasets_cache=tmp_path, offline=True)["mmlu_anatomy"]
    task.build_all_requests(limit=2)
    assert len(task.instances) == 8
    assert "dev 0?" in task.instances[0].args[0]
    assert "test 0?" in task.instances[0].args[0]


def test_free_generation_tasks_keep_both_filters(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    rows = [{"question": "2 + 2?", "answer": "So 4. #### 4"}, {"question": "1 + 1?", "answer": "#### 2"}]
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = settings(tasks=("gsm8k_cot",), rows="packaged", num_fewshot=1)
    found = scored(tiny(max_position_embeddings=512), tokenizer, wanted, tmp_path)
    assert {score.metric for score in found.scores} == {"exact_match,strict-match", "exact_match,flexible-extract"}
    assert [score.num_fewshot for score in found.scores] == [1, 1]
    assert sum(score.headline for score in found.scores) == 1
    assert all(set(item["metrics"]) == {score.metric for score in found.scores} for item in found.items)
    assert all(isinstance(item["responses"][0][0], str) for item in found.items)


def test_stock_folders_name_where_lm_eval_keeps_each_task() -> None:
    for task, folder in evaluation_tasks.STOCK_FOLDERS.items():
        manager = TaskManager(include_path=str(Path(lm_eval.tasks.__file__).parent / folder), include_defaults=False)
        assert task in manager.all_subtasks
