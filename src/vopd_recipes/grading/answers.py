r"""Which mathematical answer does a text give, and which plain value does it have?

`extract_boxed` finds the last `\boxed{…}` after the reasoning. The rest is about how one answer may be written: as
TeX, as a model types it and as data sets have it (Minerva's gold answers are often `4.5e33` or `np.arcsin(10/13)`).
`rewritten` puts all of these into the TeX that math-verify reads, `number` reads what is a number, exactly, and
`quick_verdict` compares two answers where that settles it. Everything here is a pattern over text of
a bounded length, or one pass over it: hostile text costs no time.

Units are dropped, since gold answers mostly lack them, but two that are known and differ make two answers different.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 1000  # longer answers are compared as text only: what follows is not linear, and neither is math-verify

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BOX_TOKEN = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?|\\[A-Za-z]+|[^\s\\{}$]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a character, not a brace

_WRAPPER = r"\\(?:text(?:bf|rm|it|normal)?|math(?:rm|bf|it|sf)|boldsymbol|underline|mbox|rm)\s*"
_WHOLE_WRAPPER = re.compile(_WRAPPER + r"(?=\{)")
_SIGNS = str.maketrans({"\u2212": "-", "×": r"\times ", "·": r"\cdot ", "°": r"^\circ ", "π": r"\pi ", "~": " "})
_SCALES = {"percent": r"\%", "thousand": r"\times10^{3}", "million": r"\times10^{6}", "billion": r"\times10^{9}"}
_REWRITING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<!\\)\\(?:!|[,;:](?=[0-9]))|\{(?=,\})|(?<=\{,)\}|\\displaystyle(?![A-Za-z])", ""),
        (r"(?<!\\)\\[,;: ]", " "),
        (r"(?<!\\)\\$", ""),  # half of a space at the end
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"(?<![A-Za-z0-9_.])np\.(?=[a-z])", r"\\"),
        (r"\*\*", "^"),
        (r"\\sqrt\s*([0-9]+)", r"\\sqrt{\1}"),
        (r"(?<=[0-9])\.(?=[/*+\-^)}\s,]|$)", ""),  # -3./2
        (r"\\(?:approx|simeq|thickapprox|sim)(?![A-Za-z])", "="),
        (r"^\s*=", ""),
        (r"^(?:[A-Za-z]\s*=)?\s*\\pm(?![A-Za-z])([^,=]+)$", r"\1,-\1"),
        (r"^(\s*[+-]?[0-9]+) ([0-9]+)/([0-9]+)\s*$", r"\1\\frac{\2}{\3}"),
    )
]
_SCALE = re.compile(
    rf"(?<=[0-9}}\s])\s*(?:{_WRAPPER}\{{\s*)?(?<![A-Za-z\\])({'|'.join(_SCALES)})s?(?![A-Za-z])\s*\}}?"
)
_SHORT_INDEX = re.compile(r"([_^])\{([A-Za-z0-9])\}(?![A-Za-z0-9])")
_INVISIBLE = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\?\$")
_NEEDLESS_SPACE = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")
_NO_DIGIT_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")
_NAMED = re.compile(r"\s*\\?[A-Za-z]+(?:_(?:\w|\{[^{}]*\}))?(?:\([A-Za-z]\))?\s*=(?=[^=]+$)")

_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_POWER = r"10\^(?:\{([+-]?[0-9]{1,3})\}|([+-]?[0-9]{1,3}))"
_SCIENTIFIC = re.compile(
    rf"([+-]?{_DIGITS})(?:[eE]([+-]?[0-9]{{1,3}})|(?:\\times|\\cdot|\*|x){_POWER})?|([+-]?){_POWER}"
)
_E_NOTATION = re.compile(rf"(?<![A-Za-z0-9.\\_^])({_DIGITS})[eE]([+-]?[0-9]{{1,3}})(?![\w.])")
_RATIO = re.compile(
    rf"([+-]?)([0-9]+(?: (?=[0-9])|(?=\\)))?"  # sign and whole part
    rf"(?:([+-]?{_DIGITS})/({_DIGITS})|\\frac(?:\{{([+-]?{_DIGITS})\}}|([0-9]))(?:\{{({_DIGITS})\}}|([0-9])))"
)
_IN_BASE = re.compile(r"([0-9A-Za-z]+)_(?:\{([0-9]+)\}|([0-9]+))")
_PROSE = re.compile(r"[A-Za-z][A-Za-z ]{2,}")

_SPELLINGS = {
    "m": "m meter meters metre metres", "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres", "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
    "g": "g gram grams", "kg": "kg kilogram kilograms", "mg": "mg milligram milligrams", "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces", "s": "s sec second seconds", "min": "min mins minute minutes", "h": "h hr hrs hour hours",
    "day": "day days", "week": "week weeks", "month": "month months", "year": "yr year years",
    "degree": "deg degree degrees circ", "radian": "rad radian radians", "dollar": "dollar dollars",
    "cent": "cent cents", "N": "N newton newtons", "J": "J joule joules", "W": "W watt watts", "V": "V volt volts",
    "K": "K kelvin kelvins", "Hz": "Hz hertz", "Pa": "Pa pascal pascals", "erg": "erg ergs", "eV": "eV", "mol":
    "mol mole moles", "mph": "mph", "am": "am", "pm": "pm",
}  # fmt: skip
_UNITS = {word: unit for unit, words in _SPELLINGS.items() for word in words.split()}
_MORE_WORDS = (
    "unit units square sq cubic cu nm pc kpc Mpc AU Gyr Myr Jy keV MeV GeV kPa kHz MHz GHz kJ kW mL liter liters"
)
_WORDS = "|".join(sorted({word for word in [*_UNITS, *_MORE_WORDS.split()] if len(word) > 1}, key=len, reverse=True))
_EXPONENT = r"(?:\s*\^\s*(?:\{[+-]?[0-9]\}|[+-]?[0-9]))?"
_WRAPPED_UNIT = _WRAPPER + r"\{(?!\s*(?:or|and|[a-fh-ln-rt-z]|[0-9])\s*\})[^{}0-9]*(?:\^\{?[+-]?[0-9]\}?[^{}0-9]*)*\}"
_UNIT_PART = rf"(?:{_WRAPPED_UNIT}|(?<![A-Za-z\\])(?:{_WORDS})(?![A-Za-z])){_EXPONENT}"
_ANY_PART = rf"(?:{_WRAPPED_UNIT}|(?<![A-Za-z\\])(?:{_WORDS}|[ACFJKLNTVWghms])(?![A-Za-z])){_EXPONENT}"
_BETWEEN = r"(?:[\s/*.]|\\cdot|per(?![A-Za-z]))*"
_WITH_UNIT = re.compile(
    rf"(.*?[0-9}}\])A-Za-z])\s*(\^\{{?\\circ\s*\}}?|{_UNIT_PART}(?:{_BETWEEN}{_ANY_PART})*)\s*\.?\s*"
)
_SPACED_NUMBER = rf"[+-]?{_DIGITS}(?:\s*(?:\\times|\\cdot|\*|x)\s*{_POWER})?|[+-]?{_POWER}"
_NUMBER_WITH_UNIT = re.compile(rf"\s*({_SPACED_NUMBER})\s+(?P<unit>{_ANY_PART}(?:{_BETWEEN}{_ANY_PART})*)\s*")
_WRAPPED = re.compile(_WRAPPED_UNIT)
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_UNIT_TOKEN = re.compile(r"(/|per(?![A-Za-z]))|([A-Za-z]+)(?:\^([+-]?[0-9]))?")


class Number(NamedTuple):
    """A value, and how it is written: `is_ratio` as a/b, `is_decimal` with a point or a power of ten."""

    value: Fraction
    is_ratio: bool
    is_decimal: bool


def strip_reasoning(completion: str) -> str:
    """The text after the last `</think>`; empty where a `<think>` is left open, since then no answer was given.

    Where the chat template opens the block in the prompt, the caller puts the `<think>` in front: without it a
    completion that has no `</think>` cannot be told from one without reasoning.
    """
    answer = completion.rpartition("</think>")[2]
    return "" if "<think>" in answer else answer


def extract_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` or `\fbox{…}`, or of `\boxed 5`; None if it is missing, empty or left open.

    As in TeX, `\{` and `\}` do not count as braces, and without braces one number, command or character is boxed.
    """
    boxes = deque(_BOX.finditer(text), maxlen=1)
    if not boxes:
        return None
    box = boxes.pop()
    if not text.startswith("{", box.end()):
        token = _BOX_TOKEN.match(text, box.end())
        return token[0] if token else None
    end = _closing_brace(text, box.end())
    return None if end is None else text[box.end() + 1 : end].strip() or None


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace that opens at `start` is closed."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def unwrap(text: str) -> str:
    r"""The content of a `\text{…}`, `\mathbf{…}`, `\underline{…}`, … that is around the whole text."""
    wrapper = _WHOLE_WRAPPER.match(text)
    if wrapper and _closing_brace(text, wrapper.end()) == len(text) - 1:
        return text[wrapper.end() + 1 : -1].strip()
    return text


