"""Checkpoints of runs that processes share out: what goes on ends as what was not cut, whatever number takes it up."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.calibration.tiny import TinyRun, tiny_run
from harness.catalogue.labels import load_labels
from harness.engine import checkpoint
from harness.engine.ranks import ALONE, Ranks
from harness.engine.training import mean_loss
from harness.errors import HarnessError
from harness.tensors.sharded import gathered, local, whole
from tests.ranks import on_ranks

CUT, STEPS = 3, 6
TRAIN = {"gradient_accumulation_steps": 2, "batch_size": 2, "num_steps": STEPS}
WHOLE = ("projector", "update_norm")
"""What a process holds all of, beside its parts."""
OFFLOAD = {"state_policy": "offload", "returning_step_counter": "keep", "reset_each_period": False}
EIGHT_BIT = {"moment_dtype": "int8", "master_weights": False, "moment_rounding": "nearest"}
Case = tuple[str, dict[str, Any]]
FEW: list[Case] = [("lisa", OFFLOAD), ("galore", {})]
EVERY: list[Case] = [(label, {}) for label, entry in load_labels().items() if entry.method != "base"]
SUMMED = ("apollo", "apollo-mini", "fira", "ows-apollo", "grass")
"""Labels that decide by norms of whole tensors, which several processes add up in another order than one."""
NUMBERS = [(4, 2), (2, 4), (2, 3), (3, 1)]
OTHERS = [*((("galore", {}), *two) for two in NUMBERS[:2]), (("owlore", {}), 4, 2)]
OTHERS += [(case, *two) for case in (("lisa", OFFLOAD), ("lora", {})) for two in NUMBERS]
Ended = tuple[list[float], dict[str, torch.Tensor], Any]


def made(case: Case, ranks: Ranks, **train: Any) -> TinyRun:
    label, settings = case
    return tiny_run(label, torch.device("cpu"), settings, {**TRAIN, **train}, ranks=ranks)


def ended(run: TinyRun) -> Ended:
    """Return losses since it was made, all of the weights, and what the method says of itself."""
    weights = {name: whole(p.detach()).clone() for name, p in run.loop.model.named_parameters()}
    return run.losses, weights, run.loop.method.state_dict()


def names_of(run: TinyRun) -> dict[torch.Tensor, str]:
    groups = run.loop.optimizer.param_groups
    return {p: name for group in groups for name, p in zip(group["param_names"], group["params"], strict=True)}


def held(run: TinyRun) -> dict[tuple[str, str], torch.Tensor]:
    """Return all of every tensor of the optimizer's state, by names of parameter and tensor."""
    optimizer = run.loop.optimizer
    names = names_of(run)
    return {
        (names[p], key): value.clone() if key in WHOLE else gathered(value, p).clone()
        for p in names
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, torch.Tensor) and not key.endswith("absmax")
    }


def same(one: Ended, other: Ended) -> None:
    assert one[0][-len(other[0]) :] == other[0]
    assert one[1].keys() == other[1].keys()
    assert [name for name, value in one[1].items() if not torch.equal(value, other[1][name])] == []
    assert one[2] == other[2]


def look(run: TinyRun) -> float:
    """Return the loss of rows, as a held-out loss is taken."""
    return mean_loss(run.loop.model, run.batches[:2], run.loop.context)[0]


def go_on(ranks: Ranks, case: Case, folder: Path, train: dict[str, Any], steps: int = STEPS - CUT) -> Ended:
    """Take a checkpoint up, after a look at the held-out loss, and end the run."""
    run = made(case, ranks, **train)
    look(run)
    assert run.checkpoints(folder).restore() == run.loop.step == CUT
    run.take(steps)
    return ended(run)


def cut_and_go_on(ranks: Ranks, case: Case, written: Path, folder: Path, train: dict[str, Any]) -> tuple[Ended, ...]:
    """Return what a run ended in that was not cut, one that was, and one that one process began."""
    uncut = made(case, ranks, **train)
    uncut.take(STEPS)
    first = made(case, ranks, **train)
    first.take(CUT)
    first.checkpoints(folder).save()
    return ended(uncut), go_on(ranks, case, folder, train), go_on(ranks, case, written, train)


