"""Where models put the letter that they choose, and texts that choose none."""

import time

import pytest

from vopd_recipes.grading import grade_choice
from vopd_recipes.grading.grader import extract_choice


@pytest.mark.parametrize(
    "text",
    [
        "C. Tuesday",
        "C) x",
        "(C) x",
        "C: Tuesday",
        "**C. Tuesday**",
        "Because it is so.\n\nC. Tuesday",
        "C. Tuesday\n\nThe calendar says so.",
        r"\boxed{C. 5}",
        r"\boxed{\textbf{(C) } 5}",
        r"\boxed{\text{C. Tuesday}}",
        r"The answer is: $\boxed{C}$",
        "The correct option is C",
        "The correct choice is (C).",
        "The best option is: **C**",
        "option C is correct",
        "So option (C) is correct.",
        "Thus, C is the correct answer.",
        "A is not correct, and so C is correct",
        "option A is correct only if it rains. So the answer is C",
        "the answer should be C",
        "the answer would be C",
        "The answer must be **C**",
        "answer = C",
        "answer: c",
        "Answer: c.",
        "<answer>C</answer>",
        '{"choice": "C"}',
        '{"option": "c"}',
        '{"answer": "C. Tuesday"}',
        '{"answer": "(C)"}',
        "[C]",
        "The answer is C. A is wrong.",
        "The answer is C, and A is wrong.",
    ],
)
def test_c_is_chosen(text: str) -> None:
    assert extract_choice(text) == "C"
    assert not grade_choice(text, "C").formatted


@pytest.mark.parametrize(
    "text",
    [
        "The answer is A or C",
        "The answer is A and C",
        "The answer is A, C",
        "The answer is A/C",
        "The answer is (A) or (C).",
        r"\boxed{A, C}",
        "A. Monday\nB. Sunday\nC. Tuesday\nD. Friday",
        "The correct option is not C",
        "Answer: a prime number",
        "answer = a + b",
        "Could C be right?",
    ],
)
def test_nothing_is_chosen(text: str) -> None:
    assert extract_choice(text) is None


@pytest.mark.parametrize(
    "unit", ["A. x\n", "option A is ", "<answer>", "A or ", "correct option is ", "answer = ", '{"choice":"A"']
)
def test_extraction_is_linear(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    started = time.process_time()
    for prefix in ("", "\\boxed{", "answer is "):
        extract_choice(prefix + text)
    assert time.process_time() - started < 4
