"""Which gradient of which divergence a run follows: the words and numbers of a recipe, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from vopd_recipes.loss.methods import Method, default_baseline, method

Support = Literal["student", "teacher"]


@dataclass(frozen=True)
class Estimator:
    """Which gradient to use; `methods.METHODS` has the words.

    Args:
        divergence: whose gradient, and how it is estimated.
        baseline: of a sampled reward; `None` is the divergence's default.
        support: whose most likely tokens S are, in `rao_blackwell`, `value_topk` and `topk`.
        support_top_k: number of those tokens, k; `rao_blackwell` takes 0 as well, which is `sampled`.
        baseline_constant: value of the `constant` baseline, in nats.
        jsd_beta: β of `jsd`, in [0, 1]; 0 is `forward` and 1 is `full`, its limits over β and over 1-β.
        reward_clip_lambda: clamp the reward from below at log(λ)/(1-λ), 0 < λ < 1; `None` is off.
        importance_sampling_cap: the sampled gradient is weighted by min(p_train(y) / p_rollout(y), cap).

    Raises:
        ValueError: unknown words, values out of range, or a combination that has no meaning.
    """

    divergence: str = "sampled"
    baseline: str | None = None
    support: Support = "student"
    support_top_k: int = 20
    baseline_constant: float = 1.0
    jsd_beta: float = 0.5
    reward_clip_lambda: float | None = None
    importance_sampling_cap: float = 2.0

    def __post_init__(self) -> None:
        if self.baseline is None:
            object.__setattr__(self, "baseline", default_baseline(self.divergence))
        samples = self.method.samples
        if self.support not in get_args(Support):
            raise ValueError(f"support: {self.support!r} is not one of {', '.join(get_args(Support))}")
        fewest = 0 if self.divergence == "rao_blackwell" else 1
        if self.support_top_k < fewest:
            raise ValueError(f"support_top_k must be at least {fewest}, got {self.support_top_k}")
        if not 0 <= self.jsd_beta <= 1:
            raise ValueError(f"jsd_beta must lie in [0, 1], got {self.jsd_beta}")
        if not math.isfinite(self.baseline_constant):
            raise ValueError(f"baseline_constant must be finite, got {self.baseline_constant}")
        if not self.importance_sampling_cap > 0:  # nan compares with nothing
            raise ValueError(f"importance_sampling_cap must be positive, got {self.importance_sampling_cap}")
        if self.reward_clip_lambda is not None:
            if not 0 < self.reward_clip_lambda < 1:
                raise ValueError(f"reward_clip_lambda must lie in (0, 1), got {self.reward_clip_lambda}")
            if not samples:
                raise ValueError(
                    "reward_clip_lambda clips a sampled reward; it needs divergence: sampled or rao_blackwell"
                )

    @property
    def method(self) -> Method:
        """Its row of the table."""
        return method(self.divergence, str(self.baseline))

    @property
    def has_support(self) -> bool:
        """Whether k tokens of `support` have a part in it."""
        return self.method.has_support

    @property
    def reward_floor(self) -> float | None:
        """The lower bound of the reward in nats, log(λ)/(1-λ), or `None`: a logarithm over a number."""
        share = self.reward_clip_lambda
        return None if share is None else math.log(share) / (1 - share)

    @property
    def equation(self) -> str:
        """The gradient of the loss at a position, in one line, and the paper's number of it."""
        reward = "log q(y) - log p(y)"
        if self.reward_floor is not None:
            reward = f"max({reward}, {self.reward_floor:.3g})"
        return self._filled(self.method.equation, reward=reward) + (", biased" if self.method.biased else "")

    @property
    def html(self) -> str:
        """The same for a page, without the reward."""
        return self._filled(self.method.html)

    def _filled(self, text: str, **more: str) -> str:
        named = {"k": self.support_top_k, "support": self.support, "beta": self.jsd_beta}
        return text.format(**named, constant=self.baseline_constant, **more)
