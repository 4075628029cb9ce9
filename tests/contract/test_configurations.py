"""The named configurations and the refusals that show before a model is loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from harness.catalogue.labels import load_labels
from harness.errors import Refused
from harness.method import METHODS
from harness.settings import TrainSettings, later_settings

NAMED = {
    "owlore", "ows-lowrank", "owlore-code", "ows-fullrank", "lisa", "lisa-paper", "lisa-d", "lisa-matched",
    "galore", "galore-layerwise", "lora", "lora-fa", "dora", "ist", "full", "base",
    "apollo", "apollo-mini", "fira", "ows-apollo",
}  # fmt: skip


def test_every_published_variant_has_a_label():
    assert set(load_labels()) >= NAMED


def test_every_setting_is_explicit_and_has_a_source(named):
    entry = load_labels()[named]
    config = METHODS.get(entry.method).Config
    checked = config.model_validate({k: v for k, v in entry.values().items() if k in config.model_fields})
    implicit = set(config.model_fields) - set(entry.values())
    assert all(getattr(checked, key) == later_settings(config).get(key) for key in implicit), implicit
    assert set(entry.values()) <= set(config.model_fields) | set(TrainSettings.model_fields)
    assert set(entry.sources().values()) <= {"paper", "code", "ours"}


def test_what_we_chose_says_why(named):
    for key, setting in load_labels()[named].settings.items():
        assert setting["source"] != "ours" or setting.get("note"), f"{named}.{key}"


def test_the_labels_say_what_the_sources_say():
    values = {label: entry.values() for label, entry in load_labels().items()}
    owlore, code = values["owlore"], values["owlore-code"]
    assert (owlore["active_layers"], owlore["rank"], owlore["update_gap"], owlore["tau"]) == (5, 128, 200, 13.0)
    assert (code["rank"], code["update_gap"], code["scale"], code["state_policy"]) == (256, 100, 1.0, "keep")
    assert (code["update_gap_counter"], code["projector"], code["interval_steps"]) == ("parameter", "svd", 50)
    assert values["ows-lowrank"] == owlore
    assert values["ows-fullrank"]["projected"] is False
    assert (values["lisa-paper"]["sampling"], values["lisa-paper"]["reset_each_period"]) == ("bernoulli", True)
    assert values["lisa-d"]["probability"] == "decrease"
    for key in ("active_layers", "interval_steps"):
        assert values["lisa-matched"][key] == owlore[key]
    assert values["galore-layerwise"]["update_in_backward"] is True
    assert values["lora-fa"]["lora_fa"] is True and values["dora"]["use_dora"] is True


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("full", None),
        ("lora", None),
        ("galore", 200),
        ("lisa", 20),
        ("owlore", 200),
        ("owlore-code", 100),
        ("ist", 10),
        ("base", None),
    ],
)
def test_a_cycle_holds_a_resample_and_a_refresh(name, steps):
    entry = load_labels()[name]
    method = METHODS.get(entry.method)
    config = {key: value for key, value in entry.values().items() if key in method.Config.model_fields}
    assert method(method.Config.model_validate(config)).cycle_steps() == steps


BAD = [
    ("owlore", {"probability": "file"}, "probability_file go together"),
    ("owlore", {"probability_file": "x.txt"}, "probability_file go together"),
    ("owlore", {"tau": None}, "needs tau"),
    ("owlore", {"rank": 0}, "greater than 0"),
    ("owlore", {"rank": None}, "projection needs rank"),
    ("owlore", {"refresh_on_activation": None}, "needs refresh_on_activation"),
    ("owlore", {"projected": False}, "projected = false takes no rank"),
    ("owlore", {"state_policy": "drop"}, "resets the step counter"),
    ("owlore", {"active_layers": -1}, "greater than or equal to 0"),
    ("galore", {"scale": None}, "projection needs scale"),
    ("galore", {"scale": -1.0}, "greater than 0"),
    ("lisa-paper", {"legacy_draws_seed": 111}, "without replacement"),
    ("lisa-paper", {"train_embedding": False, "train_head": False, "train_final_norm": False}, "every block frozen"),
    ("full", {"master_weights": True, "stochastic_rounding": True}, "exclude each other"),
    ("full", {"betas": (0.9, 1.0)}, "less than 1"),
    ("full", {"eps": 0.0}, "greater than 0"),
    ("full", {"rank": 3}, "extra"),
    ("dora", {"lora_fa": True}, "exclude each other"),
    ("lora", {"lora_dropout": 1.0}, "less than 1"),
    ("lora", {"target_modules": []}, "at least 1"),
]


@pytest.mark.parametrize(("name", "changes", "sentence"), BAD)
def test_settings_that_do_not_fit_are_errors(tiny, name, changes, sentence):
    method, values = tiny.settings_of(name, **changes)
    with pytest.raises(ValidationError, match=sentence):
        method.Config.model_validate(values)


def test_updates_in_the_backward_pass_with_clipping_are_refused(tiny, with_adamw):
    method, values = tiny.settings_of(with_adamw, update_in_backward=True)
    config = method.Config.model_validate(values)
    method.check(config, tiny.train_settings())
    with pytest.raises(Refused, match=r"max_grad_norm = 1.0 cannot be applied"):
        method.check(config, tiny.train_settings(max_grad_norm=1.0))


@pytest.mark.parametrize("option", ["master_weights", "stochastic_rounding"])
def test_remedies_for_bf16_are_refused_for_fp32_weights(tiny, with_adamw, option):
    method, values = tiny.settings_of(with_adamw, **{option: True})
    config = method.Config.model_validate(values)
    method.check(config, tiny.train_settings(dtype="bf16"))
    with pytest.raises(Refused, match=f"{option} = true has no effect on fp32 weights"):
        method.check(config, tiny.train_settings())


def test_a_model_without_the_target_modules_is_refused(tiny):
    with pytest.raises(Refused, match="no layer called c_attn"):
        tiny.start("lora", target_modules=["c_attn"])


BLOCKED = """
import sys, json
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "peft", "transformers", "numpy"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from harness.method import METHODS
from harness.catalogue.labels import load_labels
checked = []
for label, entry in load_labels().items():
    method = METHODS.get(entry.method)
    config = method.Config.model_validate({k: v for k, v in entry.values().items() if k in method.Config.model_fields})
    method.check(config, None)
    method(config).block_scores_needed()
    checked.append(label)
print(json.dumps(checked))
"""


def test_methods_are_listed_and_checked_without_torch():
    done = subprocess.run([sys.executable, "-P", "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == set(load_labels())
