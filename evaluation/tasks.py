r"""The tasks: whose questions, in which words, and what kind of answer.

Prompts are the paper's: the question, a blank line, and one sentence that asks for `\boxed{}` (mathematics) or for a
JSON object (multiple choice). Choices of GPQA are put in an order that a hash of the question decides, so that every
run, limit and machine asks the same thing; where the gold answer of GPQA stands would otherwise depend on a global
random state.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluation.sources import Row, Rows, built_in, hub, science
from vopd_recipes.data import sciknoweval
from vopd_recipes.grading import extract_boxed
from vopd_recipes.recipe import RecipeError, nearest

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        text: as it is asked, choices included, without the task's instruction.
        gold: LaTeX in mathematics, a letter in multiple choice.
        letters: of the choices; empty in mathematics.
    """

    text: str
    gold: str
    letters: str = ""


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: as `TASKS=` has it.
        title: as tables have it.
        kind: how answers are drawn and graded.
        rows: reads the questions' rows.
        question: a row's question.
        instruction: what follows the question after a blank line; the question stands alone where it is empty.
        longest: tokens that a completion needs at most, where that is known.
    """

    name: str
    title: str
    kind: Literal["math", "choice"]
    rows: Rows
    question: Callable[[Row], Question]
    instruction: str = ""
    longest: int | None = None

    def read(self, data_dir: Path | None) -> tuple[list[Question], dict[str, str | None]]:
        """Every question, in the data set's order, and what a results file says about them.

        Raises:
            RecipeError: the rows are not there, or not what the task expects.
        """
        found = []
        table = self.rows(data_dir)
        for number, row in enumerate(table.rows):
            try:
                question = self.question(row)
            except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                raise RecipeError(
                    f"row {number} is not a question of {self.title}: {type(error).__name__}: {error}; it has "
                    f"{', '.join(map(str, row)) if isinstance(row, dict) else type(row).__name__}"
                ) from None
            if not question.text.strip() or not question.gold.strip():
                raise RecipeError(f"row {number} of {self.title} has an empty question or answer")
            if self.kind == "choice" and question.gold.upper() not in [*question.letters.upper()]:
                raise RecipeError(
                    f"row {number} of {self.title}: the answer {question.gold!r} is none of its choices "
                    f"{', '.join(question.letters) or '(it has no labels)'}; correct it in a local file, see DATA_DIR"
                )
            found.append(question)
        of_the_set = ("dataset_name", "dataset_config", "dataset_split")
        about = {"title": self.title, "source": table.dataset_name + table.commit}
        return found, about | {name: getattr(table, name) for name in of_the_set}

    def prompt(self, question: Question) -> str:
        """What the model reads, before any chat template."""
        return f"{question.text}\n\n{self.instruction}" if self.instruction else question.text


def columns(question: str, answer: str) -> Callable[[Row], Question]:
    """A question of mathematics from two columns."""
    return lambda row: Question(_given(row, question), _given(row, answer))


def _given(row: Row, column: str) -> str:
    if row[column] is None:
        raise ValueError(f"its {column!r} is null")
    return str(row[column])


def _boxed_solution(row: Row) -> Question:
    """AIME 2024 as it is on the Hub: the answer is boxed in `solution`."""
    return Question(_given(row, "problem"), extract_boxed(row["solution"]) or row["solution"])


def _gpqa(row: Row) -> Question:
    choices = [row["Correct Answer"], *(row[f"Incorrect Answer {number}"] for number in (1, 2, 3))]
    seed = hashlib.sha256(row["Question"].strip().encode()).digest()
    order = random.Random(seed).sample(range(4), 4)
    return Question(
        sciknoweval.multiple_choice(row["Question"], [choices[i] for i in order]), "ABCD"[order.index(0)], "ABCD"
    )


def _sciknoweval(row: Row) -> Question:
    return Question(sciknoweval.question_text(row), row["answerKey"].strip(), "".join(row["choices"]["label"]))


def _math(name: str, title: str, dataset: str, question: Callable[[Row], Question]) -> Task:
    return Task(name, title, "math", hub(dataset, name), question, BOXED)


_ALL = (
    _math("math500", "MATH-500", "HuggingFaceH4/MATH-500", columns("problem", "answer")),
    _math("minerva", "Minerva Math", "math-ai/minervamath", columns("question", "answer")),
    _math("amc23", "AMC 2023", "math-ai/amc23", columns("question", "answer")),
    _math("aime24", "AIME 2024", "math-ai/aime24", _boxed_solution),
    _math("aime25", "AIME 2025", "math-ai/aime25", columns("problem", "answer")),
    Task(
        "gpqa", "GPQA Diamond", "choice", hub("Idavidrein/gpqa", "gpqa", config="gpqa_diamond", split="train"), _gpqa,
        sciknoweval.INSTRUCTION,
    ),
    *(
        Task(f"sciknoweval_{domain.lower()}", f"SciKnowEval {domain} L3", "choice", science(domain), _sciknoweval,
             sciknoweval.INSTRUCTION)
        for domain in sciknoweval.DOMAINS
    ),
    Task("arithmetic", "Arithmetic (built in)", "math", built_in("chain"), columns("problem", "answer"), longest=64),
    Task(
        "word_problems", "Word problems (built in)", "math", built_in("word"), columns("problem", "answer"),
        "Put your final answer within \\boxed{}.", longest=256,
    ),
)  # fmt: skip
TASKS = {task.name: task for task in _ALL}
GROUPS = {
    "math": ("math500", "minerva", "amc23", "aime24", "aime25"),
    "science": ("gpqa", *(f"sciknoweval_{domain.lower()}" for domain in sciknoweval.DOMAINS)),
    "built_in": ("arithmetic", "word_problems"),
}


def task_names(words: str) -> tuple[list[str], dict[str, str]]:
    """Task and group names, separated by commas: (the tasks, in order and once; unknown name → what to do)."""
    found: dict[str, None] = {}
    unknown = {}
    for word in (word.strip() for word in words.split(",")):
        if word in TASKS or word in GROUPS:
            found.update(dict.fromkeys(GROUPS.get(word, (word,))))
        elif word:
            known = [*GROUPS, *TASKS]
            unknown[word] = f"no such task{nearest(word, known)} (there are: {', '.join(known)})"
    return list(found), unknown
