r"""The variance of every method's parameter gradient along random directions: exact over tokens, on a large model.

`gradients.py` takes each estimator's gradient by a backward pass, and another one for tokens drawn anew: hours, on a
language model. Here the gradient G is looked at along a direction u of the parameters, each entry +1 or -1:
E⟨G,u⟩² = ‖G‖² over u (Hutchinson's trace estimator), and

    ⟨G,u⟩ = 1/N Σ_t ⟨g_t, ż_t⟩,    ż_t = ∂z_t/∂θ · u

with g_t the gradient with respect to the logits z_t. ż is one forward derivative of the student, whatever the
estimator, its baseline, its support and its k. With ℓ̇(v) = ż(v) - Σ_w p(w) ż(w), the derivative of log p(v), a
sampled gradient is -A(y) ℓ̇(y), and both its mean and its variance over y ~ p are sums over the vocabulary:

    sampled          Var = Σ_v p A² ℓ̇² - (Σ_v p A ℓ̇)²
    rao_blackwell    the same sums over the tail, outside S
    full             -Σ_v p r ℓ̇, which is the mean of each of them
    topk             Σ_S p̄ (log p̄ - log q̄) ℓ̇_S on the renormalised support; the difference from `full` is its bias

Tokens are independent given their contexts, so the variance of G given the contexts is the sum over tokens, over N²:
no token is drawn anew, and all that is sampled are contexts and directions. In total: ½ E⟨G - G', u⟩² over two draws
of completions along the same direction, with the rollout's own tokens. `predicted` is Σ_t V_t with respect to the
logits, as the logs have it, as if every layer saw them through the same Jacobian.

Where many tokens share the variance, a direction tells it to a few per cent, and ratios better: all methods go along
the same ones. Each pair of draws has directions of its own; intervals are Student's, of a ratio of means over pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils.logging import tqdm

from vopd_recipes.evidence.intervals import ratio_of_means
from vopd_recipes.evidence.measurement import (
    KS,
    check_measurable,
    freeze,
    logit_variances,
    logits_of,
    supports_of,
)
from vopd_recipes.loss import METHODS, Estimator, Method, baseline_value, support_of
from vopd_recipes.models import completion_states, head_of, scale_logits
from vopd_recipes.packing import MicroBatch
from vopd_recipes.recipe import Recipe, RecipeError

_ROWS = 32  # positions whose [rows, V] float64 distributions are held at a time: they stay in a CPU's cache

Direction = dict[str, Tensor]


def column_of(row: Method, estimator: Estimator) -> str:
    """A method's key, with support and k where it has them."""
    return f"{row.key}/{estimator.support}/{estimator.support_top_k}" if row.has_support else row.key


@dataclass
class DrawAlong:
    """One draw of completions, along some directions.

    Args:
        variance: of ⟨G,u⟩ given the contexts, times N²; column → [directions].
        own: ⟨G,u⟩ with the rollout's tokens, times N; `full` and `topk` have no others.
        predicted: Σ_t V_t with respect to the logits.
        tokens: N.
    """

    variance: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    tokens: int = 0


