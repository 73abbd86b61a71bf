"""What is common to teachers that answer in hidden states: the student's loss is exact, by `fused_loss`.

Where the states come from, and whose head reads them, is the teacher's own business: a model here, the student without
its adapters, or a server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from torch import Tensor

from vopd_recipes.loss import Estimator, Head, TokenStats, fused_loss
from vopd_recipes.packing import MicroBatch


class HiddenStatesView(ABC):
    """A `TeacherView` of one micro-batch's hidden states.

    Args:
        compiled: see `fused_loss`.
    """

    def __init__(self, compiled: bool) -> None:
        self._compiled = compiled

    @abstractmethod
    def states_and_head(self, hidden: Tensor, head: Head) -> AbstractContextManager[tuple[Tensor, Head]]:
        """The teacher's states [N, H'] on the student's device, and the head to read them with.

        Args:
            hidden: the student's, [N, H].
            head: the student's, whole.
        """

    def student_loss(
        self, hidden: Tensor, head: Head, batch: MicroBatch, estimator: Estimator, weights: Tensor, variance: bool
    ) -> tuple[Tensor, TokenStats]:
        """See `TeacherView.student_loss`.

        Raises:
            TeacherUnavailable: the states come from a server that cannot be had.
        """
        with self.states_and_head(hidden, head) as (states, teacher_head):
            return fused_loss(
                hidden,
                head,
                states,
                teacher_head,
                batch.targets,
                estimator,
                token_weights=weights,
                rollout_logprobs=batch.rollout_logprobs,
                gradient_variance=variance,
                compiled=self._compiled,
            )
