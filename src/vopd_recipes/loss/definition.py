r"""The mathematics of on-policy distillation: dense, readable, and the oracle of every faster path.

The student p samples a token y in a context; the teacher q pays it the immediate reward

    r(y) = log q(y) - log p(y)                    (a constant: no gradient flows through it)

and the policy gradient of E[r] at that position is  g(y) = (r(y) - b) ∇log p(y)  (Eq. 3, Eq. 9). Any `b` that
does not depend on y leaves E[g] unchanged, because Σ_v p(v) ∇log p(v) = 0; the choice of b decides the variance:

    none        b = 0                             OPD
    constant    b = c                             the authors' released code: c = 1
    value       b = E_p[r] = -KL(p‖q)             vOPD (Eq. 10)
    value_topk  b = -KL(p̄‖q̄) on k tokens         vOPD top-k (Eq. 15), student's or teacher's k most likely
    optimal     b = E[r s] / E[s]                 minimises the variance (Eq. 23), with respect to the logits
                                                  s(v) = ‖∇_z log p(v)‖² = 1 - 2 p(v) + Σ_u p(u)²

`rao_blackwell` takes the average over y exactly on a set S of k tokens, chosen without looking at y, and samples only
the tail T outside it; ρ, the importance weight, belongs to the sampled part. With respect to the logits

    g(y) = Σ_{v∈S} p(v) A(v) (e_v - p)  +  1[y∈T] ρ A(y) (e_y - p),     A = r - b

Its mean is ∇E[r] for every S and b; k = 0 is `sampled` and k = V is `full`. Two baselines look at the tail:

    tail        b = log(Q_T / P_T)                the log ratio of the two models' masses there
    optimal     b = (Σ_T p r s - ⟨u_r, u_1⟩) / (Σ_T p s - ‖u_1‖²),   u_f = Σ_T p f (e_v - p)
                                                  minimises the variance; with T all tokens it is the one above

`full` differentiates KL(p‖q) itself (Eq. 5, no variance) and `topk` the KL renormalised on k tokens (Eq. 7, biased).
`forward` is KL(q‖p), and `jsd` the generalised Jensen-Shannon divergence β KL(q‖m) + (1-β) KL(p‖m) with
m = β q + (1-β) p, both over the whole vocabulary. A clipped reward, max(r, log(λ)/(1-λ)), changes the objective; its
baselines are the same functionals of the clipped reward, so that they stay its value, its top-k value and its optimum;
`tail` is clipped itself.

Everything here holds [N, V] tensors and leans on autograd. `fused.py` computes the same from hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vopd_recipes.loss.estimator import Estimator
from vopd_recipes.loss.methods import METHODS, Method

# Below this share of the mass that is sampled, E[s] is rounding noise of float32, and so is `optimal`: the student is
# certain, there is no variance left to remove, and it falls back to `value`.
NEGLIGIBLE_GRADIENT_NORM = 1e-6


# What is recorded of every token, in `TokenStats`' order.
STATISTICS = ("student_logprob", "teacher_logprob", "reward", "baseline", "advantage", "reverse_kl", "entropy")
# And of methods with a support.
SUPPORT_MASSES = ("support_mass_student", "support_mass_teacher")


@dataclass(frozen=True)
class TokenStats:
    """What happened at each completion token; every field is [N] float32, detached, in nats.

    `reverse_kl` is the exact KL(p‖q) over the shared vocabulary, and over a server's log-probabilities an unbiased
    estimate of it. `gradient_variance` is the exact variance
    of the logit gradient given the context, E‖g‖² - ‖E g‖², of the estimator in use; `gradient_variances` has the
    same for every estimator on the same token. Both are `None` unless asked for. The masses are p's and q's on the
    support, of methods that have one.
    """

    student_logprob: Tensor
    teacher_logprob: Tensor
    reward: Tensor
    baseline: Tensor
    advantage: Tensor
    reverse_kl: Tensor
    entropy: Tensor
    support_mass_student: Tensor | None = None
    support_mass_teacher: Tensor | None = None
    gradient_variance: Tensor | None = None
    gradient_variances: dict[str, Tensor] | None = None

    @staticmethod
    def joined(parts: Sequence[tuple[Tensor, TokenStats]], count: int) -> TokenStats:
        """Of `count` tokens, from parts that say which of them they are; what one part lacks, the whole lacks.

        Args:
            parts: indices [n] and the statistics of those tokens; every token is in one part.
            count: N.
        """

        def scattered(values: Sequence[Tensor]) -> Tensor:
            whole = values[0].new_empty(count)
            for (tokens, _), value in zip(parts, values):
                whole[tokens] = value
            return whole

        found: dict[str, Any] = {}
        for item in fields(TokenStats):
            values = [getattr(stats, item.name) for _, stats in parts]
            if any(value is None for value in values):
                continue
            if item.name == "gradient_variances":
                found[item.name] = {key: scattered([value[key] for value in values]) for key in values[0]}
            else:
                found[item.name] = scattered(values)
        return TokenStats(**found)


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
        rollout_logprobs: [N] log p_rollout(y), for the importance weight of what is sampled; `None` means on-policy.

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
    elif estimator.divergence == "rao_blackwell":
        inside = inside_support(logp, teacher_logp, estimator)
        weight = importance_weight(target_logp.detach(), rollout_logprobs, estimator.importance_sampling_cap)
        exact = -torch.where(inside, p * (rewards - baseline[:, None]) * student_logp, 0).sum(-1)
        per_token = exact - torch.where(inside.gather(1, chosen)[:, 0], 0, weight * advantage * target_logp)
    elif estimator.divergence == "full":
        per_token = reverse_kl(student_logp, teacher_logp)
    elif estimator.divergence == "forward":
        per_token = reverse_kl(teacher_logp, student_logp)
    elif estimator.divergence == "jsd":
        per_token = jensen_shannon(student_logp, teacher_logp, estimator.jsd_beta)
    elif estimator.divergence == "topk":
        per_token = renormalised_kl(student_logp, teacher_logp, support_of(logp, teacher_logp, estimator))
    else:
        raise not_written(estimator.method, "reference_loss")

    variances = gradient_variances(logp, teacher_logp, estimator)
    stats = TokenStats(
        student_logprob=logp.gather(1, chosen)[:, 0].float(),
        teacher_logprob=teacher_logp.gather(1, chosen)[:, 0].float(),
        reward=reward.float(),
        baseline=baseline.float(),
        advantage=advantage.float(),
        reverse_kl=reverse_kl(logp, teacher_logp).float(),
        entropy=-(p * logp).sum(-1).float(),
        **support_masses(logp, teacher_logp, estimator),
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


def jensen_shannon(logp: Tensor, teacher_logp: Tensor, beta: float) -> Tensor:
    """β KL(q‖m) + (1-β) KL(p‖m), m = β q + (1-β) p: [N]. At β = 0 and 1, where that is 0, KL(q‖p) and KL(p‖q)."""
    if beta in (0, 1):
        return reverse_kl(logp, teacher_logp) if beta else reverse_kl(teacher_logp, logp)
    mixture = torch.logaddexp(teacher_logp + math.log(beta), logp + math.log1p(-beta))
    return beta * reverse_kl(teacher_logp, mixture) + (1 - beta) * reverse_kl(logp, mixture)


def squared_score_norm(p: Tensor) -> Tensor:
    """s(v) = ‖∇_z log p(v)‖² = 1 - 2 p(v) + Σ_u p(u)², with respect to the logits z: [N, V]."""
    return 1 - 2 * p + p.square().sum(-1, keepdim=True)


def support_of(logp: Tensor, teacher_logp: Tensor, estimator: Estimator) -> Tensor:
    """The `support_top_k` likeliest tokens of `support`, [N, k]; chosen without looking at y."""
    ranked = logp if estimator.support == "student" else teacher_logp
    return ranked.topk(min(estimator.support_top_k, logp.shape[1]), dim=-1).indices


def inside_support(logp: Tensor, teacher_logp: Tensor, estimator: Estimator, of: Method | None = None) -> Tensor:
    """Whether a token is in S, [N, V]; none is where nothing is averaged exactly.

    Args:
        logp: [N, V].
        teacher_logp: [N, V].
        estimator: whose k tokens.
        of: method, instead of the estimator's own.
    """
    method = of or estimator.method
    inside = torch.zeros_like(logp, dtype=torch.bool)
    match method.divergence:
        case "sampled":
            return inside
        case "rao_blackwell":
            return inside.scatter_(1, support_of(logp, teacher_logp, estimator), True)
    raise not_written(method, "inside_support")


def support_masses(logp: Tensor, teacher_logp: Tensor, estimator: Estimator) -> dict[str, Tensor]:
    """p's and q's mass on the support, [N] float32 each; nothing for a method without one."""
    if not estimator.has_support:
        return {}
    support = support_of(logp, teacher_logp, estimator)
    return {
        name: of.gather(1, support).exp().sum(-1).float() for name, of in zip(SUPPORT_MASSES, (logp, teacher_logp))
    }


def baseline_value(logp: Tensor, teacher_logp: Tensor, estimator: Estimator, of: Method | None = None) -> Tensor:
    """b of each position, [N]; it sees both distributions and never the sampled token. Arguments: `inside_support`."""
    method = of or estimator.method
    p, rewards = logp.exp(), reward_of_every_token(logp, teacher_logp, estimator.reward_floor)
    value = (p * rewards).sum(-1)
    match method.baseline:
        case "none":
            return torch.zeros_like(value)
        case "constant":
            return torch.full_like(value, estimator.baseline_constant)
        case "value":
            return value
        case "value_topk":
            support = support_of(logp, teacher_logp, estimator)
            return value_on_support(logp.gather(1, support), teacher_logp.gather(1, support), estimator)
        case "tail":
            inside = inside_support(logp, teacher_logp, estimator, method)
            tail, teacher_tail = (of.masked_fill(inside, -torch.inf).logsumexp(-1) for of in (logp, teacher_logp))
            ratio = torch.where(tail.isfinite() & teacher_tail.isfinite(), teacher_tail - tail, value)
            return ratio if estimator.reward_floor is None else ratio.clamp_min(estimator.reward_floor)
        case "optimal":
            inside = inside_support(logp, teacher_logp, estimator, method)
            _, first, norm = tail_moments(p, rewards - value[:, None], inside)
            negligible = norm <= NEGLIGIBLE_GRADIENT_NORM * torch.where(inside, 0, p).sum(-1)
            return value + torch.where(negligible, 0, first / norm.masked_fill(negligible, 1))
    raise not_written(method, "baseline_value")


def not_written(method: Method, where: str) -> NotImplementedError:
    """The error of a method that is in the table and not in this function."""
    return NotImplementedError(
        f"{where} has no lines for divergence: {method.divergence}, baseline: {method.baseline} ({method.title})"
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


def tail_moments(p: Tensor, rewards: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The variance of X(y) = 1[y∈T] (R(y) - b) (e_y - p) over y is m₂ - 2 b m₁ + b² m₀: (m₂, m₁, m₀), [N] each.

    Args:
        p: [N, V].
        rewards: R, [N, V].
        inside: whether a token is in S, outside of T: [N, V].
    """
    tail = torch.where(inside, 0, p)
    weight = tail * squared_score_norm(p)

    def mean(f: Tensor | float) -> Tensor:
        """u_f = Σ_T p f (e_v - p): [N, V]."""
        return tail * f - (tail * f).sum(-1, keepdim=True) * p

    of_rewards, of_one = mean(rewards), mean(1.0)
    return (
        (weight * rewards.square()).sum(-1) - of_rewards.square().sum(-1),
        (weight * rewards).sum(-1) - (of_rewards * of_one).sum(-1),
        weight.sum(-1) - of_one.square().sum(-1),
    )


def gradient_variances(logp: Tensor, teacher_logp: Tensor, estimator: Estimator) -> dict[str, Tensor]:
    """Exact E‖g‖² - ‖E g‖² over y ~ p for every method on the same tokens: key → [N].

    Only the sampled part varies: A(y) (e_y - p) on the tail, which is every token for `sampled`. What samples nothing
    is a function of the context alone.
    """
    p, rewards = logp.exp(), reward_of_every_token(logp, teacher_logp, estimator.reward_floor)
    variances = {}
    for row in METHODS.values():
        if not row.samples:
            variances[row.key] = torch.zeros_like(p[:, 0])
            continue
        advantages = rewards - baseline_value(logp, teacher_logp, estimator, row)[:, None]
        second, _, _ = tail_moments(p, advantages, inside_support(logp, teacher_logp, estimator, row))
        variances[row.key] = second.clamp_min(0)
    return variances
