"""Grades of known answers, and what hostile text can do: cost its own grade, and nothing else."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vopd_recipes.grading import Grade, MathGrader, extract_boxed, grade_choice
from vopd_recipes.grading.grader import extract_choice, strip_reasoning

TOWER = "9^{9^{9^9}}"

# fmt: off
RIGHT = [
    # (answer, gold), plain numbers
    ("5", "5"), ("073", "73"), ("+5", "5"), ("-5", "-5"), ("\u22125", "-5"), ("5.", "5"), ("5.0", "5"),
    (".5", "0.5"), ("1,000", "1000"), ("1{,}000", "1000"), (r"10\,000", "10,000"), ("$10$", "10"),
    (r"\$32", "32"), ("32", r"\$32"), (r"\text{42}", "$42$"),
    # fractions and decimals
    (r"\frac{3}{4}", "0.75"), (r"\dfrac{1}{2}", r"\frac12"), ("1/2", r"\frac{1}{2}"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"), (r"1\frac{1}{2}", r"\frac{3}{2}"), ("0.333333", r"\frac13"),
    (r"50\%", "0.5"), (r"50\%", "50%"),
    # expressions
    ("1+x^2", "x^2+1"), ("x^2-1", "(x-1)(x+1)"), (r"3\sqrt{2}", r"\sqrt{18}"),
    (r"\frac{1+\sqrt{5}}{2}", r"\frac{\sqrt5+1}{2}"), (r"\sin^2 x+\cos^2 x", "1"), ("2^{10}", "1024"),
    (r"\log_2 8", "3"), (r"\binom{5}{2}", "10"), (r"\frac{\pi}{2}", r"\pi/2"), ("1+2i", "2i+1"),
    # equations, inequalities, sets, intervals, matrices
    ("x=5", "5"), ("5", "x=5"), ("y = 2x+1", "2x+1"), ("2x+3y=6", "3y=6-2x"), ("x>3", "3<x"),
    (r"\{1,2,3\}", "3,2,1"), ("1, 2", r"\{2,1\}"), (r"1\text{ or }2", "2,1"), ("(1,3)", r"\left(1,3\right)"),
    (r"[0,\infty)", r"x\ge 0"), (r"x \in [1,2]", "[1,2]"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"), (r"\emptyset", r"\{\}"),
    # words and units
    (r"\text{Tuesday}", "Tuesday"), (r"\text{(C)}", "C"), (r"5\text{ cm}", "5"), (r"90^\circ", "90"),
]
WRONG = [
    ("5", "-5"), ("12345678901234567890", "12345678901234567891"), ("0.999999999", "1"), ("0.333", r"\frac13"),
    ("2 3", "23"), (r"50\%", "50"), (r"\frac{7}{12}", r"\frac{5}{12}"), (r"\frac{0}{0}", "5"), ("x+1", "y+1"),
    ("2x", "2"), (r"\sqrt{12}", r"\sqrt{13}"), ("3.14", r"\pi"), ("i", "-i"), ("k=5", "n=5"),
    ("[0,1]", "(0,1)"), ("(1,2)", "(2,1)"), (r"-\infty", r"\infty"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"), ("Tuesday", r"\text{Monday}"),
    (r"\text{The answer is $5$}", "5"), ("x" * 2000, "x"),
]
# fmt: on


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(num_workers=2) as grader:
        yield grader


def box(answer: str) -> str:
    return f"So the answer is \\boxed{{{answer}}}."


def seconds(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("no tags", "no tags"),
        ("<think>a</think>b", "b"),
        ("opened by the template</think>b", "b"),
        ("<think>a</think>b</think>c", "c"),
        ("<think>cut off \\boxed{5}", ""),
        ("<think>a</think>b<think>c", ""),
        ("", ""),
    ],
)
def test_strip_reasoning(completion: str, answer: str) -> None:
    assert strip_reasoning(completion) == answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.} or", r"\left\{ x \right."),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\fbox{8}", "8"),
        ("\\boxed\n { 9 }", "9"),
        (r"$\boxed 57$", "57"),
        (r"\boxed5.", "5"),
        (r"\boxed\pi", r"\pi"),
        ("\\boxed{\u05d0\u202e\x00\ud800}", "\u05d0\u202e\x00\ud800"),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{}", None),
        (r"\boxed", None),
        (r"\boxedfoo{5}", None),
        ("5", None),
    ],
)
def test_extract_boxed(text: str, content: str | None) -> None:
    assert extract_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ('{"answer": "B"}', "B"),
        ('{"answer": " b "} and so on', "B"),
        ('```json\n{"reasoning": "the set {1,2}\nand \\\\frac{1}{2}", "answer": "C"}\n```', "C"),
        ('{"answer": "A"} no, {"answer": "B"}', "B"),
        ('{"answer": "A"} {"answer": "B or C"} {"answer": "E"} {"answer": 1}', "A"),
        ('{"answer": "B", "why": {"answer": "C"}}', "B"),
        ('{"result": {"answer": "D"}}', "D"),
        ('{"answer": "B"} but \\boxed{C}', "B"),
        ('{"answer": "A"} {"answer": "B"', "A"),
        (r"\boxed{B}", "B"),
        (r"The answer is A. \boxed{\text{(c)}}", "C"),
        (r"\boxed{42}. The answer is (D).", "D"),
        ("The answer is B", "B"),
        ("The answer is A, no, the correct answer is: **C**.", "C"),
        ("Answer: (b)", "B"),
        ("**Answer:** option D", "D"),
        (r"The answer is $\mathrm{B}$", "B"),
        ("{'answer': 'B'}", "B"),
        ("The answer is a prime", None),
        ("The answer is D-glucose", None),
        ("The answer is CO2", None),
        ("The answer is not A", None),
        ("B", "B"),
        ("because of that:\n\n**(b)**.\n", "B"),
        ("B is what I thought at first", None),
        ("E", None),
        ("", None),
    ],
)
def test_extract_choice(text: str, choice: str | None) -> None:
    assert extract_choice(text) == choice


def test_choices_can_be_others() -> None:
    assert extract_choice('{"answer": "E"}', "ABCDE") == "E"
    assert extract_choice('{"answer": "C"}', "ab") is None
    assert extract_choice("The answer is B", "ab") == "B"


def test_grade_choice() -> None:
    assert grade_choice('<think>{"answer": "A"}</think>{"answer": "B"}', "b") == Grade(True, "B", True, None)
    assert grade_choice("The answer is B.", "A") == Grade(False, "B", False, None)
    assert grade_choice('<think>{"answer": "A"}', "A") == Grade(False, None, False, None)
    with pytest.raises(ValueError, match="not one of the choices"):
        grade_choice("A", "E")


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "{",
            "}",
            "{}",
            "\\",
            "\\boxed{",
            "\\boxed ",
            "\\fbox",
            '{"',
            '{"a":',
            '{"a":{',
            '{"":"{',
            '{\\"',
            '{"answer": "',
        ),
        *(
            '{"a":[{"b":1},',
            '[{"answer":"A"},',
            "answer: ",
            "answer is ",
            'answer"""',
            " ",
            "\n",
            "(",
            "<think>",
            "\x00",
        ),
    ],
)
def test_extraction_is_linear(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    for prefix in ("", "\\boxed{", '{"answer": "', "answer is "):
        assert seconds(lambda: extract_boxed(prefix + text)) < 2  # noqa: B023
        assert seconds(lambda: extract_choice(prefix + text)) < 2  # noqa: B023


def test_known_answers(grader: MathGrader) -> None:
    pairs = RIGHT + WRONG
    grades = grader.grade([box(answer) for answer, _ in pairs], [gold for _, gold in pairs])
    surprises = [pair for pair, grade in zip(pairs, grades) if grade.correct != (pair in RIGHT)]
    assert surprises == []
    assert all(grade.formatted and grade.error is None for grade in grades)
    assert [grade.extracted for grade in grades] == [answer for answer, _ in pairs]


def test_only_the_answer_after_the_reasoning_counts(grader: MathGrader) -> None:
    completions = [
        r"<think>\boxed{4}</think> \boxed{5}",
        r"<think>\boxed{5}",
        "The answer is 5",
        r"\boxed{5} \boxed{6}",
    ]
    assert grader.grade(completions, ["5"] * 4) == [
        Grade(True, "5", True, None),
        Grade(False, None, False, None),
        Grade(False, None, False, None),
        Grade(False, "6", True, None),
    ]


def test_numbers_start_no_worker() -> None:
    with MathGrader() as grader:
        assert [grade.correct for grade in grader.grade([box("5"), box("1,024"), "6"], ["5", "1023", "6"])] == [
            *(True, False, False)
        ]
        assert grader._workers == []


def test_order_and_grades_do_not_depend_on_workers() -> None:
    pairs = (RIGHT + WRONG) * 2
    random.Random(0).shuffle(pairs)
    completions, golds = [box(answer) for answer, _ in pairs], [gold for _, gold in pairs]
    with MathGrader(num_workers=3) as many, MathGrader() as one:
        forwards = many.grade(completions, golds)
        assert [grade.extracted for grade in forwards] == [answer for answer, _ in pairs]
        assert forwards == one.grade(completions[::-1], golds[::-1])[::-1]


def test_text_is_not_run_as_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = "__import__('os').system('touch x')"
    spelt = "+".join(f"chr({ord(letter)})" for letter in "touch x")
    hidden = f"__import__(chr(111)+chr(115)).system({spelt})"
    # evalf sums this by lambdify, which pastes the symbol's name into source: bartlett is a function of numpy
    series = f"\\sum_{{n=0}}^{{\\infty}} \\frac{{\\bar{{tlett({hidden})}}^n}}{{n!}}"
    wrappers = [
        "%s",
        r"\text{%s}",
        r"\operatorname{%s}(x)",
        "f(%s)",
        r"\gcd(%s,2)",
        r"\variable{%s}",
        "%s=5",
        "x_{%s}",
    ]
    answers = [series, *(wrapper % code for wrapper in wrappers for code in (call, hidden, call.replace("'", "\\'")))]
    with MathGrader(num_workers=2) as grader:  # its workers inherit the folder
        for gold in ("5", "x+1", r"1+\sqrt{2}"):
            completions = [box(answer) for answer in answers] + [call, hidden]
            assert not any(grade.correct for grade in grader.grade(completions, [gold] * len(completions)))
    assert extract_choice(call) is None
    assert not Path("x").exists()


def test_hostile_answers_cost_only_themselves() -> None:
    hostile = [
        TOWER,
        "{" * 50_000 + "}" * 50_000,
        "{}" * 50_000,
        r"\frac{1}{" * 90 + "2" + "}" * 90,
        r"\frac{1}{" * 5_000 + "2" + "}" * 5_000,
        "(" * 480 + "x" + ")" * 480,
        r"\sqrt{" * 160 + "x" + "}" * 160,
        "9" * 5_000,
        "x" + " " * 100_000 + "y",
        "\U0001f600" * 1_000,
        "-" * 900 + "x",
        "1\x002",
        "\u202e\u05d0\u05d1 5",
        "\ud800 x",
        "\U0001f600^2",
        "final answer is $" + "x" * 900,
        r"\operatorname{zeros}(99999,99999)",
        r"(10^{10^{9}})!",
        r"\$" * 300,
    ]
    completions, golds, grades = [], [], list[Grade]()
    for answer in hostile:
        completions += [box(answer), box("1+x")]
        golds += ["5", "x+1"]
    with MathGrader(num_workers=2, timeout=3.0) as grader:
        assert seconds(lambda: grades.extend(grader.grade(completions, golds))) < (3 + 1) * len(hostile) / 2
    assert not any(grade.correct for grade in grades[::2])
    assert grades[0].error == "timeout"
    assert all(grade == Grade(True, "1+x", True, None) for grade in grades[1::2])


def test_a_slow_answer_takes_no_longer_than_its_time() -> None:
    with MathGrader(timeout=1.0) as grader:
        grader.grade([box("1+x")], ["x+1"])  # a worker is up
        completions = [box("x+2"), box(TOWER), box("1+x"), box(TOWER), r"\boxed{5}"]
        start = time.monotonic()
        grades = grader.grade(completions, ["2+x", "5", "x+1", "5", "5"])
        assert time.monotonic() - start < 1 + 5  # the tower occurs twice and is tried once, then a new worker starts
    assert [grade.correct for grade in grades] == [True, False, True, False, True]
    assert [grade.error for grade in grades] == [None, "timeout", None, "timeout", None]


def kill_busy_workers(grader: MathGrader, times: int) -> None:
    """Kills workers that have a tower in hand, from outside."""
    killed: set[int] = set()
    while len(killed) < times:
        for worker in list(grader._workers):
            if worker.pair and worker.pair[0] == TOWER and worker.process.pid not in killed:
                killed.add(worker.process.pid)
                os.kill(worker.process.pid, signal.SIGKILL)
        time.sleep(0.02)


@pytest.mark.parametrize(("times", "error"), [(1, "timeout"), (2, "crash")])
def test_workers_killed_from_outside(times: int, error: str) -> None:
    """An outsider's kill costs a second try; an answer over which two workers die is a crash."""
    completions, golds = [box("1+x"), box(TOWER), box("x+y")] * 2, ["x+1", "5", "y+x"] * 2
    with MathGrader(num_workers=2, timeout=2.0) as grader:
        killer = threading.Thread(target=kill_busy_workers, args=(grader, times), daemon=True)
        killer.start()
        grades = grader.grade(completions, golds)
        killer.join(timeout=10)
    assert [grade.correct for grade in grades] == [True, False, True] * 2
    assert [grade.error for grade in grades] == [None, error, None] * 2


def test_workers_killed_while_idle() -> None:
    with MathGrader(num_workers=2) as grader:
        for _ in range(2):
            assert [grade.correct for grade in grader.grade([box("1+x"), box("y+2")], ["x+1", "2+y"])] == [True, True]
            for worker in grader._workers:
                worker.process.kill()
                worker.process.wait()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("answer", ["1+x", TOWER], ids=["idle", "busy"])
def test_workers_die_with_their_parent(answer: str, tmp_path: Path) -> None:
    """The script has no `__main__` guard and a module in its folder that must not be mistaken for a library."""
    (tmp_path / "sympy.py").write_text("raise SystemExit('imported from the working directory')\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time; sys.path.pop(0)\n"
        "from vopd_recipes.grading.grader import MathGrader\n"
        "grader = MathGrader(timeout=1.0)\n"
        "grader.grade(['\\\\boxed{1+x}'], ['x+1'])\n"
        "print(grader._workers[0].process.pid, flush=True)\n"
        "grader.timeout = 100.0\n"
        f"grader._workers[0].start(({answer!r}, 'x+1'), 1.0)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert "torch" not in Path(f"/proc/{worker}/maps").read_text()
        parent.kill()
    deadline = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def test_close_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = MathGrader()
    grader.grade([box("1+x")], ["x+1"])
    process = grader._workers[0].process
    grader.close()
    grader.close()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match="2 completions but 1 gold"):
        grader.grade(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="item 1 is empty"):
        grader.grade(["a", "b"], ["a", " "])
    with pytest.raises(ValueError, match="must be positive"):
        MathGrader(num_workers=0)
    assert grader.grade([], []) == []
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="no grading worker could be started"):
        grader.grade([box("1+x")], ["x+1"])


