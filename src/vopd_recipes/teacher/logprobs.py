"""A teacher behind a server that gives a few log-probabilities a token.

They are requested for the whole window at once: the student trains on the first micro-batch as soon as that is scored,
and the server goes on with the others meanwhile. A server that is away when a window begins costs nothing: every
process saves that step and stops. One that goes away later, and for longer than its time-out, ends one process inside
the step; the launcher ends the others, and the run resumes from the last checkpoint. To wait for the whole window
first would save those steps, and put the server's seconds beside the student's in every step there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial

import torch
from torch import Tensor

from vopd_recipes.loss import Estimator, Head, Scores, TokenStats, logprobs_loss, student_support
from vopd_recipes.packing import MicroBatch
from vopd_recipes.teacher.interface import ScoringClient, TeacherView


class ServerTeacher:
    """A vLLM server that scores: log-probabilities of the sampled tokens and of a support.

    Args:
        server: where it is.
        vocabulary: number of tokens that both tokenizers name.
        estimator: says whose support is asked for.
    """

    remote, collective = True, False

    def __init__(self, server: ScoringClient, vocabulary: int, estimator: Estimator) -> None:
        self.server, self.vocabulary = server, vocabulary
        self.k = server.support_top_k
        self.asks_for_ids = estimator.method.needs == "support" and estimator.support == "student"

    def views(self, batches: Sequence[MicroBatch]) -> list[Callable[[], TeacherView]]:
        """Scores of the whole window, requested at once; those on the student's support wait for its logits.

        The first completions' are waited for here: a server that is away is noticed while this step's state can still
        be saved. One that fails later is noticed by the loss that needs its scores.

        Raises:
            TeacherUnavailable: the server cannot be had, or holds another model.
        """
        self.server.confirm()  # started again between two windows, it may hold another model
        if self.asks_for_ids:
            return [partial(ServerView, self, None)] * len(batches)
        window = [[self.server.submit(s.prompt_ids, s.completion_ids) for s in batch.samples] for batch in batches]
        self.joined(next(filter(None, window), []))
        return [partial(ServerView, self, futures) for futures in window]

    def ask(self, batch: MicroBatch, support: Tensor) -> Scores:
        """Scores of a micro-batch on ids [N, k] that the student chose."""
        parts = support.split([len(sample.completion_ids) for sample in batch.samples])
        return self.joined(
            [self.server.submit(s.prompt_ids, s.completion_ids, part) for s, part in zip(batch.samples, parts)]
        )

    def joined(self, futures: Sequence[Future[Scores]], vocabulary: int | None = None) -> Scores:
        """One micro-batch's, in the order of its row; tokens beyond the vocabulary leave the support.

        Args:
            futures: of its sequences.
            vocabulary: tokens that both models score; default: all that the teacher does.
        """
        none = Scores(torch.empty(0), torch.empty(0, self.k, dtype=torch.long), torch.empty(0, self.k))
        parts = [none, *(future.result() for future in futures)]
        ids = torch.cat([part.support_ids for part in parts])
        return Scores(
            torch.cat([part.logprobs for part in parts]),
            ids.masked_fill(ids >= (vocabulary or self.vocabulary), -1),
            torch.cat([part.support_logprobs for part in parts]),
        )


class ServerView:
    """A micro-batch's scores, waited for here, or asked for once the student's logits are known."""

    def __init__(self, teacher: ServerTeacher, futures: Sequence[Future[Scores]] | None) -> None:
        self._teacher, self._futures = teacher, futures
        wait(futures or ())

    def student_loss(
        self, hidden: Tensor, head: Head, batch: MicroBatch, estimator: Estimator, weights: Tensor, variance: bool
    ) -> tuple[Tensor, TokenStats]:
        """See `TeacherView.student_loss`; there are no variances without the whole distribution.

        Raises:
            TeacherUnavailable: the server cannot be had.
        """
        vocabulary = min(self._teacher.vocabulary, len(head.weight))  # a tokenizer may know more than the model
        if self._futures is None:
            scores = self._teacher.ask(batch, student_support(hidden, head, self._teacher.k, vocabulary))
        else:
            scores = self._teacher.joined(self._futures, vocabulary)
        return logprobs_loss(
            hidden,
            head,
            batch.targets,
            scores.to(hidden.device),
            estimator,
            vocabulary=vocabulary,
            token_weights=weights,
            rollout_logprobs=batch.rollout_logprobs,
        )
