"""How near a top-k baseline comes to the value function, and what is left of reward and variance under each baseline.

On tokens that a frozen student sampled: the mean of |b̂_k − V| over positions for growing k (the paper's Figure 2),
where V = −KL(p‖q) over the whole vocabulary and b̂_k = −KL(p̄‖q̄) on k tokens, the student's likeliest or the teacher's;
and how rewards r and advantages r − V are distributed over the same tokens (its Figure 3). On the same tokens too, the
exact variance of the logit gradient over OPD's, Σ_t V_t / Σ_t V_t(OPD), of every method that samples, with the k
likeliest tokens of either model for its support; and both models' mass on those.

Tokens of one completion are alike: where the student has lost its way, V is large to the end. A few such completions
among hundreds move every mean, so several draws are taken. Completions of one prompt are alike too: prompts are
independent, and intervals are over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vopd_recipes.evidence.gradients import SAMPLED
from vopd_recipes.evidence.measurement import (
    KS,
    SUPPORTS,
    check_measurable,
    freeze,
    logit_variances,
    logits_of,
    supports_of,
)
from vopd_recipes.evidence.variance import Measured, bootstrap
from vopd_recipes.loss import Estimator, Head, baseline_value, value_on_support
from vopd_recipes.models import completion_states, head_of
from vopd_recipes.packing import MicroBatch
from vopd_recipes.recipe import Recipe, RecipeError

_ERROR_KS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
_ROWS = 256  # positions whose [rows, V] distributions are held at a time
MASSES = ("mass_student", "mass_teacher")


def measure_baselines(recipe: Recipe, checkpoint: Path | None, prompts: int, draws: int = 4) -> dict[str, Any]:
    """Rollouts of the recipe's first prompts, looked at with whole distributions.

    Args:
        recipe: names student, teacher, prompts and lengths.
        checkpoint: folder of the student; default: where the recipe starts.
        prompts: completed once in every draw.
        draws: of completions.

    Returns:
        `tokens` and `completions`; `value`, the mean of |V|; `errors`, support → [[k, mean |b̂_k − V|], …];
        `squared_ratio`, E[(r − V)²] / E[r²], the paper's argument for V as a baseline; `variances`, support → k →
        key of a method → variance over OPD's, and both masses; each of the four with its 95 % interval.
        `largest_share`: of Σ|V|, in the hundredth of the completions that have most;
        `rewards` and `advantages` of every token. In nats.

    Raises:
        RecipeError: see `measurement.check_measurable` and `measurement.freeze`.
    """
    if draws < 1:
        raise RecipeError(f"--draws must be at least 1, got {draws}")
    check_measurable(recipe, checkpoint, 4, prompts)
    frozen = freeze(recipe, checkpoint, prompts)
    batches = [batch for draw in range(draws) for batch in frozen.micro_batches(draw)]
    cases = supports_of(recipe.training.estimator)
    parts = [_positions(frozen.student, frozen.teacher, batch, cases) for batch in batches]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    samples = [sample for batch in batches for sample in batch.samples]
    lengths, asked = [len(sample.completion_ids) for sample in samples], [sample.prompt_id for sample in samples]
    mean = partial(_mean, lengths=lengths, prompts=asked)
    value, reward = joined.pop("value"), joined.pop("reward")
    squares = {"advantage": (reward - value).square(), "reward": reward.square()}
    variances: dict[str, Any] = {support: {k: {} for k in KS} for support in SUPPORTS}
    for support, k, name in product(SUPPORTS, KS, MASSES + SAMPLED):
        below = torch.ones_like(value) if name in MASSES else joined[f"none/{support}/{k}"]
        variances[support][k][name] = vars(mean(joined[f"{name}/{support}/{k}"], below))
    errors: dict[str, list[Any]] = {support: [] for support in SUPPORTS}
    for name, baseline in joined.items():
        kind, of, k_text = name.split("/")
        if kind == "baseline":
            errors[of].append([int(k_text), vars(mean((baseline - value).abs(), torch.ones_like(value)))])
    return {
        "recipe": str(recipe.path),
        "student": str(checkpoint or recipe.model.model_name_or_path),
        "draws": draws,
        "baseline_constant": recipe.training.baseline_constant,
        "completions": len(lengths),
        "tokens": len(value),
        "value": vars(mean(value.abs(), torch.ones_like(value))),
        "errors": errors,
        "variances": variances,
        "squared_ratio": vars(mean(squares["advantage"], squares["reward"])),
        "largest_share": _largest_share(value, lengths),
        "rewards": reward.tolist(),
        "advantages": (reward - value).tolist(),
    }


def _mean(numerator: Tensor, denominator: Tensor, lengths: list[int], prompts: list[int]) -> Measured:
    """Ratio of two sums over tokens [N], with its interval over the prompts of completions of these lengths."""
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    of_row = torch.tensor([rows[prompt] for prompt in prompts])
    above, below = (
        torch.zeros(len(rows), dtype=torch.float64).index_add_(
            0, of_row, torch.stack([part.double().sum() for part in values.cpu().split(lengths)])
        )[:, None]
        for values in (numerator, denominator)
    )
    return bootstrap(above, below)[0]


def _largest_share(value: Tensor, lengths: list[int]) -> float:
    """Of Σ|V|, what lies in the hundredth of the completions (at least one) that have most of it."""
    sums = torch.stack([part.abs().sum() for part in value.split(lengths)])
    return (sums.topk(max(1, len(lengths) // 100)).values.sum() / sums.sum()).item()


@torch.no_grad()
def _positions(
    student: nn.Module, teacher: nn.Module, batch: MicroBatch, cases: Sequence[Estimator]
) -> dict[str, Tensor]:
    """`value`, `reward`, `baseline/<support>/<k>` and `_variances` of each position of a micro-batch: [N] each."""
    found: dict[str, list[Tensor]] = {}
    states = [completion_states(model, batch) for model in (student, teacher)]
    heads = [head_of(model) for model in (student, teacher)]
    for first in range(0, len(batch.targets), _ROWS):
        rows = slice(first, first + _ROWS)
        logits = [logits_of(head, hidden[rows]) for head, hidden in zip(heads, states)]
        shared = min(part.shape[1] for part in logits)
        logp, teacher_logp = (part[:, :shared].log_softmax(-1) for part in logits)
        values = {
            "value": baseline_value(logp, teacher_logp, Estimator()),
            "reward": (teacher_logp - logp).gather(1, batch.targets[rows, None])[:, 0],
        }
        for support, ranked in zip(SUPPORTS, (logp, teacher_logp)):
            ks = [k for k in _ERROR_KS if k < shared]
            likeliest = ranked.topk(ks[-1], dim=-1).indices  # sorted: the first k are the k likeliest
            ours, theirs = logp.gather(1, likeliest), teacher_logp.gather(1, likeliest)
            for k in ks:
                values[f"baseline/{support}/{k}"] = value_on_support(ours[:, :k], theirs[:, :k], Estimator())
        for name, part in values.items():
            found.setdefault(name, []).append(part)
    return {name: torch.cat(parts) for name, parts in found.items()} | _variances(heads, states, batch.targets, cases)


def _variances(
    heads: Sequence[Head], states: Sequence[Tensor], targets: Tensor, cases: Sequence[Estimator]
) -> dict[str, Tensor]:
    """`<key of a method>/<support>/<k>`, its exact variance, and `<mass>/<support>/<k>` of each position: [N] each."""
    found: dict[str, Tensor] = {}
    for case, stats in logit_variances(heads, states, targets, cases):
        columns = {**(stats.gradient_variances or {}), **{name: getattr(stats, f"support_{name}") for name in MASSES}}
        found |= {f"{name}/{case.support}/{case.support_top_k}": column for name, column in columns.items()}
    return found
