"""Seconds and peak memory of data preparation: `python scripts/benchmark_data.py [--rows 1000000]`.

Synthetic problems of mathematics as a training set has them: two sentences of prose around formulae, most answers
integers, the same instruction behind every third; 3 % exact copies, 3 % copies in other typesetting, 1 % in another
script, 1 % malformed rows, and one in a thousand from an evaluation set of 1,000 questions, all of which have that
instruction. Writing them is not timed. The peak is this process's; every grading process has some 70 MB of its own.
"""

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vopd_recipes.data import DataRecipe, EvaluationSet, prepare
from vopd_recipes.recipe import RecipeError, one_line_errors

_SEED, _QUESTIONS = 0, 1000
_INSTRUCTION = (
    " Give the answer as a single number in lowest terms, where every fraction is reduced and every root is "
    "simplified, and write it in a box on the last line of your solution."
)
_SYLLABLES = [first + second for first in "bdfgjlmnprstvwz" for second in "aeiou"]


def words(generator: random.Random, count: int) -> str:
    """Prose of English function words and invented nouns."""
    functions = ("the", "of", "and", "is", "for", "with", "that", "each")
    return " ".join(
        generator.choice(functions) if generator.random() < 0.4 else "".join(generator.choices(_SYLLABLES, k=3))
        for _ in range(count)
    )


def problem(generator: random.Random) -> str:
    first, second = generator.randint(2, 999), generator.randint(2, 999)
    return (
        f"Let the {words(generator, 14)} satisfy $x^{{{first}}} + {second} x = \\frac{{{first}}}{{{second}}}$. "
        f"Find the {words(generator, 14)} such that $f(x) = {second}$."
    )


def answer(generator: random.Random) -> str:
    number = generator.randint(0, 999)
    return str(number) if generator.random() < 0.9 else f"{number % 10}\\sqrt{{{number % 5}}}"


def rows(count: int, questions: list[str]) -> Iterator[dict[str, object]]:
    generator = random.Random(_SEED)
    recent: list[tuple[str, str]] = []
    for _ in range(count):
        kind, text, gold = generator.random(), problem(generator), answer(generator)
        text += _INSTRUCTION if generator.random() < 1 / 3 else ""
        if kind < 0.01:
            yield generator.choice([{"answer": gold}, {"prompt": None, "answer": gold}, {"prompt": "\ud800"}])
            continue
        if kind < 0.02:
            text = "求满足下列条件的所有整数的和 " + text[:40]
        elif kind < 0.021:
            text = generator.choice(questions)
        elif kind < 0.08 and recent:
            text, gold = generator.choice(recent)
            text = text.replace("Find the", "Find \\textbf{the}").replace("$", "\\(") if kind < 0.05 else text
        recent = [*recent[-999:], (text, gold)] if kind < 0.5 else recent
        yield {"prompt": text, "answer": gold}


def peak_gigabytes() -> float:
    """Largest resident size so far; getrusage would count that of the program which started this one."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 / 1e9 if found else float("nan")


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    count = parser.parse_args().rows
    if count < 1:
        raise RecipeError("--rows must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        source, evaluation = Path(folder, "rows.jsonl"), Path(folder, "evaluation.jsonl")
        generator = random.Random(_SEED + 1)
        questions = [problem(generator) + _INSTRUCTION for _ in range(_QUESTIONS)]
        evaluation.write_text("".join(json.dumps({"problem": text}) + "\n" for text in questions), encoding="utf-8")
        with source.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count, questions))
        before = peak_gigabytes()
        started = time.perf_counter()
        known = EvaluationSet(name="evaluation", dataset_name=str(evaluation), prompt_column="problem")
        summary = prepare(
            DataRecipe(
                dataset_name=str(source),
                output_dir=str(Path(folder, "made")),
                language="english",
                max_prompt_length=4000,
                evaluation_sets=[known],
            )
        )
        seconds = time.perf_counter() - started
        size = source.stat().st_size / 1e6
    print(f"{count:,} rows ({size:.0f} MB): {seconds:.0f} s, peak {peak_gigabytes():.2f} GB ({before:.2f} GB before)")
    print(json.dumps(summary["rows_removed"]))


if __name__ == "__main__":
    main()
