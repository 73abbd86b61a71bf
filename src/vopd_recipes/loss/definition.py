r"""The mathematics of on-policy distillation: dense, readable, and the oracle of every faster path.

The student p samples a token y in a context; the teacher q pays it the immediate reward

    r(y) = log q(y) - log p(y)                    (a constant: no gradient flows through it)

and the policy gradient of E[r] at that position is  g(y) = (r(y) - b) ∇log p(y)  (Eq. 3, Eq. 9). Any `b` that
does not depend on y leaves E[g] unchanged, because Σ_v p(v) ∇log p(v) = 0; the choice of b decides the variance:

    none        b = 0                             OPD
    constant    b = c                             the paper's released OPD arm has c = 1
    value       b = E_p[r] = -KL(p‖q)             vOPD (Eq. 10)
    value_topk  b = -KL(p̄‖q̄) on k tokens         vOPD top-k (Eq. 15), student's or teacher's k most likely
    optimal     b = E[r s] / E[s]                 minimises the variance (Eq. 23), with respect to the logits
                                                  s(v) = ‖∇_z log p(v)‖² = 1 - 2 p(v) + Σ_u p(u)²

`full` differentiates KL(p‖q) itself (Eq. 5, no variance) and `topk` the KL renormalised on k tokens (Eq. 7, biased).
A clipped reward, max(r, log λ/(1-λ)), changes the objective; its baselines are the same functionals of the clipped
reward, so that they stay its value, its top-k value and its optimum.

Everything here holds [N, V] tensors and leans on autograd. `fused.py` computes the same from hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vopd_recipes.loss.estimator import Estimator
from vopd_recipes.loss.methods import METHODS

# Below this E[s] the student is certain to float32's precision: E[r s] / E[s] is rounding noise over rounding
# noise, and there is no variance left to remove, so `optimal` falls back to `value`.
NEGLIGIBLE_GRADIENT_NORM = 1e-6


# What is recorded of every token, in `TokenStats`' order.
STATISTICS = ("student_logprob", "teacher_logprob", "reward", "baseline", "advantage", "reverse_kl", "entropy")


@dataclass(frozen=True)
class TokenStats:
    """What happened at each completion token; every field is [N] float32, detached, in nats.

    `reverse_kl` is always the exact KL(p‖q) over the shared vocabulary. `gradient_variance` is the exact variance
    of the logit gradient given the context, E‖g‖² - ‖E g‖², of the estimator in use; `gradient_variances` has the
    same for every estimator on the same token. Both are `None` unless asked for.
    """

    student_logprob: Tensor
    teacher_logprob: Tensor
    reward: Tensor
    baseline: Tensor
    advantage: Tensor
    reverse_kl: Tensor
    entropy: Tensor
    gradient_variance: Tensor | None = None
    gradient_variances: dict[str, Tensor] | None = None


def reference_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    estimator: Estimator,
    *,
    token_weights: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
) -> tuple[Tensor, TokenStats]:
    """The loss Σ_t w_t ℓ_t whose gradient is the estimator's, written as its definition.

    Logits of different padded widths are compared over the shared prefix, both renormalised there.

    Args:
        student_logits: [N, V], with gradient.
        teacher_logits: [N, V'].
        targets: [N] int64, the sampled tokens y.
        estimator: which gradient.
        token_weights: [N] w; default 1/N.
        rollout_logprobs: [N] log p_rollout(y), for the importance weight of `sampled`; `None` means on-policy.

    Returns:
        The scalar loss and the `TokenStats`, gradient variances included.
    """
    shared = min(student_logits.shape[1], teacher_logits.shape[1])
    student_logp = student_logits[:, :shared].log_softmax(-1)
    teacher_logp = teacher_logits[:, :shared].detach().log_softmax(-1)
    if token_weights is None:
        token_weights = student_logp.new_full(targets.shape, 1 / max(len(targets), 1))

    logp = student_logp.detach()
    p = logp.exp()
    rewards = reward_of_every_token(logp, teacher_logp, estimator.reward_floor)
    baseline = baseline_value(logp, teacher_logp, estimator)
    chosen = targets[:, None]
    reward = rewards.gather(1, chosen)[:, 0]
    advantage = reward - baseline

    target_logp = student_logp.gather(1, chosen)[:, 0]
    if estimator.divergence == "sampled":
        weight = importance_weight(target_logp.detach(), rollout_logprobs, estimator.importance_sampling_cap)
        per_token = -weight * advantage * target_logp
    elif estimator.divergence == "full":
        per_token = reverse_kl(student_logp, teacher_logp)
    elif estimator.divergence == "topk":
        per_token = renormalised_kl(student_logp, teacher_logp, support_of(logp, teacher_logp, estimator))
    else:
        raise not_written(estimator, "reference_loss")

    variances = gradient_variances(logp, teacher_logp, estimator)
    stats = TokenStats(
        student_logprob=logp.gather(1, chosen)[:, 0].float(),
        teacher_logprob=teacher_logp.gather(1, chosen)[:, 0].float(),
        reward=reward.float(),
        baseline=baseline.float(),
        advantage=advantage.float(),
        reverse_kl=reverse_kl(logp, teacher_logp).float(),
        entropy=-(p * logp).sum(-1).float(),
        gradient_variance=variances[estimator.method.key].float(),
        gradient_variances={name: variance.float() for name, variance in variances.items()},
    )
    return (token_weights * per_token).sum(), stats


def reward_of_every_token(logp: Tensor, teacher_logp: Tensor, floor: float | None) -> Tensor:
    """r(v) = log q(v) - log p(v), clipped from below where asked: [N, V]."""
    rewards = teacher_logp - logp
    return rewards if floor is None else rewards.clamp_min(floor)


def reverse_kl(logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """KL(p‖q) = Σ_v p(v) (log p(v) - log q(v)): [N]."""
    return (logp.exp() * (logp - teacher_logp)).sum(-1)


def renormalised_kl(logp: Tensor, teacher_logp: Tensor, support: Tensor) -> Tensor:
    """KL(p̄‖q̄) with both distributions restricted to `support` [N, k] and renormalised there: [N]."""
    return reverse_kl(logp.gather(1, support).log_softmax(-1), teacher_logp.gather(1, support).log_softmax(-1))


def squared_score_norm(p: Tensor) -> Tensor:
    """s(v) = ‖∇_z log p(v)‖² = 1 - 2 p(v) + Σ_u p(u)², with respect to the logits z: [N, V]."""
    return 1 - 2 * p + p.square().sum(-1, keepdim=True)


def support_of(logp: Tensor, teacher_logp: Tensor, estimator: Estimator) -> Tensor:
    """The `support_top_k` likeliest tokens of `support`, [N, k]; chosen without looking at y."""
    ranked = logp if estimator.support == "student" else teacher_logp
    return ranked.topk(min(estimator.support_top_k, logp.shape[1]), dim=-1).indices


def baseline_value(logp: Tensor, teacher_logp: Tensor, estimator: Estimator) -> Tensor:
    """b of each position, [N]; it sees both distributions and never the sampled token."""
    p, rewards = logp.exp(), reward_of_every_token(logp, teacher_logp, estimator.reward_floor)
    value = (p * rewards).sum(-1)
    match estimator.baseline:
        case "none":
            return torch.zeros_like(value)
        case "constant":
            return torch.full_like(value, estimator.baseline_constant)
        case "value":
            return value
        case "value_topk":
            support = support_of(logp, teacher_logp, estimator)
            return value_on_support(logp.gather(1, support), teacher_logp.gather(1, support), estimator)
        case "optimal":
            weight = p * squared_score_norm(p)
            total = weight.sum(-1)
            negligible = total < NEGLIGIBLE_GRADIENT_NORM
            return torch.where(negligible, value, (weight * rewards).sum(-1) / total.masked_fill(negligible, 1))
    raise not_written(estimator, "baseline_value")


def not_written(estimator: Estimator, where: str) -> NotImplementedError:
    """The error of a method that is in the table and not in this function."""
    return NotImplementedError(
        f"{where} has no lines for divergence: {estimator.divergence}, baseline: {estimator.baseline} "
        f"({estimator.method.title})"
    )


def value_on_support(student_logits: Tensor, teacher_logits: Tensor, estimator: Estimator) -> Tensor:
    """-KL(p̄‖q̄) from either's logits or log-probabilities on k tokens, [N, k] each (Eq. 15): [N]."""
    logp, teacher_logp = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return (logp.exp() * reward_of_every_token(logp, teacher_logp, estimator.reward_floor)).sum(-1)


def importance_weight(logp: Tensor, rollout_logprobs: Tensor | None, cap: float) -> Tensor:
    """min(p_train(y) / p_rollout(y), cap), [N]; 1 where the sampler's log-probabilities are not given."""
    if rollout_logprobs is None:
        return torch.ones_like(logp)
    return (logp - rollout_logprobs).exp().clamp_max(cap)


def gradient_variances(logp: Tensor, teacher_logp: Tensor, estimator: Estimator) -> dict[str, Tensor]:
    """Exact E‖g‖² - ‖E g‖² of g = A(y) (1[y] - p), y ~ p, for every method on the same tokens: key → [N].

    E‖g‖² = Σ_v p(v) A(v)² s(v), and E g = p∘A - (Σ p A) p. What samples nothing is a function of the context alone.
    """
    p, rewards = logp.exp(), reward_of_every_token(logp, teacher_logp, estimator.reward_floor)
    variances = {}
    for row in METHODS.values():
        if not row.samples:
            variances[row.key] = torch.zeros_like(p[:, 0])
            continue
        of_row = replace(estimator, divergence=row.divergence, baseline=row.baseline)
        advantages = rewards - baseline_value(logp, teacher_logp, of_row)[:, None]
        second_moment = (p * advantages.square() * squared_score_norm(p)).sum(-1)
        mean = p * advantages - (p * advantages).sum(-1, keepdim=True) * p
        variances[row.key] = (second_moment - mean.square().sum(-1)).clamp_min(0)
    return variances
