r"""The variance and the bias of every estimator's parameter gradient, measured on a frozen student.

Training logs the exact variance of the gradient with respect to the logits, given each context. What the optimiser
sees is another thing: the gradient G of a whole batch with respect to the weights. Here a fixed set of prompts is
completed again and again by the student as it is, and two variances of G, traces of covariances, are told apart.

given the contexts   E‖G - G_full‖², the contexts of a draw held and its tokens y_t drawn anew, each from p(·|c_t). The
                     mean over them is the gradient of `full` on the same contexts, so this is exactly what an
                     estimator's sampling adds. `full` and `topk` draw nothing and have none.
in total             ½ E‖G - G'‖² over independent draws, with the rollout's own tokens: all that changes from batch
                     to batch, the contexts included. `full` has this too, and no baseline can remove it. It is not the
                     sum of `full`'s and the first: a token decides the contexts after it, so that its noise and the
                     later gradients are correlated, and a baseline changes that correlation as well.

The first has predictions, as ratios to OPD. *logits*: Σ_t V_t, the closed form with respect to the logits
(`loss/definition.py`), as if every layer saw them through the same Jacobian. *head*: Σ_t ‖h_t‖² V_t is exact for the
weight of the head, h_t its input. *reward*: E[(r - b)²] / E[r²], as if reward and score norm were independent, which
is the paper's argument (Eq. 11) for the value function as a baseline; it has none for what samples a tail alone.

Bias is ‖E G - E G_full‖² / ‖E G_full‖², means over tokens and contexts, from inner products of different blocks of
draws: that is unbiased, and so may come out below zero. A sampled estimator's is zero; `topk`'s is not. The difference
G - G_full is taken on the same contexts, so that only an estimator's own noise blurs it, and G is the mean over the
redraws there. With the rollout's own tokens, those that training steps on, the same is noisier, and its mean is not
quite zero: the mean over a batch divides by the number of its tokens, which an EOS decides, so that tokens and divisor
are correlated; that bias shrinks as one over the number of completions.

Intervals are 95 %: percentiles of the bootstrap over pairs of draws for variances and their ratios, all estimators
resampled together, and Student's t of fewer than 30 pairs, for which percentiles are too narrow; the delete-one-block
jackknife for the bias, wider than need be where that is zero. Memory does not
grow with the draws, but for a row of scalars per draw: gradients are projected (`projection.py`), and only the sums of
16 blocks and one previous draw are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from vopd_recipes.evidence.gradients import METHODS, SAMPLED, SAMPLED_EVERYWHERE, DrawGradients
from vopd_recipes.evidence.intervals import ratio_of_means
from vopd_recipes.evidence.projection import Projection

BLOCKS = 16
RESAMPLES = 2000
_FEW = 30  # rows
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval; none of two or fewer."""

    value: float
    low: float | None
    high: float | None


