"""Every estimator's parameter gradient on one draw of completions, projected; student and teacher read it once.

The forward pass of a micro-batch is kept while all estimators go back through it, one after the other: the sampled
ones with the tokens that the rollout drew, the same with tokens drawn anew at the same contexts, a few times over,
and those that sample nothing.

Tokens are drawn anew by systematic sampling: redraw r of R takes quantile u + r/R (modulo 1) of a context's
distribution, u uniform. Each redraw is a sample like any other, so its squared error is an estimator's variance; but
the redraws of a context spread over its distribution, and their mean comes nearer to its own mean than R independent
ones would, which is what a small bias is looked for with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vopd_recipes.evidence.projection import WIDTH, Projection, trained_leaves
from vopd_recipes.loss import METHODS as TABLE
from vopd_recipes.loss import Estimator, Head, TokenStats, fused_loss
from vopd_recipes.models import completion_states, head_of, scale_logits, vocabulary_of
from vopd_recipes.packing import MicroBatch
from vopd_recipes.rollout import Sampling, draw

# Keys of what samples, and of every way to the reverse KL's gradient: those first, in the same order.
SAMPLED = tuple(row.key for row in TABLE.values() if row.samples)
METHODS = (*SAMPLED, *(row.key for row in TABLE.values() if row.of_reverse_kl and not row.samples))
# What samples at every context, and not on a tail alone.
SAMPLED_EVERYWHERE = tuple(row.key for row in TABLE.values() if row.divergence == "sampled")

# Rows of [rows, V] float64 probabilities that are drawn from at a time.
_ROWS = 256
REDRAWS = 8


@dataclass
class DrawGradients:
    """One draw's gradients of the mean loss over its N tokens, projected to [layer types, K] each.

    Args:
        own: of every method, with the rollout's tokens; what training would step on.
        redrawn: of the sampled methods, with other tokens at the same contexts: [redraws, layer types, K].
        logit_variance: Σ_t V_t / N², the closed form's prediction with respect to the logits.
        head_variance: Σ_t ‖h_t‖² V_t / N², which is exact for the head's weight; with a bias ‖h_t‖² + 1.
        squared_advantage: Σ_t A_t² / N², the mean over the redraws.
        tokens: N.
    """

    own: dict[str, Tensor] = field(default_factory=dict)
    redrawn: dict[str, Tensor] = field(default_factory=dict)
    logit_variance: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SAMPLED, 0.0))
    head_variance: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SAMPLED, 0.0))
    squared_advantage: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SAMPLED, 0.0))
    tokens: int = 0


class GradientProbe:
    """Takes the gradients of a frozen student under a frozen teacher.

    Args:
        student: in evaluation mode; its trained parameters are differentiated.
        teacher: in evaluation mode.
        estimator: gives `support_top_k`, `support` and `baseline_constant`.
        seed: of the projection's signs.
        width: of the projection.
        redraws: how often tokens are drawn anew at each context.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        estimator: Estimator,
        seed: int,
        width: int = WIDTH,
        redraws: int = REDRAWS,
    ) -> None:
        self._student, self._teacher, self._redraws = student, teacher, redraws
        self._shared = min(vocabulary_of(student), vocabulary_of(teacher))
        leaves, weight = trained_leaves(student)
        self._leaves = [leaf.tensor for leaf in leaves]
        self._head = replace(head_of(student), weight=weight)
        self.projection = Projection(leaves, seed, width)
        self._estimators = {
            row.key: replace(estimator, divergence=row.divergence, baseline=row.baseline)
            for row in TABLE.values()
            if row.of_reverse_kl
        }

    @property
    def head_is_exact(self) -> bool:
        """Whether `head_variance` predicts the head's variance: it is trained and no tanh follows."""
        return (self._head.weight.requires_grad or self._trains_bias) and self._head.softcap is None

    @property
    def _trains_bias(self) -> bool:
        return self._head.bias is not None and self._head.bias.requires_grad

    def measure(self, batches: Sequence[MicroBatch], generator: torch.Generator) -> DrawGradients:
        """All gradients of one draw; `generator` (of the CPU) draws the tokens anew."""
        result = DrawGradients(tokens=sum(len(batch.targets) for batch in batches))
        for batch in batches:
            self._add(result, batch.to(self._leaves[0].device), generator)
        return result

    def _add(self, result: DrawGradients, batch: MicroBatch, generator: torch.Generator) -> None:
        hidden = completion_states(self._student, batch).to(self._head.weight.dtype)  # [N, H], graph kept
        with torch.no_grad():
            teacher_hidden = completion_states(self._teacher, batch).to(head_of(self._teacher).weight.dtype)
            redrawn = self._draw(hidden, generator)
        for name in METHODS:
            gradient, _ = self._gradient(hidden, teacher_hidden, batch.targets, name, result.tokens)
            _accumulate(result.own, name, gradient)
        for name in SAMPLED:
            gradients = []
            for turn, targets in enumerate(redrawn):
                first = turn == 0  # the exact variances are the contexts', whatever was drawn
                gradient, stats = self._gradient(hidden, teacher_hidden, targets, name, result.tokens, first)
                gradients.append(gradient)
                self._predict(result, name, stats, hidden.detach())
            _accumulate(result.redrawn, name, torch.stack(gradients))

    def _draw(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens [redraws, N] from the student's distribution at each context, spread over it."""
        drawn = []
        for rows in hidden.split(_ROWS):
            logits = scale_logits(_products(rows, self._head).float(), self._head)[:, : self._shared]
            uniforms = torch.rand(len(rows), generator=generator, dtype=torch.float64).to(rows.device)
            spread = [(uniforms + turn / self._redraws) % 1 for turn in range(self._redraws)]
            drawn.append(torch.stack([draw(logits, quantiles, Sampling())[0] for quantiles in spread]))
        return torch.cat(drawn, dim=1)

    def _gradient(
        self,
        hidden: Tensor,
        teacher_hidden: Tensor,
        targets: Tensor,
        name: str,
        tokens: int,
        gradient_variance: bool = False,
    ) -> tuple[Tensor, TokenStats]:
        loss, stats = fused_loss(
            hidden,
            self._head,
            teacher_hidden,
            head_of(self._teacher),
            targets,
            self._estimators[name],
            token_weights=torch.full(targets.shape, 1 / tokens, device=hidden.device),
            gradient_variance=gradient_variance,
        )
        gradients = torch.autograd.grad(loss, self._leaves, retain_graph=True, allow_unused=True)
        return self.projection(gradients), stats

    def _predict(self, result: DrawGradients, name: str, stats: TokenStats, hidden: Tensor) -> None:
        squares = stats.advantage.double().square().sum().item() / self._redraws
        result.squared_advantage[name] += squares / result.tokens**2
        if stats.gradient_variance is None:
            return
        variance, scale = stats.gradient_variance.double(), self._head.logit_scale / result.tokens
        # A head's input is its hidden state, and for its bias the number 1; what is frozen has no gradient.
        squared_inputs = hidden.double().square().sum(-1) * self._head.weight.requires_grad + self._trains_bias
        result.logit_variance[name] += variance.sum().item() / result.tokens**2
        result.head_variance[name] += (variance * squared_inputs).sum().item() * scale**2


def _products(hidden: Tensor, head: Head) -> Tensor:
    return torch.nn.functional.linear(hidden, head.weight, head.bias)


def _accumulate(totals: dict[str, Tensor], name: str, part: Tensor) -> None:
    totals[name] = totals[name] + part if name in totals else part
