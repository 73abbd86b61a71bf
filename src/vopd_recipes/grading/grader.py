r"""Is this completion right? Mathematics and multiple choice, safe against hostile text.

A grade is found in two steps. *Which answer did the model give?* is decided in linear time whatever the text, by
`answers` (mathematics) and `choices` (letters). *Is it the gold answer?* is a comparison of strings or numbers where
that settles it (every integer answer), and a question for math-verify where it does not.

math-verify is where the care goes. sympy would need longer than the universe for `9^{9^{9^9}}`, and math-verify's
own remedy, SIGALRM, works in the main thread only and not inside a C function. So it runs in worker processes that
this process can kill: a plain `python worker.py` which reads JSON lines. Not multiprocessing: "fork" is unsafe
under CUDA and threads, "spawn" imports the caller's main script again.
"""

import json
import os
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self

from vopd_recipes.grading.answers import MAX_CHARS, for_math_verify, listed_boxes, quick_verdict
from vopd_recipes.grading.boxes import boxed_values, extract_boxed, strip_reasoning
from vopd_recipes.grading.choices import as_choice, choice_elsewhere, choice_in_json, extract_choice
from vopd_recipes.grading.percent import as_asked

__all__ = ["Grade", "MathGrader", "extract_boxed", "extract_choice", "grade_choice", "strip_reasoning"]

_START_SECONDS = 120.0
_MAX_FAILED_STARTS = 3
_WORKER = Path(__file__).with_name("worker.py")

Pair = tuple[str, str]  # (answer, gold)
Verdict = tuple[bool, str | None]  # (correct, error)


@dataclass(frozen=True)
class Grade:
    r"""What one completion is worth.

    `extracted` is the answer as the model wrote it, None where it gave none. `formatted`: the answer came in the
    form that was asked for (`\boxed` in mathematics, JSON in multiple choice). `error`: "timeout" or "crash" where
    math-verify came to no verdict and the answer counts as wrong, else None.
    """

    correct: bool
    extracted: str | None
    formatted: bool
    error: str | None = None


def grade_choice(completion: str, gold: str, choices: str = "ABCD") -> Grade:
    """Grades one multiple-choice completion, without its reasoning. ValueError if `gold` is not one of `choices`."""
    right = as_choice(gold, choices)
    if right is None:
        raise ValueError(f"the gold answer {gold!r} is not one of the choices {choices!r}")
    text = strip_reasoning(completion)
    formatted = choice_in_json(text, choices)
    chosen = formatted or choice_elsewhere(text, choices)
    return Grade(correct=chosen == right, extracted=chosen, formatted=formatted is not None)


