"""Generated problems have right answers, worked out here a second time from the text alone."""

import json
import random
import re
from pathlib import Path

import pytest

from vopd_recipes.tiny import KINDS, Problem, split, write
from vopd_recipes.tiny.problems import chain, word


def solve(problem: Problem) -> int:
    """The answer, read off the prompt's text."""
    if chain_down := re.fullmatch(r"(\d+)((?:-\d)+)=\?\n", problem.prompt):
        left = int(chain_down[1]) - sum(map(int, chain_down[2][1:].split("-")))
        assert left >= 0, problem.prompt
        return left
    if problem.prompt.endswith("=?\n"):
        return sum(int(digit) for digit in re.fullmatch(r"(\d(?:\+\d)+)=\?\n", problem.prompt)[1].split("+"))
    story = re.fullmatch(
        r"(\w+) has (\d+) (\w+)\. \1 (.+) and then (.+)\. How many \3 does \1 have now\?", problem.prompt
    )
    total = int(story[2])
    for action in (story[4], story[5]):
        amount = int(found[0]) if (found := re.findall(r"\d+", action)) else 0
        change = {"buys": amount, "gets": amount, "gives": -amount, "loses": -amount, "doubles": total}
        total += change[action.split()[0]]
        assert total >= 0, problem.prompt  # nobody gives away what is not there
    return total


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_answers_and_worked_solutions_are_right(kind: str) -> None:
    train, test = split(kind, 1500, 100, seed=3)
    for problem in train + test:
        answer = solve(problem)
        assert problem.answer == str(answer)
        assert problem.solution.endswith(f"\\boxed{{{answer}}}")
        for sum_, total in re.findall(r"(\d+\+\d+)=(\d+)", problem.solution):
            assert sum(map(int, sum_.split("+"))) == int(total)
        for minuend, subtrahend, left in re.findall(r"(\d+)-(\d+)=(\d+)", problem.solution):
            assert int(minuend) - int(subtrahend) == int(left)
    if kind == "word":
        first = [re.search(r"has (\d+)", p.prompt)[1] == p.solution.split()[0] for p in train]
        assert all(first)


def test_a_chain_keeps_a_running_total() -> None:
    problem = chain(random.Random(0), sums=3)
    a, b, c, d = map(int, problem.prompt[:7:2])
    assert problem.solution == f"{a}+{b}={a + b}\n{a + b}+{c}={a + b + c}\n{a + b + c}+{d}={a + b + c + d}\n" + (
        f"\\boxed{{{a + b + c + d}}}"
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_splits_are_disjoint_and_repeatable(kind: str) -> None:
    train, test = split(kind, 300, 60, seed=1)
    assert (len(train), len(test)) == (300, 60)
    assert len({problem.prompt for problem in train + test}) == 360
    assert split(kind, 300, 60, seed=1) == (train, test)
    assert split(kind, 300, 60, seed=2) != (train, test)
    assert split(kind, 10, 60, seed=1)[1] == test  # a longer training set does not move what is held out


def test_asking_for_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "short", lambda generator: chain(generator, sums=1))
    assert len(split("short", 71, 10)[0]) == 71
    with pytest.raises(ValueError, match="only 81 different short problems found, 82 asked for"):
        split("short", 72, 10)


def test_written_files_read_back(tmp_path: Path) -> None:
    train, test = split("word", 5, 2)
    write(tmp_path / "a" / "b", train, test)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["test.jsonl", "train.jsonl"]
    for name, problems in (("train", train), ("test", test)):
        lines = (tmp_path / "a" / "b" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [Problem(**json.loads(line)) for line in lines] == problems


def test_word_problems_use_every_step() -> None:
    prompts = " ".join(word(random.Random(seed)).prompt for seed in range(60))
    assert all(verb in prompts for verb in ("buys", "gets", "gives", "loses", "doubles"))
