"""The doors of the command line: what each hands on, what they load, and the commands without any command line."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

from harness import calibration_log, cli
from harness.cli import COMMANDS, calibrate, main
from harness.commands.requests import (
    AssetsRequest,
    BundleOptions,
    HowToRun,
    JudgeRequest,
    SelectionRequest,
    TasksRequest,
    WhereToRun,
)
from harness.commands.run import run
from harness.commands.status import status
from harness.record import OUTCOMES
from harness.record_training import Horizon
from harness.report.formats import FORMATS

SUITE = ["--suite", "s"]
CHOICE = [*SUITE, "--model", "m=p", "--model", "n", "--label", "l", "--data", "d=f", "--catalogue", "c.toml"]
OWN = ["--include-path", "t", "--include-path", "u", "--trust-tasks", "u"]
THEIRS = TasksRequest(include=("t", "u"), trusted=("u",))
CHOICE += OWN
CHOSEN: dict[str, Any] = {
    "suite": "s",
    "models": ("m=p", "n"),
    "labels": ("l",),
    "data": ("d=f",),
    "catalogue": Path("c.toml"),
    "tasks": THEIRS,
}
ASSETS = ["--offline", "--wheel", "w"]
BROUGHT = AssetsRequest(offline=True, wheels=("w",))
RESULTS = ["--results", "r"]
HOW = [
    *("--retry", "ok", "--retry", "diverged", "--any-environment", "--checkpoint-every", "7", "--timeout", "8"),
    *("--budget-seconds", "9", "--devices", "0, 1", "--busy", "skip", "--executor", "ray", "--ray-address", "a"),
    *("--gpus-per-run", "2", "--cpus-per-run", "3", "--slurm", "qos=long", "--max-failures", "2", "--dry-run"),
    *("--log", "tensorboard", "--log", "m:C"),
]
ASKED = {
    "retry": ("ok", "diverged"),
    "any_environment": True,
    "checkpoint_every": 7,
    "timeout_seconds": 8.0,
    "budget_seconds": 9.0,
    "max_failures": 2,
    "dry_run": True,
    "log": ("tensorboard", "m:C"),
    "where": WhereToRun(
        executor="ray",
        devices=("0", "1"),
        gpus_per_run=2,
        busy="skip",
        ray_address="a",
        cpus_per_run=3,
        slurm=("qos=long",),
    ),
}
HANDED_ON: list[tuple[str, list[str], list[Any], dict[str, Any]]] = [
    (
        "list.list_kind",
        ["models", "--catalogue", "c.toml", "--json", *OWN],
        ["models", None],
        {"catalogue": Path("c.toml"), "tasks": THEIRS, "in_json": True},
    ),
    (
        "list.list_kind",
        ["models", "m"],
        ["models", "m"],
        {"catalogue": None, "tasks": TasksRequest(), "in_json": False},
    ),
    (
        "prepare.prepare_suite",
        [
            *(*CHOICE, *ASSETS, "--bundle", "b", "--python", "3.12", "--platform", "t"),
            *("--without", "torch", "--extra", "gpu", "--part-size", "60MiB"),
        ],
        [
            SelectionRequest(**CHOSEN),
            BROUGHT,
            BundleOptions(
                folder="b", python="3.12", platform="t", without=("torch",), extras=("gpu",), part_size="60MiB"
            ),
        ],
        {},
    ),
    ("new.new", ["suite", "n", "--out", "o"], ["suite", "n"], {"out": Path("o")}),
    ("new.new", ["task", "n"], ["task", "n"], {"out": Path()}),
    ("check.check", ["s", *CHOICE[2:], "--json"], [SelectionRequest(**CHOSEN)], {"in_json": True}),
    ("check.check", ["s"], [SelectionRequest(suite="s")], {"in_json": False}),
    ("check.print_schema", ["--schema", "suite"], ["suite"], {}),
    (
        "doctor.diagnose",
        [*CHOICE, *RESULTS, "--json"],
        [SelectionRequest(**CHOSEN)],
        {"results": Path("r"), "in_json": True},
    ),
    ("doctor.diagnose", [], [None], {"results": Path("results/records"), "in_json": False}),
    (
        "layers.show_layers",
        [
            *(*SUITE, "--model", "m=p", "--label", "l", "--tau", "2", "--data", "d=f", "--catalogue", "c.toml"),
            *(*OWN, *ASSETS, "--beside", "alpha_hill", "--json", "--out", "o.png"),
        ],
        [SelectionRequest(**{**CHOSEN, "models": ("m=p",)}, overrides=("tau=2.0",)), BROUGHT],
        {"beside": ("alpha_hill",), "in_json": True, "plot": "o.png"},
    ),
    (
        "layers.show_layers",
        ["--model", "m"],
        [SelectionRequest(suite="quickstart", models=("m",)), AssetsRequest()],
        {"beside": (), "in_json": False, "plot": None},
    ),
    (
        "show_data.show_data",
        [*CHOICE, "--set", "k=v", "--n", "5", "--seed", "0", "--seed", "4", *ASSETS, "--json"],
        [SelectionRequest(**CHOSEN, seeds=(0, 4), overrides=("k=v",)), BROUGHT],
        {"num_examples": 5, "in_json": True},
    ),
    (
        "plan.plan",
        [
            *(*CHOICE, "--set", "k=v", "--seed", "4", "--max-steps", "5", "--batch-size", "6", "--seq-len", "7"),
            *("--dtype", "fp32", "--checkpointing", "off", "--horizon", "first", "--device", "dev"),
            *("--device-profile", "f", "--device-memory", "24GiB", "--mfu", "0.5", "--gpus", "2", "--fit", "--json"),
        ],
        [
            SelectionRequest(
                **CHOSEN,
                seeds=(4,),
                overrides=("k=v", "batch_size=6", "sequence_length=7", "dtype=fp32", "gradient_checkpointing=false"),
                max_steps=5,
            )
        ],
        {
            "horizon": "first",
            "device_name": "dev",
            "device_profile": "f",
            "device_memory": "24GiB",
            "mfu": 0.5,
            "gpus": 2,
            "fit": True,
            "in_json": True,
        },
    ),
    (
        "plan.plan",
        ["--model", "m", "--label", "l", "--checkpointing", "on"],
        [
            SelectionRequest(
                suite="commonsense", models=("m",), labels=("l",), overrides=("gradient_checkpointing=true",)
            )
        ],
        {
            "horizon": "run",
            "device_name": None,
            "device_profile": None,
            "device_memory": None,
            "mfu": None,
            "gpus": None,
            "fit": False,
            "in_json": False,
        },
    ),
    (
        "run.run",
        [
            *(*CHOICE, *ASSETS, *RESULTS, "--seed", "4", "--set", "k=v", "--limit", "5", "--max-steps", "6"),
            *("--repeat", "2", "--keep-weights", *HOW),
        ],
        [
            SelectionRequest(**CHOSEN, seeds=(4,), overrides=("k=v",), limit=5, max_steps=6),
            HowToRun(**ASKED, repeat=2, keep_weights=True),
            BROUGHT,
        ],
        {"results": Path("r")},
    ),
    (
        "run.run",
        SUITE,
        [SelectionRequest(suite="s"), HowToRun(), AssetsRequest()],
        {"results": Path("results/records")},
    ),
    (
        "tune.tune",
        [*CHOICE, *ASSETS, *RESULTS, "--out", "o.toml", *HOW],
        [SelectionRequest(**CHOSEN), HowToRun(**ASKED), BROUGHT],
        {"results": Path("r"), "out": Path("o.toml")},
    ),
    (
        "evaluate.evaluate",
        [
            *OWN,
            *("abc", "--benchmark", "t", "--benchmark", "u", "--limit", "5", "--catalogue", "c", "--model", "m=p"),
            *(*SUITE, *RESULTS, *ASSETS, "--gpus-per-run", "4"),
        ],
        ["abc", ["t", "u"], BROUGHT],
        {
            "results": Path("r"),
            "suite": "s",
            "limit": 5,
            "catalogue": Path("c"),
            "own": THEIRS,
            "model": "m=p",
            "gpus_per_run": 4,
        },
    ),
    (
        "evaluate.evaluate",
        ["abc", *RESULTS, *ASSETS],
        ["abc", (), BROUGHT],
        {
            "results": Path("r"),
            "suite": None,
            "limit": None,
            "catalogue": None,
            "own": TasksRequest(),
            "model": None,
            "gpus_per_run": None,
        },
    ),
    (
        "judge.judge_suite",
        [
            *(*SUITE, "--judge", "j", "--judge-model", "jm", "--key-variable", "K", "--run", "a", "--run", "b"),
            *("--references", "g", "--repeats", "2", "--max-tokens", "3", "--requests-per-minute", "4"),
            *("--concurrency", "5", "--timeout", "6", "--max-retries", "0", "--data", "d=f"),
            *("--catalogue", "c", *RESULTS, *ASSETS, "--dry-run"),
        ],
        [
            "s",
            JudgeRequest(
                judge="j",
                judge_model="jm",
                key_variable="K",
                references="g",
                repeats=2,
                max_tokens=3,
                requests_per_minute=4.0,
                concurrency=5,
                timeout_seconds=6.0,
                max_retries=0,
            ),
            BROUGHT,
        ],
        {"results": Path("r"), "run_ids": ("a", "b"), "data": ("d=f",), "catalogue": Path("c"), "dry_run": True},
    ),
    (
        "judge.judge_suite",
        [*SUITE, "--judge", "j", "--judge-model", "jm"],
        ["s", JudgeRequest(judge="j", judge_model="jm"), AssetsRequest()],
        {"results": Path("results/records"), "run_ids": (), "data": (), "catalogue": None, "dry_run": False},
    ),
    (
        "calibrate.calibrate",
        ["--budget-seconds", "9", "--part", "sharded", "--gpus", "2", "--smoke", "--again", *RESULTS],
        [],
        {"results": Path("r"), "budget_seconds": 9.0, "groups": ["sharded"], "smoke": True, "again": True, "gpus": 2},
    ),
    (
        "status.status",
        [*CHOICE, *RESULTS, "--any-environment", "--gpus-per-run", "2", "--json"],
        [SelectionRequest(**CHOSEN)],
        {"results": Path("r"), "any_environment": True, "gpus_per_run": 2, "in_json": True},
    ),
    ("paper.paper", ["show", "t", *RESULTS, "--format", "csv"], ["show", "t"], {"results": Path("r"), "style": "csv"}),
    (
        "show.show",
        ["abc", *SUITE, *RESULTS, "--json", "--plot", "p.png"],
        ["abc"],
        {"results": Path("r"), "suite": "s", "in_json": True, "plot": "p.png"},
    ),
    (
        "report.report",
        [*SUITE, *OWN, "--catalogue", "c", *RESULTS, "--out", "o", "--format", "md", "--format", "csv"],
        ["s"],
        {"results": Path("r"), "out": Path("o"), "formats": ["md", "csv"], "catalogue": Path("c"), "tasks": THEIRS},
    ),
    (
        "report.report",
        SUITE,
        ["s"],
        {
            "results": Path("results/records"),
            "out": None,
            "formats": FORMATS,
            "catalogue": None,
            "tasks": TasksRequest(),
        },
    ),
    (
        "compare.compare",
        ["a", "b", "--fail-on", "f", "--level", "0.1", "--format", "json", "--write", "junit=gate.xml"],
        ["a", "b"],
        {"tolerances": "f", "level": 0.1, "output": "json", "files": [("junit", Path("gate.xml"))]},
    ),
    (
        "history.show_history",
        [*SUITE, "--metric", "score", "--model", "m", "--label", "l", *RESULTS, "--plot", "p.png", "--json"],
        ["s", "score"],
        {"results": Path("r"), "models": ["m"], "labels": ("l",), "in_json": True, "plot": "p.png"},
    ),
]


@pytest.mark.parametrize(("function", "words", "given", "named"), HANDED_ON, ids=[entry[0] for entry in HANDED_ON])
def test_a_door_hands_on_what_is_given_and_the_defaults_of_the_rest(
    function: str, words: list[str], given: list[Any], named: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = function.split(".")
    real = getattr(import_module(f"harness.commands.{module}"), name)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def called(*args: Any, **kwargs: Any) -> int:
        inspect.signature(real).bind(*args, **kwargs)
        calls.append((args, kwargs))
        return 42

    monkeypatch.setattr(f"harness.commands.{function}", called)
    assert main([module.replace("_", "-"), *words]) == 42
    assert calls == [(tuple(given), named)]


def test_every_command_has_a_door_and_every_door_is_tried_above() -> None:
    folder = Path(cli.__file__).parent
    doors = {file.stem.replace("_", "-") for file in folder.glob("[a-z]*.py")}
    assert doors == set(COMMANDS) == {entry[0].split(".")[0].replace("_", "-") for entry in HANDED_ON}


LOADED = """
import sys
from harness.cli import COMMANDS, build_parser
build_parser("")
assert not {f"harness.cli.{name.replace('-', '_')}" for name in COMMANDS} & set(sys.modules)
for name in COMMANDS:
    build_parser(name)
    assert f"harness.cli.{name.replace('-', '_')}" in sys.modules
