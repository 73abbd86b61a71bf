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
_OPENING = r"""[\s"'`*_:=$(\[{\\]"""
_OPEN = rf"""{_OPENING}{{0,8}}(?:(?i:option|choice){_OPENING}{{1,6}})?(?:{_WRAPPER})?"""
_IS = (
    r"\s(?i:is|was)\b(?:,?\s(?i:therefore|thus|hence|then|indeed|clearly|obviously|consequently|definitely|certainly"
    r"|simply|most\slikely|likely|probably)\b,?)?"
)
# A lower-case letter counts in parentheses, or at the end of its line: "answer: a prime" has none.
_LETTER = r"""(?:\((?i:([CHOICES]))\)|([CHOICES])(?![\w-]))"""
_LETTER_AT_END = r"""(?i:([CHOICES]))(?=[\s"'`*_.)\]}$\\]{0,8}(?:\n|$))"""
_PHRASES = (
    rf"(?i:answer)[\"'*_ ]{{0,4}}(?:{_IS}|\s(?i:should|would|must|will)\s(?i:be)\b){_OPEN}{_LETTER}",
    rf"(?i:answer)\s(?i:to|for|of)\s[^\n.:?]{{1,80}}?{_IS}{_OPEN}{_LETTER}",
    rf"(?i:answer)[\"'*_ ]{{0,4}}[:=]{_OPEN}(?:{_LETTER}|{_LETTER_AT_END})",
    rf"(?i:correct|right|best|final)\s(?i:option|choice)[\"'*_ ]{{0,4}}(?::|{_IS}){_OPEN}{_LETTER}",
    r"<answer>\s{0,2}\(?(?i:([CHOICES]))\)?\s{0,2}</answer>",
)
# Of a statement as well as of a choice ("Statement A is correct but incomplete"), and no acronym's last letter (HPLC).
_VERDICT = (
    rf"(?<![\w-])(?:(?i:option|choice)\s{{0,2}})?{_LETTER}[*_]{{0,2}}"
    r"\s(?i:is\s(?:the\s)?(?:correct|right|best))\b"
)
# What may follow a letter and make it one of two.
_CLOSING = r"""[)*_"'`$\\}\]]{0,4}"""
_ANOTHER = (
    rf"{_CLOSING}\s{{0,2}}(?:,|/|&|(?i:or|and)\b)\s{{0,2}}(?:(?i:option|choice)\s)?"
    rf"[(*_\"'`$\\]{{0,3}}(?:{_WRAPPER})?"
    rf"[CHOICES](?![\w-])(?!{_CLOSING}\s(?:is|are|was|can)\b)"
)
_TEXT = r"(?:\\text(?:bf|rm|it)?\s?\{|\\math(?:rm|bf)\s?\{)?[\s(\[*]{0,4}"
_BOX = (
    rf"[\s(\[$*]{{0,4}}{_TEXT}(?:(?i:option|choice|answer)[\s~:}}]{{1,4}}{_TEXT})?(?i:([CHOICES]))"
    r"(?:[\s)\]}$*.:]{0,6}$|[)}*]{0,3}[.):\]][\s)}*]{0,4}.)"
)
# What makes of a phrase a supposition, or denies it: "If the answer is A, then …"; "It is false that the answer is A".
_SUPPOSED = re.compile(
    r"(?:\b(?:if|when|whenever|unless|whether|suppose|supposing|assume|assuming|imagine|say)\s(?:that\s)?"
    r"(?:it\s(?:is|was|were)\s(?:true|so|the\scase)\sthat\s)?"
    r"|\b(?:false|untrue|incorrect|impossible|unlikely|I\sdoubt)\sthat\s"
    r"|(?:\bnot|n['’]t)\s(?:true|so|the\scase|clear|certain|mean)\sthat\s|(?:\bnot|n['’]t)\s(?:think|believe)\s(?:that\s)?)"
    r"(?:(?:the|our|my)\s)?(?:(?:correct|right|final|best)\s)?(?:(?:answer|statement)\s)?$",
    re.IGNORECASE,
)
# The same of what comes behind: "the answer would be A if …"; "the answer is A? No".
_SUPPOSING = re.compile(rf"{_CLOSING}\sif\b", re.IGNORECASE)
_ASKING = re.compile(
    rf"{_CLOSING}\s?\?{_CLOSING}\s{{0,4}}(?!(?:yes|yeah|correct|right|indeed|exactly)\b)\w", re.IGNORECASE
)
_LINE = r"[\s*>#-]{0,8}\(?([CHOICES])(?:[.):])[\s*]{1,3}\S"
# Weaker: "Option C: Tuesday", "C - Tuesday"; but no difference of two quantities, and no bond (C - H).
_WEAKER_LINE = (
    r"[\s*>#-]{0,8}(?:(?i:option|choice)\s{1,2}[(*]{0,3}([CHOICES])(?:[)*]{0,3}[.:]|\))[\s*]{1,3}\S"
    r"|(?:(?i:option|choice)\s{1,2})?[(*]{0,3}([CHOICES])[)*]{0,3}\s[-–—]\s[\s*]{0,3}[^\W\d_]{3}(?!.*=))"
)
# The first line alone: "C, because …"; "I, because …" may be a word.
_REASONED = (
    r"(?!I,)[\s*>#-]{0,8}(?:(?i:option|choice)\s{1,2})?[(*]{0,3}([CHOICES])[)*]{0,3},\s{1,2}(?:because|since)\b"
)
_NAMED = re.compile(r"(?:option|choice)\s{1,2}(?=\S)", re.IGNORECASE)
_AROUND = "*()[]$.:`\\ \t"  # what may stand around a letter that has a line of its own


