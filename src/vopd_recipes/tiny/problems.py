r"""Problems with worked answers, generated from a seed: a task for every machine, with no network and no licence.

`chain`   7+5+3+…: single digits added from left to right. The worked solution keeps a running total, a step at a time,
          short enough for a model of a million parameters to learn in a minute on two cores.
`falling` 47-5-3-…: the same downwards, from a number of two digits.
`word`    a two-step word problem in plain English, for pre-trained models.

A problem is known by its text: `split` never puts the same one on both sides, whatever the seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vopd_recipes.files import write_text


@dataclass(frozen=True)
class Problem:
    r"""A prompt, a worked solution that ends in \boxed{answer}, and the answer alone."""

    prompt: str
    solution: str
    answer: str


def chain(generator: random.Random, sums: int = 4) -> Problem:
    """`sums` additions of single digits, a running total at a time."""
    digits = [generator.randint(1, 9) for _ in range(sums + 1)]
    total, steps = digits[0], []
    for digit in digits[1:]:
        steps.append(f"{total}+{digit}={total + digit}")
        total += digit
    return Problem("+".join(map(str, digits)) + "=?\n", "\n".join(steps) + f"\n\\boxed{{{total}}}", str(total))


def falling(generator: random.Random, differences: int = 4) -> Problem:
    """Single digits taken one by one from a number that lasts, a running difference at a time."""
    digits = [generator.randint(1, 9) for _ in range(differences)]
    start = generator.randint(sum(digits), 60)
    left, steps = start, []
    for digit in digits:
        steps.append(f"{left}-{digit}={left - digit}")
        left -= digit
    prompt = "-".join(map(str, [start, *digits])) + "=?\n"
    return Problem(prompt, "\n".join(steps) + f"\n\\boxed{{{left}}}", str(left))


_NAMES = ("Ana", "Ben", "Chen", "Dina", "Emil", "Fatima", "Goran", "Hana", "Ivan", "Jo", "Kira", "Liam")
_THINGS = ("apples", "books", "coins", "eggs", "marbles", "pencils", "shells", "stamps", "stickers", "tickets")
_STEPS = (
    ("buys {n} more", lambda total, n: total + n),
    ("gets {n} more from a friend", lambda total, n: total + n),
    ("gives {n} away", lambda total, n: total - n),
    ("loses {n}", lambda total, n: total - n),
    ("doubles what is there", lambda total, n: 2 * total),
)


def word(generator: random.Random) -> Problem:
    """Two steps that change a number of things."""
    name, things, total = generator.choice(_NAMES), generator.choice(_THINGS), generator.randint(5, 40)
    start, fewest, actions, working = total, total, [], []
    for text, apply in generator.sample(_STEPS, 2):
        amount = generator.randint(2, max(2, min(total - 1, 20)))
        result = apply(total, amount)
        actions.append(text.format(n=amount))
        working.append(f"{total} becomes {result}.")
        total, fewest = result, min(fewest, result)
    if fewest < 0:  # nobody gives away what is not there
        return word(generator)
    prompt = (
        f"{name} has {start} {things}. {name} {actions[0]} and then {actions[1]}. "
        f"How many {things} does {name} have now?"
    )
    return Problem(prompt, " ".join(working) + f" \\boxed{{{total}}}", str(total))


KINDS: dict[str, Callable[[random.Random], Problem]] = {"chain": chain, "falling": falling, "word": word}


def split(kind: str, train: int, test: int, seed: int = 0) -> tuple[list[Problem], list[Problem]]:
    """`train` and `test` different problems of a kind.

    Raises:
        ValueError: the kind does not have that many different problems.
    """
    generator = random.Random(f"{kind}-{seed}")
    problems: dict[str, Problem] = {}
    for _ in range(50 * (train + test) + 1000):
        if len(problems) == train + test:
            break
        problem = KINDS[kind](generator)
        problems.setdefault(problem.prompt, problem)
    if len(problems) < train + test:
        raise ValueError(f"only {len(problems)} different {kind} problems found, {train + test} asked for")
    ordered = list(problems.values())
    return ordered[test:], ordered[:test]


def write(folder: Path, train: list[Problem], test: list[Problem]) -> None:
    """`folder/train.jsonl` and `folder/test.jsonl`, each whole or not there."""
    for name, problems in (("train", train), ("test", test)):
        lines = "".join(json.dumps(asdict(problem)) + "\n" for problem in problems)
        write_text(folder / f"{name}.jsonl", lines)
