"""The record of a run that several processes share out: proven as one process's is, and of all that they measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.calibration.tiny import MODEL
from harness.engine import run_training, runner
from harness.engine.ranks import ALONE, Deserted, Ranks
from harness.engine.training import TrainingLoop
from harness.errors import Refused
from harness.planning.fake_ranks import fake_ranks
from harness.record import Record
from harness.record_training import TrainResult
from harness.task import RunTask
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import build_model
from harness.tensors.out_of_memory import is_out_of_memory
from harness.tensors.sharded import shard
from tests.conftest import SHAPE, byte_tokenizer
from tests.proofs import SCORES, task_of
from tests.ranks import on_ranks

STEPS, CUT, EVERY = 8, 4, 2
TRAIN = {"gradient_accumulation_steps": 2, "batch_size": 2, "num_steps": STEPS, "max_grad_norm": None}
UNEVEN = {"vocab_size": 265}
NARROW = {"hidden_size": 24}
"""The embedding has 6240 numbers, a half of them 3120: 8 bits begin at 4096."""
EIGHT_BIT = {"moment_dtype": "int8", "moment_rounding": "nearest", "dtype": "fp32"}
FP32_MOMENTS = {"moment_dtype": "fp32", "projector_dtype": "fp32"}
"""Parts of vectors are 16 numbers long here, and the CPU's kernels round bf16 otherwise below 64."""
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "llama, uneven": ("Llama", UNEVEN, "full", {}),
    "mistral, uneven": ("Mistral", UNEVEN, "galore", FP32_MOMENTS),
    "qwen2, tied, uneven": ("Qwen2", {**UNEVEN, "tie_word_embeddings": True}, "lisa", {}),
    "llama, sampled and projected": ("Llama", {}, "owlore", FP32_MOMENTS),
    "llama, in 8 bits": ("Llama", NARROW, "full", EIGHT_BIT),
}
"""Kind of model, its shape, label, and changes of its settings or of training."""


def model_in(folder: Path, kind: str, changes: dict[str, Any]) -> Path:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, "tie_word_embeddings": False, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def task_in(place: Path, case: str, **changes: Any) -> RunTask:
    kind, shape, label, own = CASES[case]
    folder = place / "model"
    if not folder.exists():
        model_in(folder, kind, shape)
    task = task_of(label, folder, place, **{**TRAIN, **own, **changes})
    model = task.model.model_copy(update={"architecture": f"{kind}ForCausalLM"})
    return task.model_copy(update={"model": model})


def record_of(ranks: Ranks, task: RunTask, cut: int | None = None) -> str:
    """Return the record of a task, in JSON; interrupted in the step behind so many."""

    def progress(what: str, done: int, total: int | None) -> None:
        if what.startswith("training") and cut is not None and done == cut + 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run_training,
            "_block_scores",
            lambda run, method, *_: {
                request: SCORES for request in [method.block_scores_needed()] if request is not None
            },
        )
        return runner.execute(task, progress, lambda record: None, ranks).model_dump_json()


def records_of(ranks: Ranks, tasks: dict[str, RunTask]) -> dict[str, str]:
    return {name: record_of(ranks, task) for name, task in tasks.items()}


def read(words: str) -> Record:
    return Record.model_validate_json(words)


