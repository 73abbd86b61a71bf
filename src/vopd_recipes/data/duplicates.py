"""Problems that stand in the set already, in the same words or in nearly the same.

*Exact*: the same text, but for spacing. *Near*: the same answer, the same numbers and signs, and an estimated Jaccard
similarity of the 3-word shingles A and B

    J = |A ∩ B| / |A ∪ B|  ≥  the recipe's near_duplicate_similarity.

Numbers and answer are asked for because problems made from one pattern differ in nothing else: `17 apples` and `18
apples` are two problems. The first of its kind stays; a row is compared with rows that stayed.

MinHash (Broder, 1997) estimates J: of 96 random orders of all shingles, the share in which A and B have the same first
one; its standard error is √(J(1 - J)/96), 0.04 at 0.8. Rows whose 6 first ones agree in one of 16 bands are compared,
which finds a pair of J = 0.8 with probability 0.99. Per row that stays the index holds 16 band hashes with row indices
(192 bytes), 96 one-byte signatures (corrected for bytes that agree by chance) and four numbers, in sorted arrays that
are merged as they grow, and no text.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from vopd_recipes.data.rows import Problem
from vopd_recipes.data.words import Hashes, Words, hashed, mixed

_SHINGLE = 3
_BANDS, _ROWS_OF_A_BAND = 16, 6
_ORDERS = _BANDS * _ROWS_OF_A_BAND
_MERGE = 8  # a level is merged into the one before unless that is so many times larger
_BY_CHANCE = 1 / 256

Indices = NDArray[np.int32]
Signatures = NDArray[np.uint8]


class SortedIndex:
    """Hashes → indices, in a few sorted arrays of falling length; of equal hashes the first added is found."""

    def __init__(self) -> None:
        self._levels: list[tuple[Hashes, Indices]] = []

    def add(self, keys: Hashes, indices: Indices) -> None:
        """Add keys; those of one call need not be sorted."""
        if not len(keys):
            return
        self._append(keys, indices)
        while len(self._levels) > 1 and len(self._levels[-2][0]) < _MERGE * len(self._levels[-1][0]):
            (older, old_indices), (newer, new_indices) = self._levels[-2:]
            del self._levels[-2:]
            self._append(np.concatenate([older, newer]), np.concatenate([old_indices, new_indices]))

    def _append(self, keys: Hashes, indices: Indices) -> None:
        order = np.argsort(keys, kind="stable")
        self._levels.append((keys[order], indices[order]))

    def find(self, keys: Hashes) -> Indices:
        """The index added first under each key, -1 where there is none."""
        found = np.full(len(keys), -1, np.int32)
        for known, indices in reversed(self._levels):  # an older level has the last word
            places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            same = known[places] == keys
            found[same] = indices[places[same]]
        return found


class Grown:
    """Rows appended to one array that doubles when it is full."""

    def __init__(self, kind: type[np.generic], width: int = 1) -> None:
        self._room = np.empty((1024, width), kind)
        self._count = 0

    def append(self, rows: NDArray[np.generic]) -> None:
        """Append rows of the same width."""
        needed = self._count + len(rows)
        if needed > len(self._room):
            larger = np.empty((max(needed, 2 * len(self._room)), self._room.shape[1]), self._room.dtype)
            larger[: self._count] = self._room[: self._count]
            self._room = larger
        self._room[self._count : needed] = rows.reshape(len(rows), self._room.shape[1])
        self._count = needed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, places: NDArray[np.integer]) -> NDArray[np.generic]:
        return self._room[: self._count][places]


class ExactDuplicates:
    """Texts that stood in the set before, and how many of them had another answer there."""

    def __init__(self) -> None:
        self._index = SortedIndex()
        self._rows, self._answers = Grown(np.int64), Grown(np.uint64)
        self.contradictions = 0

    def __call__(self, problems: list[Problem]) -> list[str | None]:
        """For each problem `None`, or the row that it repeats."""
        keys = np.array([_text_hash(" ".join(problem.prompt.split())) for problem in problems], np.uint64)
        answers = [_text_hash(problem.answer) for problem in problems]
        earlier = self._index.find(keys).tolist()
        found: list[str | None] = []
        here: dict[int, int] = {}  # key → place among those that stay
        fresh: list[int] = []
        for place, key in enumerate(keys.tolist()):
            if earlier[place] >= 0:
                at = np.array([earlier[place]])
                found.append(self._report(int(self._rows[at][0, 0]), int(self._answers[at][0, 0]), answers[place]))
            elif key in here:
                first = here[key]
                found.append(self._report(problems[first].number, answers[first], answers[place]))
            else:
                here[key] = place
                fresh.append(place)
                found.append(None)
        self._index.add(keys[fresh], len(self._rows) + np.arange(len(fresh), dtype=np.int32))
        self._rows.append(np.array([problems[place].number for place in fresh], np.int64))
        self._answers.append(np.array([answers[place] for place in fresh], np.uint64))
        return found

    def _report(self, row: int, known: int, answer: int) -> str:
        self.contradictions += known != answer
        return f"row {row}" + ("" if known == answer else ", which has another answer")


class NearDuplicates:
    """Texts that nearly stood in the set before.

    Args:
        similarity: from which two prompts with the same numbers and answer are the same problem.
    """

    def __init__(self, similarity: float) -> None:
        self._least = similarity
        self._bands = [SortedIndex() for _ in range(_BANDS)]
        self._signatures, self._rows = Grown(np.uint8, _ORDERS), Grown(np.int64)

    def __call__(self, problems: list[Problem]) -> list[str | None]:
        """For each problem `None`, or the row that it resembles."""
        found: list[str | None] = [None] * len(problems)
        words = hashed([problem.words for problem in problems]) if problems else None
        if words is None or not len(compared := np.flatnonzero(words.counts >= _SHINGLE)):
            return found
        identity = words.numbers() ^ np.array([_text_hash(problem.answer) for problem in problems], np.uint64)
        keys, signatures = minhash(words, identity[compared])
        best, row = self._earlier(keys, signatures)
        fresh: list[int] = []
        here: dict[tuple[int, int], list[int]] = {}  # (band, key) → places among those that stay
        for place, (at, own_keys) in enumerate(zip(compared.tolist(), keys.tolist())):
            buckets = list(enumerate(own_keys))
            if best[place] < self._least:
                near = sorted({other for bucket in buckets for other in here.get(bucket, ())})
                for other in near:
                    score = float(similarities(signatures[other], signatures[place]))
                    if score > best[place]:
                        best[place], row[place] = score, problems[compared[other]].number
            if best[place] >= self._least:
                found[at] = f"row {row[place]}: similarity {min(1.0, best[place]):.2f}"
                continue
            fresh.append(place)
            for bucket in buckets:
                here.setdefault(bucket, []).append(place)
        self._add(keys[fresh], signatures[fresh], [problems[compared[place]].number for place in fresh])
        return found

    def _earlier(self, keys: Hashes, signatures: Signatures) -> tuple[list[float], list[int]]:
        """Similarity and row of the most similar text of an earlier call, among those that share a band."""
        best, row = np.zeros(len(keys)), np.full(len(keys), -1, np.int64)
        for band, index in enumerate(self._bands):
            candidates = index.find(keys[:, band])
            places = np.flatnonzero(candidates >= 0)
            if not len(places):
                continue
            scores = similarities(self._signatures[candidates[places]], signatures[places])  # type: ignore[arg-type]
            better = scores > best[places]
            best[places[better]] = scores[better]
            row[places[better]] = self._rows[candidates[places[better]]][:, 0]
        return best.tolist(), row.tolist()

    def _add(self, keys: Hashes, signatures: Signatures, rows: list[int]) -> None:
        indices = len(self._rows) + np.arange(len(rows), dtype=np.int32)
        for band, index in enumerate(self._bands):
            index.add(keys[:, band], indices)
        self._signatures.append(signatures)
        self._rows.append(np.array(rows, np.int64))


def minhash(words: Words, identity: Hashes) -> tuple[Hashes, Signatures]:
    """Band hashes [texts, 16] and signatures [texts, 96] of the texts that have a shingle.

    Args:
        words: of all texts.
        identity: [texts with a shingle], what must be the same besides the words.
    """
    shingles, starts = words.ngrams(_SHINGLE)
    firsts = starts[:-1][np.diff(starts) > 0]
    least = np.empty((len(firsts), _ORDERS), np.uint64)
    for order, (factor, addend) in enumerate(_PERMUTATIONS):
        np.minimum.reduceat(shingles * factor + addend, firsts, out=least[:, order])
    keys = np.empty((len(firsts), _BANDS), np.uint64)
    for band in range(_BANDS):
        key = identity.copy()
        for column in range(band * _ROWS_OF_A_BAND, (band + 1) * _ROWS_OF_A_BAND):
            key = mixed(key ^ least[:, column])
        keys[:, band] = key
    return keys, (mixed(least) & np.uint64(0xFF)).astype(np.uint8)


def similarities(these: Signatures, those: Signatures) -> NDArray[np.float64]:
    """Estimated Jaccard similarities of signatures [..., 96]."""
    agree = np.mean(these == those, axis=-1)
    return (agree - _BY_CHANCE) / (1 - _BY_CHANCE)


def _permutations() -> list[tuple[np.uint64, np.uint64]]:
    """Odd factors and addends of the random orders x → a·x + b mod 2^64; the same on every machine."""
    numbers = mixed(np.arange(1, 2 * _ORDERS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return list(zip(numbers[:_ORDERS] | np.uint64(1), numbers[_ORDERS:]))


_PERMUTATIONS = _permutations()


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
