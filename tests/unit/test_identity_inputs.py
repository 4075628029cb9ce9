"""Whatever can change a result makes another run, and what cannot makes none: each input edited by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.commands._selection import select
from harness.commands.requests import SelectionRequest
from harness.conversation import find_template
from harness.errors import HarnessError
from harness.method import METHODS
from harness.outside import check_outside
from harness.spec import RunSpec
from tests.plug_ins import METHOD, install, look_again

SUITE = """
name = "own"
version = 1
protocol = "test"
description = ""
models = ["mine"]
labels = ["base", "sampled", "scored", "plugged"]
seeds = [1]
conversation = { mine = "their" }
[base_models.mine]
architecture = "LlamaForCausalLM"
folder = "weights"
[datasets.rows]
layout = "instructions"
file = "rows.jsonl"
licence = "of my own"
[datasets.passages]
layout = "text"
file = "passages.jsonl"
[train]
data = "rows"
prompt = "conversation"
loss_on = "answer"
packing = false
sequence_length = 64
batch_size = 2
num_steps = 4
learning_rate = 1e-3
lr_scheduler = "linear"
dtype = "fp32"
[evaluation]
tasks = []
[calibration]
data = "passages"
num_samples = 2
sequence_length = 8
[general]
data = "passages"
num_samples = 2
sequence_length = 8
[methods.sampled]
method = "lisa"
alias_of = "lisa"
[methods.scored]
method = "owlore"
alias_of = "ows-fullrank"
[methods.plugged]
method = "plugged"
[methods.plugged.settings]
SETTINGS
[settings.sampled]
probability = "file"
probability_file = "PLACE/shares.txt"
"""
FULL = {
    "adamw_rule": '"torch"',
    "betas": "[0.9, 0.95]",
    "eps": "1e-8",
    "weight_decay": "0.1",
    "moment_dtype": '"fp32"',
    "master_weights": "false",
    "stochastic_rounding": "false",
    "update_in_backward": "false",
}
TEMPLATES = """
class Conversation:
    name, stop_str, stop_token_ids, roles = "their", None, None, ("USER", "BOT")
    def __init__(self, turns=()):
        self.turns = list(turns)
    def copy(self):
        return Conversation(self.turns)
    def append_message(self, role, text):
        self.turns.append((role, text))
    def get_prompt(self):
        return "A chat. " + " ".join(f"{role}: {text or ''}" for role, text in self.turns)
