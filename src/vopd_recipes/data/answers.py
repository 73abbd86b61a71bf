r"""Has a row an answer that a completion can be graded against?

Asked of `vopd_recipes.grading` itself: a completion that gives the gold answer must be right. In mathematics it is
given with a space in front (`\quad`), because equal text is right without being read, and the question is whether
math-verify can read it. Numbers and fractions of numbers need no asking, nor does what its author marked as words
(`\text{Saturday}`, `\text{1:03 PM}`): a comparison of strings decides there. Other prose parses too, as a product of
its letters, and is refused before: two words in a row (`no solution`), a unit apart, are no answer that another
wording could equal.
An answer over 1,000 characters is refused, however it is made: the grader compares it as text only.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from types import TracebackType
from typing import Self

from vopd_recipes.data.rows import Problem
from vopd_recipes.grading import MathGrader, extract_boxed, grade_choice, rewritten

_PLAIN = re.compile(
    r"\$?[+-]?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\\[dt]?frac\{[0-9]+\}\{0*[1-9][0-9]*\}|[0-9]+/0*[1-9][0-9]*)\$?"
)
_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+")
_SIGN = re.compile(r"[0-9A-Za-zΑ-Ωα-ω∞]")  # without one nothing is said, whatever a string comparison makes of it
_MARKUP = re.compile(r"(?<!\\)#")  # `#### 7` is an answer in another notation (`answer_in: hashes`)
_PROSE = re.compile(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}")
_CHOICE_LINE = re.compile(r"^[ \t(*]{0,4}([A-Z])[.):]", re.MULTILINE)
_MARKED = re.compile(r"\\(?:text(?:bf|rm|it)?|math(?:rm|bf)|mbox)\s*\{[^\W_][\w ,.:;'()-]{0,60}\}")
_LONGEST = 1000  # characters
_REMEMBERED = 100_000


class AnswerCheck:
    """Whether answers can be verified; a context that holds the grading processes.

    Args:
        answer_format: `math` or `choice`.
        num_workers: processes that run math-verify.
    """

    def __init__(self, answer_format: str, num_workers: int) -> None:
        self._is_math = answer_format == "math"
        self._grader = MathGrader(num_workers)
        self._known: OrderedDict[bytes, bool] = (
            OrderedDict()
        )  # gold answers repeat: each is asked once, kept as a hash

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._grader.close()

    def __call__(self, problems: list[Problem]) -> list[str | None]:
        """For each problem `None`, or why its answer cannot be verified."""
        if not self._is_math:
            return [_choice_problem(problem) for problem in problems]
        golds = {problem.answer: _key(problem.answer) for problem in problems if _needs_asking(problem.answer)}
        self._ask({gold: key for gold, key in golds.items() if key not in self._known})
        verdicts = [self._verdict(problem.answer, golds.get(problem.answer)) for problem in problems]
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return verdicts

    def _ask(self, unknown: dict[str, bytes]) -> None:
        asked = [gold for gold in unknown if _may_be_mathematics(gold)]
        grades = self._grader.grade([rf"\boxed{{\quad {gold}}}" for gold in asked], asked)
        self._known.update(dict.fromkeys(unknown.values(), False))
        self._known.update((unknown[gold], grade.correct) for gold, grade in zip(asked, grades))

    def _verdict(self, gold: str, key: bytes | None) -> str | None:
        if len(gold) > _LONGEST:
            return f"an answer over {_LONGEST:,} characters"
        if not gold:
            return "no answer"
        return None if key is None or self._known[key] else "math-verify cannot read the answer"


def _key(gold: str) -> bytes:
    return hashlib.blake2b(gold.encode(), digest_size=16).digest()


def _needs_asking(gold: str) -> bool:
    return 0 < len(gold) <= _LONGEST and not _PLAIN.fullmatch(gold) and not _MARKED.fullmatch(gold)


def _may_be_mathematics(gold: str) -> bool:
    if not _SIGN.search(gold) or _MARKUP.search(gold):
        return False
    return extract_boxed(rf"\boxed{{{gold}}}") is not None and not _PROSE.search(_COMMAND.sub(" ", rewritten(gold)[0]))


def _choice_problem(problem: Problem) -> str | None:
    """A letter must be one of the question's choices, and one that training grades (A to D)."""
    letters = problem.letters or "".join(_CHOICE_LINE.findall(problem.prompt))
    gold = problem.answer.strip().upper()
    if len(gold) != 1 or gold not in letters.upper():
        hint = "; answer_in: index reads numbers from 0" if gold.isdigit() else ""
        return f"the answer is none of the choices {letters!r}{hint}"
    try:
        right = grade_choice(f'{{"answer": "{gold}"}}', gold).correct
    except ValueError:
        right = False
    return None if right else "the answer is a letter that is not graded"