FRAGMENTS = [
    *re.findall(
        r"\S+",
        r"""\boxed{ \boxed{ \fbox{ \boxed { } { } } \frac{1}{2} \frac12 \dfrac \sqrt{2} \sqrt[3] ^2 ^{ _{ x y 1 2.5
        1,000 -7 + - * / = < > \le \cup \cap \{ \} ( ) [ ] , ; : ! | \infty \pi \text{ \text{cm} \mathrm{A} \left(
        \right) \% % $ $$ \$ \( \) \[ \] & \\ \ \sin \log_2 \sum_{i=1}^{3} \int_0^1 dx \begin{pmatrix} \end{pmatrix}
        \binom{4}{2} \pm i e answer is Answer: (B) A B C D {"answer": "answer" "B"} <think> </think> or and
        \mathbb{R} \in \emptyset ^\circ""",
    ),
    *("\x00", "\u202e\u05d0", "\ud800", "\U0001f600", "\u0663", "\uff0d", "\n", " ", "\u00a0", "\t"),
]


def test_fuzz() -> None:
    source = random.Random(0)

    def text(length: int) -> str:
        pieces = (source.choice(FRAGMENTS) for _ in range(source.randint(1, length)))
        return "".join(piece + source.choice(("", "", " ")) for piece in pieces)

    completions = [box(text(4)) if index % 2 else text(12) for index in range(2_400)]
    golds = [source.choice(("5", r"\frac{1}{2}", "x+1", "(1,2)", text(3) + "x")) for _ in completions]
    with MathGrader(num_workers=2, timeout=3.0) as grader:
        grades = grader.grade(completions, golds)
    assert len(grades) == len(completions)
    assert all(isinstance(grade, Grade) and grade.error in (None, "timeout") for grade in grades)
    assert all(grade.extracted is not None for grade in grades if grade.correct)
    assert sum(grade.formatted for grade in grades) > 500
    for completion in completions:
        assert isinstance(grade_choice(completion, "A"), Grade)