conv_templates = {"their": Conversation()}
"""
OTHERS = {"base", "sampled", "scored", "plugged"}
"""All labels."""


class Place:
    """A folder with a suite and everything that it names, and the runs that this makes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        settings = "\n".join(f'{key} = {{ value = {value}, source = "ours" }}' for key, value in FULL.items())
        self.write("own.toml", SUITE.replace("PLACE", str(folder)).replace("SETTINGS", settings))
        for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "merges.txt"):
            self.write(f"weights/{name}", "{}")
        self.write("weights/README.md", "about it")
        self.write("rows.jsonl", '{"instruction": "a", "output": "b", "text": "c"}\n')
        self.write("passages.jsonl", '{"text": "c"}\n')
        self.write("shares.txt", "1 2 3 4")
        self.plug_in("1.0", "a plug-in")
        self.templates("0.1", TEMPLATES)
        monkeypatch.syspath_prepend(str(folder / "site"))

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def plug_in(self, version: str, summary: str) -> None:
        text = METHOD.format(summary=summary)
        install(self.folder / "site", "plugmeth", version, "plugmeth.py", text, entry="plugged = plugmeth:PlugIn")

    def templates(self, version: str, text: str) -> None:
        self.write("site/fastchat/__init__.py", "")
        install(self.folder / "site", "fschat", version, "fastchat/conversation.py", text)

    def specs(self) -> dict[str, RunSpec]:
        look_again(self._monkeypatch, "plugmeth", "fastchat")
        selection = select(SelectionRequest(suite=str(self.folder / "own.toml")))
        return {spec.label: spec for spec in selection.specs}

    def ids(self) -> dict[str, str]:
        return {label: spec.run_id for label, spec in self.specs().items()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    METHODS.names()
    with monkeypatch.context() as patch:
        yield Place(tmp_path / "own", patch)
    for name in ("plugmeth", "fastchat", "fastchat.conversation"):
        sys.modules.pop(name, None)


TRAINED = OTHERS - {"base"}
CHANGES: dict[str, tuple[Callable[[Place], object], set[str]]] = {
    "the content of probability_file": (lambda place: place.write("shares.txt", "4 3 2 1"), {"sampled"}),
    "the version of a plug-in": (lambda place: place.plug_in("2.0", "a plug-in"), {"plugged"}),
    "the source of a plug-in": (lambda place: place.plug_in("1.0", "another"), {"plugged"}),
    "the version of FastChat": (lambda place: place.templates("0.2", TEMPLATES), TRAINED),
    "a template of FastChat's": (
        lambda place: place.templates("0.1", TEMPLATES.replace("A chat.", "Talk.")),
        TRAINED,
    ),
    "the weights": (lambda place: place.write("weights/model.safetensors", "[]"), OTHERS),
    "the tokenizer": (lambda place: place.write("weights/tokenizer.json", "[]"), OTHERS),
    "another file of the tokenizer": (lambda place: place.write("weights/merges.txt", "a b"), OTHERS),
    "the generation settings": (lambda place: place.write("weights/generation_config.json", "[]"), OTHERS),
    "a chat template": (lambda place: place.write("weights/chat_template.jinja", "x"), OTHERS),
    "training rows": (lambda place: place.write("rows.jsonl", '{"instruction": "a", "output": "z"}\n'), TRAINED),
    "the layout of training rows": (
        lambda place: place.edit("own.toml", 'layout = "instructions"', 'layout = "text"'),
        TRAINED,
    ),
    "calibration and general text": (lambda place: place.write("passages.jsonl", '{"text": "d"}\n'), TRAINED),
    "where the blocks are": (
        lambda place: place.edit("own.toml", 'folder = "weights"', 'folder = "weights"\nblocks = "model.h"'),
        OTHERS,
    ),
}
NO_CHANGES: dict[str, Callable[[Place], object]] = {
    "nothing": lambda place: None,
    "a README beside the weights": lambda place: place.write("weights/README.md", "more"),
    "a hidden file beside the weights": lambda place: place.write("weights/.gitattributes", "x"),
    "an unused data set of the suite": lambda place: place.edit(
        "own.toml", "[train]", '[datasets.more]\nlayout = "text"\nfile = "more.jsonl"\n[train]'
    ),
    "an unused label of the suite": lambda place: place.edit(
        "own.toml", "[methods.sampled]", '[methods.more]\nmethod = "lisa"\nalias_of = "lisa"\n[methods.sampled]'
    ),
    "a licence": lambda place: place.edit("own.toml", "of my own", "of theirs"),
    "the description": lambda place: place.edit("own.toml", 'description = ""', 'description = "more"'),
    "a file that is moved": lambda place: (
        (place.folder / "shares.txt").rename(place.folder / "moved.txt"),
        (place.folder / "rows.jsonl").rename(place.folder / "moved.jsonl"),
        (place.folder / "weights").rename(place.folder / "elsewhere"),
        place.edit("own.toml", "shares.txt", "moved.txt"),
        place.edit("own.toml", '"rows.jsonl"', '"moved.jsonl"'),
        place.edit("own.toml", 'folder = "weights"', 'folder = "elsewhere"'),
    ),
    "another plug-in": lambda place: install(
        place.folder / "site", "more", "1.0", "more.py", METHOD, entry="more = more:PlugIn"
    ),
    "another template": lambda place: place.templates("0.1", TEMPLATES + 'conv_templates["x"] = Conversation()\n'),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_can_change_a_result_makes_another_run(place: Place, what: str) -> None:
    before = place.ids()
    change, labels = CHANGES[what]
    change(place)
    after = place.ids()
    assert {label for label in before if before[label] != after[label]} == labels


@pytest.mark.parametrize("what", NO_CHANGES)
def test_what_cannot_change_a_result_makes_no_other_run(place: Place, what: str) -> None:
    before = place.ids()
    NO_CHANGES[what](place)
    assert place.ids() == before


def test_a_file_that_no_draw_reads_is_of_no_account(place: Place) -> None:
    place.edit("own.toml", "[settings.sampled]", '[settings.sampled]\nsampling = "tour"')
    before = place.specs()["sampled"]
    place.write("shares.txt", "4 3 2 1")
    assert place.specs()["sampled"].run_id == before.run_id
    assert before.files is None


def test_a_record_says_which_file_and_which_code(place: Place) -> None:
    specs = place.specs()
    assert set(specs["sampled"].files or {}) == {"probability_file"}
    assert specs["sampled"].asked()["config"]["probability_file"].startswith("sha256:")
    code = specs["plugged"].code or {}
    assert code["method plugged"].startswith("plugmeth 1.0, ")
    assert code["template their"].startswith("fschat 0.1, ")
    assert specs["base"].code is None
    assert find_template("their").render(["x"]) == "A chat. USER: x BOT: "


@pytest.mark.parametrize(
    ("change", "label", "said"),
    [
        ("the content of probability_file", "sampled", "the file that probability_file names has changed since"),
        ("the version of a plug-in", "plugged", "method plugged is plugmeth 2.0"),
        ("a template of FastChat's", "scored", "template their is fschat 0.1"),
    ],
)
def test_what_changed_since_a_run_was_laid_out_is_not_run(place: Place, change: str, label: str, said: str) -> None:
    spec = place.specs()[label]
    check_outside(spec)
    CHANGES[change][0](place)
    place.specs()
    with pytest.raises(HarnessError, match=said):
        check_outside(spec)
