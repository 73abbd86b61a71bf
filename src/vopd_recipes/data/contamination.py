"""Problems that also stand in an evaluation set.

A prompt holds an evaluation question where it has at least a share `overlap` of the question's n-grams of words:

    |n-grams of the question ∩ n-grams of the prompt| / |n-grams of the question|  ≥  overlap

The question's n-grams are the measure, so a question inside a longer prompt is found, and boilerplate that many
problems share (`where m and n are relatively prime`) is not enough by itself. N-grams that more than 16 different
questions have are boilerplate and left out, above and below the line; a question that has no others keeps those that
the fewest questions have. This also bounds the work for one n-gram of a prompt.

A question of fewer than n words has no n-gram. It is found as the whole of a prompt and, from 4 words on, where the
rest of the prompt is only an instruction. Numbers and signs are words: another number is another n-gram. Asymptote
figures are left out on both sides, since many copies leave them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vopd_recipes.data.instructions import is_instruction
from vopd_recipes.data.rows import Problem
from vopd_recipes.data.typesetting import without_figures
from vopd_recipes.data.words import Hashes, Places, Words, hashed, words_of

_MOST_OWNERS = 16
_SHORTEST = 4  # words of a question that is looked for inside a prompt

Hit = tuple[float, int]  # share and question


@dataclass(frozen=True)
class Question:
    """A question of an evaluation set, by its row."""

    evaluation_set: str
    row: int
    text: str


class Contamination:
    """An index of evaluation questions, and what it found.

    Args:
        questions: of every evaluation set.
        n: words of an n-gram.
        overlap: share of a question's n-grams.
    """

    def __init__(self, questions: Iterable[Question], n: int, overlap: float) -> None:
        first: dict[str, Question] = {}  # a question that two sets have counts once, for the first
        for question in questions:
            first.setdefault(words_of(without_figures(question.text)), question)
        self._questions = list(first.values())
        self._n, self._overlap = n, overlap
        self.hits: Counter[str] = Counter()  # evaluation set → prompts that hold one of its questions
        words = hashed(list(first))
        self._grams, self._owners = _distinctive(*words.ngrams(n))
        self._totals = np.bincount(self._owners, minlength=len(self._questions))
        short = np.flatnonzero((words.counts < n) & (words.counts > 0))
        self._short = dict(zip(words.sequences()[short].tolist(), short.tolist()))
        self._inside = {  # words → sorted hashes of the questions that have so many
            length: np.sort(words.sequences()[short[words.counts[short] == length]])
            for length in sorted({*words.counts[short].tolist()})
            if length >= _SHORTEST
        }

    def __call__(self, problems: list[Problem]) -> list[str | None]:
        """For each problem `None`, or the evaluation row that it holds."""
        if not problems or not self._questions:
            return [None] * len(problems)
        texts = [_words_without_figures(problem) for problem in problems]
        words = hashed(texts)
        found = self._shared(*words.ngrams(self._n), len(problems))
        if self._short:
            for place, sequence in enumerate(words.sequences().tolist()):
                if sequence in self._short:
                    found[place] = found[place] or (1.0, self._short[sequence])
            self._find_inside(words, texts, found)
        return [self._report(hit) for hit in found]

    def _find_inside(self, words: Words, texts: list[str], found: list[Hit | None]) -> None:
        """Short questions with an instruction around them."""
        for length, known in self._inside.items():
            grams, starts = words.ngrams(length)
            places = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            for gram in np.flatnonzero(known[places] == grams).tolist():
                prompt = int(np.searchsorted(starts, gram, "right")) - 1
                at, own = gram - int(starts[prompt]), texts[prompt].split()
                if is_instruction(own[:at], before=True) and is_instruction(own[at + length :], before=False):
                    found[prompt] = found[prompt] or (1.0, self._short[int(grams[gram])])

    def _shared(self, grams: Hashes, starts: Places, count: int) -> list[Hit | None]:
        """For each prompt the question of which it holds the largest share, if that is enough."""
        found: list[Hit | None] = [None] * count
        first, last = np.searchsorted(self._grams, grams, "left"), np.searchsorted(self._grams, grams, "right")
        known = np.flatnonzero(last > first)
        if not len(known):
            return found
        sizes = last[known] - first[known]
        entries = np.repeat(first[known] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        prompts = np.repeat(np.searchsorted(starts, known, "right") - 1, sizes)
        seen = np.unique(prompts * len(self._grams) + entries)  # an n-gram that a prompt repeats counts once
        prompts, entries = np.divmod(seen, len(self._grams))
        pairs, shared = np.unique(prompts * len(self._questions) + self._owners[entries], return_counts=True)
        prompts, questions = np.divmod(pairs, len(self._questions))
        shares = shared / self._totals[questions]
        for place in np.flatnonzero(shares >= self._overlap).tolist():
            prompt, question, share = int(prompts[place]), int(questions[place]), float(shares[place])
            best = found[prompt]
            if best is None or share > best[0]:
                found[prompt] = (share, question)
        return found

    def _report(self, hit: Hit | None) -> str | None:
        if hit is None:
            return None
        share, place = hit
        question = self._questions[place]
        self.hits[question.evaluation_set] += 1
        held = f"{share:.0%} of its {self._n}-grams" if self._totals[place] else "all of its words"
        return f"{question.evaluation_set}, row {question.row}: {held}"


def _distinctive(grams: Hashes, starts: Places) -> tuple[Hashes, Places]:
    """N-grams in order, each with a question that has it; those of many questions are left out, see above."""
    owners = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    pairs = np.unique(np.stack([grams, owners.astype(np.uint64)]), axis=1)
    grams, owners = pairs[0], pairs[1].astype(np.int64)
    _, kinds, counts = np.unique(grams, return_inverse=True, return_counts=True)
    popularity = counts[kinds]
    rarest = np.full(len(starts) - 1, np.iinfo(np.int64).max)
    np.minimum.at(rarest, owners, popularity)
    kept = (popularity <= _MOST_OWNERS) | ((rarest > _MOST_OWNERS)[owners] & (popularity == rarest[owners]))
    return grams[kept], owners[kept]


def _words_without_figures(problem: Problem) -> str:
    text = without_figures(problem.prompt)
    return problem.words if text is problem.prompt else words_of(text)
