"""The main job on a tiny model, through the real command: records, proof, skipping, kept weights, report, plug-ins."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import zstandard

from harness.record import Record
from harness.store import Store
from tests.cli.conftest import RANDOM, SUITE, command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prepared")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.toml").write_text(SUITE)
    return folder


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> str:
    return f"smollm2-135m={tiny_llama}"


@pytest.fixture(scope="module")
def ran(folder: Path, model: str, prepared: None) -> subprocess.CompletedProcess[str]:
    return command("run", "--suite", "tiny.toml", "--model", model, "--keep-weights", "--offline", cwd=folder)


@pytest.fixture(scope="module")
def records(ran: subprocess.CompletedProcess[str], folder: Path) -> dict[str, Record]:
    assert ran.returncode == 0, ran.stderr
    contents = Store(folder / "results" / "records").read("tiny")
    assert contents.warnings == ()
    return {record.spec.label: record for record in contents.records}


def test_every_run_has_an_ok_record_and_says_so(
    records: dict[str, Record], ran: subprocess.CompletedProcess[str]
) -> None:
    assert {label: record.status for label, record in records.items()} == dict.fromkeys(
        ["base", "full", "lora", "galore", "lisa", "owlore"], "ok"
    )
    assert "6 ok; records in" in ran.stdout
    assert ran.stderr.count("ok in") == 6


def test_the_held_out_loss_by_steps_and_the_general_text_are_recorded(records: dict[str, Record]) -> None:
    before = set()
    for label, record in records.items():
        train = record.train
        names = [phase.name for phase in record.phases]
        assert ("general" in record.spec.sources) == (label != "base")
        if train is None:
            continue
        assert train.validation_steps == (0, 3, 6, 8)
        ends = train.validation_losses[0], train.validation_losses[-1]
        assert ends == (train.validation_loss_before, train.validation_loss_after)
        assert train.general_tokens == 3 * 63
        assert train.general_loss_before != train.general_loss_after
        before.add(train.general_loss_before)
        assert names.index("validate_during") == names.index("train") + 1
    assert len(before) == 1


def test_held_out_loss_fell_for_every_method(records: dict[str, Record]) -> None:
    for label, record in records.items():
        if label == "base":
            assert record.train is None
            continue
        assert record.train is not None
        assert record.train.validation_loss_before is not None
        assert record.train.validation_loss_after is not None
        assert record.train.validation_loss_after < record.train.validation_loss_before, label


def test_frozen_blocks_are_untouched_and_trained_ones_are_not(records: dict[str, Record]) -> None:
    for label, record in records.items():
        if record.proof is None:
            assert label == "base"
            continue
        pairs = zip(record.proof.block_checksums_before, record.proof.block_checksums_after, strict=True)
        changed = {index for index, (before, after) in enumerate(pairs) if before != after}
        assert changed == set(record.proof.ever_trainable_blocks)
        assert record.train is not None
        visited = {block for entry in record.train.block_activity for block in entry.blocks}
        assert visited == changed
        assert len(record.train.curve.trainable_params) == record.train.num_steps == 8
    sampled = records["lisa"].train
    assert sampled is not None
    assert all(len(entry.blocks) == 2 for entry in sampled.block_activity)


def test_low_rank_states_are_smaller_than_full_ones(records: dict[str, Record]) -> None:
    sizes = {label: record.train.peak_optimizer_state_bytes for label, record in records.items() if record.train}
    assert all(size > 0 for size in sizes.values())
    assert max(sizes["lora"], sizes["galore"], sizes["owlore"]) < sizes["full"]


def test_phases_are_apart_and_cuda_figures_are_absent_on_a_cpu(records: dict[str, Record]) -> None:
    record = records["owlore"]
    names = [phase.name for phase in record.phases]
    assert names == [
        "load", "data", "block_scores", "prepare", "validate_before", "general_before", "train", "validate_during",
        "validate_after", "general_after", "finalize", "save", "evaluate",
    ]  # fmt: skip
    if record.environment.device_type == "cpu":
        assert all(phase.allocated_peak_bytes is None for phase in record.phases)
    assert all(phase.host_peak_bytes for phase in record.phases)


def test_every_item_is_kept_and_every_method_was_scored_as_trained(records: dict[str, Record], folder: Path) -> None:
    answers: dict[str, list[float]] = {}
    for record in records.values():
        assert record.items is not None
        data = (folder / "results" / "records" / record.items).read_bytes()
        items = [json.loads(line) for line in zstandard.ZstdDecompressor().decompress(data).splitlines()]
        assert sorted(item["task"] for item in items) == ["piqa", "piqa", "winogrande", "winogrande"]
        assert {(score.task, score.metric) for score in record.scores} >= {("piqa", "acc"), ("winogrande", "acc")}
        assert all(score.n == 2 for score in record.scores)
        answers[record.spec.label] = [value for item in items for value in item["loglikelihoods"]]
    base = answers.pop("base")
    for label, values in answers.items():
        assert len(values) == len(base)
        assert values != base, f"{label} was scored as if it had not been trained"


def test_a_second_call_skips_everything(folder: Path, model: str, records: dict[str, Record]) -> None:
    again = command("run", "--suite", "tiny.toml", "--model", model, "--offline", cwd=folder)
    assert again.returncode == 0
    assert "6 of 6 runs skipped" in again.stdout
    assert len(Store(folder / "results" / "records").read("tiny").records) == 6
    status = command("status", "--suite", "tiny.toml", "--model", model, "--json", cwd=folder)
    assert [row["to_do"] for row in json.loads(status.stdout)] == ["no"] * 6


def test_another_environment_is_not_skipped(folder: Path, model: str, records: dict[str, Record]) -> None:
    arguments = ("status", "--suite", "tiny.toml", "--model", model, "--json")
    elsewhere = command(*arguments, cwd=folder, environment={"OMP_NUM_THREADS": "2"}, cold=True)
    rows = json.loads(elsewhere.stdout)
    assert {row["to_do"] for row in rows} == {"yes"}
    assert {row["state"] for row in rows} == {"ok in another environment"}
    anywhere = command(*arguments, "--any-environment", cwd=folder, environment={"OMP_NUM_THREADS": "2"}, cold=True)
    assert {row["to_do"] for row in json.loads(anywhere.stdout)} == {"no"}


def test_kept_weights_load_and_take_further_scores(folder: Path, model: str, records: dict[str, Record]) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    for label in ("full", "lora"):
        record = records[label]
        assert record.weights is not None
        weights = folder / "results" / "records" / record.weights
        loaded = AutoModelForCausalLM.from_pretrained(weights)
        assert type(loaded).__name__ == "LlamaForCausalLM"
        assert list(weights.glob("*.safetensors"))
    assert (weights / "adapter" / "adapter_model.safetensors").is_file()
    assert weights.name.startswith("smollm2-135m-lora-1-")
    assert not (weights / "adapter" / "README.md").exists()  # peft's, which names the base by its local path
    assert type(AutoPeftModelForCausalLM.from_pretrained(weights / "adapter")).__name__ == "PeftModelForCausalLM"
    card = (weights / "README.md").read_text()
    assert "# smollm2-135m/lora/1" in card and "| piqa " in card and str(folder) not in card
    assert Record.model_validate_json((weights / "record.json").read_bytes()) == records["lora"]
    record = records["full"]
    done = command("evaluate", "full", "--benchmark", "piqa", "--benchmark", "boolq", "--offline", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "| boolq " in (folder / "results" / "records" / str(record.weights) / "README.md").read_text()
    added = Store(folder / "results" / "records").read("tiny").records[-1]
    assert (added.kind, added.of, added.run_id) == ("evaluation", record.uuid, record.run_id)
    assert {score.task for score in added.scores} == {"piqa", "boolq"}
    piqa = [score.value for score in record.scores if score.task == "piqa"]
    assert [score.value for score in added.scores if score.task == "piqa"] == piqa


def test_show_prints_a_record_and_its_json(folder: Path, records: dict[str, Record]) -> None:
    run_id = records["galore"].run_id
    shown = command("show", "last/galore", cwd=folder)
    assert shown.returncode == 0
    for expected in (run_id, "galore", "held-out loss", "piqa"):
        assert expected in shown.stdout
    whole = command("show", run_id, "--json", cwd=folder)
    shown_record = json.loads(whole.stdout)
    judgement = shown_record.pop("judgement")
    assert isinstance(shown_record.pop("remarks"), list)
    assert Record.model_validate_json(json.dumps(shown_record)) == records["galore"]
    assert judgement["sentence"] == f"the proof holds in all {len(judgement['checks'])} checks"
    assert {check["verdict"] for check in judgement["checks"]} == {"passed"}


def test_the_report_has_every_label_and_no_invented_memory(folder: Path, records: dict[str, Record]) -> None:
    done = command("report", "--suite", "tiny.toml", "--out", "report", cwd=folder)
    assert done.returncode == 0, done.stderr
    text = (folder / "report" / "report.md").read_text()
    for label in records:
        assert f"| {label} " in text
    assert "a note of the suite" in text
    if records["full"].environment.device_type == "cpu":
        assert "no CUDA" in text
    with (folder / "report" / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["label"] for row in rows} == set(records)
    assert len(list((folder / "report").rglob("*.png"))) >= 3


PLUG_IN = """
from harness.method import Method, MethodConfig