def check_every_way(case: Case, tmp_path: Path, **train: Any) -> None:
    """Compare runs of two processes and of one: uncut, cut, cut and taken up by the other number."""
    uncut, first = made(case, ALONE, **train), made(case, ALONE, **train)
    uncut.take(STEPS)
    first.take(CUT)
    first.checkpoints(tmp_path / "one").save()
    ends = on_ranks(2, cut_and_go_on, case, tmp_path / "one", tmp_path / "two", train)
    taken_up = [go_on(ALONE, case, tmp_path / "two", train), *(from_one for _, _, from_one in ends)]
    for uncut_here, cut_here, _ in ends:
        same(ends[0][0], uncut_here)
        same(uncut_here, cut_here)
    if case[0] in SUMMED:
        assert all(end[0] == pytest.approx(uncut.losses[-len(end[0]) :], rel=1e-2) for end in taken_up)
        return
    for end in [*taken_up, ends[0][0]]:
        same(ended(uncut), end)
    files = {file.name: file.read_bytes() for file in (tmp_path / "two" / "tiny" / f"step-{CUT}").iterdir()}
    parts = {f"{kind}-{rank}-of-2.safetensors" for kind in ("weights", "optimizer") for rank in (0, 1)}
    assert set(files) == {"state.json", "figures-1-of-2.json"} | parts
    assert not any(b"\x80\x04" in content[:8] or content[:2] == b"PK" for content in files.values())


