r"""Does a question ask for percent, so that `10\%` and `10` are the same answer?

Most problems about percent have the word somewhere, but "How many dollars is 10 percent of 100?" asks for dollars: a
number before the word, or a `how many` of something else, says so. Each look at a question goes a bounded way.
"""

from __future__ import annotations

import re

from vopd_recipes.grading.answers import quick_verdict

_WORD = re.compile(r"\bpercent(?:age)?s?\b", re.IGNORECASE)
_REACH = 200  # characters of a sentence that are looked at, on either side of the word
_SENTENCE_END = re.compile(r"[.?!]")
_NUMBERED = re.compile(
    r"(?:[0-9}]\$?|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|"
    r"sixty|seventy|eighty|ninety|hundred|half))[\s-]*$",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"(?:(?:as an?|in|what|which|nearest|find the|is the) (?:\w+ ){0,4}|"
    r"\b(?:calculate|compute|determine|estimate|express|find|give|state|write) "
    r"(?:(?!(?:of|after|before|if|when|with|from|given) )\w+ ){0,4})$",
    re.IGNORECASE,
)
_HOW_MANY = re.compile(r"\bhow many (?!(?:more |fewer )?$)", re.IGNORECASE)
_VARIABLE = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\$?\s{0,3}(?:\\?%|percent)")
_SIGN = re.compile(r"\s*(?:\\?%|(?:\\text\s*\{\s*)?percent(?:\s*\})?)\s*\.?\s*$")


def as_asked(answer: str, gold: str, question: str) -> tuple[str, str]:
    """(answer, gold) without the percent sign that only one of them has, where the question asks for percent.

    The gold answer loses its own only where the rest is plainly the answer: 0.2 is 20 %, and right as it stands.
    """
    answer_has, gold_has = ("%" in text or "percent" in text for text in (answer, gold))
    if answer_has == gold_has or not asks_percent(question):
        return answer, gold
    if answer_has:
        return _SIGN.sub("", answer), gold
    bare = _SIGN.sub("", gold)
    return answer, bare if quick_verdict(answer, bare) else gold


def asks_percent(question: str) -> bool:
    """Whether it asks what percent something is, or for the x of `x %`."""
    return any(_is_asked(question, word) for word in _WORD.finditer(question)) or any(
        _asks_for(question, name) for name in {found[1] for found in _VARIABLE.finditer(question)}
    )


def _is_asked(question: str, word: re.Match[str]) -> bool:
    before = _SENTENCE_END.split(question[max(0, word.start() - _REACH) : word.start()])[-1]
    if _NUMBERED.search(before):
        return False
    if _ASKED.search(before):
        return True
    end = _SENTENCE_END.search(question, word.end(), word.end() + _REACH + 1)
    return end is not None and end[0] == "?" and not _HOW_MANY.search(before)


def _asks_for(question: str, name: str) -> bool:
    asked = rf"\b(?:what(?:'s| is)|find|determine|compute|calculate|solve for|value of) (?:the value of )?\$?{name}\$?"
    return re.search(rf"(?i:{asked})(?![\w^+*/\\-]| [-+*/=])", question) is not None
