r"""Texts become words, and n words in a row become one number: what the overlap filters compare.

A *word* is a run of letters, a run of digits or one of + - * / = < >, in lower case, once `typesetting` has given
mathematics one spelling; a character of Chinese, Japanese or Korean is a word of its own. Dollars, braces, commas and
backslashes vanish, so that `$\dfrac{1}{2}$` and `\( \frac12 \)` are the same three words. Signs stay, since x + 1 and
x - 1 are different problems.

A word's hash is its bytes as a polynomial mod 2^64, taken from prefix sums, and mixed (splitmix64's finaliser); an
n-gram's is the same over its words. So a batch of prompts is a handful of numpy operations over its bytes, and nothing
is a Python object per word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vopd_recipes.data.typesetting import one_spelling

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_WORD = re.compile(
    r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W\d_\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+|\d+"
    r"|[+*/=<>]|(?<![^\W\d_])-|-(?![^\W\d_])"  # a hyphen between letters only joins them
)
_SPACE, _BREAK = 0x20, 0x0A
_LOWEST_LETTER = 0x40  # digits and the signs that count lie below
_BYTE_BASE, _WORD_BASE = 0x9E3779B97F4A7C15, 0xD1342543DE82EF95  # odd, so that they have an inverse mod 2^64


def words_of(text: str) -> str:
    """The words of a text, separated by single spaces."""
    return " ".join(_WORD.findall(one_spelling(text).lower()))


@dataclass(frozen=True)
class Words:
    """Hashed words of several texts.

    Args:
        hashes: [words], of all texts in order.
        starts: [texts + 1]; text i has the words from starts[i] to starts[i + 1].
        is_number: [words], whether it is a number or a sign.
    """

    hashes: Hashes
    starts: Places
    is_number: NDArray[np.bool_]

    @property
    def counts(self) -> Places:
        """[texts], words of each."""
        return np.diff(self.starts)

    def sequences(self) -> Hashes:
        """[texts], one hash of all words of each in their order."""
        return mixed(
            _spans(self.hashes, self.starts[:-1], self.starts[1:], _WORD_BASE) + self.counts.astype(np.uint64)
        )

    def numbers(self) -> Hashes:
        """[texts], one hash of the numbers and signs of each, whatever their order."""
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(np.where(self.is_number, self.hashes, 0))])
        return sums[self.starts[1:]] - sums[self.starts[:-1]]

    def ngrams(self, n: int) -> tuple[Hashes, Places]:
        """Hashes of every n words in a row, and the starts of each text's: a text with fewer words has none."""
        counts = np.maximum(self.counts - (n - 1), 0)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        first = np.repeat(self.starts[:-1] - starts[:-1], counts) + np.arange(starts[-1])
        return mixed(_spans(self.hashes, first, first + n, _WORD_BASE) + np.uint64(n)), starts


def hashed(texts: list[str]) -> Words:
    """The words of texts that `words_of` made."""
    content = np.frombuffer(("\n".join(texts) + "\n").encode(), np.uint8)
    ends = np.flatnonzero((content == _SPACE) | (content == _BREAK))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
    is_word = ends > starts  # an empty text leaves two breaks in a row
    breaks = content[ends] == _BREAK
    text_ends = np.cumsum(is_word)[breaks]
    starts, ends = starts[is_word], ends[is_word]
    hashes = mixed(_spans(content.astype(np.uint64), starts, ends, _BYTE_BASE) + (ends - starts).astype(np.uint64))
    return Words(hashes, np.concatenate([np.zeros(1, np.int64), text_ends]), content[starts] < _LOWEST_LETTER)


def mixed(values: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _spans(values: Hashes, starts: Places, ends: Places, base: int) -> Hashes:
    """Σ v[i] b^(i - start) mod 2^64 over each span, by differences of prefix sums."""
    powers, inverses = _powers(base, _room(len(values))), _powers(pow(base, -1, 1 << 64), _room(len(values)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers[: len(values)])])
    return (sums[ends] - sums[starts]) * inverses[starts]


def _room(length: int) -> int:
    """A power of two above a length, so that few tables of powers are made."""
    return 1 << max(16, length.bit_length())


@cache
def _powers(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
