r"""Is this completion right? Mathematics and multiple choice, safe against hostile text.

A grade is found in two steps. *Which answer did the model give?* is decided here, in linear time whatever the
text: the last `\boxed{…}` after the reasoning, or the last JSON object with an "answer". *Is it the gold answer?*
is a comparison of strings or numbers where that settles it (every integer answer), and a question for math-verify
where it does not.

math-verify is where the care goes. sympy would need longer than the universe for `9^{9^{9^9}}`, and math-verify's
own remedy, SIGALRM, works in the main thread only and not inside a C function. So it runs in worker processes that
this process can kill: a plain `python grading.py` which reads JSON lines. Not multiprocessing: "fork" is unsafe
under CUDA and threads, "spawn" imports the caller's main script again. The worker imports neither this package nor
torch and is ready in about a second.

Model output must not become code, and sympy does run text as Python. math-verify's ExprExtractionConfig passes text
to `parse_expr`, which evals: it is not used. LatexExtractionConfig alone is no protection, though: latex2sympy makes
its numbers by `sympy.Number("12")`, which is `parse_expr` again, and lambdify, which evalf uses for an infinite sum,
pastes the names of symbols into source: a boxed sum over a symbol with a crafted name ran a shell command (math-verify
0.5.2, sympy 1.14; the test has it). The worker shuts both doors before the first answer comes.
"""

import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.connection import wait
from typing import Any, NoReturn, Self

_MAX_CHARS = 1000  # longer answers are compared as text only: math-verify is not linear
_MAX_OBJECTS = 100  # places tried, from the last, as the start of a JSON object: keeps the search linear
_WORKER_BYTES = 4 << 30
_START_SECONDS = 120.0
_MAX_FAILED_STARTS = 3

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BOX_TOKEN = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?|\\[A-Za-z]+|[^\s\\{}$]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a character, not a brace
_TEXT_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_INVISIBLE = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[,!;: ]|\\?\$")
_NEEDLESS_SPACE = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")
_OBJECT_START = re.compile(r'\{\s*"')
_PHRASE = (
    r"""(?i:answer)["'*_ ]{0,4}(?::|\s(?i:is)\b)[\s"'*_:$({\[\\]{0,8}"""
    r"(?:(?i:option|choice)\s{1,2}|(?:text|textbf|mathrm|mathbf)\{)?"
    r"(?:\((?i:([CHOICES]))\)|([CHOICES])(?![\w-]))"
)
_NUMERAL = re.compile(r"[0-9.]+(?:[eE][+-]?[0-9]+)?")  # what latex2sympy hands to sympy.Number

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


def strip_reasoning(completion: str) -> str:
    """The text after the last `</think>`; empty where a `<think>` is left open, since then no answer was given.

    Where the chat template opens the block in the prompt, a completion without `</think>` cannot be told from one
    without reasoning.
    """
    answer = completion.rpartition("</think>")[2]
    return "" if "<think>" in answer else answer