class Config(MethodConfig):
    strength: float

class Nudge(Method):
    Config = Config
    summary = "moves the final norm"
    def prepare(self, model, context):
        model.requires_grad_(False)
        self.norm = context.decoder.final_norm
        self.norm.requires_grad_(True)
        return model
    def build_optimizer(self, model, context):
        import torch
        from harness.engine.stepwise import Stepwise
        rate = context.train.learning_rate * self.config.strength
        return Stepwise(torch.optim.SGD(self.norm.parameters(), lr=rate))
"""


def test_a_method_in_one_file_of_its_own_runs_through_a_suite(folder: Path, tmp_path: Path, model: str) -> None:
    site = tmp_path / "site"
    (site / "nudge-1.0.dist-info").mkdir(parents=True)
    (site / "nudge.py").write_text(PLUG_IN)
    (site / "nudge-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: nudge\nVersion: 1.0\n")
    (site / "nudge-1.0.dist-info" / "entry_points.txt").write_text("[finetune_harness.methods]\nnudge = nudge:Nudge\n")
    suite = SUITE[: SUITE.index("[settings.full]")].replace(
        '"base", "full", "lora", "galore", "lisa", "owlore"', '"nudge-hard"'
    )
    suite += '[methods.nudge-hard]\nmethod = "nudge"\n[methods.nudge-hard.settings]\nstrength = 2.0\n'
    (tmp_path / "plug.toml").write_text(suite)
    environment = {"PYTHONPATH": str(site)}
    listed = command("list", "methods", cwd=tmp_path, environment=environment)
    assert "moves the final norm" in listed.stdout
    done = command("run", "--suite", "plug.toml", "--model", model, "--offline", cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    (record,) = Store(tmp_path / "results" / "records").read().records
    assert (record.status, record.spec.method, record.spec.config["strength"]) == ("ok", "nudge", 2.0)
    assert record.proof is not None
    assert record.proof.ever_trainable_blocks == ()
    assert record.proof.other_checksums_before["final_norm"] != record.proof.other_checksums_after["final_norm"]
    without = command("run", "--suite", "plug.toml", "--model", model, cwd=tmp_path)
    assert without.returncode == 2
    assert "there is no method 'nudge'" in without.stderr
    # What was recorded stays readable where the plug-in is absent.
    assert command("show", record.run_id, cwd=tmp_path).returncode == 0


LABELS = '"full", "lisa", "galore"'
FAULTY = PLUG_IN.replace(
    "class Nudge(Method):",
    """class Nudge(Method):
    def on_step_begin(self, step, optimizer):
        self.block.weight.data.add_(1e-3)
