r"""The unit behind a value: found, taken off, and compared with another.

Gold answers mostly lack units, so they are dropped; but two that are known and differ make two answers different.
What may stand behind any value is a word, wrapped (`\text{cm}`) or known (`cm`). Behind a number whose gold answer is
a number too, it may be what elsewhere is a symbol: `\Omega`, `\mu\text{m}`, `M_\odot`, `\frac{\text{erg}}{\text{s}}`.
"""

from __future__ import annotations

import re
from collections import Counter

from vopd_recipes.grading.tex import WRAPPER

_SPELLINGS = {
    "m": "m meter meters metre metres", "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres", "km": "km kilometer kilometers kilometre kilometres",
    "um": "mum um micron microns micrometer micrometers micrometre micrometres",
    "nm": "nm nanometer nanometers nanometre nanometres", "angstrom": "angstrom angstroms AA",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
    "g": "g gm gram grams", "kg": "kg kilogram kilograms",
    "mg": "mg milligram milligrams", "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces", "s": "s sec second seconds", "min": "min mins minute minutes", "h": "h hr hrs hour hours",
    "day": "day days", "week": "week weeks", "month": "month months", "year": "yr year years",
    "degree": "deg degree degrees circ", "radian": "rad radian radians", "dollar": "dollar dollars",
    "cent": "cent cents", "N": "N newton newtons", "J": "J joule joules", "W": "W watt watts", "V": "V volt volts",
    "K": "K kelvin kelvins", "Hz": "Hz hertz", "Pa": "Pa pascal pascals", "erg": "erg ergs", "eV": "eV",
    "ohm": "ohm ohms Omega", "mol": "mol mole moles", "mph": "mph", "am": "am AM", "pm": "pm PM",
}  # fmt: skip
_UNITS = {word: unit for unit, words in _SPELLINGS.items() for word in words.split()}
_MORE_WORDS = (
    "unit units square sq cubic cu pc kpc Mpc AU Gyr Myr Jy keV MeV GeV kPa kHz MHz GHz kJ kW mL liter liters litre "
    "litres arcsec arcmin ppm dex mag"
)
_WORDS = "|".join(
    sorted({word for word in [*_UNITS, *_MORE_WORDS.split()] if len(word) > 1 and word != "Omega"}, key=len)[::-1]
)
_EXPONENT = r"(?:\s*\^\s*(?:\{[+-]?[0-9]\}|[+-]?[0-9]))?"
_WRAPPED_UNIT = WRAPPER + r"\{(?!\s*(?:or|and|[a-fh-ln-rt-z]|[0-9])\s*\})[^{}0-9]*(?:\^\{?[+-]?[0-9]\}?[^{}0-9]*)*\}"
_UNIT_PART = rf"(?:{_WRAPPED_UNIT}|(?<![A-Za-z\\])(?:{_WORDS})(?![A-Za-z])){_EXPONENT}"
_ANY_PART = rf"(?:{_WRAPPED_UNIT}|(?<![A-Za-z\\])(?:{_WORDS}|[ACFJKLNTVWghms])(?![A-Za-z])){_EXPONENT}"
_BETWEEN = r"(?:[\s/*.]|\\cdot|per(?![A-Za-z]))*"
_SCALE = rf"(?:[CF](?![A-Za-z])|{WRAPPER}\{{\s*[CF]\s*\}})?"
_UNDER = rf"(?:\s*/\s*\(\s*{_ANY_PART}(?:{_BETWEEN}{_ANY_PART})*\s*\))?"
_WITH_UNIT = re.compile(
    rf"(.*?[0-9}}\])A-Za-z])\s*(\^\{{?\\circ\s*\}}?\s*{_SCALE}|{_UNIT_PART}(?:{_BETWEEN}{_ANY_PART})*{_UNDER})\s*\.?\s*"
)
DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
POWER = r"10\^(?:\{([+-]?[0-9]{1,3})\}|([+-]?[0-9]{1,3}))"
_SPACED_NUMBER = rf"[+-]?{DIGITS}(?:[eE][+-]?[0-9]+|\s*(?:\\times|\\cdot|\*|x)\s*{POWER})?|[+-]?{POWER}"
_NUMBER_WITH_UNIT = re.compile(rf"\s*({_SPACED_NUMBER})\s+(?P<unit>{_ANY_PART}(?:{_BETWEEN}{_ANY_PART})*{_UNDER})\s*")
_OF_BODY = (
    r"(?:\\odot|\\oplus|\{[^{}]{1,15}\}|\{\s*"
    + WRAPPER
    + r"\{[A-Za-z]{1,12}\}\s*\}|"
    + WRAPPER
    + r"\{[A-Za-z]{1,12}\})"
)
_SIGN = (
    r"(?:\\mu\s*(?:[A-Za-z]{1,2}(?![A-Za-z])|" + WRAPPER + r"\{[A-Za-z]{1,7}\})|"
    r"\\(?:Omega|AA|hbar|ell)(?![A-Za-z])|\\mathring\s*\{\s*(?:A|" + WRAPPER + r"\{A\})\s*\}|"
    r"(?:[kMG]|" + WRAPPER + r"\{\s*[mkMG]\s*\})\s*\\Omega(?![A-Za-z])|"
    r"(?:[LMR]|" + WRAPPER + r"\{\s*[LMR]\s*\})\s*_\s*" + _OF_BODY + ")" + _EXPONENT
)
_SYMBOL_PART = rf"(?:{_SIGN}|{_ANY_PART})"
_FRACTION_PART = (
    rf"\\frac\s*\{{\s*{_SYMBOL_PART}(?:{_BETWEEN}{_SYMBOL_PART})*\s*\}}\s*"
    rf"\{{\s*{_SYMBOL_PART}(?:{_BETWEEN}{_SYMBOL_PART})*\s*\}}"
)
_COUNTED = r"(?<![A-Za-z\\])(?!dozen|hundred|trillion|sqrt)[A-Za-z]{3,}"  # 54 gallons, 18 right triangles
_TAIL_PART = rf"(?:{_FRACTION_PART}|{_SYMBOL_PART}|{_COUNTED})"
_NUMBER_WITH_SYMBOL = re.compile(
    rf"\s*({_SPACED_NUMBER}|[+-]?\\frac\{{[0-9]+\}}\{{[0-9]+\}})"
    rf"(?:\s*(?=\\)|\s+|\s*(?=[LMR]_|{WRAPPER}))(?P<unit>{_TAIL_PART}(?:{_BETWEEN}{_TAIL_PART})*)\s*"
)
_NUMERAL = re.compile(rf"\$?\s*(?:{_SPACED_NUMBER}|-?\\[dt]?frac\{{[0-9]+\}}\{{[0-9]+\}}|-?[0-9.]+/[0-9]+)\s*\$?")
_WRAPPED = re.compile(_WRAPPED_UNIT)
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_UNIT_TOKEN = re.compile(r"(/|per(?![A-Za-z]))|([A-Za-z]+)(?:\^([+-]?[0-9]))?")
_UNIT_FRACTION = re.compile(r"\\frac\s*\{(.*)\}\s*\{(.*)\}")
_DRESS = re.compile(rf"{WRAPPER}|\\")


