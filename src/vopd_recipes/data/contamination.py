"""Problems that also stand in an evaluation set.

A prompt holds an evaluation question where it has at least a share `overlap` of the question's n-grams of words:

    |n-grams of the question ∩ n-grams of the prompt| / |n-grams of the question|  ≥  overlap

The question's n-grams are the measure, so a question inside a longer prompt is found, and boilerplate that many
problems share (`where m and n are relatively prime`) is not enough by itself. A question of fewer than n words has no
n-gram: only a prompt of exactly its words is taken for it. Numbers and signs are words: another number is another
n-gram.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vopd_recipes.data.rows import Problem
from vopd_recipes.data.words import Hashes, Places, hashed, words_of


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
        self._questions = list(questions)
        self._n, self._overlap = n, overlap
        self.hits: Counter[str] = Counter()  # evaluation set → prompts that hold one of its questions
        words = hashed([words_of(question.text) for question in self._questions])
        grams, starts = words.ngrams(n)
        owners = np.repeat(np.arange(len(self._questions)), np.diff(starts))
        pairs = np.unique(np.stack([grams, owners.astype(np.uint64)]), axis=1)
        self._grams, self._owners = pairs[0], pairs[1].astype(np.int64)
        self._totals = np.bincount(self._owners, minlength=len(self._questions))
        short = np.flatnonzero((words.counts < n) & (words.counts > 0))
        self._short = dict(zip(words.sequences()[short].tolist(), short.tolist()))

    def __call__(self, problems: list[Problem]) -> list[str | None]:
        """For each problem `None`, or the evaluation row that it holds."""
        if not problems or not self._questions:
            return [None] * len(problems)
        words = hashed([problem.words for problem in problems])
        found = self._shared(*words.ngrams(self._n), len(problems))
        if self._short:
            for place, sequence in enumerate(words.sequences().tolist()):
                if sequence in self._short:
                    found[place] = found[place] or (1.0, self._short[sequence])
        return [self._report(hit) for hit in found]

    def _shared(self, grams: Hashes, starts: Places, count: int) -> list[tuple[float, int] | None]:
        """For each prompt the question of which it holds the largest share, if that is enough."""
        found: list[tuple[float, int] | None] = [None] * count
        first, last = np.searchsorted(self._grams, grams, "left"), np.searchsorted(self._grams, grams, "right")
        known = np.flatnonzero(last > first)
        if not len(known):
            return found
        sizes = last[known] - first[known]
        entries = np.repeat(first[known] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        prompts = np.repeat(np.searchsorted(starts, known, "right") - 1, sizes)
        seen = np.unique(np.stack([prompts, entries]), axis=1)  # an n-gram that a prompt repeats counts once
        pairs, shared = np.unique(np.stack([seen[0], self._owners[seen[1]]]), axis=1, return_counts=True)
        shares = shared / self._totals[pairs[1]]
        for place in np.flatnonzero(shares >= self._overlap).tolist():
            prompt, question, share = int(pairs[0, place]), int(pairs[1, place]), float(shares[place])
            if found[prompt] is None or share > found[prompt][0]:  # type: ignore[index]
                found[prompt] = (share, question)
        return found

    def _report(self, hit: tuple[float, int] | None) -> str | None:
        if hit is None:
            return None
        question = self._questions[hit[1]]
        self.hits[question.evaluation_set] += 1
        return f"{question.evaluation_set}, row {question.row}: {hit[0]:.0%} of its {self._n}-grams"
