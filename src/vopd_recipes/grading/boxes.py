r"""Where a text gives its answer: the last `\boxed{…}` after the reasoning, or the last few, of one value each.

One pass over a text of any length; what stands in a box is read elsewhere.
"""

from __future__ import annotations

import re
from collections import deque

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BOX_TOKEN = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?|\\[A-Za-z]+|[^\s\\{}$]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a character, not a brace
_BETWEEN = re.compile(r"(?:(?!\n\s*\n)[^\\.]|\\[^b]){0,60}")  # two boxes of one sentence
# or two apart, with nothing but delimiters and what makes a list of them between
_LISTED = re.compile(r"[\s$*.,;()\\\[\]]{0,20}?(?:and|or|(?<=\n)\s{0,4}(?:[0-9]{1,2}[.)]|[*-]))[\s$*,:()\\\[\]]{0,20}")
_MOST_VALUES = 20


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
    return _content(text, boxes.pop())[0] if boxes else None


def boxed_values(text: str) -> list[str]:
    r"""The contents of the last boxes that one sentence has: `\boxed{1}` and `\boxed{-2}`, the roots, are a list."""
    values: list[str] = []
    following = None
    for box in reversed(deque(_BOX.finditer(text), maxlen=_MOST_VALUES)):
        value, end = _content(text, box)
        if value is None or not (following is None or _are_listed(text, end, following)):
            break
        values.insert(0, value)
        following = box.start()
    return values


def _are_listed(text: str, end: int, following: int) -> bool:
    return any(between.fullmatch(text, end, following) for between in (_BETWEEN, _LISTED))


def _content(text: str, box: re.Match[str]) -> tuple[str | None, int]:
    """What a box holds, and where it ends."""
    if not text.startswith("{", box.end()):
        token = _BOX_TOKEN.match(text, box.end())
        return (token[0], token.end()) if token else (None, box.end())
    end = closing_brace(text, box.end())
    return (None, len(text)) if end is None else (text[box.end() + 1 : end].strip() or None, end + 1)


def closing_brace(text: str, start: int) -> int | None:
    """Where the brace that opens at `start` is closed."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None
