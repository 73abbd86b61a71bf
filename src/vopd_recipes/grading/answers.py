r"""Are two answers plainly the same or plainly different, and what is math-verify asked where neither is plain?

Golds are written as data sets have them (Minerva's are often `4.5e33` or `np.arcsin(10/13)`), answers as models type
them. An answer is normalised (`tex`), taken out of what stands around it (`relations`), freed of its unit (`units`)
and read as a number where it is one (`values`). Only what is left goes to math-verify, with its symbols made plain
(`symbols`). Everything is a pattern over text of a bounded length, or one pass over it: hostile text costs no time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

from vopd_recipes.grading.relations import COMMAS, EQUALS, as_sets, count_of_values, is_name, listed, sides_of, split
from vopd_recipes.grading.symbols import Symbols
from vopd_recipes.grading.tex import normalized, unwrap
from vopd_recipes.grading.units import DIGITS, conflict, without_unit
from vopd_recipes.grading.values import Number, is_rounding, number, roughly, same

MAX_CHARS = 1000  # longer answers are compared as text only: what follows is not linear, and neither is math-verify

_E_NOTATION = re.compile(rf"(?<![A-Za-z0-9.\\_^])({DIGITS})[eE]([+-]?[0-9]{{1,3}})(?![\w.])")
_SHORT_INDEX = re.compile(r"([_^])\{([A-Za-z0-9])\}(?![A-Za-z0-9])")
_INVISIBLE = re.compile(r"\\?\$")
# Not the one of `81, 256`: without it the list would be the number 81,256.
_NEEDLESS_SPACE = re.compile(r"(?<![A-Za-z0-9]) (?!(?<=[0-9], )[0-9]{3}(?![0-9]))| (?![A-Za-z0-9])")
_IN_BASE = re.compile(r"([0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)_(?:\{([0-9]+)\}|([0-9]+))")
# Neither \sin nor \log: who wrote them may have meant degrees or another base.
_COMPUTED = re.compile(r"(?:[0-9.+\-*/()\[\]{}^ ]|\\(?:frac|sqrt|pi|ln|cdot|times)(?![A-Za-z]))+")
_PROSE = re.compile(r"[A-Za-z][A-Za-z ]{2,}")
_TO = re.compile(r"([0-9]+)\s*(?:\\text\s*\{\s*to\s*\}|to(?![A-Za-z]))\s*([0-9]+)")
_MODULO = re.compile(r"\\[pb]?mod(?![A-Za-z])")
_HALF_DAY = re.compile(r"(?<![A-Za-z])[apAP][mM](?![A-Za-z])")
_CLOCK = re.compile(r"([0-9]+):([0-9]{2})(?::([0-9]{2}))?")


class Compared(NamedTuple):
    """What is compared: the sides of the answer, of which one must be the gold answer and the others agree with it.

    `units_differ`: from the gold answer's; `has_scales`: between the sides. `constants` as in `relations.Sides`.
    """

    sides: list[str]
    gold: str
    is_rough: bool
    units_differ: bool
    has_scales: bool
    constants: tuple[str, ...]


def rewritten(text: str, other: str = "", is_gold: bool = False) -> tuple[str, str]:
    r"""(the answer in the TeX that math-verify reads, without its unit; the unit as it was written).

    `4.5e33` becomes `4.5\times10^{33}`, `2 1/3` a mixed fraction, `\pm 3` two numbers.
    A single letter behind a number (`5 m`) is a unit unless it is a quantity of the `other` answer.
    """
    value, unit = without_unit(normalized(text), other, is_gold)
    return _E_NOTATION.sub(r"\1\\times10^{\2}", value).strip(), unit


def _compared(answer: str, gold: str) -> Compared:
    ours, theirs = normalized(answer), normalized(gold)
    ours, theirs = _residue(_ratio(ours, theirs), theirs), _ratio(theirs, ours)
    ours, theirs = as_sets(ours, theirs)
    ours = listed(ours, theirs)
    ours, theirs = _in_order(ours, listed(theirs, ours))
    sides, theirs = sides_of(ours, theirs)
    theirs, their_unit = rewritten(theirs, sides.parts[0], is_gold=True)
    found = [rewritten(side, theirs) for side in sides.parts]
    differ = any(conflict(unit, their_unit) for _, unit in found)
    values = [_on_the_hour(value, unit, theirs) for value, unit in found]
    theirs = _on_the_hour(theirs, their_unit, sides.parts[0])
    has_scales = len({unit for _, unit in found}) > 1
    return Compared(values, theirs, sides.is_rough, differ, has_scales, sides.constants)


def _ratio(text: str, other: str) -> str:
    """`1 to 2` as 1:2, where the other one is written so."""
    found = _TO.fullmatch(text) if ":" in other else None
    return f"{found[1]}:{found[2]}" if found else text


def _residue(ours: str, theirs: str) -> str:
    r"""3 of `x \equiv 3 \pmod{7}` and of `3 \pmod{7}`, where the gold answer is a number alone."""
    name, sign, rest = ours.partition(r"\equiv")
    value, *modulus = _MODULO.split(rest, 1) if sign else ours.split(r"\pmod", 1)
    return value.strip() if modulus and (not sign or is_name(name.strip())) and number(theirs) else ours


def _on_the_hour(value: str, unit: str, other: str) -> str:
    """`9:00` of `9 a.m.`, where the other one has minutes."""
    is_hour = value.isdecimal() and len(value) < 3 and ":" in other and _HALF_DAY.search(unit)
    return f"{value}:00" if is_hour else value


def _in_order(ours: str, theirs: str) -> tuple[str, str]:
    """Values without names keep the order of those with a name each: `9, 4` is `AB=9, CD=4`, but `4, 9` is not."""
    values = split(ours[1:-1] if _is_pair(ours) else ours, COMMAS).parts
    if "=" not in theirs or "=" in ours or len(values) < 2:
        return ours, theirs
    named = [split(item, EQUALS).parts for item in split(theirs, COMMAS).parts]
    names = {item[0] for item in named if len(item) == 2 and is_name(item[0])}
    if len(names) != len(named) or len(named) != len(values) or not all(values):
        return ours, theirs
    expected = [rewritten(item[1], value, is_gold=True)[0] for item, value in zip(named, values)]
    found = [rewritten(value, other)[0] for value, other in zip(values, expected)]
    return f"({', '.join(found)})", f"({', '.join(expected)})"


def _plain(text: str) -> str:
    r"""A rewritten answer without what does not change its value: spacing, dollars, wrappers, a + and a full stop."""
    text = unwrap(_INVISIBLE.sub("", text).replace("\\%", "%").strip().removesuffix("."))
    text = _SHORT_INDEX.sub(r"\1\2", " ".join(text.split()))
    return _NEEDLESS_SPACE.sub("", text).removeprefix("+").removesuffix(".")


def answer_key(answer: str) -> str | Fraction:
    """Equal for two answers that are plainly the same: what a vote of several answers counts."""
    if len(answer) > MAX_CHARS:
        return "".join(answer.split())
    text = _plain(_compared(answer, "").sides[0])
    found = number(text)
    return text.replace(", ", ",") if found is None else found.value


def quick_verdict(answer: str, gold: str) -> bool | None:
    """Right or wrong where that is plain to see: equal text, or two numbers. None: ask math-verify."""
    if len(answer) > MAX_CHARS or len(gold) > MAX_CHARS:
        return "".join(answer.split()) == "".join(gold.split())
    if answer.isdecimal() and gold.isdecimal() and answer.isascii() and gold.isascii():
        return int(answer) == int(gold)
    compared = _compared(answer, gold)
    if compared.units_differ:
        return False
    sides, theirs = [_plain(side) for side in compared.sides], _plain(compared.gold)
    if len(sides) > 1:
        is_exact = compared.is_rough and sides[0] == theirs
        if is_exact and (compared.has_scales or not _may_disagree(sides)):
            return True
        return _one_of(sides, theirs, compared.is_rough)
    return _verdict(sides[0], theirs, is_text="\\" in answer + gold)


def _one_of(sides: list[str], theirs: str, is_rough: bool) -> bool | None:
    """Where every side is a number."""
    values, expected = [number(side) for side in sides], number(theirs)
    if expected is None or not all(values):
        return None
    known = [value for value in values if value]
    agrees = all(
        roughly(known[0], value) if is_rough or _is_rounded(value, known[0]) else same(known[0], value)
        for value in known
    )
    return agrees and any(same(value, expected) for value in known)


def _may_disagree(sides: list[str]) -> bool:
    """Whether an exact value is known here or to math-verify, and its approximations too: those must agree with it."""
    exact, approximations = number(sides[0]), [number(side) for side in sides[1:]]
    if not all(approximations) or not (exact or _COMPUTED.fullmatch(sides[0])):
        return False
    return not all(is_rounding(exact, side) for side in sides[1:])


def _is_rounded(value: Number, other: Number) -> bool:
    return value.is_decimal or other.is_decimal


def _verdict(ours: str, theirs: str, is_text: bool) -> bool | None:
    if ours.replace(", ", ",") == theirs.replace(", ", ","):
        return ours != ""
    if _IN_BASE.fullmatch(ours) and _IN_BASE.fullmatch(theirs):
        return _base(ours) == _base(theirs)
    if (value := number(ours)) and (expected := number(theirs)):
        return same(value, expected)
    if (time := _CLOCK.fullmatch(ours)) or _CLOCK.fullmatch(theirs):
        expected_time = _CLOCK.fullmatch(theirs)
        return bool(time and expected_time) and _clock(time) == _clock(expected_time)
    if _is_pair(ours) and not _is_pair(theirs) and count_of_values(_elements(theirs)) == 2:
        return False  # a point or an interval, and two values
    if _is_pair(theirs) and ours != (elements := _elements(ours)) and count_of_values(elements) == 2:
        return False
    if _is_pair(theirs) and not _is_pair(ours) and count_of_values(ours) == 2 and _may_be_interval(theirs):
        return False
    if _PROSE.fullmatch(ours) and _PROSE.fullmatch(theirs) and (is_text or " " in ours):
        return True if ours.casefold() == theirs.casefold() else None
    return None


def _clock(found: re.Match[str] | None) -> list[int]:
    return [int(part or 0) for part in found.groups()] if found else []


def _is_pair(text: str) -> bool:
    return (
        text.startswith("(") and text.endswith(")") and len(split(text, COMMAS).parts) == 1 and len(_pair(text)) == 2
    )


def _elements(text: str) -> str:
    """What stands in a set's braces; anything else as it is."""
    return text[2:-2] if text.startswith(r"\{") and text.endswith(r"\}") else text


