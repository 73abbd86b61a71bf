r"""Grades and what is made of them: avg@n, its standard error, pass@n, maj@n, format and truncation rates.

With c_ij = 1 where sample j of question i is right, Q questions and n samples each, and m_i = Σ_j c_ij / n:

    avg@n   mean of m_i over the questions, of all samples (not of a first one, and not of text before `</think>`)
    stderr  sqrt(Σ_i (m_i - avg)² / (Q - 1) / Q): questions are the sample, so it covers the choice of questions and
            the drawing of answers; 0 for a single question
    pass@n  share of questions with a right sample
    maj@n   share of questions whose commonest answer is right: right answers are one answer however written, wrong
            ones are told apart by their value, or their text where they are no numbers; samples without an answer do
            not vote; where k answers tie, 1/k for a right one
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from statistics import fmean
from typing import Any

from scipy.stats import sem
from tqdm import tqdm

from evaluation.harness import CorpusLevelMetric, Doc, ModelResponse, SampleLevelComputation, SamplingMethod
from evaluation.model import Answers, facts
from vopd_recipes.grading import Grade, MathGrader, answer_key, grade_choice

METRIC = "grades"
TIMEOUT = 4.0  # seconds for one comparison; with the worker's end and the next one's start, under five

_AT_A_TIME = 1024  # completions between two moves of the progress bar


@dataclass(frozen=True)
class Graded:
    """One question's samples, graded.

    Args:
        doc: the question.
        answers: what the model said.
        grades: one of each sample.
    """

    doc: Doc
    answers: Answers
    grades: list[Grade]

    @property
    def facts(self) -> dict[str, Any]:
        """The document's `question`, `gold` and `letters`."""
        return facts(self.doc)


class TaskGrades(SampleLevelComputation):
    """Grade every sample of every question of a task.

    Args:
        kind: `math` or `choice`.
        grader: for mathematics.
    """

    def __init__(self, kind: str, grader: MathGrader) -> None:
        self._kind, self._grader = kind, grader

    def compute(self, responses: list[ModelResponse], docs: list[Doc]) -> list[Graded]:  # type: ignore[override]
        """One `Graded` per question: lighteval's batched metrics get all of a task's at once."""
        answers = [response for response in responses if isinstance(response, Answers)]
        said = [(text, facts(doc)) for doc, response in zip(docs, answers) for text in _as_said(response)]
        grades: list[Grade] = []
        with tqdm(total=len(said), desc=f"Grading {docs[0].task_name.split('|')[0]}", unit="", leave=False) as bar:
            for first in range(0, len(said), _AT_A_TIME):
                grades += self._grade(said[first : first + _AT_A_TIME])
                bar.update(len(grades) - first)
        left = iter(grades)
        return [Graded(doc, each, list(islice(left, len(each.text)))) for doc, each in zip(docs, answers)]

    def _grade(self, said: list[tuple[str, dict[str, Any]]]) -> list[Grade]:
        if self._kind == "choice":
            return [grade_choice(text, asked["gold"], asked["letters"]) for text, asked in said]
        texts, asked = [text for text, _ in said], [about for _, about in said]
        return self._grader.grade(texts, [one["gold"] for one in asked], [one["question"] for one in asked])


def _as_said(response: Answers) -> list[str]:
    """Every sample, after the `<think>` that the template put into the prompt: truncated reasoning is no answer."""
    return [f"<think>{text}" for text in response.text] if response.opens_thinking else response.text


def metric(kind: str, grader: MathGrader) -> CorpusLevelMetric:
    """lighteval's metric of a task: grades of all samples at once, and `scores` over the questions."""
    return CorpusLevelMetric(
        metric_name=METRIC,
        higher_is_better=True,
        category=SamplingMethod.GENERATIVE,
        sample_level_fn=TaskGrades(kind, grader),
        corpus_level_fn=scores,
        batched_compute=True,
    )


def new_grader() -> MathGrader:
    """A grader on the cores that this process may use."""
    return MathGrader(num_workers=min(16, len(os.sched_getaffinity(0))), timeout=TIMEOUT)


def scores(questions: list[Graded]) -> dict[str, float]:
    """What a results file says of a task; shares are between 0 and 1."""
    grades = [grade for question in questions for grade in question.grades]
    responses = [response for question in questions for response in question.answers.responses]
    means = [fmean(float(grade.correct) for grade in question.grades) for question in questions]
    return {
        "avg": fmean(means),
        "stderr": float(sem(means)) if len(means) > 1 else 0.0,
        "pass": fmean(float(any(grade.correct for grade in question.grades)) for question in questions),
        "maj": fmean(majority(question.grades) for question in questions),
        "n": len(questions[0].grades),
        "problems": len(questions),
        "format_rate": fmean(float(grade.formatted) for grade in grades),
        "truncation_rate": fmean(float(not response.finished) for response in responses),
        "grading_errors": sum(grade.error is not None for grade in grades),
        "seconds": round(sum(response.seconds for response in responses), 3),
        "tokens": sum(response.tokens for response in responses),
    }


def majority(grades: list[Grade]) -> float:
    """1 where the commonest answer is right, 1/k where k answers tie and one is, else 0."""
    votes: Counter[str | Fraction | None] = Counter()
    for grade in grades:
        if grade.extracted is not None:
            votes[None if grade.correct else answer_key(grade.extracted)] += 1
    most = max(votes.values(), default=0)
    tied = [answer for answer, count in votes.items() if count == most]
    return 1 / len(tied) if None in tied else 0.0
