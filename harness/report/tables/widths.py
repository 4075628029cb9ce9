"""How wide text is in LaTeX: Computer Modern in T1 at 8 points, by which a table is laid out before TeX sees it.

Times and the other faces of journals are narrower, so what fits here fits there.
"""

from __future__ import annotations

SIZE = 8.0
"""Points of a table's letters."""
TINY = 5.0
"""Points of what stands below a figure."""
TINY_WIDER = 1.31
"""By how much a letter of the 5-point face is wider than one of 8 points scaled down."""
RAISED, RAISED_SPACE = 0.9, 0.5
"""Size of what stands raised, to that of the text, and the points of space behind it."""
BOLD_WIDER = 1.16
CLASSES = {
    0.295: "!',.:;[]`il|",
    0.325: "fj",
    0.354: "-",
    0.383: "I",
    0.414: "()tr",
    0.419: "s",
    0.472: "cez",
    0.502: "?",
    0.531: ' "$*/0123456789\\ago{}',
    0.545: "J",
    0.561: "kqvxy",
    0.590: "Sbdhnpu",
    0.649: "Z^~",
    0.663: "L",
    0.693: "F",
    0.722: "EP",
    0.752: "B",
    0.767: "CTw",
    0.781: "R",
    0.796: "AHNUVXY",
    0.811: "D",
    0.826: "&+<=>@OQ_K±−",
    0.833: "G",
    0.885: "#%m",
    0.973: "M",
    1.091: "W",
}
"""Characters by their width in em, as the font's metrics have them."""
EM = {char: em for em, chars in CLASSES.items() for char in chars}
OTHER_EM = 1.1
"""Of any other character: rather too wide."""


def width_of(text: str, size: float = SIZE) -> float:
    """Return the width of text in points."""
    wider = TINY_WIDER if size == TINY else 1.0
    return size * wider * sum(EM.get(char, OTHER_EM) for char in text)