class DirectionProbe:
    """Looks at the gradients of a frozen student under a frozen teacher.

    Args:
        student: in evaluation mode; directions are of its trained parameters.
        teacher: in evaluation mode.
        estimator: gives `baseline_constant`.
        ks: sizes of the supports.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, estimator: Estimator, ks: Sequence[int] = KS) -> None:
        self._states, self._teacher = _States(student), teacher
        self._trained = {name: value for name, value in student.named_parameters() if value.requires_grad}
        self._heads = head_of(student), head_of(teacher)
        self.cases = supports_of(estimator, ks)

    def direction(self, generator: torch.Generator) -> Direction:
        """±1 for every trained parameter, a byte each."""
        return {
            name: torch.randint(2, value.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            for name, value in self._trained.items()
        }

    def measure(self, batches: Sequence[MicroBatch], directions: Sequence[Direction]) -> DrawAlong:
        """All methods along all directions, on one draw's contexts."""
        result = DrawAlong(tokens=sum(len(batch.targets) for batch in batches))
        for batch in batches:
            with torch.no_grad():
                teacher_hidden = completion_states(self._teacher, batch)
                states = [self._hidden(batch, direction) for direction in directions]
                self._predict(result, states[0][0], teacher_hidden, batch.targets)
                heads = [self._head_dots(direction) for direction in directions]
                for rows in torch.arange(len(batch.targets)).split(_ROWS):
                    logits = [
                        self._logits(hidden[rows], hidden_dot[rows], dots)
                        for (hidden, hidden_dot), dots in zip(states, heads)
                    ]
                    for which, column, value in self._rows(logits, teacher_hidden[rows], batch.targets[rows]):
                        sums = getattr(result, which)
                        sums[column] = sums.get(column, 0) + value.sum(-1).cpu()
        return result

    def _predict(self, result: DrawAlong, hidden: Tensor, teacher_hidden: Tensor, targets: Tensor) -> None:
        for case, stats in logit_variances(self._heads, (hidden, teacher_hidden), targets, self.cases):
            for row in METHODS.values():
                column = column_of(row, case)
                if row.samples and stats.gradient_variances and ("/" in column or case is self.cases[0]):
                    value = stats.gradient_variances[row.key].double().sum().item()
                    result.predicted[column] = result.predicted.get(column, 0.0) + value

    def _hidden(self, batch: MicroBatch, direction: Direction) -> tuple[Tensor, Tensor]:
        """The student's states at the completion tokens [N, H], and their derivative along the direction."""

        def states(trained: Direction) -> Tensor:
            return functional_call(self._states, {f"model.{name}": value for name, value in trained.items()}, batch)

        along = {name: direction[name].to(value) for name, value in self._trained.items()}
        with sdpa_kernel(SDPBackend.MATH):  # sdpa's other kernels have no forward derivative
            hidden, hidden_dot = jvp(states, (self._trained,), (along,))[:2]
        return hidden, hidden_dot

    def _head_parts(self) -> list[Tensor]:
        head, _ = self._heads
        return [head.weight] if head.bias is None else [head.weight, head.bias]

    def _head_dots(self, direction: Direction) -> list[Tensor]:
        """The direction's part in the head's weight and bias; zero where they are not trained."""
        names = {id(value): name for name, value in self._trained.items()}
        return [
            direction[names[id(part)]].to(part) if id(part) in names else torch.zeros_like(part)
            for part in self._head_parts()
        ]

    def _logits(self, hidden: Tensor, hidden_dot: Tensor, head_dots: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The student's logits [n, V] and their derivative, through the states and through the head itself."""
        head, _ = self._heads

        def logits(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return scale_logits(nn.functional.linear(hidden, weight, bias), head)

        hidden, hidden_dot = hidden.to(head.weight.dtype), hidden_dot.to(head.weight.dtype)
        found = jvp(logits, (hidden, *self._head_parts()), (hidden_dot, *head_dots))
        return found[0].double(), found[1].double()

    def _rows(
        self, logits: Sequence[tuple[Tensor, Tensor]], teacher_hidden: Tensor, targets: Tensor
    ) -> Iterator[tuple[str, str, Tensor]]:
        """(`variance` or `own`, column, [directions, n]) of every method and case.

        Args:
            logits: [n, V], the same for all directions, with the derivative along each.
            teacher_hidden: [n, H'].
            targets: [n].
        """
        teacher_logits = logits_of(self._heads[1], teacher_hidden)
        shared = min(logits[0][0].shape[1], teacher_logits.shape[1])
        logp, teacher_logp = (part[:, :shared].log_softmax(-1) for part in (logits[0][0], teacher_logits))
        p, rewards = logp.exp(), teacher_logp - logp
        # The derivative of log p along each direction.
        scores = [dot[:, :shared] - (p * dot[:, :shared]).sum(-1, keepdim=True) for _, dot in logits]
        everywhere = _moments(p, rewards, scores)
        reward = rewards.gather(1, targets[:, None])[:, 0]
        score = torch.stack([values.gather(1, targets[:, None])[:, 0] for values in scores])
        yield "own", "full", -everywhere[1][1]
        seen: set[str] = set()
        for case in self.cases:
            support = support_of(logp, teacher_logp, case)
            on_support = [values.gather(1, support) for values in scores]
            inside = _moments(p.gather(1, support), rewards.gather(1, support), on_support)
            sampled = ~(support == targets[:, None]).any(-1)
            for row in METHODS.values():
                column = column_of(row, case)
                if column in seen or not row.of_reverse_kl or row.divergence == "full":
                    continue
                seen.add(column)
                if row.divergence == "topk":
                    ours, theirs = (values.gather(1, support).log_softmax(-1) for values in (logp, teacher_logp))
                    centred = [values - (ours.exp() * values).sum(-1, keepdim=True) for values in on_support]
                    yield "own", column, _moments(ours.exp(), ours - theirs, centred)[1][1]
                    continue
                baseline = baseline_value(logp, teacher_logp, case, row)
                drawn = (reward - baseline) * score
                if row.divergence == "sampled":
                    yield "variance", column, _variance(everywhere, baseline)
                    yield "own", column, -drawn
                elif row.divergence == "rao_blackwell":
                    exact = inside[1][1] - baseline * inside[1][0]
                    yield "variance", column, _variance(_minus(everywhere, inside), baseline)
                    yield "own", column, -(exact + torch.where(sampled, drawn, 0))
                else:
                    raise NotImplementedError(f"no directions of divergence: {row.divergence} ({row.title})")


class _States(nn.Module):
    """A model's states at the completion tokens, as a module: `functional_call` takes nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MicroBatch) -> Tensor:
        return completion_states(self.model, batch)


# Sums over some tokens v of p rⁿ ℓ̇², n = 0, 1, 2, and of p rⁿ ℓ̇, n = 0, 1: [directions, n] each.
Moments = tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _moments(p: Tensor, rewards: Tensor, scores: Sequence[Tensor]) -> Moments:
    found = []
    for score in scores:  # one at a time: a few [n, V] tensors stay in the cache, those of all directions do not
        first = p * score
        of_rewards = first * rewards
        second = of_rewards * score
        sums = (first * score, second, second * rewards, first, of_rewards)
        found.append([values.sum(-1) for values in sums])
    a, b, c, d, e = (torch.stack(values) for values in zip(*found))
    return (a, b, c), (d, e)


def _minus(all_of_them: Moments, some: Moments) -> Moments:
    (a, b, c), (d, e) = ([x - y for x, y in zip(*parts)] for parts in zip(all_of_them, some))
    return (a, b, c), (d, e)


def _variance(moments: Moments, baseline: Tensor) -> Tensor:
    """Of (r(y) - b) ℓ̇(y) over y ~ p, on the tokens of the moments and 0 elsewhere."""
    (m0, m1, m2), (n0, n1) = moments
    second = m2 - 2 * baseline * m1 + baseline.square() * m0
    return (second - (n1 - baseline * n0).square()).clamp_min(0)


def measure_directions(
    recipe: Recipe, checkpoint: Path | None, draws: int, prompts: int, directions: int
) -> dict[str, Any]:
    """Complete the recipe's first prompts again and again, and look at all estimators' gradients along directions.

    Args:
        recipe: names student, teacher, prompts and lengths.
        checkpoint: folder of the student; default: where the recipe starts.
        draws: an even number.
        prompts: the same at every draw.
        directions: of each pair of draws.

    Returns:
        `columns`: method, with support and k where it has them → `given`, `total` and `predicted` variance over
        OPD's, and `squared_bias` of what is biased; the first two and the last with 95 % intervals from three pairs.

    Raises:
        RecipeError: see `measurement.check_measurable` and `measurement.freeze`.
    """
    check_measurable(recipe, checkpoint, draws, prompts)
    if directions < 1:
        raise RecipeError(f"--directions must be at least 1, got {directions}")
    frozen = freeze(recipe, checkpoint, prompts)
    probe = DirectionProbe(frozen.student, frozen.teacher, recipe.training.estimator)
    generator = torch.Generator().manual_seed(recipe.training.seed)
    pairs = []
    for first in tqdm(range(0, draws, 2), desc="Pairs of draws", disable=recipe.training.disable_tqdm):
        along = [probe.direction(generator) for _ in range(directions)]
        pairs.append([probe.measure(frozen.micro_batches(first + i), along) for i in (0, 1)])
    tokens = [draw.tokens for pair in pairs for draw in pair]
    return {
        "recipe": str(recipe.path),
        "student": str(checkpoint or recipe.model.model_name_or_path),
        "teacher": recipe.model.teacher_model_name_or_path,
        "prompts": len(frozen.rows),
        "draws": draws,
        "directions": directions,
        "tokens_per_draw": sum(tokens) / len(tokens),
        "parameters": sum(value.numel() for value in frozen.student.parameters() if value.requires_grad),
        "columns": _summary(pairs),
    }


def _summary(pairs: Sequence[Sequence[DrawAlong]]) -> dict[str, Any]:
    """Every column's figures; means over pairs of draws, and within a pair over its directions."""
    columns: dict[str, Any] = {}
    given, total, predicted, bias = (_by_pair(pairs, read) for read in (_given, _total, _predicted, _squared_bias))
    for name in total:
        columns[name] = {"total": ratio_of_means(total[name], total["none"])}
        if name in given:
            columns[name]["given"] = ratio_of_means(given[name], given["none"])
            columns[name]["predicted"] = ratio_of_means(predicted[name], predicted["none"])["value"]
        elif name != "full":
            columns[name]["squared_bias"] = ratio_of_means(bias[name], bias["full"])
    return columns


def _by_pair(pairs: Sequence[Sequence[DrawAlong]], read: Any) -> dict[str, list[float]]:
    """Column → a number for each pair."""
    rows = [read(*pair) for pair in pairs]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _given(one: DrawAlong, other: DrawAlong) -> dict[str, float]:
    return {
        name: sum((draw.variance[name].mean() / draw.tokens**2).item() for draw in (one, other)) / 2
        for name in one.variance
    }


def _predicted(one: DrawAlong, other: DrawAlong) -> dict[str, float]:
    return {name: sum(draw.predicted[name] / draw.tokens**2 for draw in (one, other)) / 2 for name in one.predicted}


def _total(one: DrawAlong, other: DrawAlong) -> dict[str, float]:
    differences = {name: one.own[name] / one.tokens - other.own[name] / other.tokens for name in one.own}
    return {name: (difference.square().mean() / 2).item() for name, difference in differences.items()}


def _squared_bias(one: DrawAlong, other: DrawAlong) -> dict[str, float]:
    """Of what samples nothing: products over two draws, so that contexts' noise adds nothing; `full`: of itself."""
    exact = [draw.own["full"] / draw.tokens for draw in (one, other)]
    found = {"full": (exact[0] * exact[1]).mean().item()}
    for name in one.own.keys() - one.variance.keys() - {"full"}:
        ours = [draw.own[name] / draw.tokens - full for draw, full in zip((one, other), exact)]
        found[name] = (ours[0] * ours[1]).mean().item()
    return found
