r"""What stands around a value: a name and an equals sign, an approximation, an inequality, other values of a list.

    m + n = 204                    the value 204 of a quantity called m + n
    d = 3\sqrt{13} \approx 10.82   an exact value and its approximation, either of which may be the answer
    2x = 7, 1 + n = 3              equations, and no value: what is left of the sign is no name
    -2 \le x \le 7, x \in [-2, 7]  the set [-2, 7]
    3, 5, and 7                    the list 3, 5, 7

Texts are `tex.normalized`. A sign counts outside brackets only. Each function is one pass over its text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vopd_recipes.grading.tex import GREEK, WRAPPER
from vopd_recipes.grading.values import number

_MARK = re.compile(r"\\[{}]|[()\[\]{}]|\\approx(?![A-Za-z])|=|,|;|\\[A-Za-z]+|\\.", re.DOTALL)
_OPENING, _CLOSING = {"(", "[", "{", r"\{"}, {")", "]", "}", r"\}"}

_INDEX = re.compile(r"_\s*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\\?\w)|\^\s*(?:\{[^{}]*\}|\\[A-Za-z]+|\w)|'")
_ARGUMENT = re.compile(r"(?<=[A-Za-z}_])\s*(?:\([^()]*\)|\[[^\[\]]*\])")
_OF_ANGLE = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc|log|ln))\s*[0-9]+")
_TERM = re.compile(r"\s*([0-9]*)\s*(?:\\?[A-Za-z]|[{}|()\[\]/*,:!]|\\[|{} ]|\s)+")
_CHOSEN = re.compile(r"\\[dt]?binom\s*\{[^{}]*\}\s*\{[^{}]*\}")
_RECIPROCAL = re.compile(r"\\frac\s*\{\s*1\s*\}\s*\{\s*(\\?[A-Za-z]+)\s*\}")
_COORDINATE = re.compile(r"(?<![A-Za-z])[xyz](?![A-Za-z])")
_LONGEST_NAME = 80
_KNOWN = re.compile(
    r"\\(?:a(?:rc)?)?(?:sin|cos|tan|cot|sec|csc)h?(?![A-Za-z])|(?<![A-Za-z])[ei](?![A-Za-z])|"
    r"\\(?:d?frac|sqrt|pi|ln|log|exp|cdot|times)(?![A-Za-z])"
)
_GIVEN_NAME = re.compile(
    rf"(?:{WRAPPER}\{{[A-Za-z ]+\}}|\\?[A-Za-z]+)(?:_(?:\w|\{{[^{{}}]*\}}))?(?:\([A-Za-z]\))?", re.DOTALL
)

_AND = re.compile(
    rf",?\s*(?:{WRAPPER}\{{\s*,?\s*(?:and|or)\s*,?\s*\}}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:quad|qquad)(?![A-Za-z]))\s*"
)
_PROSE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}(?![A-Za-z])")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_ITEM_NAME = re.compile(r"\s*(\\?[A-Za-z](?:_\{?\w\}?)?)\s*=\s*(?=[^=]+$)")

_VARIABLE = rf"([A-Za-z]|\\(?!pi(?![A-Za-z]))(?:{GREEK})(?![A-Za-z]))"
_FINITE = re.compile(r"\\\{([^{}()\[\]]*)\\\}")
_UNEQUAL = re.compile(rf"\s*{_VARIABLE}\s*\\ne(?![A-Za-z])")
_MEMBER = re.compile(rf"\s*{_VARIABLE}\s*\\in(?![A-Za-z])\s*(.+)", re.DOTALL)
_BUILDER = re.compile(
    rf"\s*\\\{{\s*{_VARIABLE}\s*(?:\\in\s*\\mathbb\s*\{{?R\}}?)?\s*(?:\\mid(?![A-Za-z])|\\colon(?![A-Za-z])|[:|])(.+)\\\}}\s*",
    re.DOTALL,
)
_UNION = re.compile(
    rf"\s*(?:\\(?:cup|lor|vee)(?![A-Za-z])|,?\s*{WRAPPER}\{{\s*or\s*\}}|,|;|(?<![A-Za-z\\])or(?![A-Za-z]))\s*"
)
_ALSO = re.compile(rf"\s*(?:\\(?:land|wedge)(?![A-Za-z])|{WRAPPER}\{{\s*and\s*\}}|(?<![A-Za-z\\])and(?![A-Za-z]))\s*")
_BELOW, _ABOVE = "(-\\infty,", ",\\infty)"
_RELATION = re.compile(r"(\\(?:le|ge|ne)(?![A-Za-z])|<|>)")
_IS_SET = re.compile(r"\s*(?:[(\[]|\\\{|\\emptyset|\\mathbb)|.*\\cup", re.DOTALL)


class Sides(NamedTuple):
    r"""The sides of a chain of signs at the top level; `is_rough`: one of the signs is an approximation.

    `constants` were taken off as names (`\sin 30` and a value in degrees), but may be values too (`\ln(2) = 0.693`).
    """

    parts: list[str]
    is_rough: bool
    constants: tuple[str, ...] = ()


def split(text: str, signs: frozenset[str]) -> Sides:
    """Cuts at the signs that stand outside of brackets; one part where brackets do not match."""
    depth, start, parts, is_rough = 0, 0, [], False
    for mark in _MARK.finditer(text):
        sign = mark[0]
        depth += (sign in _OPENING) - (sign in _CLOSING)
        if depth == 0 and sign in signs:
            parts.append(text[start : mark.start()].strip())
            start, is_rough = mark.end(), is_rough or sign == r"\approx"
    parts.append(text[start:].strip())
    return Sides(parts, is_rough) if depth == 0 else Sides([text], False)


EQUALS = frozenset(("=", r"\approx"))
COMMAS = frozenset((",", ";"))


def is_name(text: str) -> bool:
    r"""Whether it names a quantity: `x`, `m+n`, `10p+q`, `\cos A`, `\angle ABC`, `P(X=2)`, `\frac{AB}{CD}`, `a_{10}`,
    `n!`, `\binom{n}{2}`, `x+\frac{1}{x}`.

    A number of its own is no name (`1+n`), nor is a multiple alone (`2x`); several with coordinates are the equation
    of a line or a plane.
    """
    if not 0 < len(text) <= _LONGEST_NAME:
        return False
    bare = _OF_ANGLE.sub(r"\1 a", _ARGUMENT.sub("", _INDEX.sub("", text)))
    bare = _CHOSEN.sub(lambda chosen: r"\binom" if re.search(r"\{[^{}]*[A-Za-z]", chosen[0]) else chosen[0], bare)
    if re.search("[+-]", bare):  # x + 1/x, but no 1/x alone
        others = _RECIPROCAL.sub("", bare).strip(" +-")
        if all(letter == others or not others for letter in _RECIPROCAL.findall(bare)):
            bare = _RECIPROCAL.sub(r"\1", bare)
    terms = re.split(r"[+-]", bare)
    found = [_TERM.fullmatch(term) for term in terms]
    if not all(found) or not all(re.search("[A-Za-z]", term) for term in terms):
        return False
    has_factor = any(term[1] for term in found if term)
    return not has_factor or (len(terms) > 1 and not _COORDINATE.search(bare))


def is_constant(text: str) -> bool:
    r"""Whether it has a value of its own, as `\pi^2` and `\arctan 2`; a sole `e` or `\pi` is rather a name."""
    return not re.search(r"[A-Za-z]", _KNOWN.sub("", text)) and bool(re.search(r"[0-9{(/^*]|[^\\]\\", text))


def sides_of(answer: str, gold: str) -> tuple[Sides, str]:
    """The values that an answer gives, and the gold answer's, without names where those name a value.

    An answer of several sides is right if one of them is and the others agree with it.
    """
    if not ("=" in answer or "=" in gold or r"\approx" in answer or r"\approx" in gold):
        return Sides([answer], False), gold
    theirs = split(split(gold, frozenset((r"\approx",))).parts[0], EQUALS).parts
    ours = split(answer, EQUALS)
    if len(split(answer, COMMAS).parts) > 1 or (len(theirs) > 1 and len(split(gold, COMMAS).parts) > 1):
        return Sides([answer], False), gold
    is_equation = len(theirs) > 1
    if is_equation and len(ours.parts) == 1:
        if _GIVEN_NAME.fullmatch(theirs[0]):
            return ours, " = ".join(theirs[1:])
        return ours, gold
    if is_equation:
        if len(theirs) == 2 and _bare(theirs[0]) == _bare(ours.parts[0]) and _GIVEN_NAME.fullmatch(theirs[0]):
            return Sides(ours.parts[1:], ours.is_rough), theirs[1]
        if ours.is_rough and len(ours.parts) > 2:
            return Sides([" = ".join(ours.parts[:2])], False), gold
        return Sides([answer], False), gold
    parts = ours.parts
    while len(parts) > 1 and is_name(parts[0]) and parts[0] != theirs[0]:
        parts = parts[1:]
    constants = tuple(part for part in ours.parts[: -len(parts)] if is_constant(part))
    if len(parts) == 2 and _GIVEN_NAME.fullmatch(parts[1]) and parts[1] != theirs[0]:  # 5 = x
        parts = parts[:1]
    return Sides(parts, ours.is_rough, constants), theirs[0]


def _bare(text: str) -> str:
    return re.sub(rf"{WRAPPER}|[{{}}\s]", "", text)


def listed(text: str, gold: str) -> str:
    r"""Values with `and` and `or` between them as a list with commas; without the name before each (`x=1 or x=-2`)."""
    if (_AND.search(text)) and not _PROSE.search(_AND.sub(" ", text)) and not _RELATION.search(text):
        text = _AND.sub(", ", text).strip(" ,")
    if text.count(r"\pm") == 1 and "," in gold and "," not in text and "=" not in gold:
        text = _ITEM_NAME.sub("", text)
        return ", ".join(text.replace(r"\pm", sign) for sign in "+-")
    if "=" in gold or len(items := split(text, COMMAS).parts) < 2:
        return text
    names = [_ITEM_NAME.match(item) for item in items]
    first = names[0]
    if first and all(name is None or name[1] == first[1] for name in names):
        items = [_ITEM_NAME.sub("", item) for item in items]
        text = ", ".join(items)
    if "," in gold and "=" not in text and _PLUS_MINUS.search(text):
        return ", ".join(value for item in items for value in _both_signs(item))
    return text


def _both_signs(item: str) -> list[str]:
    r"""3 and -3 of `\pm 3`; an item with two such signs stays what it is."""
    return [_PLUS_MINUS.sub(sign, item) for sign in "+-"] if len(_PLUS_MINUS.findall(item)) == 1 else [item]


def count_of_values(gold: str) -> int:
    r"""Of a list without brackets: 2 of `1,-2` and of `1 \pm \sqrt{2}`."""
    parts = split(gold, COMMAS).parts
    if len(parts) == 1:
        return 2 if r"\pm" in gold and not re.search(r"[=\[(]", gold) else 1
    return len(parts) if all(parts) and "=" not in gold else 1


def as_sets(ours: str, theirs: str) -> tuple[str, str]:
    """Statements about one variable as the sets that they describe, where both sides can be read so."""
    if not any(_RELATION.search(text) or r"\in" in text for text in (ours, theirs)):
        return ours, theirs
    first, second = _described(ours), _described(theirs)
    if first and second:
        is_the_same = first[0] is None or second[0] is None or first[0] == second[0]
        return (first[1], second[1]) if is_the_same else (ours, theirs)
    if first and _IS_SET.match(theirs):
        return first[1], theirs
    if second and _IS_SET.match(ours):
        return ours, second[1]
    if first and (found := _FINITE.fullmatch(first[1])) and _MEMBER.fullmatch(ours):
        return found[1].strip(), theirs
    if second and (found := _FINITE.fullmatch(second[1])) and _MEMBER.fullmatch(theirs):
        return ours, found[1].strip()
    return ours, theirs


def _described(text: str) -> tuple[str | None, str] | None:
    r"""(the variable of an inequality, the set); of `x \in S` the variable does not count."""
    if found := _BUILDER.fullmatch(text):
        text = found[2]
    if found := _MEMBER.fullmatch(text):
        return None, found[2].strip()
    if not _RELATION.search(text):
        return None
    if (together := _both_bounds(text) or _all_but(text)) is not None:
        return together
    variables, sets = set(), []
    for piece in _UNION.split(text):
        described = _both(_ALSO.split(piece))
        if described is None:
            return None
        variables.add(described[0])
        sets.append(described[1])
    return (variables.pop(), r" \cup ".join(sets)) if len(variables) == 1 else None


def _both_bounds(text: str) -> tuple[str, str] | None:
    r"""Of `x \ge -2, x \le 7`: as an alternative the two would say nothing."""
    halves = split(text, COMMAS).parts
    found = _both(halves) if len(halves) == 2 else None
    bounds = [number(bound.strip()) for bound in found[1][1:-1].split(",")] if found else []
    is_between = len(bounds) == 2 and bounds[0] and bounds[1] and bounds[0].value < bounds[1].value
    return found if is_between else None


def _all_but(text: str) -> tuple[str, str] | None:
    r"""Of `x \ne 2, -2`, `x \ne 2 \text{ and } x \ne -2` and `x \ne \pm b`: what lies between, from below to above."""
    if (first := _UNEQUAL.match(text)) is None:
        return None
    items = [_UNEQUAL.sub("", item).strip() for item in split(_AND.sub(", ", text), COMMAS).parts]
    names = {found[1] for found in _UNEQUAL.finditer(text)}
    values = [value.value for item in items if (value := number(item))]
    if len(items) == 1 and items[0].startswith(r"\pm"):
        bare = items[0].removeprefix(r"\pm").strip()
        items = [f"-{bare}", bare]
    elif len(items) == 1 or len(values) < len(items):
        return None
    else:
        items = [item for _, item in sorted(zip(values, items))]
    ends = [r"-\infty", *items, r"\infty"]
    intervals = [f"({low},{high})" for low, high in zip(ends, ends[1:])]
    return (first[1], r" \cup ".join(intervals)) if len(names) == 1 else None


def _both(halves: list[str]) -> tuple[str, str] | None:
    r"""Of one statement, or of `x > 2 and x < 3`, a bound from below and one from above in either order."""
    if len(halves) == 1:
        return _interval(_RELATION.split(halves[0]))
    found = [_interval(_RELATION.split(half)) for half in halves]
    if len(found) != 2 or found[0] is None or found[1] is None or found[0][0] != found[1][0]:
        return None
    low, high = (found[0][1], found[1][1]) if found[0][1].endswith(_ABOVE) else (found[1][1], found[0][1])
    if not low.endswith(_ABOVE) or not high.startswith(_BELOW) or _UNION.search(low.removesuffix(_ABOVE)):
        return None
    return found[0][0], f"{low.removesuffix(_ABOVE)},{high.removeprefix(_BELOW)}"


_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}


def _interval(words: list[str]) -> tuple[str, str] | None:
    """Of `[low, <, x, <=, high]` or `[x, <, high]`."""
    words = [word.strip() for word in words]
    if len(words) == 5 and words[1] in (">", r"\ge") and words[3] in (">", r"\ge"):
        words = [words[4], _TURNED[words[3]], words[2], _TURNED[words[1]], words[0]]
    if len(words) == 3 and not re.fullmatch(_VARIABLE, words[0]):
        words = [words[2], _TURNED[words[1]], words[0]]
    name = words[2] if len(words) == 5 else words[0]
    if len(words) not in (3, 5) or not re.fullmatch(_VARIABLE, name) or not all(words):
        return None
    bounds = words[::4] if len(words) == 5 else words[2:]
    if any(re.search(rf"(?<![A-Za-z\\]){re.escape(name)}(?![A-Za-z])", bound) for bound in bounds):
        return None
    if len(words) == 5:
        if words[1] not in ("<", r"\le") or words[3] not in ("<", r"\le"):
            return None
        return name, f"{'(' if words[1] == '<' else '['}{words[0]},{words[4]}{')' if words[3] == '<' else ']'}"
    bound = words[2]
    return name, {
        "<": rf"(-\infty,{bound})",
        r"\le": rf"(-\infty,{bound}]",
        ">": rf"({bound},\infty)",
        r"\ge": rf"[{bound},\infty)",
        r"\ne": rf"(-\infty,{bound}) \cup ({bound},\infty)",
    }[words[1]]
