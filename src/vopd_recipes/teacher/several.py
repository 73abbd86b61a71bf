"""Several teachers as one: each scores the completions of its own prompts, after the prompt that it reads.

The student's row is packed for the student, whoever teaches what is in it. Each teacher gets a row of its own, with
its sequences alone, and with prompts of its own where it is privileged: it reads the answer, say, and the student does
not. The student's loss is the sum over teachers; tokens are weighted before they are dealt out, so that it is the mean
over the window's tokens, as with one.

Servers are asked side by side. Local teachers that wait in CPU memory visit the device one after another, once for a
whole window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from torch import Tensor

from vopd_recipes.loss import Estimator, Head, TokenStats
from vopd_recipes.packing import MicroBatch
from vopd_recipes.teacher.interface import Teacher, TeacherView


class SeveralTeachers:
    """A `Teacher` made of others.

    Args:
        teachers: by name; `None` is the name of the only one.
    """

    remote = False  # as a whole: what is asked of each is its own business
    collective = False

    def __init__(self, teachers: Mapping[str | None, Teacher]) -> None:
        self.teachers = dict(teachers)
        self.vocabulary = min(teacher.vocabulary for teacher in teachers.values())

    def views(self, batches: Sequence[MicroBatch]) -> list[Callable[[], TeacherView]]:
        """Each teacher's of its own sequences.

        Raises:
            TeacherUnavailable: a server cannot be had, or holds another model.
        """
        rows = {name: [batch.read_by(name) for batch in batches] for name in self.teachers}
        remote = {name: teacher for name, teacher in self.teachers.items() if teacher.remote}
        pool = ThreadPoolExecutor(max(1, len(remote)), thread_name_prefix="teachers")
        try:
            asked = {name: pool.submit(teacher.views, rows[name]) for name, teacher in remote.items()}
            found = {name: teacher.views(rows[name]) for name, teacher in self.teachers.items() if name not in remote}
            found |= {name: future.result() for name, future in asked.items()}
        finally:  # without waiting: at an interrupt a server may be away for minutes
            pool.shutdown(wait=False)
        return [
            partial(
                _SeveralViews,
                [
                    (rows[name][i], batch.tokens_of(name), found[name][i], teacher.collective)
                    for name, teacher in self.teachers.items()
                ],
            )
            for i, batch in enumerate(batches)
        ]


class _SeveralViews:
    """What all of them say about one micro-batch.

    Args:
        parts: of each teacher its row, which of the micro-batch's tokens that has, its view when it is called, and
            whether every process takes part in its loss, also without a token.
    """

    def __init__(self, parts: Sequence[tuple[MicroBatch, Tensor, Callable[[], TeacherView], bool]]) -> None:
        self._parts = [(row, tokens, view(), collective) for row, tokens, view, collective in parts]

    def student_loss(
        self, hidden: Tensor, head: Head, batch: MicroBatch, estimator: Estimator, weights: Tensor, variance: bool
    ) -> tuple[Tensor, TokenStats]:
        """See `TeacherView.student_loss`.

        Raises:
            TeacherUnavailable: a server cannot be had.
        """
        count, losses, stats = len(batch.targets), [], []
        needed = [part for part in self._parts if len(part[1]) or part[3]]
        for row, tokens, view, _ in needed or self._parts[:1]:  # without any token: a loss of zero, with its gradients
            own, tokens = row.to(hidden.device), tokens.to(hidden.device)
            states, weight = (hidden, weights) if len(tokens) == count else (hidden[tokens], weights[tokens])
            loss, found = view.student_loss(states, head, own, estimator, weight, variance)
            losses.append(loss)
            stats.append((tokens, found))
        return sum(losses[1:], losses[0]), TokenStats.joined(stats, count)
