r"""Which letter does a text choose? Decided in linear time, whatever the text.

The form that prompts ask for is a JSON object whose "answer" is one of the letters. Where a text has none, the letter
is looked for where models put it instead; two letters at once (`A or C`) are no choice.
"""

from __future__ import annotations

import json
import re
from collections import deque
from contextlib import suppress
from functools import lru_cache
from typing import Any

from vopd_recipes.grading.boxes import extract_boxed

_MAX_OBJECTS = 100  # places tried, from the last, as the start of a JSON object: keeps the search linear
_OBJECT_START = re.compile(r'\{\s*"')
_OTHER_KEYS = ("choice", "option", "final_answer", "correct_answer", "correct_option", "Answer")

_WRAPPER = r"\\?(?:text|textbf|textrm|mathrm|mathbf)\s?\{"
_OPEN = rf"""[\s"'*_:=$(\[{{\\]{{0,8}}(?:(?i:option|choice)\s{{1,2}})?(?:{_WRAPPER})?"""
# A lower-case letter counts in parentheses, or at the end of its line: "answer: a prime" has none.
_LETTER = r"""(?:\((?i:([CHOICES]))\)|([CHOICES])(?![\w-]))"""
_LETTER_AT_END = r"""(?i:([CHOICES]))(?=[\s"'*_.)\]}$\\]{0,8}(?:\n|$))"""
_PHRASES = (
    rf"(?i:answer)[\"'*_ ]{{0,4}}(?:\s(?i:is|was)\b|\s(?i:should|would|must|will)\s(?i:be)\b){_OPEN}{_LETTER}",
    rf"(?i:answer)\s(?i:to|for|of)\s[^\n.:?]{{1,80}}?\s(?i:is|was)\b{_OPEN}{_LETTER}",
    rf"(?i:answer)[\"'*_ ]{{0,4}}[:=]{_OPEN}(?:{_LETTER}|{_LETTER_AT_END})",
    rf"(?i:correct|right|best|final)\s(?i:option|choice)[\"'*_ ]{{0,4}}(?::|\s(?i:is)\b){_OPEN}{_LETTER}",
    r"<answer>\s{0,2}\(?(?i:([CHOICES]))\)?\s{0,2}</answer>",
)
# Of a statement as well as of a choice ("Statement A is correct but incomplete"), and no acronym's last letter (HPLC).
_VERDICT = (
    rf"(?<![\w-])(?:(?i:option|choice)\s{{0,2}})?{_LETTER}[*_]{{0,2}}"
    r"\s(?i:is\s(?:the\s)?(?:correct|right|best))\b"
)
# What may follow a letter and make it one of two.
_ANOTHER = (
    r"[)*_\"']{0,4}\s{0,2}(?:,|/|&|(?i:or|and)\b)\s{0,2}(?:(?i:option|choice)\s)?"
    r"[(*_\"']{0,3}[CHOICES](?![\w-])(?!\s(?:is|are|was|can)\b)"
)
_TEXT = r"(?:\\text(?:bf|rm|it)?\s?\{|\\math(?:rm|bf)\s?\{)?[\s(\[*]{0,4}"
_BOX = (
    rf"[\s(\[$*]{{0,4}}{_TEXT}(?:(?i:option|choice|answer)[\s~:}}]{{1,4}}{_TEXT})?(?i:([CHOICES]))"
    r"(?:[\s)\]}$*.:]{0,6}$|[.):\]][\s)}*]{0,4}.)"
)
# What makes of a phrase a supposition: "If the answer is A, then …"; "the answer would be A if …".
_SUPPOSED = re.compile(
    r"\b(?:if|unless|whether|suppose|supposing|assume|assuming|imagine|say)\s(?:that\s)?(?:(?:the|our|my)\s)?"
    r"(?:(?:correct|right|final|best)\s)?$",
    re.IGNORECASE,
)
_SUPPOSING = re.compile(r"""[)*_"']{0,4}\sif\b""", re.IGNORECASE)
_LINE = r"[\s*>#-]{0,8}\(?([CHOICES])(?:[.):])[\s*]{1,3}\S"