class MathGrader:
    """Grades mathematics: the last box against the gold answer.

    Workers start when the first answer needs one, are killed on leaving the `with` block and end by themselves when
    this process dies. One thread at a time may use a grader.

    Args:
        num_workers: processes that run math-verify, at most.
        timeout: seconds for one comparison, counted from the moment a worker that is ready gets it.
    """

    def __init__(self, num_workers: int = 1, timeout: float = 5.0) -> None:
        if num_workers < 1 or timeout <= 0:
            raise ValueError(f"num_workers and timeout must be positive, not {num_workers} and {timeout}")
        self.num_workers = num_workers
        self.timeout = timeout
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; may be called again."""
        while self._workers:
            self._workers.pop().kill()

    def grade(self, completions: list[str], golds: list[str], questions: list[str] | None = None) -> list[Grade]:
        r"""One grade per completion, in order.

        A gold answer is LaTeX, with or without dollars. A pair that occurs often (avg@32) is compared once. Where the
        questions are given, `10\%` and `10` are the same for those that ask for percent.
        ValueError if the lists differ in length or a gold answer is empty; RuntimeError if no worker can be started.
        """
        if len(completions) != len(golds):
            raise ValueError(f"{len(completions)} completions but {len(golds)} gold answers")
        if empty := [index for index, gold in enumerate(golds) if not gold.strip()]:
            raise ValueError(f"the gold answer of item {empty[0]} is empty")
        answers = [_answer(strip_reasoning(completion), gold) for completion, gold in zip(completions, golds)]
        compared = list(zip(answers, golds))
        if questions is not None:
            asked = zip(answers, golds, questions, strict=True)
            compared = [
                as_asked(answer, gold, question) if answer else (answer, gold) for answer, gold, question in asked
            ]
        pairs = {(answer, gold) for answer, gold in compared if answer is not None}
        quick = {pair: quick_verdict(*pair) for pair in pairs}
        verdicts: dict[Pair, Verdict] = {
            pair: (correct, None) for pair, correct in quick.items() if correct is not None
        }
        verdicts |= self._verify(sorted(pair for pair, correct in quick.items() if correct is None))
        grades = []
        for (answer, gold), extracted in zip(compared, answers):
            correct, error = (False, None) if answer is None else verdicts[answer, gold]
            grades.append(Grade(correct, extracted, extracted is not None, error))
        return grades

    def _verify(self, pairs: list[Pair]) -> dict[Pair, Verdict]:
        try:
            return self._run(deque(pairs))
        except BaseException:
            self.close()  # a worker that still holds a pair would answer the next call's question
            raise

    def _run(self, queue: deque[Pair]) -> dict[Pair, Verdict]:
        verdicts: dict[Pair, Verdict] = {}
        suspects: set[Pair] = set()  # a worker died over them once, perhaps killed by an outsider: one more try
        for worker in [worker for worker in self._workers if worker.process.poll() is not None]:  # died idle
            worker.kill()
            self._workers.remove(worker)
        total = len(queue)
        while len(verdicts) < total:
            self._hand_out(queue)
            waiting = {worker.replies: worker for worker in self._workers if worker.deadline is not None}
            soonest = min(worker.deadline or 0.0 for worker in waiting.values())
            readable = wait(list(waiting), max(0.0, soonest - time.monotonic()))
            for stream, worker in waiting.items():
                reply = os.read(stream, 1) if stream in readable else None
                if reply in (b"0", b"1"):
                    verdicts[worker.release()] = (reply == b"1", None)
                elif reply == b"R":
                    worker.deadline, worker.ready, self._failed_starts = None, True, 0
                elif reply == b"" or worker.is_late():
                    self._bury(worker, queue, verdicts, suspects)
        return verdicts

    def _hand_out(self, queue: deque[Pair]) -> None:
        busy = sum(worker.pair is not None for worker in self._workers)
        while len(self._workers) < min(self.num_workers, busy + len(queue)):
            self._workers.append(_Worker())
        for worker in self._workers:
            if queue and worker.ready and worker.pair is None:
                worker.start(queue.popleft(), self.timeout)

    def _bury(self, worker: "_Worker", queue: deque[Pair], verdicts: dict[Pair, Verdict], suspects: set[Pair]) -> None:
        """A worker died or is late: decides what becomes of the pair that it held, and removes it."""
        worker.kill()
        self._workers.remove(worker)
        if worker.pair is None:
            self._failed_starts += 1
            if self._failed_starts == _MAX_FAILED_STARTS:
                status = worker.process.returncode
                raise RuntimeError(f"no grading worker could be started (exit status {status}, see stderr)")
        elif worker.is_late():
            verdicts[worker.pair] = (False, "timeout")
        elif worker.pair in suspects:
            verdicts[worker.pair] = (False, "crash")
        else:
            suspects.add(worker.pair)
            queue.append(worker.pair)


def _answer(text: str, gold: str) -> str | None:
    """The last box, or the last boxes of one value each where the gold answer is a list of as many."""
    answer = extract_boxed(text)
    if answer is None or len(gold) > MAX_CHARS or len(answer) > MAX_CHARS:
        return answer
    return listed_boxes(gold, lambda: boxed_values(text)) or answer


class _Worker:
    """One process and the pair it compares. It gets JSON lines and writes single bytes: R when ready, then 1 or 0."""

    def __init__(self) -> None:
        # -P: nothing beside this file or in the working directory can pass for a library. The hash seed fixes the
        # order of sets, which sympy's path to a verdict may follow.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        assert self.process.stdout is not None
        self.replies = self.process.stdout.fileno()
        self.ready = False
        self.pair: Pair | None = None
        self.deadline: float | None = time.monotonic() + _START_SECONDS  # None while idle

    def start(self, pair: Pair, timeout: float) -> None:
        assert self.process.stdin is not None
        self.pair, self.deadline = pair, time.monotonic() + timeout
        # ASCII with escapes: a lone surrogate or a NUL passes like any character. A request is shorter than a pipe, so
        # writing does not block; a dead worker's output has ended, too, which is seen where replies are read.
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps([*for_math_verify(*pair), timeout]).encode("ascii") + b"\n")
            self.process.stdin.flush()

    def release(self) -> Pair:
        assert self.pair is not None
        pair, self.pair, self.deadline = self.pair, None, None
        return pair

    def is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()  # closes the pipes and waits