print(*sys.modules)
"""


def test_the_help_of_every_command_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "harness.commands.requests" in loaded
    assert not loaded & {"pydantic", "rich", "numpy", "torch", "filelock", "harness.record", "harness.suite"}
    assert {name for name in loaded if name.startswith("harness.commands.")} == {"harness.commands.requests"}


def test_choices_are_those_of_the_types() -> None:
    parser = cli.build_parser("plan")
    for horizon in get_args(Horizon):
        assert parser.parse_args(["plan", "--horizon", horizon]).horizon == horizon
    parser = cli.build_parser("run")
    for outcome in sorted(OUTCOMES):
        assert parser.parse_args(["run", *SUITE, "--retry", outcome]).retry == [outcome]
    with pytest.raises(SystemExit):
        parser.parse_args(["run", *SUITE, "--retry", "interrupted"])
    assert calibrate.GROUPS == calibration_log.GROUPS


def test_a_program_lists_runs_without_a_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = SelectionRequest(suite="quickstart", labels=("full", "lora"), seeds=(1, 2), overrides=("num_steps=3",))
    assert run(chosen, HowToRun(dry_run=True), AssetsRequest(offline=True), results=tmp_path) == 0
    told = capsys.readouterr().out
    assert "4 runs of suite 'quickstart'" in told
    words = ["--label", "full", "--label", "lora", "--seed", "1", "--seed", "2", "--set", "num_steps=3"]
    assert main(["run", "--suite", "quickstart", *words, "--dry-run", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == told
    assert not list(tmp_path.iterdir())


def test_a_program_asks_what_is_to_do_without_a_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = SelectionRequest(suite="quickstart", labels=("full",))
    assert status(chosen, results=tmp_path, any_environment=True, in_json=True) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["label"], row["state"], row["to_do"]) == ("full", "not run", "yes")
