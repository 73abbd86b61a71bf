"""Scripted completions with known grades, through lighteval's own pipeline: every metric to the digit."""

import copy
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from evaluation.compare import bootstrap_interval
from evaluation.engines import Request
from evaluation.grades import majority, new_grader
from evaluation.harness import Doc
from evaluation.model import Asked, EvaluatedModel, encode, facts, opens_thinking, seed_of, stores
from evaluation.protocol import Drawing, read_protocol
from evaluation.responses import Response
from evaluation.suite import Measured, Prepared, run_suite
from evaluation.tasks import TASKS, Question
from vopd_recipes.grading import Grade
from vopd_recipes.rollout import RolloutFailed

DRAWING = Drawing(0.6, 0.9, 0, 16)


class Script:
    """An engine whose answers are written down: question → completions; `cut` ones did not end by themselves."""

    def __init__(self, answers: dict[tuple[int, ...], list[str]]) -> None:
        self.answers, self.drawn = answers, 0

    def run(self, requests: list[Request]) -> Iterator[list[tuple[Request, Response]]]:
        for request in requests:
            texts = self.answers[tuple(request.token_ids)][request.first : request.first + request.count]
            self.drawn += len(texts)
            yield [
                (request, Response(request.key, request.first + i, text, len(text), not text.endswith("…"), 0.5))
                for i, text in enumerate(texts)
            ]


def measure(
    name: str,
    answers: dict[Question, list[str]],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    opened: bool = False,
) -> tuple[Measured, Script]:
    """Run a task over questions whose completions are given; `opened`: the prompt ends in `<think>`."""
    task, count = TASKS[name], len(next(iter(answers.values())))
    ids = {question.text: tokenizer(task.prompt(question))["input_ids"] for question in answers}
    script = Script({tuple(ids[question.text]): texts for question, texts in answers.items()})
    model = EvaluatedModel(
        "scripted",
        tokenizer,
        lambda doc: Asked(ids[facts(doc)["question"]], seed_of(name, facts(doc)["question"]), DRAWING, count, opened),
        stores(folder / "responses", "0" * 64, {}),
        lambda length: script,
    )
    with new_grader() as grader:
        measured = run_suite(model, [Prepared(task, list(answers), count)], grader, None, folder)
    return measured[name], script


def test_lighteval_leaves_autograd_as_it_was() -> None:
    """Its import switches it off for the whole process."""
    assert torch.is_grad_enabled()


def box(answer: str) -> str:
    return rf"so \boxed{{{answer}}}"


