r"""Symbols that math-verify would read as something else become symbols of one letter and a number.

It takes `\frac{dx}{dt}` for a derivative of a constant, which is 0, `x'` for x, `x^{\prime}` for a power, `E_{0}` and
`M_\odot` for nothing at all, and `\lambda_{\text{red}}` for another symbol than `\lambda_{red}`. Here each becomes a
`\xi_{n}`, a derivative an `\eta_{n}`, with the same n on both sides for the same symbol. A derivative is the same
however written (`x'`, `\dot{x}`, `\frac{dx}{dt}`), but where both sides say by what, that must agree.
"""

from __future__ import annotations

import re

from vopd_recipes.grading.tex import WRAPPER

_INLINE = re.compile(WRAPPER + r"\{\s*([A-Za-z]{1,12})\s*\}")
_OPERATOR = re.compile(r"\\operatorname\s*\{\s*([a-z]+)\s*\}")
_INDEXLESS = re.compile(
    r"\\(?:log|lim|sum|prod|o?int|max|min|sup|inf|(?:big)?cup|(?:big)?cap|sin|cos|tan|ln|exp|gcd|det)"
)
_BASE = r"(?:\\[A-Za-z]+|[A-Za-z])"
_INDEX = r"_\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\?[A-Za-z]+|[0-9])"
_SYMBOL = rf"\s*({_BASE}(?:{_INDEX})?)\s*(?:\([A-Za-z]\))?\s*"
_ORDER = r"\s*(?:\^\s*\{?\s*([2-9])\s*\}?)?"
_D = r"(?:\bd|\\partial(?![A-Za-z]))"
_LEIBNIZ = re.compile(
    rf"\\frac\s*\{{\s*{_D}{_ORDER}{_SYMBOL}\}}\s*\{{\s*{_D}\s*(\\?[A-Za-z]+)\s*(?:\^\s*\{{?[2-9]\}}?)?\s*\}}"
)
_SLASHED = re.compile(rf"(?<![A-Za-z\\])d{_SYMBOL}/\s*d([A-Za-z])(?![A-Za-z])")
_DOTTED = re.compile(rf"\\(d{{1,3}})ot\s*(?:\{{{_SYMBOL}\}}|([A-Za-z]))((?:{_INDEX})?)(?:\([A-Za-z]\))?")
_PRIMED = re.compile(rf"({_BASE}(?:{_INDEX})?)\s*('+)(?:\([A-Za-z]\))?")
_INDEXED = re.compile(rf"({_BASE})\s*({_INDEX})")
_DRESS = re.compile(rf"{WRAPPER}|[{{}}\s\\_]")
_ANY = re.compile(r"_|'|\\frac\s*\{\s*(?:d|\\partial)|\\d+ot|/\s*d")


class Symbols:
    """The numbers of the symbols of one comparison."""

    def __init__(self, *texts: str) -> None:
        self._numbers: dict[tuple[str, ...], int] = {}
        self._derivatives: set[str] = set()
        self._keeps_variable = all(_LEIBNIZ.search(text) or _SLASHED.search(text) for text in texts) and not any(
            _DOTTED.search(text) or _PRIMED.search(text) for text in texts
        )

    def numbered(self, text: str) -> str:
        """The text with every such symbol replaced."""
        text = _OPERATOR.sub(r"\\\1 ", _INLINE.sub(r"\1", text))
        if not _ANY.search(text):
            return text
        text = _LEIBNIZ.sub(lambda found: self._derivative(found[2], int(found[1] or 1), found[3]), text)
        text = _SLASHED.sub(lambda found: self._derivative(found[1], 1, found[2]), text)
        text = _DOTTED.sub(
            lambda found: self._derivative((found[2] or found[3]) + (found[4] or ""), len(found[1]), ""), text
        )
        text = _PRIMED.sub(lambda found: self._derivative(found[1], len(found[2]), ""), text)
        return _INDEXED.sub(self._plain, text)

    def _derivative(self, symbol: str, order: int, variable: str) -> str:
        number = self._number("eta", "d" * order, variable if self._keeps_variable else "", symbol)
        self._derivatives.add(number.strip())
        return number

    def _plain(self, found: re.Match[str]) -> str:
        is_none = _INDEXLESS.fullmatch(found[1]) or found[0].strip() in self._derivatives
        return found[0] if is_none else self._number("xi", found[1], found[2])

    def _number(self, letter: str, *key: str) -> str:
        known = tuple(_DRESS.sub("", part) for part in key)
        return rf" \{letter}_{{{self._numbers.setdefault((letter, *known), 101 + len(self._numbers))}}} "
