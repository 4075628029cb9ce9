"""Lines of a records file, read fast: what many records have in common is parsed once, and shared by them.

A record is one piece of JSON without spaces, its keys in the order of its fields. Out of such a line three values are
cut before it is validated: what was asked, which differs between runs of a label in the seed alone; where it ran; and
each score, a share of few numbers of items. Each is validated when its text is first met, and the same object stands in
every later record, so that 100,000 records take the time and the memory of what differs between them.

A value that is JSON by itself, and stands where the line is valid JSON with a number in its place, is that value of the
line: the cut decides nothing that the JSON does not say. Whatever is not as expected (another layout or version, a
damaged line, something that is no record) is None here, and left to who parses all of it.
"""

from __future__ import annotations

import re
import uuid
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, create_model

from harness.record import ALIKE_SINCE, SCHEMA_VERSION, Proof, Record, Score
from harness.record_environment import Environment
from harness.record_part import Part
from harness.record_training import Phase, StepCurve, TrainResult
from harness.spec import RunSpec

_BEGINS = re.compile(rb'\{"schema_version":(\d{1,4}),')
_SPEC, _ENVIRONMENT, _PHASES = b',"spec":', b',"environment":', b',"phases":'
_SCORES, _PROOF = b',"scores":', b',"proof":'
_SEED = b',"seed":'
_DIGITS = bytes(ord("0") if chr(byte).isdecimal() and byte < 128 else 0 for byte in range(256))
"""Of ``bytes.translate``: every digit becomes a zero and all else nothing, which a search of bytes passes over fast."""
_LONG_NUMBER = b"0" * 19
"""What a number of more than 64 bits looks like in JSON, and now and then a word in a text or a fraction."""
_LONG_VALUE = re.compile(rb"(?:\A|[:,\[\s])-?\d{19}")
"""What one looks like where a value may stand."""
_CUT = ("spec", "environment", "scores")
_REPEATED = ("learning_rate", "trained_tokens", "tokens", "trainable_params", "optimizer_state_bytes")
"""Curves that runs of other seeds often have too."""
_SHARING: tuple[type[Part], ...] = (Record, TrainResult, StepCurve, Proof, Phase)
_NUM_FIELDS: dict[type[BaseModel], int] = {kind: len(kind.model_fields) for kind in _SHARING}
_HIDDEN = ("__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
"""What a model holds beside its values."""
Place = tuple[int, int]
"""Where a value begins in a line, and ends."""
Model = TypeVar("Model", bound=BaseModel)


class _Unexpected(Exception):
    """A line is not as records are written."""


def may_hold_long_number(text: bytes) -> bool:
    """Return whether JSON may hold an integer of more than 64 bits; False is certain."""
    return _LONG_NUMBER in text.translate(_DIGITS) and _LONG_VALUE.search(text) is not None


class RecordLines:
    """A reader of many lines."""

    def __init__(self) -> None:
        # Nobody who writes a file knows the number that stands for what was cut out of it.
        self._mark = uuid.uuid4().int >> 68
        self._validate = _line_model().__pydantic_validator__.validate_json
        self._specs: dict[bytes, RunSpec] = {}
        self._seeds: dict[bytes, int] = {}
        self._environments: dict[bytes, Environment] = {}
        self._scores: dict[bytes, Score] = {}
        self._shared: dict[Any, Any] = {}

    def record(self, line: bytes) -> Record | None:
        """Return the record that a line holds, or None where the line has to be looked at in full."""
        begin = _BEGINS.match(line) if line.endswith(b"\n") else None
        if begin is None or not ALIKE_SINCE <= int(begin[1]) <= SCHEMA_VERSION:
            return None
        if int(begin[1]) < SCHEMA_VERSION:
            line = b'{"schema_version":%d,%b' % (SCHEMA_VERSION, line[begin.end() :])
        parts = _cut(line)
        if parts is None:
            return None
        try:
            cut = self._validate(self._without(line, parts))
            if not all(getattr(cut, name) == self._mark for name in _CUT):
                return None
            (a, b), (c, d), (e, f) = parts
            values = (self._spec(line[a:b]), self._environment(line[c:d]), self._score_tuple(line[e:f]))
        except (ValidationError, _Unexpected):
            return None
        return self._record(cut, values)

    def _without(self, line: bytes, parts: tuple[Place, Place, Place]) -> bytes:
        """Return a line with the mark in the place of each part."""
        (a, b), (c, d), (e, f) = parts
        mark = b"%d" % self._mark
        rest = (line[:a], line[b:c], line[d:e], line[f:])
        if any(map(may_hold_long_number, rest)):
            raise _Unexpected
        return mark.join(rest)

    def _record(self, cut: Part, values: tuple[RunSpec, Environment, tuple[Score, ...]]) -> Record:
        """Return what was validated as a record, with what was cut out of it."""
        state = cut.__dict__
        state.update(zip(_CUT, values, strict=True))
        self._share(state)
        object.__setattr__(cut, "__class__", Record)
        self._share_names(cut)
        assert isinstance(cut, Record)
        return cut

    def _share(self, state: dict[str, Any]) -> None:
        """Take curves that an earlier record has too from there: rates, parameters and tokens repeat with the seeds."""
        train, shared = state["train"], self._shared
        if train is not None:
            curve = train.curve.__dict__
            for name in _REPEATED:
                if values := curve[name]:
                    curve[name] = shared.setdefault(values, values)
            activity = train.__dict__["block_activity"]
            train.__dict__["block_activity"] = shared.setdefault(activity, activity)
            self._share_names(train)
            self._share_names(train.curve)
        for part in (state["proof"], *state["phases"]):
            if part is not None:
                self._share_names(part)

    def _share_names(self, part: BaseModel) -> None:
        """Let a part that holds every field have the names of its fields from the first of its kind."""
        names = part.__pydantic_fields_set__
        kind = type(part)
        if len(names) == _NUM_FIELDS[kind]:
            object.__setattr__(part, "__pydantic_fields_set__", self._shared.setdefault(kind, names))

    def _spec(self, text: bytes) -> RunSpec:
        """Return a spec: that of an earlier line with the same text but for the seed, and the seed."""
        begin = text.rfind(_SEED) + len(_SEED)
        end = text.find(b",", begin)
        digits = text[begin:end]
        if begin < len(_SEED) or not digits.isdigit():
            raise _Unexpected
        key = text[:begin] + text[end:]
        if key not in self._specs:
            self._specs[key] = self._template(text, begin, end)
        template = self._specs[key]
        if digits not in self._seeds:
            self._seeds[digits] = _validated(RunSpec, text).seed
        spec, seed = RunSpec.__new__(RunSpec), self._seeds[digits]
        object.__setattr__(spec, "__dict__", template.__dict__ | {"seed": seed})
        for name in _HIDDEN:
            object.__setattr__(spec, name, getattr(template, name))
        return spec

    def _template(self, text: bytes, begin: int, end: int) -> RunSpec:
        """Return a spec whose text is a template: with another number between two places only its seed is another."""
        spec = _validated(RunSpec, text)
        seed = 1 if spec.seed == 0 else spec.seed - 1
        other = _validated(RunSpec, text[:begin] + b"%d" % seed + text[end:])
        if other.__dict__ != spec.__dict__ | {"seed": seed}:
            raise _Unexpected
        return spec

    def _environment(self, text: bytes) -> Environment:
        if text not in self._environments:
            self._environments[text] = _validated(Environment, text)
        return self._environments[text]

    def _score_tuple(self, text: bytes) -> tuple[Score, ...]:
        if text == b"[]":
            return ()
        if not text.startswith(b"[{") or not text.endswith(b"}]"):
            raise _Unexpected
        known = self._scores
        found = []
        for inner in text[2:-2].split(b"},{"):
            score = known.get(inner)
            if score is None:
                score = known[inner] = _validated(Score, b"{%b}" % inner)
            found.append(score)
        return tuple(found)


@cache
def _line_model() -> type[Part]:
    """Return a record's model with numbers in the place of what is cut out."""
    fields: dict[str, Any] = {
        name: (int, ...) if name in _CUT else (field.annotation, field) for name, field in Record.model_fields.items()
    }
    return create_model("RecordLine", __base__=Part, **fields)


def _cut(line: bytes) -> tuple[Place, Place, Place] | None:
    """Return where spec, environment and scores stand in a line, or None where they do not as records are written."""
    spec = line.find(_SPEC)
    environment = line.find(_ENVIRONMENT, spec)
    phases = line.find(_PHASES, environment)
    scores = line.find(_SCORES, phases)
    proof = line.find(_PROOF, scores)
    if min(spec, environment, phases, scores, proof) < 0:
        return None
    return (
        (spec + len(_SPEC), environment),
        (environment + len(_ENVIRONMENT), phases),
        (scores + len(_SCORES), proof),
    )


def _validated(model: type[Model], text: bytes) -> Model:
    if may_hold_long_number(text):
        raise _Unexpected
    return model.model_validate_json(text)