""",
).replace(
    "        return model\n", "        self.block = context.decoder.blocks[1].input_layernorm\n        return model\n"
)


def test_a_method_that_moves_what_it_froze_is_unproven_and_fails_the_call(tmp_path: Path, tiny_llama: Path) -> None:
    site = tmp_path / "site"
    (site / "nudge-1.0.dist-info").mkdir(parents=True)
    (site / "nudge.py").write_text(FAULTY)
    (site / "nudge-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: nudge\nVersion: 1.0\n")
    (site / "nudge-1.0.dist-info" / "entry_points.txt").write_text("[finetune_harness.methods]\nnudge = nudge:Nudge\n")
    suite = RANDOM[: RANDOM.index("[settings.lisa]")].replace("bf16", "fp32").replace(LABELS, '"nudge-hard"')
    suite += '[methods.nudge-hard]\nmethod = "nudge"\n[methods.nudge-hard.settings]\nstrength = 2.0\n'
    (tmp_path / "plug.toml").write_text(suite)
    environment = {"PYTHONPATH": str(site)}
    asked = ("run", "--suite", "plug.toml", "--model", f"smollm2-135m={tiny_llama}", "--offline")
    done = command(*asked, cwd=tmp_path, environment=environment)
    assert done.returncode == 1, done.stderr
    sentence = "frozen parts: changed without being trained: block 1"
    assert "unproven in" in done.stderr and sentence in done.stderr
    assert "1 unproven; records in" in done.stdout and "the proof of 1 run fails" in done.stdout
    store = Store(tmp_path / "results" / "records")
    (record,) = store.read().records
    assert record.status == "unproven" and sentence in (record.reason or "")
    assert record.train is not None and record.proof is not None
    again = command(*asked, cwd=tmp_path, environment=environment)
    assert "1 of 1 runs skipped" in again.stdout
    state = json.loads(command("status", *asked[1:5], "--json", cwd=tmp_path, environment=environment).stdout)
    assert [(row["state"], row["to_do"]) for row in state] == [("unproven", "no")]
    assert command(*asked, "--retry", "unproven", cwd=tmp_path, environment=environment).returncode == 1
    assert len(store.read().records) == 2


LONG = SUITE.replace("num_steps = 8", "num_steps = 100000").replace(
    '"base", "full", "lora", "galore", "lisa", "owlore"', '"base", "lisa"'
)
LONG = LONG[: LONG.index("[settings.full]")]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()  # a thread a device starts them
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


def wait_for(what: object, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for children in /proc")
def test_an_interrupt_is_recorded_and_exits_130(tmp_path: Path, model: str) -> None:
    (tmp_path / "tiny.toml").write_text(LONG.replace('"base", "lisa"', '"lisa"'))
    parent = start(tmp_path, "run", "--suite", "tiny.toml", "--model", model, "--offline", "--checkpoint-every", "5")
    checkpoints = tmp_path / "results" / "records" / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("*/step-*/state.json")))
    parent.send_signal(signal.SIGINT)
    output, errors = parent.communicate(timeout=60)
    assert parent.returncode == 130, errors
    assert "Traceback" not in errors
    assert "the same command does the rest" in output
    (record,) = Store(tmp_path / "results" / "records").read("tiny").records
    assert record.status == "interrupted"
    assert record.train is not None
    assert record.train.num_steps >= 5


def test_a_run_that_takes_too_long_is_ended_and_said_to_be(tmp_path: Path, model: str) -> None:
    (tmp_path / "tiny.toml").write_text(LONG.replace('"base", "lisa"', '"lisa"'))
    done = command("run", "--suite", "tiny.toml", "--model", model, "--offline", "--timeout", "20", cwd=tmp_path)
    assert done.returncode == 1
    (record,) = Store(tmp_path / "results" / "records").read("tiny").records
    assert (record.status, record.reason) == ("timed_out", "timed out after 20.0 s")


def test_a_folder_called_harness_where_it_is_started_is_not_imported(tmp_path: Path, model: str) -> None:
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    suite = SUITE.replace('"base", "full", "lora", "galore", "lisa", "owlore"', '"base"')
    (tmp_path / "tiny.toml").write_text(suite[: suite.index("[settings.full]")])
    done = subprocess.run(
        [Path(sys.executable).with_name("harness"), "run", "--suite", "tiny.toml", "--model", model, "--offline"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_step_that_the_ranks_cannot_share_out_is_refused_before_anything_is_loaded(
    tmp_path: Path, model: str
) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE.replace("ranking = false", "ranking = false\ngpus_per_run = 3"))
    chosen = ["--suite", "tiny.toml", "--model", model, "--label", "full"]
    done = command("run", *chosen, "--offline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = Store(tmp_path / "results" / "records").read("tiny").records
    assert (record.status, record.process, record.environment.num_ranks) == ("refused", None, 3)
    what_to_do = "set gradient_accumulation_steps to a multiple of 3"
    assert record.reason == f"3 ranks cannot share out the 2 micro-batches of a step evenly: {what_to_do}"
    assert record.prediction_error == record.reason
    assert "3 x " in command("show", "last", cwd=tmp_path).stdout
    for asked, to_do in (((), "0 to do"), (("--gpus-per-run", "1"), "1 to do")):
        assert to_do in command("status", *chosen, *asked, cwd=tmp_path).stdout


def test_a_refusal_is_an_outcome(tmp_path: Path, model: str) -> None:
    suite = textwrap.dedent(SUITE).replace('"base", "full", "lora", "galore", "lisa", "owlore"', '"lisa"')
    suite = suite[: suite.index("[settings.full]")] + "[settings.lisa]\nactive_layers = 40\n"
    (tmp_path / "tiny.toml").write_text(suite)
    done = command("run", "--suite", "tiny.toml", "--model", model, "--offline", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = Store(tmp_path / "results" / "records").read("tiny").records
    assert record.status == "refused"
    assert record.reason == "active_layers is 40, but the model has 4 blocks"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for children in /proc")
@pytest.mark.parametrize("victim", ["child", "parent"])
def test_a_kill_loses_nothing_and_the_same_command_does_the_rest(tmp_path: Path, model: str, victim: str) -> None:
    suite = SUITE.replace("num_steps = 8", "num_steps = 300")
    suite = suite.replace('"base", "full", "lora", "galore", "lisa", "owlore"', '"base", "owlore"')
    (tmp_path / "tiny.toml").write_text(
        suite[: suite.index("[settings.full]")] + suite[suite.index("[settings.owlore]") :]
    )
    store = Store(tmp_path / "results" / "records")
    arguments = ("run", "--suite", "tiny.toml", "--model", model, "--offline", "--checkpoint-every", "25")
    parent = start(tmp_path, *arguments)
    checkpoints = store.folder / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("*/step-50/state.json")))
    (child,) = children(parent.pid)
    os.kill(child if victim == "child" else parent.pid, signal.SIGKILL)
    _, errors = parent.communicate(timeout=60)
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])
    kept = store.read("tiny")
    assert kept.warnings == ()
    if victim == "child":
        assert parent.returncode == 1
        assert [record.status for record in kept.records] == ["ok", "failed"]
        assert "ended by SIGKILL" in str(kept.records[1].reason)
        assert "ended by SIGKILL" in errors
    else:
        assert [record.status for record in kept.records] == ["ok"]
    resumed = command(*arguments, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "1 of 2 runs skipped" in resumed.stdout
    undisturbed = command(*arguments, "--label", "owlore", "--results", "other", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    after = store.read("tiny")
    assert after.records[: len(kept.records)] == kept.records
    (ok,) = after.records[len(kept.records) :]
    (whole,) = Store(tmp_path / "other").read("tiny").records
    assert (ok.status, whole.status) == ("ok", "ok")
    assert ok.train is not None
    assert whole.train is not None
    assert ok.train.resumed_at_steps
    assert ok.train.curve.loss == whole.train.curve.loss
    assert ok.proof is not None
    assert whole.proof is not None
    assert ok.proof.block_checksums_after == whole.proof.block_checksums_after
    assert ok.proof.other_checksums_after == whole.proof.other_checksums_after
    assert [score.value for score in ok.scores] == [score.value for score in whole.scores]
    assert not list(checkpoints.iterdir())
