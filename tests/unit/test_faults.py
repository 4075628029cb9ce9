"""Everything wrong with a file of settings is said at once, a line each, with its table and what is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.catalogue.devices import load_devices
from harness.catalogue.resolved import load_catalogue
from harness.errors import LONGEST_LINE, MOST_LINES, Faults, HarnessError, Refused
from harness.expansion import load_suite
from tests.unit.test_suite import TEXT


def faults_of(tmp_path: Path, text: str) -> list[str]:
    """Return the lines of a suite's message, the file's name taken off the first."""
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(HarnessError) as caught:
        load_suite(str(file))
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"{file}: ")
    assert all(line.startswith("  ") for line in rest)
    return [first.removeprefix(f"{file}: "), *(line.strip() for line in rest)]


def without(*keys: str) -> str:
    return "\n".join(line for line in TEXT.splitlines() if line.partition(" = ")[0] not in keys)


def test_every_key_that_is_missing_is_named_with_what_it_takes(tmp_path: Path) -> None:
    said = faults_of(tmp_path, without("version", "seeds", "prompt", "dtype", "batch_size", "tasks"))
    assert said == [
        "6 faults:",
        "lacks the setting 'version': expected a whole number above 0",
        "lacks the setting 'seeds': expected a list, each a whole number of at least 0, below 4,294,967,296",
        "[evaluation] lacks the setting 'tasks': expected a list, each a name",
        '[train] lacks the setting \'prompt\': expected one of "alpaca", "as_is", "chat", "conversation", "plain"',
        "[train] lacks the setting 'batch_size': expected a whole number above 0",
        '[train] lacks the setting \'dtype\': expected one of "bf16", "fp32"',
    ]


def test_missing_unknown_and_wrong_keys_of_every_table_are_in_one_message(tmp_path: Path) -> None:
    text = TEXT.replace("version = 1", 'verson = 1\nranking = "perhaps"').replace("batch_size = 2", 'batch_size = "x"')
    text = text.replace('rows = "packaged-scored"', 'rows = "packed"\nlimits = 3').replace('data = "rows"', "")
    own = '[base_models.mine]\nfolder = 3\ngatd = true\n[[ladder]]\nmodels = []\nlabels = ["full"]\n'
    said = faults_of(tmp_path, text + own)
    assert said[0] == f"{len(said) - 1} faults:"
    assert {
        "has no setting 'verson'; did you mean 'version'?",
        "[evaluation] has no setting 'limits'; did you mean 'limit'?",
        "[base_models.mine] has no setting 'gatd'; did you mean 'gated'?",
        "[base_models.mine] folder is 3: expected a path",
        "ranking is 'perhaps': expected true or false",
        '[evaluation] rows is \'packed\': expected one of "hub", "own", "packaged", "packaged-scored"',
        "[ladder.0] models is []: expected a list of at least 1, each a name",
        "[train] lacks the setting 'data': expected a name",
        "[train] batch_size is 'x': expected a whole number above 0",
    } <= set(said)
    assert not any("'version':" in line for line in said)


def test_what_is_wrong_with_labels_is_gathered_and_said_once(tmp_path: Path) -> None:
    text = TEXT.replace("batch_size = 2", "batch_size = 0").replace("[evaluation]", "[evaluation]\nnum_fewshot = 1", 1)
    more = "[settings.galore]\nrank = 0\nrnak = 3\nscale = 'x'\n[sweep.full]\nweight_decay = [0.1, -1.0, -2.0]\n"
    text = text.replace('tasks = ["piqa"]', 'tasks = ["piqaa"]')
    assert faults_of(tmp_path, text + more) == [
        "7 faults:",
        "[evaluation]: there are no packaged rows of task 'piqaa'; did you mean 'piqa'?",
        "[train] batch_size is 0: expected a whole number above 0",
        "label 'full' (method full) weight_decay is -1.0: expected a number of at least 0",
        "label 'full' (method full) weight_decay is -2.0: expected a number of at least 0",
        "[settings.galore]: label 'galore' (method galore) has no setting 'rnak'; did you mean 'rank'?",
        "label 'galore' (method galore) rank is 0: expected a whole number above 0",
        "label 'galore' (method galore) scale is 'x': expected a number above 0",
    ]


def test_a_setting_that_every_label_has_is_not_missing_in_train(tmp_path: Path) -> None:
    """LoRA's entry has a learning rate; full fine-tuning's has none."""
    lora = without("version", "learning_rate").replace('"full", "galore"', '"lora"')
    assert faults_of(tmp_path, lora) == ["lacks the setting 'version'"]
    both = faults_of(tmp_path, lora.replace('"lora"', '"lora", "full"'))
    assert both[1:] == [
        "lacks the setting 'version': expected a whole number above 0",
        "[train] lacks the setting 'learning_rate': expected a number above 0",
    ]


def test_a_fault_alone_keeps_its_kind_and_its_sentence(tmp_path: Path) -> None:
    text = TEXT.replace("learning_rate = 1e-3", "learning_rate = 1e-3\nmax_grad_norm = 1.0")
    (tmp_path / "own.toml").write_text(f"{text}[settings.galore]\nupdate_in_backward = true\n")
    with pytest.raises(Refused):
        load_suite(str(tmp_path / "own.toml"))


def test_a_catalogue_says_all_of_its_faults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[base_models.a]\nfolder = 1\n[datasets.b]\nlayout = "rows"\nfile = "x"\n[methods.c]\nsummry = "x"\n'
    )
    with pytest.raises(Faults) as caught:
        load_catalogue(file)
    said = str(caught.value)
    assert all(part in said for part in ("[base_models.a] folder is 1", "[datasets.b] layout is 'rows'", "'summry'"))


def test_an_entry_of_a_packaged_kind_says_all_of_its_faults(tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text("[mine]\nsummary = 'x'\nnames = []\nmemory_gb = -1\n")
    with pytest.raises(Faults) as caught:
        load_devices(tmp_path / "devices.toml")
    assert len(caught.value.lines) == 4
    assert "[mine]: 4 faults:" in str(caught.value)
    assert "lacks the setting 'fp32_flops': expected a number above 0" in caught.value.lines


def test_no_number_of_faults_and_no_length_of_a_name_makes_a_message_too_long(tmp_path: Path) -> None:
    said = faults_of(tmp_path, "".join(f"{'k' * 3000}{i} = 1\n" for i in range(200)))
    assert len(said) == MOST_LINES + 2
    assert max(map(len, said)) <= LONGEST_LINE + 1
    assert said[-1].startswith("and ")


@pytest.mark.parametrize("train", ["3", "[]", '"x"', "{ data = 1, prompt = [], dtype = {} }"])
@pytest.mark.parametrize("labels", ["3", "[3, {}]", '"full"', '["full", "nothing"]'])
def test_nonsense_in_place_of_tables_and_lists_is_faults_too(tmp_path: Path, train: str, labels: str) -> None:
    assert faults_of(
        tmp_path, f"name = 'x'\nlabels = {labels}\ntrain = {train}\nsettings = 3\nsweep = {{ full = 1 }}\n"
    )
