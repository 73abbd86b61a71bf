r"""Which number is a text? Exactly, as a fraction of integers, whatever the size."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from vopd_recipes.grading.units import DIGITS, POWER

_NO_DIGIT_SPACE = re.compile(r"(?<![0-9,]) | (?![0-9])")  # `1, 000` is a list, and no number
_SCIENTIFIC = re.compile(rf"([+-]?{DIGITS})(?:[eE]([+-]?[0-9]{{1,3}})|(?:\\times|\\cdot|\*|x){POWER})?|([+-]?){POWER}")
_RATIO = re.compile(
    rf"([+-]?)([0-9]+(?: (?=[0-9])|(?=\\)))?"  # sign and whole part
    rf"(?:([+-]?{DIGITS})/({DIGITS})|\\frac(?:\{{([+-]?{DIGITS})\}}|([0-9]))(?:\{{({DIGITS})\}}|([0-9])))"
)
_ROUGH = Fraction(1, 20)


class Number(NamedTuple):
    """A value, and how it is written: `is_ratio` as a/b, `is_decimal` with a point or a power of ten."""

    value: Fraction
    is_ratio: bool
    is_decimal: bool


def number(text: str) -> Number | None:
    r"""The value of a normalised text that is a decimal, a power of ten, a ratio or a mixed fraction; else None."""
    if text.isdecimal() and text.isascii():
        return Number(Fraction(int(text)), False, False)
    text = _NO_DIGIT_SPACE.sub("", text)
    if found := _SCIENTIFIC.fullmatch(text):
        digits, *exponents, sign, braced, bare = found.groups()
        exponent = next((part for part in (*exponents, braced, bare) if part), "0")
        mantissa = Fraction((digits or f"{sign or ''}1").replace(",", ""))
        return Number(mantissa * Fraction(10) ** int(exponent), False, "." in text or exponent != "0")
    if (found := _RATIO.fullmatch(text)) is None:
        return None
    sign, whole, *parts = found.groups()
    top, bottom = (Fraction(part.replace(",", "")) for part in parts if part)
    if bottom == 0 or (whole and top < 0):
        return None
    value = int(whole or 0) + top / bottom
    return Number(-value if sign == "-" else value, True, "." in text)


def same(value: Number, expected: Number) -> bool:
    """Exactly, but six digits do where one is a ratio and the other a decimal: 0.333333 is 1/3."""
    difference = abs(value.value - expected.value)
    rounded = (value.is_ratio and expected.is_decimal) or (value.is_decimal and expected.is_ratio)
    return difference <= (Fraction(5, 10**6) * max(abs(value.value), abs(expected.value)) if rounded else 0)


def roughly(value: Number, expected: Number) -> bool:
    r"""Whether one may be the other rounded: `\frac{14}{3} \approx 4.67`."""
    return abs(value.value - expected.value) <= _ROUGH * max(abs(value.value), abs(expected.value))


def is_rounding(exact: Number | None, text: str) -> bool:
    """Whether a number may be an exact one in fewer digits: nearly equal, or all but equal to its last digit.

    Where the exact one is not known, only what has one digit may be anything: 0.6 is 5/9, and 8 % away.
    """
    found, digits = number(text), re.search(DIGITS, text)
    if found is None or digits is None:
        return False
    whole, _, decimals = digits[0].replace(",", "").partition(".")
    if exact is None:
        return len((whole + decimals).strip("0")) <= 1
    last = Fraction(1, 10 ** len(decimals)) if decimals else Fraction(10 ** (len(whole) - len(whole.rstrip("0"))))
    mantissa = Fraction(digits[0].replace(",", ""))
    half = abs(last * found.value / mantissa / 2) if mantissa else last / 2
    return roughly(exact, found) or abs(exact.value - found.value) <= half
