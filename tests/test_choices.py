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
        "The answer is $C$ and $A$ is wrong.",
        "The correct answer to the question is option C.",
        "The answer to this question is C",
        "So the right answer for the second part is (C).",
        r"\boxed{\text{Option C}}",
        r"\boxed{\text{Option } C}",
        r"\boxed{Option (C)}",
        r"\boxed{\textbf{Choice C}}",
        r"\boxed{\text{Answer: C}}",
        "C\n\nThe calendar says so.",
        "**C**\n\nOf the four, only this one holds. A is a Monday.",
        "(c)\nbecause it is so",
        "If the answer is A, then 2 = 3, which is impossible. So the answer is C.",
        "The answer is C. If the answer is A, then 2 = 3, which is impossible.",
        "If it rains, the answer is C.",
        "If x is 2, then the correct answer is C",
        "The answer would be A if x were 2. Here the answer is C.",
        "option(C) is correct",
        "Option C",
        "**Option C**",
        "Choice (C).",
        "Option C: Tuesday",
        "**Option C:** Tuesday",
        "Because it is so.\n\nOption C",
        "Option C\n\nThe calendar says so.",
        "C\n\nOption A\nis a Monday.\nOption B\nis a Sunday.",
        "C\n\nOption A: a Monday.",
        "C. Tuesday\n\nOption A: a Monday.\nOption B: a Sunday.",
        "**Option A**\na Monday.\n**Option C**\nholds.\n\n**Option C**",
        "The correct answer to the question is therefore C.",
        "The answer is, therefore, (C).",
        "The best choice is thus C",
        "Therefore, the correct answer is option **C**: x",
        "The answer is `C`.",
        "`C`",
        r"\(C\)",
        r"The answer is option \(C\).",
        "C, because it holds",
        "**C**, since it holds.\nA is a Monday.",
        "C - Tuesday",
        "**C** – Tuesday",
        r"\boxed{\text{C}: \text{Tuesday}}",
        "So the answer is C? Yes.",
        "The answer is C?",
        "The answer is A? No, the answer is C.",
        "It is false that the answer is A. It is not hard to see that the answer is C.",
        "When x is 2, the answer is C.",
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
        "If the answer is A, then 2 = 3, which is impossible.",
        "Suppose that the correct answer is B; then it rains.",
        "Assume option A is correct. Then it rains.",
        "I do not know whether the answer is B",
        "The answer would be A if x were 2.",
        r"\boxed{\text{Option C or D}}",
        r"\boxed{\text{Answers}}",
        "The answer to A is not known",
        "A\nB\nnobody knows which",
        "EDTA is the best chelator here.",
        "If answer A is correct then 1=2, impossible.",
        "If statement A is true",
        "When the answer is A, it fails",
        "If it were true that the answer is A, then",
        "It is false that the answer is A",
        "It isn't true that option A is correct.",
        "I do not think the answer is A",
        "the answer is A? No.",
        "Option A is correct? No.",
        "The answer is $A$ or $B$",
        r"The answer is option \(A\) or \(B\).",
        "The answer is `A` or `B`",
        r"The answer is \text{A} or \text{B}.",
        "Option A: Monday\nOption B: Sunday",
        "Option A\nMonday\nOption B",
        "A - Monday\nB - Sunday",
        "A - B = 2",
        "A - Monday = 2",
        "C - H bonds are strong",
        "A reason is not known",
        "A, B and C because it rains",
        "Options are many",
        "A choice B",
        "The K_A is the right constant, and the pro-A is the best form.",
    ],
)
def test_nothing_is_chosen(text: str) -> None:
    assert extract_choice(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "I think so",
        "I, because I am a model, cannot say",
        "A is the first letter of the alphabet",
        "Option A I cannot judge",
        "I - A model",
    ],
)
def test_words_of_one_letter_are_no_choice(text: str) -> None:
    assert extract_choice(text, "ABCDEFGHIJ") is None


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("HPLC is the best technique here.\n\nB", "B"),
        ("The answer is B. PCC is the best oxidant for this step.", "B"),
        ("Answer: D\n\nStatement A is correct but incomplete.", "D"),
    ],
)
def test_an_acronym_and_a_statement_are_no_choice(text: str, choice: str) -> None:
    assert extract_choice(text) == choice


@pytest.mark.parametrize(
    "unit",
    [
        "A. x\n",
        "option A is ",
        "option  A",
        "<answer>",
        "A or ",
        "correct option is ",
        "answer = ",
        "answer to ",
        "answer is therefore ",
        "Option A\n",
        "A - Monday\n",
        "answer is A? ",
        "`$\\",
        "if the ",
        '{"choice":"A"',
    ],
)
def test_extraction_is_linear(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    started = time.process_time()
    for prefix in ("", "\\boxed{", "answer is "):
        extract_choice(prefix + text)
    assert time.process_time() - started < 4
