"""Seconds to grade 10,000 answers: `python scripts/benchmark_grading.py [--answers N]`.

Two mixtures, on all cores of this process. *As evaluations have them*: 150 questions, many samples each, most answers
numbers and many repeated. *Every one different*: no two alike and none settled without math-verify, the worst case.
"""

import argparse
import random
import sys
import time
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package `evaluation` lies beside this folder

from evaluation.grades import new_grader  # noqa: E402

_AT_A_TIME = 500


def usual(generator: random.Random, count: int) -> list[tuple[str, str]]:
    """(completion, gold): integers, fractions and expressions, half of them right."""
    forms = [("{n}", "{n}")] * 6 + [
        (r"\frac{{{n}}}{{7}}", "{n}/7"),
        ("2x+{n}", "{n}+2x"),
        (r"{n}\sqrt{{2}}", r"\sqrt{{2}}\cdot {n}"),
    ]
    questions = [(generator.choice(forms), generator.randint(1, 999)) for _ in range(150)]
    found = []
    for _ in range(count):
        (answer, gold), number = generator.choice(questions)
        said = number if generator.random() < 0.5 else generator.randint(1, 999)
        found.append((f"Some reasoning. \\boxed{{{answer.format(n=said)}}}", gold.format(n=number)))
    return found


def different(generator: random.Random, count: int) -> list[tuple[str, str]]:
    """(completion, gold): expressions in x that only a computer algebra system can compare."""
    return [
        (f"\\boxed{{{n}x^2+\\frac{{{generator.randint(1, 99)}}}{{{n + 1}}}}}", f"x^2 {n}+\\frac{{1}}{{{n + 1}}}")
        for n in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the grading of two mixtures of answers.")
    parser.add_argument("--answers", type=int, default=10_000, help="of each mixture (%(default)s)")
    count = parser.parse_args().answers
    if count < 1:
        parser.error(f"--answers: {count} is not a number above 0")
    for name, make in (("as evaluations have them", usual), ("every one different", different)):
        pairs = make(random.Random(0), count)
        started = time.perf_counter()
        with new_grader() as grader, tqdm(total=count, desc=name, unit="", file=sys.stderr) as bar:
            right = 0
            for first in range(0, count, _AT_A_TIME):
                batch = pairs[first : first + _AT_A_TIME]
                right += sum(
                    grade.correct for grade in grader.grade([text for text, _ in batch], [gold for _, gold in batch])
                )
                bar.update(len(batch))
        print(f"{name}: {count} answers in {time.perf_counter() - started:.1f} s, {right} of them right")


if __name__ == "__main__":
    main()
