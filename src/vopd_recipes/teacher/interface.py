"""What a teacher says about a window of completions.

The trainer asks for `views`: one call per micro-batch, made when the micro-batch is trained on, that gives what the
loss needs. A local teacher answers with hidden states, and its head stays here; a server answers with the
log-probabilities of a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from vopd_recipes.loss import Estimator, Head, TokenStats
from vopd_recipes.packing import MicroBatch


class TeacherView(Protocol):
    """What a teacher says about one micro-batch."""

    def loss(
        self, hidden: Tensor, head: Head, batch: MicroBatch, estimator: Estimator, weights: Tensor, variance: bool
    ) -> tuple[Tensor, TokenStats]:
        """Loss of the student's completion states [N, H] under its `head`, with token `weights` [N]."""


class Teacher(Protocol):
    """A local model or a server."""

    vocabulary: int  # number of tokens it scores; the student's may be padded to another

    def views(self, batches: Sequence[MicroBatch]) -> list[Callable[[], TeacherView]]:
        """One view per micro-batch, ready or computed when it is called."""