def extract_choice(text: str, choices: str = "ABCD") -> str | None:
    r"""The chosen letter in upper case, or None. What is looked for, in this order, each at its last occurrence:

    1. a JSON object whose "answer" is exactly one of the letters: `{"reasoning": "…", "answer": "B"}`;
    2. one with another key that says so: `{"choice": "B"}`;
    3. `\boxed{B}`, `\boxed{\text{B}}`, `\boxed{(B)}`, `\boxed{B. Tuesday}`, `\boxed{\text{Option B}}`;
    4. "answer is B", "Answer: (B)", "the correct option is B", `<answer>B</answer>` and the like (a lower-case letter
       only as "(b)" or at the end of its line: "the answer is a prime"); only where none of these is there, "option B
       is correct" or "B is the best";
    5. a bare letter as the final line: `B`, `(b)`, `**B**.`;
    6. the first or last line as `B. Tuesday`, unless other lines begin so with other letters: that is a list;
    7. a bare letter as the first line, before the reasoning.

    A supposition is no choice: "If the answer is A, then …".
    """
    return choice_in_json(text, choices) or choice_elsewhere(text, choices)


def choice_in_json(text: str, choices: str, keys: tuple[str, ...] = ("answer",)) -> str | None:
    """The letter of the last JSON object that has one under one of the keys."""
    found: list[str] = []

    def note(fields: dict[str, Any]) -> None:  # called for each complete object, an inner one before its outer one
        for key in keys:
            if choice := as_choice(fields.get(key), choices):
                found.append(choice)

    decoder = json.JSONDecoder(object_hook=note, strict=False)
    end = 0
    for start in deque((match.start() for match in _OBJECT_START.finditer(text)), maxlen=_MAX_OBJECTS):
        if start >= end:
            with suppress(ValueError, RecursionError):
                end = decoder.raw_decode(text, start)[1]
    return found[-1] if found else None


def choice_elsewhere(text: str, choices: str) -> str | None:
    """The letter of a text that has no JSON object with an "answer"."""
    if other := choice_in_json(text, choices, _OTHER_KEYS):
        return other
    box, phrase, verdict, another, line = _patterns(choices.upper())
    boxed = extract_boxed(text)
    if boxed and (found := box.match(boxed)) and not another.match(boxed, found.end(1)):
        return found[1].upper()
    for pattern in (phrase, verdict):
        stated = (found for found in pattern.finditer(text) if not _is_supposed(text, found))
        if last := deque(stated, maxlen=1):
            group = last[0].lastindex or 0
            return None if another.match(text, last[0].end(group)) else last[0][group].upper()
    lines = text.strip().split("\n")
    alone = [as_choice(one.strip("*()[]$.: \t"), choices) for one in lines]
    first = alone[0] if len({one for one in alone if one}) == 1 else None
    return alone[-1] or _lettered(lines, line) or first


def _is_supposed(text: str, phrase: re.Match[str]) -> bool:
    end = phrase.end(phrase.lastindex or 0)
    return bool(_SUPPOSED.search(text[max(0, phrase.start() - 40) : phrase.start()]) or _SUPPOSING.match(text, end))


def _lettered(lines: list[str], pattern: re.Pattern[str]) -> str | None:
    letters = {found[1] for found in map(pattern.match, lines) if found}
    at_an_end = pattern.match(lines[0]) or pattern.match(lines[-1])
    return letters.pop() if at_an_end and len(letters) == 1 else None


def as_choice(value: object, choices: str) -> str | None:
    """A value that is exactly one of the letters, in upper case."""
    letter = value.strip().upper() if isinstance(value, str) else ""
    return letter if len(letter) == 1 and letter in choices.upper() else None


@lru_cache(maxsize=16)
def _patterns(letters: str) -> tuple[re.Pattern[str], ...]:
    """Of a box, a phrase, a verdict on a letter, another letter behind one, and a line."""
    sources = (_BOX, "|".join(_PHRASES), _VERDICT, _ANOTHER, _LINE)
    return tuple(re.compile(source.replace("CHOICES", re.escape(letters)), re.DOTALL) for source in sources)