def test_mathematics_to_the_digit(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    answers = {
        # right 3 of 4 (one written otherwise); votes: right 3, "4" 1
        Question("q0", "1/2"): [box("0.5"), box(r"\frac{1}{2}"), box("1/2"), box("4")],
        # right 1 of 4; votes: right 1, "3" 2: the majority is wrong
        Question("q1", "7"): [box("7"), box("3"), box("3"), "no answer…"],
        # right 1 of 4; votes: right 1, "8" 1, no vote of two: half
        Question("q2", "9"): [box("9"), box("8"), "it is 9", ""],
        # right 2 of 4: what is thought does not count, what is answered does; left open is no answer
        Question("q3", "x+1"): [
            f"<think>{box('5')}</think>{box('1+x')}",
            f"<think>{box('x+1')}</think>{box('2')}",
            f"<think>{box('x+1')}…",
            f"hm</think> {box('x+1')}",
        ],
        # right 0 of 4, and nobody votes
        Question("q4", "2"): ["", "", "2", "…"],
    }
    measured, _ = measure("minerva", answers, tokenizer, tmp_path)
    scores = measured.scores
    means = [Fraction(3, 4), Fraction(1, 4), Fraction(1, 4), Fraction(1, 2), Fraction(0)]
    average = sum(means) / 5
    variance = sum((mean - average) ** 2 for mean in means) / 4
    texts = [text for question in answers.values() for text in question]
    assert scores["avg"] == pytest.approx(float(average), abs=1e-15)
    assert scores["stderr"] == pytest.approx(math.sqrt(variance / 5), abs=1e-15)
    assert scores["pass"] == 0.8
    assert scores["maj"] == pytest.approx((1 + 0 + 0.5 + 1 + 0) / 5, abs=1e-15)
    assert (scores["n"], scores["problems"]) == (4, 5)
    assert scores["format_rate"] == 12 / 20
    assert scores["truncation_rate"] == 3 / 20
    assert scores["tokens"] == sum(map(len, texts))
    assert scores["seconds"] == 10.0
    assert scores["grading_errors"] == 0
    assert [[grade.correct for grade in question.grades] for question in measured.questions] == [
        [True, True, True, False],
        [True, False, False, False],
        [True, False, False, False],
        [True, False, False, True],
        [False] * 4,
    ]


def test_multiple_choice_to_the_digit(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    answers = {
        Question("q0", "C", "ABCD"): ['{"answer": "C"}', "The answer is C", '{"answer": "A"} {"answer": "C"}'],
        Question("q1", "B", "AB"): ['{"answer": "D"}', "C", '{"answer": "A"}'],  # two choices: D is none
    }
    measured, _ = measure("gpqa", answers, tokenizer, tmp_path)
    assert measured.scores["avg"] == 0.5 and measured.scores["pass"] == 0.5 and measured.scores["maj"] == 0.5
    assert measured.scores["format_rate"] == 3 / 6
    assert [grade.extracted for grade in measured.questions[1].grades] == [None, None, "A"]


def test_a_hostile_answer_changes_no_other_grade(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    hostile = [box("9^{9^{9^9}}"), "{" * 100_000, box(r"\frac{1}{" * 90 + "2" + "}" * 90), box("\x00"), box("\u202e5")]
    answers = {Question(f"q{i}", "x+1"): [text, box("1+x")] for i, text in enumerate(hostile)}
    measured, _ = measure("minerva", answers, tokenizer, tmp_path)
    assert [question.grades[1].correct for question in measured.questions] == [True] * len(hostile)
    assert not any(question.grades[0].correct for question in measured.questions)
    assert measured.scores["grading_errors"] >= 1  # the tower


def test_answers_are_asked_for_once(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    few = {Question("q0", "7"): [box("7"), box("8")]}
    more = {Question("q0", "7"): [box("7"), box("8"), box("9"), box("7")], Question("q1", "1"): [box("1")] * 4}
    _, first = measure("minerva", few, tokenizer, tmp_path)
    measured, second = measure("minerva", more, tokenizer, tmp_path)
    _, third = measure("minerva", more, tokenizer, tmp_path)
    assert (first.drawn, second.drawn, third.drawn) == (2, 2 + 4, 0)
    assert [response.sample for response in measured.questions[0].answers.responses] == [0, 1, 2, 3]
    assert measured.scores["avg"] == (0.5 + 1) / 2


def test_one_engine_start_serves_every_task(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tasks = [Prepared(TASKS[name], [Question(f"{name}?", "7")], 2) for name in ("minerva", "amc23", "math500")]
    letters = Prepared(TASKS["gpqa"], [Question("gpqa?", "A", "AB")], 3)
    asked, lines = {}, {}
    for prepared in (*tasks, letters):
        question = prepared.questions[0]
        ids = tokenizer(prepared.task.prompt(question))["input_ids"]
        asked[question.text] = Asked(ids, seed_of(prepared.task.name, question.text), DRAWING, prepared.samples)
        lines[tuple(ids)] = [box("7")] * prepared.samples
    starts: list[int] = []

    def start(length: int) -> Script:
        starts.append(length)
        return Script(lines)

    for again in range(2):  # the second time nothing is missing
        store = stores(tmp_path / "responses", "0" * 64, {})
        model = EvaluatedModel("scripted", tokenizer, lambda doc: asked[facts(doc)["question"]], store, start)
        with new_grader() as grader:
            measured = run_suite(model, [*tasks, letters], grader, None, tmp_path / str(again))
        assert [measured[name].scores["n"] for name in ("minerva", "amc23", "math500", "gpqa")] == [2, 2, 2, 3]
        assert starts == [max(len(question.token_ids) for question in asked.values()) + DRAWING.max_new_tokens]


def test_a_line_cut_short_costs_its_batch_alone(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    answers = {Question(f"q{i}", "7"): [box("7")] * 2 for i in range(4)}
    measure("minerva", answers, tokenizer, tmp_path)
    file = next((tmp_path / "responses").rglob("*.jsonl"))
    file.write_bytes(file.read_bytes()[:-30])  # what kill -9 leaves
    _, script = measure("minerva", answers, tokenizer, tmp_path)
    assert script.drawn == 2
    _, script = measure("minerva", answers, tokenizer, tmp_path)
    assert script.drawn == 0


def test_the_bootstrap_interval_is_the_normal_one_where_it_should_be() -> None:
    differences = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=2_000, p=[0.2, 0.5, 0.3])
    low, high = bootstrap_interval(differences)
    half = 1.96 * differences.std(ddof=1) / math.sqrt(len(differences))
    assert low == pytest.approx(differences.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(differences.mean() + half, abs=0.05 * half)
    assert bootstrap_interval(np.array([0.25])) == (0.25, 0.25)


def test_reasoning_that_the_template_opens_and_nobody_closes_is_no_answer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    answers = {Question("q0", "5"): [box("5"), f"{box('4')}</think>{box('5')}", f"{box('5')}</think>…"]}
    measured, _ = measure("minerva", answers, tokenizer, tmp_path, opened=True)
    assert [grade.correct for grade in measured.questions[0].grades] == [False, True, False]
    letters = {Question("q0", "B", "AB"): ["The answer is B", '</think>{"answer": "B"}']}
    measured, _ = measure("gpqa", letters, tokenizer, tmp_path, opened=True)
    assert [grade.extracted for grade in measured.questions[0].grades] == [None, "B"]


@pytest.mark.parametrize(("tail", "opened"), [("<think>\n", True), ("<think>\n\n</think>\n\n", False), ("", False)])
def test_whose_prompts_open_the_reasoning(tail: str, opened: bool, tokenizer: PreTrainedTokenizerFast) -> None:
    reasoning = copy.deepcopy(tokenizer)
    reasoning.chat_template = "{{ messages[0]['content'] }}<|assistant|>" + tail
    ids = encode(reasoning, read_protocol("qwen"), "What is <think>?")
    assert opens_thinking(reasoning, ids) is opened


@pytest.mark.parametrize(
    ("said", "share"),
    [
        (["3/4", r"\frac{3}{4}", "0.75", "7", "7"], 0.0),  # three for a wrong 3/4
        (["3/4", r"\frac{3}{4}", "7", "7"], 0.5),
        (["3/4", r"\frac{3}{4}", "7", "7", "7"], 1.0),
        (["x + 1", "x+1", r"\left(x+1\right)", "7", "7"], 0.5),  # other text is another vote
        (["2 cm", "2", "7", "7", "7"], 1.0),
    ],
)
def test_wrong_votes_are_counted_by_their_value(said: list[str], share: float) -> None:
    assert majority([Grade(answer == "7", answer, True) for answer in said]) == share


class Broken(Script):
    """An engine that dies after its first answer."""

    def run(self, requests: list[Request]) -> Iterator[list[tuple[Request, Response]]]:
        yield next(super().run(requests))
        raise KeyError("block 7")


def test_whatever_an_engine_dies_of_is_one_line(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    asked = {name: Asked(tokenizer(name)["input_ids"], 0, DRAWING, 1) for name in ("q0", "q1")}
    script = Broken({tuple(question.token_ids): ["7"] for question in asked.values()})
    store = stores(tmp_path, "0" * 64, {})
    model = EvaluatedModel("broken", tokenizer, lambda doc: asked[doc.query], store, lambda length: script)
    docs = [Doc(query=name, choices=["7"], gold_index=0, task_name="minerva") for name in asked]
    with pytest.raises(RolloutFailed, match="answers stopped coming: KeyError: 'block 7'; those so far are kept"):
        model.greedy_until(docs)
    assert store(DRAWING).get(asked["q0"].key, 0) is not None


def test_the_grading_benchmark_prints_both_mixtures() -> None:
    script = Path(__file__).parent.parent / "scripts" / "benchmark_grading.py"
    done = subprocess.run([sys.executable, str(script), "--answers", "40"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [
        re.fullmatch(r"(.+): 40 answers in ([0-9.]+) s, (\d+) of them right", x) for x in done.stdout.splitlines()
    ]
    assert [line and line[1] for line in lines] == ["as evaluations have them", "every one different"]
    right = [int(line[3]) for line in lines if line]
    assert 10 < right[0] < 40 and right[1] < 10
    refused = subprocess.run([sys.executable, str(script), "--answers", "0"], capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.endswith("error: --answers: 0 is not a number above 0\n")