def extract_choice(text: str, choices: str = "ABCD") -> str | None:
    r"""The chosen letter in upper case, or None. What is looked for, in this order, each at its last occurrence:

    1. a JSON object whose "answer" is exactly one of the letters: `{"reasoning": "…", "answer": "B"}`;
    2. one with another key that says so: `{"choice": "B"}`;
    3. `\boxed{B}`, `\boxed{\text{B}}`, `\boxed{(B)}`, `\boxed{B. Tuesday}`, `\boxed{\text{Option B}}`;
    4. "answer is B", "Answer: (B)", "the correct option is B", `<answer>B</answer>` and the like (a lower-case letter
       only as "(b)" or at the end of its line: "the answer is a prime"); only where none of these is there, "option B
       is correct" or "B is the best";
    5. a bare letter as the final line: `B`, `(b)`, `**B**.`, `Option B`;
    6. the first or last line as `B. Tuesday`, `Option B: Tuesday` or `B - Tuesday`, unless other lines begin so with
       other letters: that is a list;
    7. a bare letter as the first line, before the reasoning, or `B, because …`.

    A supposition is no choice, nor is a question or what is denied: "If the answer is A, then …".
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
    box, phrase, verdict, another, *_ = _patterns(choices.upper())
    boxed = extract_boxed(text)
    if boxed and (found := box.match(boxed)) and not another.match(boxed, found.end(1)):
        return found[1].upper()
    for pattern in (phrase, verdict):
        stated = (found for found in pattern.finditer(text) if not _is_supposed(text, found))
        if last := deque(stated, maxlen=1):
            group = last[0].lastindex or 0
            return None if another.match(text, last[0].end(group)) else last[0][group].upper()
    return _of_lines(text.strip().split("\n"), choices)


def _is_supposed(text: str, phrase: re.Match[str]) -> bool:
    before, end = text[max(0, phrase.start() - 60) : phrase.start()], phrase.end(phrase.lastindex or 0)
    asked = _ASKING.match(text, end) or _ASKING.match(text, phrase.end())
    return bool(_SUPPOSED.search(before) or _SUPPOSING.match(text, end) or asked)


def _of_lines(lines: list[str], choices: str) -> str | None:
    """The letter of a first or last line that is little else than one."""
    *_, line, weaker, reasoned = _patterns(choices.upper())
    bare = [as_choice(one.strip(_AROUND), choices) for one in lines]
    if plain := bare[-1] or _lettered(lines, line) or _first(bare):
        return plain
    named = [_named(one.strip(_AROUND), choices) for one in lines]
    headings = {one for one in named[:-1] if one}  # of a list, where the last line is but the next of them
    last = named[-1] if not headings or named[-1] in headings else None
    because = reasoned.match(lines[0])
    return last or _lettered(lines, weaker) or _first(named) or (because[1] if because else None)


def _named(line: str, choices: str) -> str | None:
    found = _NAMED.match(line)
    return as_choice(line[found.end() :].strip(_AROUND), choices) if found else None


def _first(letters: list[str | None]) -> str | None:
    """That of the first line, where no line has another."""
    return letters[0] if len({one for one in letters if one}) == 1 else None


def _lettered(lines: list[str], pattern: re.Pattern[str]) -> str | None:
    letters = {found[found.lastindex or 0] for found in map(pattern.match, lines) if found}
    at_an_end = pattern.match(lines[0]) or pattern.match(lines[-1])
    return letters.pop() if at_an_end and len(letters) == 1 else None


def as_choice(value: object, choices: str) -> str | None:
    """A value that is exactly one of the letters, in upper case."""
    letter = value.strip().upper() if isinstance(value, str) else ""
    return letter if len(letter) == 1 and letter in choices.upper() else None


@lru_cache(maxsize=16)
def _patterns(letters: str) -> tuple[re.Pattern[str], ...]:
    """Of a box, a phrase, a verdict on a letter, another letter behind one, and three kinds of lines."""
    sources = (_BOX, "|".join(_PHRASES), _VERDICT, _ANOTHER, _LINE, _WEAKER_LINE, _REASONED)
    return tuple(re.compile(source.replace("CHOICES", re.escape(letters)), re.DOTALL) for source in sources)
