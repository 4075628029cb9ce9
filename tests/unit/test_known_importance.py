"""benchmarks/known_importance.py: what is planted is where it is said to be, and is what has to be trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import known_importance as importance  # noqa: E402
import known_importance_report as report  # noqa: E402
import known_importance_students as planting  # noqa: E402

ARMS = {arm.name: arm for arm in importance.ARMS}
STEPS = 12


@pytest.fixture(scope="module")
def students() -> dict[str, planting.Student]:
    torch.set_num_threads(1)
    return {student.kind: student for student in planting.students(1, planting.KINDS, STEPS)}


@pytest.mark.parametrize("kind", planting.KINDS)
def test_a_student_differs_from_its_teacher_in_the_planted_blocks_and_nowhere_else(
    students: dict[str, planting.Student], kind: str
) -> None:
    student = students[kind]
    assert len(student.planted) == planting.PLANTED
    before, after = student.teacher.state_dict(), student.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    found = {int(name.split(".")[2]) for name in changed if name.startswith("model.layers.")}
    assert found == set(student.planted)
    assert all(name.startswith("model.layers.") for name in changed)


def test_permuted_weights_keep_their_numbers_norms_and_singular_values(students: dict[str, planting.Student]) -> None:
    student = students["permuted"]
    block = student.planted[0]
    pairs = zip(
        planting.linear_layers(student.teacher.model.layers[block]),
        planting.linear_layers(student.model.model.layers[block]),
        strict=True,
    )
    moved = 0
    for before, after in pairs:
        moved += not torch.equal(before.weight, after.weight)
        assert torch.equal(before.weight.flatten().sort().values, after.weight.flatten().sort().values)
        spectra = [torch.linalg.svdvals(layer.weight) for layer in (before, after)]
        torch.testing.assert_close(*spectra, rtol=1e-4, atol=1e-5)
    assert moved == 2


def test_a_seed_gives_one_teacher_one_text_and_one_student_again() -> None:
    one, other = (next(planting.students(3, ["noise"], 1)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True))
    assert torch.equal(one.held_out[0].input_ids, other.held_out[0].input_ids)
    assert not torch.equal(one.held_out[0].input_ids[:8], one.batches[0].input_ids)


@pytest.mark.parametrize("kind", planting.KINDS)
def test_the_planted_blocks_are_what_has_to_be_trained(students: dict[str, planting.Student], kind: str) -> None:
    """As many others, trained as long on the same rows, end at a higher loss: this makes the importance known."""
    known, others = (importance.run_arm(ARMS[f"{which} blocks only"], students[kind]) for which in ("planted", "other"))
    assert (known["planted_share"], others["planted_share"]) == (1.0, 0.0)
    assert report.last_loss(known) < report.last_loss(others)


def test_arms_differ_in_their_law_alone(tmp_path: Path) -> None:
    laws = {"probability", "probability_file", "tau", "alpha_estimator", "alpha_mapping", "projected"}
    configs = {}
    for arm in importance.ARMS:
        if arm.label in importance.load_labels() and arm.label != "grass" and arm.name != "all blocks":
            configs[arm.name] = importance.method_of(arm, (0, 1), tmp_path).config.model_dump()
    alike = [{key: value for key, value in config.items() if key not in laws} for config in configs.values()]
    fields = set.intersection(*(set(config) for config in alike))
    assert all({key: config[key] for key in fields} == {key: alike[0][key] for key in fields} for config in alike)
    assert len({json.dumps({key: config.get(key) for key in laws}) for config in configs.values()}) == len(configs)


def test_mass_auc_and_recovered_share_by_hand() -> None:
    run: dict[str, Any] = {
        "planted": [0, 3],
        "probabilities": [0.4, 0.1, 0.2, 0.2, 0.1],
        "losses": {"0": 4.0, "10": 3.0, "5": 3.5},
        "floor": 2.0,
    }
    assert report.mass(run) == pytest.approx(0.6)
    # Six pairs: block 0 beats all three others; block 3 ties with one of them and beats two.
    assert report.auc(run) == pytest.approx(5.5 / 6)
    assert report.last_loss(run) == 3.0
    assert report.recovered(run) == pytest.approx(0.5)
    assert report.auc({**run, "probabilities": [0.2] * 5}) == 0.5


def test_the_page_is_made_from_the_results_that_lie_beside_it() -> None:
    results = json.loads((ROOT / "docs" / "known-importance.json").read_text())
    assert report.page(results) == (ROOT / "docs" / "known-importance.md").read_text()
    seeds = {run["seed"] for run in results["runs"]}
    assert len(results["runs"]) == len(seeds) * len(planting.KINDS) * len(results["arms"])
    assert results["settings"]["steps"] == planting.STEPS and results["settings"]["blocks"] == planting.BLOCKS
