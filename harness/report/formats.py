"""The formats of a report, by name; apart from what writes them, so that a command line can name them quickly."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["md", "latex", "html", "csv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)

ComparisonFormat = Literal["text", "md", "json", "junit", "github"]
COMPARISON_FORMATS: tuple[ComparisonFormat, ...] = get_args(ComparisonFormat)