def extract_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` or `\fbox{…}`, or of `\boxed 5`; None if it is missing, empty or left open.

    As in TeX, `\{` and `\}` do not count as braces, and without braces one number, command or character is boxed.
    """
    boxes = deque(_BOX.finditer(text), maxlen=1)
    if not boxes:
        return None
    box = boxes.pop()
    if not text.startswith("{", box.end()):
        token = _BOX_TOKEN.match(text, box.end())
        return token[0] if token else None
    depth = 0
    for brace in _BRACE.finditer(text, box.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[box.end() + 1 : brace.start()].strip() or None
    return None


def extract_choice(text: str, choices: str = "ABCD") -> str | None:
    r"""The chosen letter in upper case, or None. What is looked for, in this order, each at its last occurrence:

    1. a JSON object whose "answer" is exactly one of the letters: `{"reasoning": "…", "answer": "B"}`;
    2. `\boxed{B}`, `\boxed{\text{B}}`, `\boxed{(B)}`;
    3. "answer is B", "Answer: (B)" and the like (a lower-case letter only as "(b)": "the answer is a prime");
    4. a bare letter as the final line: `B`, `(b)`, `**B**.`
    """
    return _choice_in_json(text, choices) or _choice_elsewhere(text, choices)


def grade_choice(completion: str, gold: str, choices: str = "ABCD") -> Grade:
    """Grades one multiple-choice completion, without its reasoning. ValueError if `gold` is not one of `choices`."""
    right = _as_choice(gold, choices)
    if right is None:
        raise ValueError(f"the gold answer {gold!r} is not one of the choices {choices!r}")
    text = strip_reasoning(completion)
    formatted = _choice_in_json(text, choices)
    chosen = formatted or _choice_elsewhere(text, choices)
    return Grade(correct=chosen == right, extracted=chosen, formatted=formatted is not None)


def _as_choice(value: object, choices: str) -> str | None:
    letter = value.strip().upper() if isinstance(value, str) else ""
    return letter if len(letter) == 1 and letter in choices.upper() else None


def _choice_in_json(text: str, choices: str) -> str | None:
    found: list[str] = []

    def note(fields: dict[str, Any]) -> None:  # called for each complete object, an inner one before its outer one
        if choice := _as_choice(fields.get("answer"), choices):
            found.append(choice)

    decoder = json.JSONDecoder(object_hook=note, strict=False)
    end = 0
    for start in deque((match.start() for match in _OBJECT_START.finditer(text)), maxlen=_MAX_OBJECTS):
        if start >= end:
            with suppress(ValueError, RecursionError):
                end = decoder.raw_decode(text, start)[1]
    return found[-1] if found else None


def _choice_elsewhere(text: str, choices: str) -> str | None:
    box = extract_boxed(text)
    if box and (choice := _as_choice(_unwrap(box).strip("(). "), choices)):
        return choice
    letters = re.escape(choices.upper())
    phrases = re.findall(_PHRASE.replace("CHOICES", letters), text)
    if phrases:
        return "".join(phrases[-1]).upper()
    return _as_choice(text.strip().rpartition("\n")[2].strip("*()$.: \t"), choices)


def _unwrap(text: str) -> str:
    wrapped = _TEXT_WRAPPER.fullmatch(text)
    return wrapped[1].strip() if wrapped else text


def _normalise(text: str) -> str:
    r"""Removes what does not change an answer's value: spacing, dollars, `\text`, a leading + and a full stop."""
    text = _INVISIBLE.sub("", text).replace("{,}", ",").replace("\u2212", "-").replace("\\%", "%")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _unwrap(text.strip().removesuffix("."))
    return _NEEDLESS_SPACE.sub("", " ".join(text.split())).removeprefix("+").removesuffix(".")


def _quick_verdict(answer: str, gold: str) -> bool | None:
    """Right or wrong where that is plain to see: equal text, or two plain numbers. None: ask math-verify."""
    ours, theirs = _normalise(answer), _normalise(gold)
    if ours == theirs:
        return ours != ""
    if len(answer) > _MAX_CHARS or len(gold) > _MAX_CHARS:
        return False
    if _NUMBER.fullmatch(ours) and _NUMBER.fullmatch(theirs):
        return Fraction(ours.replace(",", "")) == Fraction(theirs.replace(",", ""))
    return None


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

    def grade(self, completions: list[str], golds: list[str]) -> list[Grade]:
        r"""One grade per completion, in order.

        A gold answer is LaTeX, with or without dollars. A pair that occurs often (avg@32) is compared once.
        ValueError if the lists differ in length or a gold answer is empty; RuntimeError if no worker can be started.
        """
        if len(completions) != len(golds):
            raise ValueError(f"{len(completions)} completions but {len(golds)} gold answers")
        if empty := [index for index, gold in enumerate(golds) if not gold.strip()]:
            raise ValueError(f"the gold answer of item {empty[0]} is empty")
        answers = [extract_boxed(strip_reasoning(completion)) for completion in completions]
        pairs = {(answer, gold) for answer, gold in zip(answers, golds) if answer is not None}
        quick = {pair: _quick_verdict(*pair) for pair in pairs}
        verdicts: dict[Pair, Verdict] = {
            pair: (correct, None) for pair, correct in quick.items() if correct is not None
        }
        verdicts |= self._verify(sorted(pair for pair, correct in quick.items() if correct is None))
        grades = []
        for answer, gold in zip(answers, golds):
            correct, error = (False, None) if answer is None else verdicts[answer, gold]
            grades.append(Grade(correct, answer, answer is not None, error))
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


class _Worker:
    """One process and the pair it compares. It gets JSON lines and writes single bytes: R when ready, then 1 or 0."""

    def __init__(self) -> None:
        # -P: nothing beside this file or in the working directory can pass for a library. The hash seed fixes the
        # order of sets, which sympy's path to a verdict may follow.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", __file__],
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
            self.process.stdin.write(json.dumps([*pair, timeout]).encode("ascii") + b"\n")
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


def _serve() -> None:
    """The worker's life: compare what arrives on stdin until it ends, which it does when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a verdict that nobody waits for: end without a word
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = _WORKER_BYTES if hard == resource.RLIM_INFINITY else min(_WORKER_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    replies, sys.stdout = sys.stdout.fileno(), None  # math-verify prints what it cannot parse
    compare = _load_math_verify()
    compare("1+x^2", "x^2+1")  # the parser builds its tables at the first use
    os.write(replies, b"R")
    for line in sys.stdin.buffer:
        answer, gold, timeout = json.loads(line)
        # The parent kills a late worker. Should it be gone, the kernel does, after this much processor time.
        signal.setitimer(signal.ITIMER_PROF, timeout + 1)
        os.write(replies, b"1" if compare(answer, gold) else b"0")


def _load_math_verify() -> Callable[[str, str], bool]:
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy.core import cache, random

    _forbid_code()
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def compare(answer: str, gold: str) -> bool:
        # No verdict may depend on what this worker compared before: empty caches, same random numbers.
        cache.clear_cache()
        random.seed(0)
        # A limit of 0 switches SIGALRM off: the parent has the clock. first_match: the whole box or nothing.
        options = {"extraction_config": config, "extraction_mode": "first_match", "parsing_timeout": 0}
        expected = parse("$" + " ".join(gold.replace("\\$", "").replace("$", "").split()) + "$", **options)
        return verify(expected, parse("\\boxed{" + answer + "}", **options), timeout_seconds=0)

    return compare


def _forbid_code() -> None:
    """Shuts sympy's two doors from text to Python, in this process, by taking names that its modules look up."""
    import sympy
    import sympy.physics.units  # simplify imports it later, and it makes its symbols from text

    def refuse(source: str, *rest: Any) -> NoReturn:
        # not NotImplementedError, at which evalf tries a way that may take hours
        raise RuntimeError("text is not run as code here")

    def number(text: str, **options: Any) -> Any:
        if _NUMERAL.fullmatch(text) is None:
            refuse(text)
        return sympy.Integer(text) if text.isdigit() else sympy.Float(text)

    vars(importlib.import_module("sympy.parsing.sympy_parser")).update(eval=refuse, parse_expr=number)
    # compile is lambdify's only way from text to code; its imports come first, and refusing them saves loading scipy
    vars(importlib.import_module("sympy.utilities.lambdify")).update(compile=refuse, _import=refuse)


if __name__ == "__main__":
    _serve()
