r"""Text in LaTeX: what pdflatex sets whatever the text is.

Every character with a meaning for TeX is written as a command, ligatures are broken. Letters with accents become the
letter under accent commands, Greek and common signs their commands. Of what is left, which pdflatex's fonts do not
have (CJK, emoji and others), each character stands as its code point: ``[U+4E2D]``. Control characters go.
"""

from __future__ import annotations

import re
import unicodedata

from harness.report.table import one_line

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after \\ a bracket would be its argument, and a star its form
    "]": "{]}",
    "*": "{*}",
    "-": "-{}",  # no -- that becomes a dash
    ",": ",{}",  # no ,, that becomes a quotation mark
    "?": "?{}",
    "!": "!{}",
}
SIGNS = {
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "−": "$-$",
    "‐": "-{}",
    "‑": "-{}",
    "…": r"\ldots{}",
    "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "«": r"\guillemotleft{}",
    "»": r"\guillemotright{}",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "•": r"\textbullet{}",
    "§": r"\textsection{}",
    "¶": r"\textparagraph{}",
    "©": r"\textcopyright{}",
    "®": r"\textregistered{}",
    "™": r"\texttrademark{}",
    "°": r"\textdegree{}",
    "·": r"\textperiodcentered{}",
    "€": r"\texteuro{}",
    "£": r"\textsterling{}",
    "¡": r"\textexclamdown{}",
    "¿": r"\textquestiondown{}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ð": r"\dh{}",
    "Ð": r"\DH{}",
    "þ": r"\th{}",
    "Þ": r"\TH{}",
    "đ": r"\dj{}",
    "Đ": r"\DJ{}",
    "ı": r"\i{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "÷": r"$\div$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "∑": r"$\sum$",
    "√": r"$\surd$",
    "∂": r"$\partial$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "↔": r"$\leftrightarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∈": r"$\in$",
    "µ": r"$\mu$",
    "¬": r"$\neg$",
}
GREEK_NAMES = {
    "αβγδεζηθ": "alpha beta gamma delta varepsilon zeta eta theta",
    "ικλμνξπρ": "iota kappa lambda mu nu xi pi rho",
    "σςτυφχψω": "sigma varsigma tau upsilon varphi chi psi omega",
    "ΓΔΘΛΞΠΣΥΦΨΩ": "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega",
}
GREEK = {
    letter: rf"$\{name}$"
    for letters, names in GREEK_NAMES.items()
    for letter, name in zip(letters, names.split(), strict=True)
}
LIKE_LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))
ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0323": "d",
    "\u0327": "c",
    "\u0328": "k",
}
LONG_WORD = re.compile(r"[^ ]{16,}")
BREAK = "\0"
"""Stands for a place where a line may break, until the text is escaped; one_line has dropped every real one."""


def escape_latex(text: str, *, breakable: bool = False) -> str:
    """Return text on one line that pdflatex sets as it is.

    Args:
        text: As recorded.
        breakable: Words longer than a narrow column may break, without a hyphen.
    """
    text = one_line(text)
    if breakable:
        text = LONG_WORD.sub(_with_breaks, text)
    return "".join(map(_escaped, unicodedata.normalize("NFC", text)))


def _with_breaks(match: re.Match[str]) -> str:
    word = re.sub(r"(?<=[/_.=:;,-])", BREAK, match.group())
    return re.sub(rf"([^{BREAK}]{{10}})(?=[^{BREAK}])", rf"\1{BREAK}", word)


def _escaped(char: str) -> str:
    if char == BREAK:
        return r"\allowbreak{}"
    for known in (SPECIAL, SIGNS, GREEK, LIKE_LATIN):
        if char in known:
            return known[char]
    if char.isascii():
        return char
    base, *accents = list(unicodedata.normalize("NFD", char))
    if accents and base.isascii() and base.isalpha() and all(accent in ACCENTS for accent in accents):
        for accent in accents:
            base = rf"\{ACCENTS[accent]}{{{base}}}"
        return base
    return " " if unicodedata.category(char) == "Zs" else rf"\texttt{{{{[}}U+{ord(char):04X}{{]}}}}"
