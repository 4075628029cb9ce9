"""What every part of a record is: frozen, strict, of texts without keys and not too long."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from harness.redaction import redacted

LONGEST_TEXT = 1 << 18
"""Characters of a text in a record; a log that is longer is cut."""


def _shortened(text: object) -> object:
    """Return the end of a text that is too long: the last lines of a log say most."""
    return f"…{text[-LONGEST_TEXT + 1 :]}" if isinstance(text, str) and len(text) > LONGEST_TEXT else text


Sentence = Annotated[str, BeforeValidator(_shortened), AfterValidator(redacted)]
"""What libraries and servers may have had a say in: without keys."""


class Part(BaseModel):
    """A part of a record."""

    # As strings, infinities are read again; as null, which JSON has for them, they would spoil the whole record.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", str_max_length=LONGEST_TEXT)