@dataclass
class VarianceStudy:
    """Takes draws one by one, and keeps of them what the intervals need.

    Args:
        projection: of the gradients; names the layer types.
    """

    projection: Projection
    draws: int = 0
    tokens: int = 0
    _previous: DrawGradients | None = None
    # method → [BLOCKS, layer types, K] sums of its error; `own/`: with the rollout's tokens; `full`: of G_full itself
    _blocks: dict[str, Tensor] = field(default_factory=dict)
    _pairs: dict[str, list[Tensor]] = field(default_factory=dict)  # a row of scalars per pair of draws

    def add(self, draw: DrawGradients) -> None:
        """One draw; every second one completes a pair."""
        exact = draw.own["full"]
        errors = {str(name): draw.redrawn[name] - exact for name in SAMPLED}
        sums = {name: error.mean(0) for name, error in errors.items()}
        sums |= {f"own/{name}": draw.own[name] - exact for name in SAMPLED}
        sums |= {name: draw.own[name] - exact for name in METHODS if name not in SAMPLED} | {"full": exact}
        for name, error in sums.items():
            if name not in self._blocks:
                self._blocks[name] = torch.zeros(BLOCKS, *error.shape)
            self._blocks[name][self.draws % BLOCKS] += error.cpu()
        self._row("conditional", torch.stack([self._square(errors[name]).mean(0) for name in SAMPLED]))
        for statistic in ("logit_variance", "head_variance", "squared_advantage"):
            values = [getattr(draw, statistic)[method] for method in SAMPLED]
            self._row(statistic, torch.tensor(values, dtype=torch.float64))
        self.draws += 1
        self.tokens += draw.tokens
        if self._previous is None:
            self._previous = draw
            return
        before, self._previous = self._previous.own, None
        self._row("total", torch.stack([self._square(draw.own[name] - before[name]) / 2 for name in METHODS]))

    def _square(self, gradient: Tensor) -> Tensor:
        """Squared lengths by layer type and of all, [..., layer types + 1] float64."""
        return self.projection.inner(gradient, gradient).cpu()

    def _row(self, name: str, values: Tensor) -> None:
        self._pairs.setdefault(name, []).append(values)

    def rows(self, name: str) -> Tensor:
        """Scalars of each pair of draws: [pairs, methods, …] float64."""
        stacked = torch.stack(self._pairs[name])
        return stacked if name == "total" else stacked.unflatten(0, (-1, 2)).mean(1)

    def bias(self, name: str) -> list[Measured]:
        """Squared bias over the squared length of the mean of `full`, by layer type and in total.

        Args:
            name: of a method; `own/` before it takes the rollout's own tokens.
        """
        count = min(BLOCKS, self.draws)
        sizes = torch.bincount(torch.arange(self.draws) % BLOCKS, minlength=BLOCKS)[:count]
        means = {key: self._blocks[key][:count] / sizes[:, None, None] for key in (name, "full")}
        gram = {key: self._gram(mean) for key, mean in means.items()}

        def relative(kept: Tensor) -> Tensor:
            return _ratio(_off_diagonal_mean(gram[name], kept), _off_diagonal_mean(gram["full"], kept))

        everything = torch.arange(count)
        value = relative(everything)
        left_out = torch.stack([relative(everything[everything != block]) for block in range(count)])
        deviation = ((count - 1) / count * (left_out - left_out.mean(0)).square().sum(0)).sqrt()
        spread = deviation * float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
        return [Measured(v, v - s, v + s) for v, s in zip(value.tolist(), spread.tolist())]

    def _gram(self, means: Tensor) -> Tensor:
        """Inner products of all pairs of blocks: [blocks, blocks, layer types + 1]."""
        return torch.stack([self.projection.inner(means, mean.expand_as(means)) for mean in means])


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Zero where both are: the loss may reach no parameter of a layer type."""
    return (numerator / denominator).nan_to_num(0.0)


def _off_diagonal_mean(gram: Tensor, kept: Tensor) -> Tensor:
    chosen = gram[kept][:, kept]
    count = len(kept)
    return (chosen.sum((0, 1)) - chosen.diagonal().sum(-1)) / (count * (count - 1))


def bootstrap(numerator: Tensor, denominator: Tensor | None = None, seed: int = 0) -> list[Measured]:
    """Mean over rows [rows, columns], or the ratio of two means resampled together, with percentile intervals.

    Of few rows Student's t, see `ratio_of_means`.
    """
    below = torch.ones_like(numerator) if denominator is None else denominator.expand_as(numerator)
    if len(numerator) < _FEW:
        return [_of_few(*(part.tolist() for part in column)) for column in zip(numerator.T, below.T)]
    samples = numerator.numpy(), below.numpy()

    def ratio(above: Any, below: Any, axis: int = 0) -> Any:
        return _ratio(*(torch.as_tensor(part.mean(axis)) for part in (above, below))).numpy()

    found = stats.bootstrap(
        samples, ratio, paired=True,
        n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=seed,
    )  # fmt: skip
    columns = (part.tolist() for part in (ratio(*samples), *found.confidence_interval))
    return [Measured(*numbers) for numbers in zip(*columns)]


def _of_few(above: list[float], below: list[float]) -> Measured:
    if not any(below):  # the loss may reach no parameter of a layer type
        return Measured(0.0, 0.0, 0.0)
    found = ratio_of_means(above, below)
    return Measured(found["value"], found.get("low"), found.get("high"))


def summarize(study: VarianceStudy, head_is_exact: bool) -> dict[str, Any]:
    """Every figure of the study, as JSON holds it; by layer type where not said otherwise.

    `variance` and `ratio` (to OPD) stand under `conditional` and `total`; `predicted` holds predictions of the
    conditional ratio, `head` how many times its exact prediction the head's conditional variance was.
    """
    kinds = [*study.projection.layer_types, "total"]
    conditional, total = study.rows("conditional"), study.rows("total")
    methods: dict[str, Any] = {}
    for index, name in enumerate(METHODS):
        found: dict[str, Any] = {"total": _against_opd(total, index, kinds)}
        if name in SAMPLED:
            found["conditional"] = _against_opd(conditional, index, kinds)
            found["predicted"] = {"logits": _predicted(study.rows("logit_variance"), index)}
            if name in SAMPLED_EVERYWHERE:
                found["predicted"]["reward"] = _predicted(study.rows("squared_advantage"), index)
            if head_is_exact:
                predicted = study.rows("head_variance")[:, index : index + 1]
                measured = conditional[:, index, kinds.index("head"), None]
                found["head"] = vars(bootstrap(measured, predicted)[0])
            found["squared_bias_own"] = {kind: vars(v) for kind, v in zip(kinds, study.bias(f"own/{name}"))}
        if name != "full":
            found["squared_bias"] = {kind: vars(value) for kind, value in zip(kinds, study.bias(name))}
        methods[name] = found
    return {
        "draws": study.draws,
        "tokens_per_draw": study.tokens / study.draws,
        "parameters": study.projection.parameters,
        "projection_width": study.projection.width,
        "confidence": CONFIDENCE,
        "methods": methods,
    }


def _against_opd(rows: Tensor, index: int, kinds: Sequence[str]) -> dict[str, Any]:
    """Variance and its ratio to OPD's, of one method's rows among [pairs, methods, layer types + 1]."""
    own, opd = rows[:, index], rows[:, SAMPLED.index("none")]
    return {
        "variance": {kind: vars(value) for kind, value in zip(kinds, bootstrap(own))},
        "ratio": {kind: vars(value) for kind, value in zip(kinds, bootstrap(own, opd))},
    }


def _predicted(rows: Tensor, index: int) -> float:
    return (rows[:, index].mean() / rows[:, SAMPLED.index("none")].mean()).item()
