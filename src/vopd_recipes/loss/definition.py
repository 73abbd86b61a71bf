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

`full` differentiates KL(p‖q) itself (Eq. 5, no variance) and `topk` the KL renormalised on the student's k most
likely tokens (Eq. 7, biased). A clipped reward, max(r, log λ/(1-λ)), changes the objective; its baselines are
the same functionals of the clipped reward, so that they stay its value, its top-k value and its optimum.

Everything here holds [N, V] tensors and leans on autograd. `fused.py` computes the same from hidden states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Divergence = Literal["sampled", "full", "topk"]
Baseline = Literal["none", "constant", "value", "value_topk", "optimal"]
Support = Literal["student", "teacher"]

# Below this E[s] the student is certain to float32's precision: E[r s] / E[s] is rounding noise over rounding
# noise, and there is no variance left to remove, so `optimal` falls back to `value`.
NEGLIGIBLE_GRADIENT_NORM = 1e-6


@dataclass(frozen=True)
class Estimator:
    """Which gradient of the reverse KL to use.

    Args:
        divergence: `sampled`, `full` or `topk`.
        baseline: for `sampled` only; `None` means `value` there and `none` elsewhere.
        support: whose most likely tokens carry the `value_topk` baseline.
        support_top_k: number of tokens k in `value_topk` and `topk`.
        baseline_constant: value of the `constant` baseline, in nats.
        reward_clip_lambda: clamp the reward from below at log λ/(1-λ), 0 < λ < 1; `None` is off.
        importance_sampling_cap: the sampled gradient is weighted by min(p_train(y) / p_rollout(y), cap).

    Raises:
        ValueError: unknown words, values out of range, or a combination that has no meaning.
    """

    divergence: Divergence = "sampled"
    baseline: Baseline | None = None
    support: Support = "student"
    support_top_k: int = 20
    baseline_constant: float = 1.0
    reward_clip_lambda: float | None = None
    importance_sampling_cap: float = 2.0

    def __post_init__(self) -> None:
        if self.baseline is None:
            object.__setattr__(self, "baseline", "value" if self.divergence == "sampled" else "none")
        _check_word("divergence", self.divergence, Divergence)
        _check_word("baseline", self.baseline, Baseline)
        _check_word("support", self.support, Support)
        if self.divergence != "sampled" and self.baseline != "none":
            raise ValueError(
                f"baseline: {self.baseline} has no effect with divergence: {self.divergence}, "
                "whose gradient is not sampled; use divergence: sampled or baseline: none"
            )
        if self.support_top_k < 1:
            raise ValueError(f"support_top_k must be at least 1, got {self.support_top_k}")
        if self.importance_sampling_cap <= 0:
            raise ValueError(f"importance_sampling_cap must be positive, got {self.importance_sampling_cap}")
        if self.reward_clip_lambda is not None:
            if not 0 < self.reward_clip_lambda < 1:
                raise ValueError(f"reward_clip_lambda must lie in (0, 1), got {self.reward_clip_lambda}")
            if self.divergence != "sampled":
                raise ValueError("reward_clip_lambda clips a sampled reward; it needs divergence: sampled")

    @property
    def reward_floor(self) -> float | None:
        """The lower bound of the reward in nats, log λ/(1-λ), or `None`."""
        if self.reward_clip_lambda is None:
            return None
        return math.log(self.reward_clip_lambda / (1 - self.reward_clip_lambda))

    @property
    def equation(self) -> str:
        """The gradient of the loss at a position, in one line, and the paper's number of it."""
        if self.divergence == "full":
            return "∇ KL(p‖q) over the whole vocabulary (Eq. 5)"
        if self.divergence == "topk":
            return f"∇ KL(p̄‖q̄) on the student's top {self.support_top_k}, renormalised (Eq. 7, biased)"
        weight, about = {
            "none": ("r(y)", " (Eq. 3)"),
            "constant": (f"(r(y) - {self.baseline_constant:g})", ""),
            "value": ("(r(y) + KL(p‖q))", " (Eq. 10)"),
            "value_topk": (
                "(r(y) + KL(p̄‖q̄))",
                f", KL on the {self.support}'s top {self.support_top_k} (Eq. 15)",
            ),
            "optimal": ("(r(y) - E[r s]/E[s])", ", s = ‖∇log p‖² (Eq. 23)"),
        }[self.baseline or "none"]
        reward = "log q(y) - log p(y)"
        if self.reward_floor is not None:
            reward = f"max({reward}, {self.reward_floor:.3g})"
        return f"-{weight} ∇log p(y), r(y) = {reward}{about}"


