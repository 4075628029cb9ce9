"""The spec of one run: everything that was asked, and the identity that this gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import JsonValue, PositiveInt, model_validator

from harness.settings import (
    CalibrationSettings,
    Dtype,
    EvaluationSettings,
    GeneralTextSettings,
    Later,
    Name,
    Seed,
    Strict,
    TrainSettings,
    later_settings,
)

FIRST_LATER_SETTINGS: dict[str, JsonValue] = {
    "loss_chunk_columns": None,
    "checkpoint_granularity": "block",
    "offload_checkpoints": False,
    "update_slice_elements": None,
    "two_pass_clipping": False,
    "project_vocabulary": False,
    "validation_every_steps": None,
    "mt_bench": None,
    "subtasks": None,
}
"""What is left out of the config of a spec that does not say itself what came later. Frozen: such specs are history."""


EVALUATION_ROLES = ("evaluation", "mt_bench")
TASK_ROLE, GROUP_ROLE, ROWS_ROLE = "task ", "group ", "rows "
"""Each with a name behind it: what a task or a group of the user's own says, and rows of files that are scored."""
SCORED = "scored/"
"""Before the split, in the source of rows of files, of each file whose rows are scored: ``scored/SPLIT:SHA-256``."""


def is_scored(role: str) -> bool:
    """Return whether a role in ``sources`` is of what is scored, and not of what is trained on."""
    return role in EVALUATION_ROLES or role.startswith((TASK_ROLE, GROUP_ROLE, ROWS_ROLE))


class RunSpec(Strict):
    """Everything that was asked of one run. Plain JSON; validates without the method being installed."""

    suite: Name
    suite_version: int
    protocol: Name
    model: dict[str, str | None]
    label: str
    method: Name
    config: dict[str, JsonValue]
    train: TrainSettings | None
    evaluation: EvaluationSettings
    calibration: CalibrationSettings | None
    later: dict[str, JsonValue] | None = None
    """Settings of ``config`` that its method declares as later ones, each at the value at which it is left out of the
    identity: a record is read without its method. None: of a spec that is older than this field."""
    general: Annotated[GeneralTextSettings | None, Later(None)] = None
    sources: dict[str, str]
    """What identifies the data: ``train``, ``evaluation``, ``calibration``, ``general`` -> name and checksum or
    revision; and tasks and rows of the user's own that are scored, see ``TASK_ROLE``."""
    max_steps: PositiveInt | None
    seed: Seed
    base_dtype: Annotated[Dtype | None, Later(None)] = None
    """Of the weights of a run that does not train, where it is not fp32."""
    conversation: Annotated[Name | None, Later(None)] = None
    """Template of training prompts and of MT-Bench; None where neither uses one."""
    files: Annotated[dict[str, str] | None, Later(None)] = None
    """SHA-256 of the file that a setting of ``config`` names, by setting: in the identity it stands for the path."""
    code: Annotated[dict[str, str] | None, Later(None)] = None
    """What runs beside the harness and can be told apart: a method that is a plug-in, a template of FastChat's; each
    with its distribution, version and a checksum."""

    @model_validator(mode="after")
    def _names_its_model(self) -> RunSpec:
        if not self.model.get("name"):
            raise ValueError("model has no name")
        return self

    @property
    def run_id(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of the canonical JSON of :meth:`asked`."""
        return identity(self.asked())

    def asks_as(self, other: RunSpec, *but: str) -> bool:
        """Return whether another spec asks the same, but for the seed and for what ``but`` names."""
        left_out = dict.fromkeys(("seed", *but))
        if self.__dict__ | left_out == other.__dict__ | left_out:  # the same fields give the same question
            return True
        return self.asked() | left_out == other.asked() | left_out

    @property
    def training_id(self) -> str:
        """Return the identity of what is trained and how, whatever it is scored on: equal ones give equal weights."""
        asked = self.asked()
        del asked["evaluation"]
        asked["sources"] = {role: source for role, source in self.sources.items() if not is_scored(role)}
        if self.train is None or self.train.prompt != "conversation":
            asked.pop("conversation", None)
            asked["code"] = {what: code for what, code in (self.code or {}).items() if not what.startswith("template ")}
        return identity(asked)

    @property
    def evaluation_id(self) -> str:
        """Return the identity of what is scored, and how; how many tokens a forward pass takes moves no score."""
        asked = self.asked()["evaluation"]
        del asked["batch_tokens"]
        return identity({"evaluation": asked, "on": self.scored_on})

    @property
    def scored_on(self) -> dict[str, str | None]:
        """Return what identifies the rows and questions of the evaluation, and MT-Bench's template."""
        asks = self.evaluation.mt_bench is not None
        rows = {role: source for role, source in self.sources.items() if is_scored(role)}
        return rows | ({"conversation": self.conversation} if asks else {})

    @property
    def stands_in(self) -> dict[str, str]:
        """Return the tasks of lm-eval that are scored on rows of files, not on its own, with what identifies these."""
        roles = [role.removeprefix(ROWS_ROLE) for role in self.sources if role.startswith(ROWS_ROLE)]
        return {task: self.sources[ROWS_ROLE + task] for task in roles if TASK_ROLE + task not in self.sources}

    @property
    def scored_files(self) -> dict[str, frozenset[str]]:
        """Return the SHA-256 of every file whose rows are scored, by task."""
        found = {
            role.removeprefix(ROWS_ROLE): text for role, text in self.sources.items() if role.startswith(ROWS_ROLE)
        }
        return {
            task: frozenset(part.rpartition(":")[2] for part in text.split() if part.startswith(SCORED))
            for task, text in found.items()
        }

    def asked(self) -> dict[str, Any]:
        """Return this spec as JSON, without the later settings that say nothing: one question, one spelling."""
        asked = self.model_dump(mode="json", exclude={"later"})
        _leave_out(asked, later_settings(RunSpec))
        _leave_out(asked["config"], FIRST_LATER_SETTINGS if self.later is None else self.later)
        _leave_out(asked["train"] or {}, later_settings(TrainSettings))
        _leave_out(asked["evaluation"], later_settings(EvaluationSettings))
        for name, checksum in asked.pop("files", {}).items():
            asked["config"][name] = f"sha256:{checksum}"
        return asked

    @property
    def dtype(self) -> Dtype:
        """Return the precision in which the weights are loaded, trained and scored."""
        return self.train.dtype if self.train is not None else self.base_dtype or "fp32"

    @property
    def run_name(self) -> str:
        """Return what runs of this question are called: ``MODEL/LABEL/SEED``."""
        return f"{self.model_name}/{self.label}/{self.seed}"

    @property
    def model_name(self) -> str:
        """Return the base model's name."""
        return str(self.model["name"])


def evaluation_ids(specs: Iterable[RunSpec]) -> set[str]:
    """Return the identities of the evaluations of some specs, each computed once where specs share their settings."""
    distinct = {(id(spec.evaluation), tuple(spec.scored_on.items())): spec for spec in specs}
    return {spec.evaluation_id for spec in distinct.values()}


def identity(value: Any) -> str:
    """Return 16 hex digits: the start of the SHA-256 of a value's canonical JSON (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _leave_out(settings: dict[str, Any], later: Mapping[str, JsonValue]) -> None:
    """Take out of ``settings`` what stands at the value of its entry in ``later``."""
    for name, value in later.items():
        if name in settings and settings[name] == value:
            del settings[name]