def _pair(text: str) -> list[str]:
    return split(text[1:-1], COMMAS).parts


def _may_be_interval(text: str) -> bool:
    low, high = map(number, _pair(text))
    return bool(low and high and low.value < high.value)


def for_math_verify(answer: str, gold: str) -> tuple[list[str], str, bool, list[str]]:
    """(the sides of the answer, the gold answer, whether a side may be rounded, constants), as math-verify reads them.

    The constants stand before the sides and count only where those are not the answer by themselves.
    """
    compared = _compared(answer, gold)
    symbols = Symbols(compared.gold, compared.sides)
    theirs = symbols.numbered(compared.gold)
    sides, constants = ([symbols.numbered(side) for side in part] for part in (compared.sides, compared.constants))
    return sides, theirs, compared.is_rough, constants


def _base(text: str) -> tuple[str, str]:
    digits, _, base = text.partition("_")
    return digits, base.strip("{}")


def listed_boxes(gold: str, boxes: Callable[[], list[str]]) -> str | None:
    """Several boxes as one list, where the gold answer is a list of as many values."""
    if "," not in gold and r"\pm" not in gold and "and" not in gold:
        return None
    count = count_of_values(listed(_elements(normalized(gold)), ""))
    if count < 2:
        return None
    values = boxes()
    is_list = len(values) == count and all(len(split(value, COMMAS).parts) == 1 for value in values)
    return ", ".join(values) if is_list else None