def trained(record: Record) -> TrainResult:
    assert record.train is not None
    return record.train


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Record, Record, Record]]:
    """Of each case the record of one process, and those that two return, of which the first is the run's."""
    place = tmp_path_factory.mktemp("cases")
    tasks = {case: task_in(place / str(number), case) for number, case in enumerate(CASES)}
    of_two = on_ranks(2, records_of, tasks, timeout=300)
    return {
        case: (read(record_of(ALONE, task)), read(of_two[0][case]), read(of_two[1][case]))
        for case, task in tasks.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_what_one_process_proves_two_do(case: str, both: dict[str, tuple[Record, Record, Record]]) -> None:
    alone, shared, other = both[case]
    assert (alone.status, shared.status, other.status) == ("ok", "ok", "ok"), (alone.reason, shared.reason)
    one, two = trained(alone), trained(shared)
    assert (one.curve.trained_tokens, one.block_activity) == (two.curve.trained_tokens, two.block_activity)
    assert alone.proof is not None and shared.proof is not None
    if "8 bits" in case:  # whose blocks of numbers are those of parts
        assert one.curve.loss == pytest.approx(two.curve.loss, rel=1e-3)
    else:
        assert one.curve.loss == two.curve.loss
        assert alone.proof.block_checksums_after == shared.proof.block_checksums_after
        assert alone.proof.other_checksums_after == shared.proof.other_checksums_after
    assert two.ranks is not None and [one.rank for one in two.ranks] == [0, 1]
    first, second = (rank.peak_optimizer_state_bytes for rank in two.ranks)
    assert one.tracked_peak is not None
    assert all(rank.weights_bytes < 0.6 * one.tracked_peak.at_peak.weights_bytes for rank in two.ranks)
    assert second <= first == two.peak_optimizer_state_bytes < one.peak_optimizer_state_bytes
    assert (second < first) == ("uneven" in case)


def cut_and_gone_on(ranks: Ranks, cut: RunTask, begun: RunTask) -> tuple[str, str]:
    """Return the records of a run that is interrupted, and of one that another number of processes began."""
    return record_of(ranks, cut, CUT), record_of(ranks, begun)


@pytest.mark.parametrize("case", ["llama, uneven", "qwen2, tied, uneven", "mistral, uneven"])
def test_a_run_that_another_number_of_devices_began_is_proven(case: str, tmp_path: Path) -> None:
    """What it states of memory and time is of the devices that ended it; the curve has all steps."""

    def task(folder: str) -> RunTask:
        return task_in(tmp_path, case, checkpoint_folder=tmp_path / folder, checkpoint_every=EVERY)

    assert read(record_of(ALONE, task("of-one"), CUT)).status == "interrupted"
    ((cut, shared), _) = on_ranks(2, cut_and_gone_on, task("of-two"), task("of-one"), timeout=300)
    whole, first = read(record_of(ALONE, task("uncut"))), read(cut)
    assert first.status == "interrupted"
    for record in (read(shared), read(record_of(ALONE, task("of-two")))):
        assert (record.status, record.reason) == ("ok", None)
        train = trained(record)
        assert (train.other_ranks_before_step, train.resumed_at_steps) == (CUT, (CUT,))
        assert train.curve.loss == trained(whole).curve.loss
        own = train.curve.optimizer_state_bytes[CUT:]
        assert train.peak_optimizer_state_bytes == max(own) and train.tracked_peak is None
        assert train.num_timed_steps == STEPS - CUT - 3
        assert set(train.curve.optimizer_state_bytes[:CUT]).isdisjoint(own)
        for figures in train.ranks or ():
            assert figures.tracked_peak is None and figures.peak_optimizer_state_bytes <= max(own)


def gone_on(ranks: Ranks, task: RunTask) -> tuple[str, str]:
    return record_of(ranks, task, CUT), record_of(ranks, task)


def test_each_process_takes_up_its_own_figures(tmp_path: Path) -> None:
    """Rank 1 holds less than rank 0 of sizes that two do not divide, also in the steps before a cut."""
    case = "llama, uneven"
    task = task_in(tmp_path, case, checkpoint_folder=tmp_path / "checkpoints", checkpoint_every=EVERY)
    ((_, record), _) = on_ranks(2, gone_on, task)
    train = trained(read(record))
    assert read(record).status == "ok" and train.other_ranks_before_step == 0 and train.ranks is not None
    first, second = train.ranks
    assert first.peak_optimizer_state_bytes > second.peak_optimizer_state_bytes
    assert first.tracked_peak is not None and second.tracked_peak is not None
    sizes = [one.tracked_peak.at_peak.optimizer_state_bytes for one in (first, second) if one.tracked_peak]
    assert sizes[0] > sizes[1]
    assert train.tracked_peak == max(
        (first.tracked_peak, second.tracked_peak), key=lambda peak: peak.at_peak.total_bytes
    )


def test_a_run_that_diverges_says_so_of_all_devices(tmp_path: Path) -> None:
    task = task_in(tmp_path, "llama, uneven", learning_rate=1e30)
    found = [read(words) for words in on_ranks(2, record_of, task)]
    assert {record.status for record in found} == {"diverged"} and len({record.reason for record in found}) == 1
    train = trained(found[0])
    assert train.ranks is not None and len(train.ranks) == 2
    assert train.ranks[0].peak_optimizer_state_bytes > train.ranks[1].peak_optimizer_state_bytes > 0


def scarce_in_second(ranks: Ranks, task: RunTask) -> str:
    """Return the record of a run in whose second process memory runs out at a step, or that of one that is left."""
    step = TrainingLoop.train_step

    def scarce(self: TrainingLoop, micro_batches: Any) -> Any:
        if ranks.rank == 1 and self.step == CUT:
            raise MemoryError("scarce")
        return step(self, micro_batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "train_step", scarce)
        try:
            return record_of(ranks, task)
        except Deserted as deserted:
            assert deserted.record is not None
            return deserted.record.model_dump_json()


def test_memory_that_runs_out_in_one_process_is_its_outcome_and_the_others_end(tmp_path: Path) -> None:
    first, second = (read(words) for words in on_ranks(2, scarce_in_second, task_in(tmp_path, "llama, uneven")))
    assert second.status == "out_of_memory" and second.out_of_memory_at is not None
    assert (second.out_of_memory_at.phase, second.out_of_memory_at.step) == ("train", CUT)
    assert first.status == "failed" and trained(first).num_steps == CUT
    assert trained(first).ranks is None  # the others cannot be asked


def test_memory_that_nccl_lacks_is_no_other_process_that_is_gone() -> None:
    """The words are those of its sources; it was never seen here."""
    ranks = Ranks(0, 2)
    lacking = torch.distributed.DistBackendError("NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'")
    gone = torch.distributed.DistBackendError("NCCL error: remote process exited")
    assert is_out_of_memory(lacking) and not ranks.left(lacking)
    assert not is_out_of_memory(gone) and ranks.left(gone)


def test_a_block_that_is_trained_in_two_dtypes_is_refused() -> None:
    model = build_model(MODEL, "bf16", torch.device("cpu"))
    decoder = find_decoder(model, MODEL)
    norm: Any = decoder.blocks[1].get_submodule("input_layernorm")
    norm.weight.data = norm.weight.data.float()
    with fake_ranks(2) as ranks, pytest.raises(Refused, match=r"input_layernorm.weight in float32 .*one group"):
        shard(model, decoder, ranks.mesh)
    norm.weight.requires_grad_(False)
    with fake_ranks(2) as ranks:
        shard(model, decoder, ranks.mesh)
