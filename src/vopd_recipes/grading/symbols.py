r"""Symbols that math-verify would read as something else become symbols of one letter and a number.

It takes `\frac{dx}{dt}` for a derivative of a constant, which is 0, `x'` for x, `x^{\prime}` for a power, `E_{0}` and
`M_\odot` for nothing at all, and `\lambda_{\text{red}}` for another symbol than `\lambda_{red}`. Here each becomes a
`\xi_{n}`, a derivative an `\eta_{n}`, with the same n on both sides for the same symbol. A derivative is the same
however written (`x'`, `\dot{x}`, `\frac{dx}{dt}`, `\frac{d}{dt}x`), but where both sides say by what, that must agree.
Of what is more than one symbol (`\frac{d(mv)}{dt}`), the worker takes care.
"""

from __future__ import annotations

import re

from vopd_recipes.grading.tex import WRAPPER

_INLINE = re.compile(WRAPPER + r"\{\s*([A-Za-z]{1,12})\s*\}")
_OPERATOR = re.compile(r"\\operatorname\s*\{\s*([a-z]+)\s*\}")
_INDEXLESS = re.compile(
    r"\\(?:log|lim|sum|prod|o?int|max|min|sup|inf|(?:big)?cup|(?:big)?cap|sin|cos|tan|ln|exp|gcd|det)"
)
_BASE = r"(?:\\(?:vec|hat|bar|tilde|overline)\s*(?:\{\s*\\?[A-Za-z]+\s*\}|[A-Za-z])|\\[A-Za-z]+|[A-Za-z])"
_INDEX = r"_\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\\?[A-Za-z]+|[0-9])"
_SYMBOL = rf"\s*({_BASE}(?:{_INDEX})?)\s*(?:\([A-Za-z]\))?\s*"
_ORDER = r"\s*(?:\^\s*\{?\s*([2-9])\s*\}?)?"
_D = r"(?:\bd|\\partial(?![A-Za-z]))"
_BY = rf"\{{\s*{_D}\s*(\\?[A-Za-z]+)\s*(?:\^\s*\{{?[2-9]\}}?)?\s*\}}"
_LEIBNIZ = re.compile(rf"\\frac\s*\{{\s*{_D}{_ORDER}(?:{_SYMBOL}|\s*\({_SYMBOL}\)\s*)\}}\s*{_BY}")
# `\frac{d}{dt} v`, but not of a power or a product, where it is unclear how far it reaches
_OPERATOR_OF = re.compile(
    rf"\\frac\s*\{{\s*{_D}{_ORDER}\s*\}}\s*{_BY}\s*(?:{_SYMBOL}(?=[-+=,)\]}}]|$)|\({_SYMBOL}\)(?!\s*\^))"
)
_SLASHED = re.compile(rf"(?<![A-Za-z\\])d(?:{_SYMBOL}|\({_SYMBOL}\)\s*)/\s*d([A-Za-z])(?![A-Za-z])")
_DOTTED = re.compile(rf"\\(d{{1,3}})ot\s*(?:\{{{_SYMBOL}\}}|({_BASE}))((?:{_INDEX})?)(?:\(([A-Za-z])\))?")
_PRIMED = re.compile(rf"({_BASE}(?:{_INDEX})?)\s*('+)(?:\(([A-Za-z])\))?")
_INDEXED = re.compile(rf"({_BASE})\s*({_INDEX})")
_BARE_INDEX = re.compile(r"_\s*([A-Za-z]{2,})")
_BRACED_INDEX = re.compile(r"_\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_UPRIGHT_INDEX = re.compile(rf"_\s*{WRAPPER}\{{\s*([A-Za-z]{{1,12}})\s*\}}")
_UPRIGHT_D = re.compile(r"\\(?:mathrm|text|textrm|rm)\s+d(?=[\sA-Za-z\\(]|\})|\{\s*\\rm\s+d\s*\}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_ARGUMENT = re.compile(r"(?:(?<=[A-Za-z}])|(?<=_[0-9]))\s*\(([A-Za-z])\)")
_CONSTANT = re.compile(r"(?<![A-Za-z\\])[cC](?=(?:_(?:[0-9]|\{[0-9]\}))?\s*(?:e\s*\^|\\exp(?![A-Za-z])))")
_DRESS = re.compile(rf"{WRAPPER}|[{{}}\s\\_]")
_ANY = re.compile(r"_|'|\\frac\s*\{\s*(?:d|\\partial)|\\d+ot|/\s*d")


class Symbols:
    """The numbers of the symbols of one comparison: of a gold answer and the sides of an answer."""

    def __init__(self, gold: str, sides: list[str]) -> None:
        self._numbers: dict[tuple[str, ...], int] = {}
        self._derivatives: set[str] = set()
        plain = [_upright(text) for text in (gold, *sides)]
        self._indices = {_DRESS.sub("", found) for text in plain for found in _BRACED_INDEX.findall(text)}
        gold, answer = plain[:2]
        self._keeps_variable = all(_by(text) for text in (gold, answer)) and not any(
            _DOTTED.search(text) or _PRIMED.search(text) for text in (gold, answer)
        )
        self._arguments = _needless_arguments(gold, answer)
        self._constant = _constant(gold)

    def numbered(self, text: str) -> str:
        """The text with every such symbol replaced."""
        text = _upright(text)
        if self._constant and _constant(text) == self._constant.swapcase():
            text = _CONSTANT.sub(self._constant, text)
        if not _ANY.search(text):
            return text
        text = _BARE_INDEX.sub(self._braced, text)
        text = _LEIBNIZ.sub(lambda found: self._derivative(found[2] or found[3], int(found[1] or 1), found[4]), text)
        text = _OPERATOR_OF.sub(
            lambda found: self._derivative(found[3] or found[4], int(found[1] or 1), found[2]), text
        )
        text = _SLASHED.sub(lambda found: self._derivative(found[1] or found[2], 1, found[3]), text)
        text = _DOTTED.sub(
            lambda found: self._derivative((found[2] or found[3]) + (found[4] or ""), len(found[1]), ""), text
        )
        text = _PRIMED.sub(lambda found: self._derivative(found[1], len(found[2]), ""), text)
        text = _ARGUMENT.sub(lambda found: "" if found[1] in self._arguments else found[0], text)
        return _INDEXED.sub(self._plain, text)

    def _braced(self, found: re.Match[str]) -> str:
        """As TeX reads it, `m_pc` is a c behind m_p; but `v_max` is one symbol where the other side has `v_{max}`."""
        end = next((end for end in range(len(found[1]), 1, -1) if found[1][:end] in self._indices), 1)
        return f"_{{{found[1][:end]}}}{found[1][end:]}"

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


def _upright(text: str) -> str:
    """Without what stands letters upright; the d of a derivative and the index behind it stay what they are."""
    text = _UPRIGHT_D.sub("d ", _UPRIGHT_INDEX.sub(r"_{\1}", text))
    return _OPERATOR.sub(r"\\\1 ", _INLINE.sub(r"\1", text))


def _by(text: str) -> set[str]:
    """The variables by which it says that it derives."""
    found = [(_LEIBNIZ, 4), (_OPERATOR_OF, 2), (_SLASHED, 3)]
    return {match[group].strip() for pattern, group in found for match in pattern.finditer(text)}


def _needless_arguments(*texts: str) -> set[str]:
    """The t of `v(t)` in a differential equation whose other writing has `v`: where it derives by t, and has no t."""
    needless: set[str] = set()
    for one, other in (texts, texts[::-1]):
        variables = _by(one) | _by(other)
        variables |= {found[3] for found in _PRIMED.finditer(one)} | {found[5] for found in _DOTTED.finditer(one)}
        bare = other
        for pattern in (_LEIBNIZ, _OPERATOR_OF, _SLASHED, _DOTTED, _PRIMED, _COMMAND):
            bare = pattern.sub(" ", bare)
        if bare != other and (_by(other) or _DOTTED.search(other) or _PRIMED.search(other)):
            arguments = {found[1] for found in _ARGUMENT.finditer(one)}
            needless |= {name for name in variables & arguments if name not in bare}
    return needless


def _constant(text: str) -> str:
    """The c or C of `c e^{-2t}`, a constant of integration, where no other symbol is called so in either case."""
    found = _CONSTANT.findall(text)
    letters = [letter for letter in _COMMAND.sub(" ", text) if letter in "cC"]
    return found[0] if found and letters == found and len(set(found)) == 1 else ""