@pytest.mark.parametrize("case", FEW, ids=[label for label, _ in FEW])
def test_a_cut_run_ends_as_the_uncut_one_whatever_number_of_processes_takes_it_up(case: Case, tmp_path: Path) -> None:
    check_every_way(case, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("case", EVERY, ids=[label for label, _ in EVERY])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_so_does_a_run_of_every_label(case: Case, dtype: str, tmp_path: Path) -> None:
    check_every_way(case, tmp_path, dtype=dtype)


def write(ranks: Ranks, case: Case, folder: Path, train: dict[str, Any]) -> dict[tuple[str, str], torch.Tensor]:
    run = made(case, ranks, **train)
    run.take(CUT)
    run.checkpoints(folder).save()
    return held(run)


def read(ranks: Ranks, case: Case, folder: Path, train: dict[str, Any]) -> tuple[Any, ...]:
    run = made(case, ranks, **train)
    assert run.checkpoints(folder).restore() == CUT
    return (*ended(run), held(run))


@pytest.mark.long
@pytest.mark.parametrize(("case", "writers", "readers"), OTHERS)
def test_other_numbers_of_processes_hold_what_was_written(
    case: Case, writers: int, readers: int, tmp_path: Path
) -> None:
    """Rows are not shared out evenly over three."""
    train = {"gradient_accumulation_steps": 12}
    before = on_ranks(writers, write, case, tmp_path, train)[0]
    found = [read(ALONE, case, tmp_path, train)] if readers == 1 else on_ranks(readers, read, case, tmp_path, train)
    for _, _, _, state in found:
        assert state.keys() == before.keys() and any(value.numel() > 1 for value in state.values())
        assert all(torch.equal(value, before[name]) for name, value in state.items())


def test_each_tensor_is_written_once(tmp_path: Path) -> None:
    case = ("galore", {})
    state = on_ranks(2, write, case, tmp_path, {})[0]
    folder = tmp_path / "tiny" / f"step-{CUT}"
    numbers: Counter[str] = Counter()
    for kind in ("weights", "optimizer"):
        for rank in (0, 1):
            for tensor in load_file(folder / f"{kind}-{rank}-of-2.safetensors").values():
                numbers[kind] += tensor.numel()
    one = made(case, ALONE)
    assert numbers["weights"] == sum(p.numel() for p in one.loop.model.parameters())
    assert numbers["optimizer"] == sum(value.numel() for value in state.values())


def fail(ranks: Ranks, folder: Path) -> list[str]:
    """Return what is said of a disk that is full for one process, of ranks that drift apart, and of a damaged file."""
    case, said = ("lisa", OFFLOAD), []
    run = made(case, ranks)
    run.take(1)
    checkpoints = run.checkpoints(folder)
    checkpoints.save()
    run.take(1)
    written = checkpoint.save_file

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint.save_file = full if ranks.rank == 1 else written
    with pytest.raises(HarnessError) as error:
        checkpoints.save()
    checkpoint.save_file = written
    said.append(str(error.value))
    state = run.loop.method.state_dict()
    run.loop.method.state_dict = lambda: state | {"draws": [[0, [ranks.rank]]]}  # type: ignore[method-assign]
    with pytest.raises(HarnessError) as error:
        checkpoints.save()
    said.append(str(error.value))
    del run.loop.method.state_dict
    ranks.exchange("")
    there = [path.name for path in (folder / "tiny").iterdir()]
    ranks.exchange("")
    assert there == ["step-1"]
    checkpoints.save()
    if ranks.rank == 0:
        damaged = folder / "tiny" / "step-2" / "weights-1-of-2.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    ranks.exchange("")
    again = made(case, ranks)
    other = again.checkpoints(folder)
    assert other.restore() == again.loop.step == 1
    return [*said, *other.notes]


def test_what_one_process_cannot_do_none_has_done_and_all_say_so(tmp_path: Path) -> None:
    first, second = on_ranks(2, fail, tmp_path)
    assert first == second
    unwritten, apart, damaged = first
    assert "checkpoint of step 2 cannot be written by rank 1 of 2: No space left on device" in unwritten
    assert "in rank 1 of 2 the method's own state is not that of rank 0" in apart
    assert damaged == "the checkpoint of step 2 was passed over: weights-1-of-2.safetensors are damaged"


def test_a_checkpoint_of_the_format_before_is_read(tmp_path: Path) -> None:
    import hashlib
    import json

    case = ("full", {})
    write(ALONE, case, tmp_path, {})
    file = tmp_path / "tiny" / f"step-{CUT}" / "state.json"
    state = json.loads(file.read_bytes().partition(b"\n")[0])
    for key in ("num_ranks", "cuts"):
        del state[key]
    line = json.dumps(state | {"format": 5}).encode()
    file.write_bytes(line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")
    uncut = made(case, ALONE)
    uncut.take(STEPS)
    same(ended(uncut), go_on(ALONE, case, tmp_path, {}))


# Moments in 8 bits


def eight_bit(
    ranks: Ranks, case: Case, folder: Path | None, batches: int = 2
) -> tuple[Ended, dict[str, set[str]], int]:
    """Return how a run ended, the dtypes of each parameter's moments, and the numbers this process holds of them."""
    run = made(case, ranks, gradient_accumulation_steps=batches)
    run.take(CUT)
    if folder is not None:
        run.checkpoints(folder).save()
    run.take(STEPS - CUT)
    optimizer = run.loop.optimizer
    names = names_of(run)
    kinds = {
        names[p]: {str(state["exp_avg"].dtype), str(state["exp_avg_sq"].dtype)} for p, state in optimizer.state.items()
    }
    assert all(local(p).numel() >= state["exp_avg"].numel() for p, state in optimizer.state.items())
    return ended(run), kinds, sum(state["exp_avg"].numel() for state in optimizer.state.values())


def test_8_bit_moments_whose_blocks_line_up_are_those_of_one_process(tmp_path: Path) -> None:
    """All parts of the tiny model begin at multiples of 256 numbers where two processes hold half of the rows each."""
    case = ("full", EIGHT_BIT)
    one, kinds, numbers = eight_bit(ALONE, case, tmp_path / "one")
    assert {"torch.uint8"} in kinds.values() and {"torch.float32"} in kinds.values()
    two = on_ranks(2, eight_bit, case, tmp_path / "two")
    for end, theirs, _ in two:
        assert theirs == kinds
        same(one, end)
    assert sum(own for _, _, own in two) == numbers
    same(one, go_on(ALONE, case, tmp_path / "two", {}))
    for end in on_ranks(2, go_on, case, tmp_path / "one", {}):
        same(one, end)


def refused(ranks: Ranks, case: Case, folder: Path) -> str:
    with pytest.raises(HarnessError) as error:
        made(case, ranks, gradient_accumulation_steps=6).checkpoints(folder).restore()
    return str(error.value)


def test_8_bit_moments_by_columns_are_close_and_taken_up_by_as_many_processes_alone(tmp_path: Path) -> None:
    case = ("galore", {**EIGHT_BIT, "rank": 32})
    one, kinds, _ = eight_bit(ALONE, case, None)
    assert {"torch.uint8"} in kinds.values() and {"torch.float32"} in kinds.values()
    start = ended(made(case, ALONE))[1]
    moved = {name: (value - start[name]).norm() for name, value in one[1].items()}
    two = on_ranks(2, eight_bit, case, tmp_path)
    for end, theirs, _ in two:
        assert theirs == kinds
        apart = {name: float((value - one[1][name]).norm() / moved[name]) for name, value in end[1].items()}
        assert 0.0 < max(apart.values()) < 0.05, apart
    assert "was written by 2 processes" in refused(ALONE, case, tmp_path)
    same(two[0][0], on_ranks(2, go_on, case, tmp_path, {})[0])


@pytest.mark.long
@pytest.mark.parametrize("label", ["full", "galore"])
def test_the_size_of_the_whole_decides_about_8_bits(label: str, tmp_path: Path) -> None:
    case = (label, {**EIGHT_BIT, "rank": 32})
    one = eight_bit(ALONE, case, None, 4)[1]
    assert all(kinds == one for _, kinds, _ in on_ranks(4, eight_bit, case, None, 4))


@pytest.mark.long
def test_8_bit_moments_whose_blocks_do_not_line_up_are_not_taken_up(tmp_path: Path) -> None:
    case = ("full", EIGHT_BIT)
    on_ranks(2, write, case, tmp_path, {})
    for said in on_ranks(3, refused, case, tmp_path):
        assert "was written by 2 processes" in said and "go on with 2" in said
    shutil.rmtree(tmp_path / "tiny")
    on_ranks(3, write, case, tmp_path, {"gradient_accumulation_steps": 6})
    assert "was written by 3 processes" in refused(ALONE, case, tmp_path)