def rewritten(text: str, other: str = "") -> tuple[str, str]:
    r"""(the answer in the TeX that math-verify reads, without its unit; the unit as it was written).

    `4.5e33` becomes `4.5\times10^{33}`, `2 1/3` a mixed fraction, `\approx` an equals sign, `\pm 3` two numbers.
    A single letter behind a number (`5 m`) is a unit unless it is a quantity of the `other` answer.
    """
    text = text.translate(_SIGNS).strip()
    text = unwrap(text.strip("$").strip().removesuffix(".")) if not text.endswith(r"\$") else text
    for pattern, replacement in _REWRITING:
        text = pattern.sub(replacement, text)
    text = _SCALE.sub(lambda scale: _SCALES[scale[1]], text).strip()
    value, unit = _without_unit(text, other)
    return _E_NOTATION.sub(r"\1\\times10^{\2}", value).strip(), unit


def _without_unit(text: str, other: str) -> tuple[str, str]:
    if (found := _WITH_UNIT.fullmatch(text)) and not found[1].isalpha():  # `f \text{ is even}` is a statement
        return found[1], found[2]
    found = _NUMBER_WITH_UNIT.fullmatch(text)
    if found is None or set(_LETTER.findall(found["unit"])) & set(_LETTER.findall(_WRAPPED.sub("", other))):
        return text, ""
    return found[1], found["unit"]