def _check_word(name: str, value: object, words: object) -> None:
    if value not in get_args(words):
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(get_args(words))}")


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
    baseline = baseline_value(logp, teacher_logp, estimator, estimator.baseline or "none")
    chosen = targets[:, None]
    reward = rewards.gather(1, chosen)[:, 0]
    advantage = reward - baseline

    if estimator.divergence == "sampled":
        target_logp = student_logp.gather(1, chosen)[:, 0]
        weight = importance_weight(target_logp.detach(), rollout_logprobs, estimator.importance_sampling_cap)
        per_token = -weight * advantage * target_logp
    elif estimator.divergence == "full":
        per_token = reverse_kl(student_logp, teacher_logp)
    else:
        support = logp.topk(min(estimator.support_top_k, shared), dim=-1).indices
        per_token = renormalised_kl(student_logp, teacher_logp, support)

    variances = gradient_variances(logp, teacher_logp, estimator)
    stats = TokenStats(
        student_logprob=logp.gather(1, chosen)[:, 0].float(),
        teacher_logprob=teacher_logp.gather(1, chosen)[:, 0].float(),
        reward=reward.float(),
        baseline=baseline.float(),
        advantage=advantage.float(),
        reverse_kl=reverse_kl(logp, teacher_logp).float(),
        entropy=-(p * logp).sum(-1).float(),
        gradient_variance=variances[variance_name(estimator)].float(),
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


def baseline_value(logp: Tensor, teacher_logp: Tensor, estimator: Estimator, baseline: str) -> Tensor:
    """b of each position, [N]; it sees both distributions and never the sampled token."""
    p, rewards = logp.exp(), reward_of_every_token(logp, teacher_logp, estimator.reward_floor)
    if baseline == "none":
        return torch.zeros_like(p[:, 0])
    if baseline == "constant":
        return torch.full_like(p[:, 0], estimator.baseline_constant)
    if baseline == "value_topk":
        ranked = logp if estimator.support == "student" else teacher_logp
        support = ranked.topk(min(estimator.support_top_k, p.shape[1]), dim=-1).indices
        return value_on_support(logp.gather(1, support), teacher_logp.gather(1, support), estimator)
    value = (p * rewards).sum(-1)
    if baseline == "value":
        return value
    weight = p * squared_score_norm(p)
    total = weight.sum(-1)
    negligible = total < NEGLIGIBLE_GRADIENT_NORM
    return torch.where(negligible, value, (weight * rewards).sum(-1) / total.masked_fill(negligible, 1))


def value_on_support(student_logits: Tensor, teacher_logits: Tensor, estimator: Estimator) -> Tensor:
    """-KL(p̄‖q̄) from either's logits or log-probabilities on k tokens, [N, k] each (Eq. 15): [N]."""
    logp, teacher_logp = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return (logp.exp() * reward_of_every_token(logp, teacher_logp, estimator.reward_floor)).sum(-1)


def importance_weight(logp: Tensor, rollout_logprobs: Tensor | None, cap: float) -> Tensor:
    """min(p_train(y) / p_rollout(y), cap), [N]; 1 where the sampler's log-probabilities are not given."""
    if rollout_logprobs is None:
        return torch.ones_like(logp)
    return (logp - rollout_logprobs).exp().clamp_max(cap)


def variance_name(estimator: Estimator) -> str:
    """The estimator's key in `TokenStats.gradient_variances` and in `gradient_variance/<name>`."""
    return (estimator.baseline or "none") if estimator.divergence == "sampled" else estimator.divergence


def gradient_variances(logp: Tensor, teacher_logp: Tensor, estimator: Estimator) -> dict[str, Tensor]:
    """Exact E‖g‖² - ‖E g‖² of g = A(y) (1[y] - p), y ~ p, for every estimator on the same tokens: [N] each.

    E‖g‖² = Σ_v p(v) A(v)² s(v), and E g = p∘A - (Σ p A) p. `full` and `topk` are functions of the context alone.
    """
    p, rewards = logp.exp(), reward_of_every_token(logp, teacher_logp, estimator.reward_floor)
    variances = {}
    for baseline in get_args(Baseline):
        advantages = rewards - baseline_value(logp, teacher_logp, estimator, baseline)[:, None]
        second_moment = (p * advantages.square() * squared_score_norm(p)).sum(-1)
        mean = p * advantages - (p * advantages).sum(-1, keepdim=True) * p
        variances[baseline] = (second_moment - mean.square().sum(-1)).clamp_min(0)
    variances["full"] = variances["topk"] = torch.zeros_like(p[:, 0])
    return variances
