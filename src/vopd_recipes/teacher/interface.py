"""What a teacher says about a window of completions.

The trainer asks for `views`: one call per micro-batch, made when the micro-batch is trained on, that gives what the
loss needs. A local teacher and a server of hidden states answer with those, and the head stays here; another server
answers with the log-probabilities of a few tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from torch import Tensor

from vopd_recipes.loss import Estimator, Head, TokenStats
from vopd_recipes.packing import MicroBatch


class TeacherView(Protocol):
    """What a teacher says about one micro-batch."""

    def student_loss(
        self, hidden: Tensor, head: Head, batch: MicroBatch, estimator: Estimator, weights: Tensor, variance: bool
    ) -> tuple[Tensor, TokenStats]:
        """The student's loss, from its completion states [N, H], its `head` and token `weights` [N]."""


class Teacher(Protocol):
    """A local model or a server."""

    vocabulary: int  # number of tokens it scores; the student's may be padded to another
    remote: bool  # a server, which can be asked while others work
    collective: bool  # every process takes part in each of its forwards and losses, also without a token

    def views(self, batches: Sequence[MicroBatch]) -> list[Callable[[], TeacherView]]:
        """One view per micro-batch, ready or computed when it is called."""


class ScoringClient(Protocol):
    """A connection to a server that scores completions; `server.TeacherServer` is vLLM's.

    Its calls raise `TeacherUnavailable` where the server cannot be had.
    """

    support_top_k: int  # k, or 0 where the method needs no support

    def confirm(self) -> None:
        """The model that was checked before training is still there."""

    def submit(self, prompt_ids: list[int], completion_ids: list[int], support: Tensor | None = None) -> Future[Any]:
        """Ask for the `Scores` of a completion of n tokens, on the teacher's likeliest ids or on these, [n, k]."""
