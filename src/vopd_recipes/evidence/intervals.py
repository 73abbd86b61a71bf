"""Means over seeds and ratios of means, with 95 % intervals; differences seed by seed, with the paired t-test's p."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

POWER = 0.8  # of a test that is wide enough
MOST = 2000  # seeds: more is no experiment
TOO_FEW = 2  # seeds: their one deviation is no estimate, and where it happens to be 0 a difference looks certain


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and half the width of its 95 % interval."""

    mean: float
    half: float

    def text(self, form: str, scale: float = 1.0) -> str:
        """`mean ± half`, each times `scale`; the mean alone where a single seed has no interval."""
        mean = form.format(scale * self.mean)
        return mean if math.isnan(self.half) else f"{mean} ± {form.format(scale * self.half)}"


@dataclass(frozen=True)
class Difference:
    """Of a method from another, seed by seed: its 95 % interval, the paired t-test's p-value, how many.

    `needed`: how many seeds would tell a difference of this size, with this scatter, from none.
    """

    mean: float
    half: float
    p: float
    seeds: int
    needed: int | None = None


def with_interval(measured: Mapping[str, float | None], form: str = ".2f") -> str:
    """`value [low, high]` of a number that is written down with its interval; the number alone where it has none."""
    value, *ends = ("" if measured[name] is None else f"{measured[name]:{form}}" for name in ("value", "low", "high"))
    return f"{value} [{', '.join(ends)}]" if all(ends) else value


def interval(values: Sequence[float]) -> Interval:
    """The 95 % interval of a mean; half its width is nan for a single value."""
    if len(values) < 2:
        return Interval(values[0], float("nan"))
    return Interval(statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)))


def ratio_of_means(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """`value` = mean(above) / mean(below), and the ends of its 95 % interval, `low` and `high`.

    Student's t on the linearised ratio, (a - value·b) / mean(b), which is right for few draws too, where a bootstrap's
    percentiles are too narrow: by a third for six. Of two or fewer there is no interval.

    Args:
        above: one number a draw.
        below: the same draws'.
    """
    mean = statistics.fmean(below)
    value = statistics.fmean(above) / mean
    if len(above) <= TOO_FEW:
        return {"value": value}
    half = interval([(a - value * b) / mean for a, b in zip(above, below, strict=True)]).half
    return {"value": value, "low": value - half, "high": value + half}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Of `ours` from `theirs`, the same seed at the same place."""
    differences = [a - b for a, b in zip(ours, theirs)]
    found = interval(differences)
    if not found.half:  # the same difference at every seed
        return Difference(found.mean, found.half, float(not any(differences)), len(differences))
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    needed = seeds_needed(found.mean, statistics.stdev(differences))
    return Difference(found.mean, found.half, p, len(differences), needed)


def seeds_needed(mean: float, deviation: float) -> int | None:
    """The least number of pairs with which a paired t-test at 5 % finds a mean difference in four cases of five.

    Its power over n pairs is that of the noncentral t with n-1 degrees of freedom at √n·mean/deviation.

    Args:
        mean: the difference.
        deviation: of one pair's difference.

    Returns:
        `None` where more than `MOST` are.
    """
    if mean == 0:
        return None
    return next((pairs for pairs in range(TOO_FEW + 1, MOST + 1) if _power(mean / deviation, pairs) >= POWER), None)


def _power(size: float, pairs: int) -> float:
    """Of finding it with its own sign; the other sign's share is negligible where the power is near 80 %."""
    return float(stats.nct.sf(stats.t.ppf(0.975, pairs - 1), pairs - 1, abs(size) * math.sqrt(pairs)))