def without_unit(text: str, other: str, is_gold: bool = False) -> tuple[str, str]:
    """(the value, the unit as it was written).

    A single letter behind a number is a unit unless it is a quantity of the `other` answer; a symbol is one where that
    is a bare number and the gold answer.
    """
    if text.isdecimal():
        return text, ""
    may_be_symbol = not is_gold and _NUMERAL.fullmatch(other)
    if (found := _WITH_UNIT.fullmatch(text)) and not found[1].isalpha():  # `f \text{ is even}` is a statement
        value, unit = found[1], found[2]
        whole = _NUMBER_WITH_SYMBOL.fullmatch(text) if may_be_symbol else None
        return (whole[1], whole["unit"]) if whole else (value, unit)
    if may_be_symbol and (found := _NUMBER_WITH_SYMBOL.fullmatch(text)):
        return found[1], found["unit"]
    found = _NUMBER_WITH_UNIT.fullmatch(text)
    if found is None or set(_LETTER.findall(found["unit"])) & set(_LETTER.findall(_WRAPPED.sub("", other))):
        return text, ""
    return found[1], found["unit"]


def conflict(ours: str, theirs: str) -> bool:
    """Whether both units are known and differ; a unit that is missing or unknown is none of our business."""
    if not ours or not theirs:
        return False
    scales = [re.sub(r"[^CF]", "", _DRESS.sub("", unit)) for unit in (ours, theirs) if r"\circ" in unit]
    if len(set(scales)) == 2 and all(scales):  # degrees Celsius and Fahrenheit
        return True
    first, second = _dimensions(ours), _dimensions(theirs)
    return bool(first and second and first != second)


def _dimensions(unit: str) -> dict[str, int] | None:
    r"""Known unit → power: `m s^{-2}` and `\text{m/s}^2` alike; None where a word is unknown."""
    powers: Counter[str] = Counter()
    sign = 1
    unit = _UNIT_FRACTION.sub(r"\1/\2", unit).replace(r"\mathring{A}", "AA")
    bare = re.sub(r"[{}]", "", _DRESS.sub(" ", re.sub(rf"\\mu\s*(?:{WRAPPER})?", "mu", unit)))
    for slash, word, power in _UNIT_TOKEN.findall(re.sub(r"mu\s*\{?\s*(?=[A-Za-z])", "mu", bare)):
        if slash:
            sign = -1
        elif word != "cdot":
            if word not in _UNITS:
                return None
            powers[_UNITS[word]] += sign * int(power or 1)
    return dict(powers)
