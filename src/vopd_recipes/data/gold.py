r"""What stands in an answer's column becomes the answer that a completion is graded against.

Only the dress comes off: `\[7\]` and `7.` are `7`, `(B)` is `B`, the choice at index 1 is `B`, and a number is written
out in digits. Units stay, since grading compares them.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from vopd_recipes.grading import extract_boxed

_DELIMITERS = ((r"\[", r"\]"), (r"\(", r"\)"), ("$$", "$$"), ("$", "$"))
_CHOICE = re.compile(r"[\s(\[]{0,4}([A-Za-z])[\s)\].:]{0,4}")
_INDEX = re.compile(r"([0-9]{1,2})(?:\.0+)?")  # a column with nulls makes floats of integers


def written_out(number: int | float | Decimal) -> str:
    """A number in digits, without an exponent.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return str(number) if isinstance(number, int) else format(Decimal(str(number)), "f")


def answer_in(text: str, where: str, letters: str) -> str:
    """The answer in a column's text, empty where there is none.

    Args:
        text: of the column.
        where: `plain`, `boxed`, `hashes` or `index`, see `DataRecipe`.
        letters: of the choices, which an index counts; A to D where the row does not list them.
    """
    if where == "boxed":
        return extract_boxed(text) or ""
    if where == "hashes":
        return text.rpartition("####")[2].strip() if "####" in text else ""
    if where == "index":
        found = _INDEX.fullmatch(text)
        return (letters or "ABCD")[int(found[1]) :][:1] if found else ""
    return text


def bare(answer: str) -> str:
    """A mathematical answer without delimiters and full stop."""
    for opening, closing in _DELIMITERS:
        inner = answer[len(opening) : -len(closing)]
        if answer.startswith(opening) and answer.endswith(closing) and "$" not in inner and inner.strip():
            answer = inner.strip()
            break
    return answer[:-1].rstrip() if re.search(r"[^.\s]\s*\.$", answer[-9:]) else answer


def letter(answer: str) -> str:
    """A choice's letter in upper case: `B` of `(b)` and `B.`; anything else as it is."""
    found = _CHOICE.fullmatch(answer)
    return found[1].upper() if found else answer