def _plain(text: str) -> str:
    r"""A rewritten answer without what does not change its value: spacing, dollars, wrappers, a + and a full stop."""
    text = unwrap(_INVISIBLE.sub("", text).replace("\\%", "%").strip().removesuffix("."))
    text = _SHORT_INDEX.sub(r"\1\2", " ".join(text.split()))
    return _NEEDLESS_SPACE.sub("", text).removeprefix("+").removesuffix(".")


def number(text: str) -> Number | None:
    r"""The value of a normalised text that is a decimal, a power of ten, a ratio or a mixed fraction; else None."""
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


def answer_key(answer: str) -> str | Fraction:
    """Equal for two answers that are plainly the same: what a vote of several answers counts."""
    if len(answer) > MAX_CHARS:
        return "".join(answer.split())
    text = _plain(rewritten(answer)[0])
    found = number(text)
    return text if found is None else found.value


def quick_verdict(answer: str, gold: str) -> bool | None:
    """Right or wrong where that is plain to see: equal text, or two numbers. None: ask math-verify."""
    if len(answer) > MAX_CHARS or len(gold) > MAX_CHARS:
        return "".join(answer.split()) == "".join(gold.split())
    (ours, our_unit), (theirs, their_unit) = rewritten(answer, gold), rewritten(gold, answer)
    if _conflict(our_unit, their_unit):
        return False
    ours, theirs = _plain(ours), _plain(theirs)
    if ours == theirs:
        return ours != ""
    if _IN_BASE.fullmatch(ours) and _IN_BASE.fullmatch(theirs):
        return _base(ours) == _base(theirs)
    if (value := number(ours)) and (expected := number(theirs)):
        return _same(value, expected)
    if _PROSE.fullmatch(ours) and _PROSE.fullmatch(theirs) and ("\\" in answer + gold or " " in ours):
        return True if ours.casefold() == theirs.casefold() else None
    return None


def for_math_verify(answer: str, gold: str) -> tuple[str, str]:
    """Both as math-verify reads them; a name before an equals sign goes where the other has none."""
    ours, theirs = rewritten(answer, gold)[0], rewritten(gold, answer)[0]
    if ("=" in ours) != ("=" in theirs):
        ours, theirs = _NAMED.sub("", ours, 1), _NAMED.sub("", theirs, 1)
    return ours, theirs


def _same(value: Number, expected: Number) -> bool:
    """Exactly, but six digits do where one is a ratio and the other a decimal: 0.333333 is 1/3."""
    difference = abs(value.value - expected.value)
    rounded = (value.is_ratio and expected.is_decimal) or (value.is_decimal and expected.is_ratio)
    return difference <= (Fraction(5, 10**6) * max(abs(value.value), abs(expected.value)) if rounded else 0)


def _base(text: str) -> tuple[str, str]:
    digits, _, base = text.partition("_")
    return digits, base.strip("{}")


def _conflict(ours: str, theirs: str) -> bool:
    """Whether both units are known and differ; a unit that is missing or unknown is none of our business."""
    first, second = _dimensions(ours), _dimensions(theirs)
    return bool(first and second and first != second)


def _dimensions(unit: str) -> dict[str, int] | None:
    r"""Known unit → power: `m s^{-2}` and `\text{m/s}^2` alike; None where a word is unknown."""
    powers: Counter[str] = Counter()
    sign = 1
    bare = re.sub(r"[{}]", "", re.sub(rf"{_WRAPPER}|\\", " ", unit))
    for slash, word, power in _UNIT_TOKEN.findall(bare):
        if slash:
            sign = -1
        elif word != "cdot":
            if word not in _UNITS:
                return None
            powers[_UNITS[word]] += sign * int(power or 1)
    return dict(powers)
