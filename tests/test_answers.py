r"""One answer in many writings: what is the same, and what looks alike and is not.

Each line is `answer @ gold`. Golds are written as data sets have them: Minerva's in E notation and numpy's names,
MATH-500's with units and half-written fractions.
"""

import time
from collections.abc import Iterator
from fractions import Fraction

import pytest

from vopd_recipes.grading import MathGrader, answer_key
from vopd_recipes.grading.answers import for_math_verify, quick_verdict

RIGHT = r"""
4.5 \times 10^{33} @ 4.5e33
4.5\cdot 10^{33} @ 4.5e33
4.5 × 10^{33} @ 4.5e33
4.5 * 10^33 @ 4.5e33
4.5E33 @ 4.5e33
45 \times 10^{32} @ 4.5e33
4.5\times10^{33}\ \mathrm{erg/s} @ 4.5e33
4.5 \times 10^{33} \text{ erg s}^{-1} @ 4.5e33
4.5 \times 10^{33} erg/s @ 4.5e33
L = 4.5 \times 10^{33} @ 4.5e33
L \approx 4.5 \times 10^{33} \mathrm{~erg} \mathrm{~s}^{-1} @ 4.5e33
\frac{9}{2} \times 10^{33} @ 4.5e33
300000000 @ 3e8
300{,}000{,}000 @ 3e8
3 \times 10^8 \text{ m/s} @ 3e8
3 \times 10^8 m/s @ 3e8
0.000116 @ 1.16e-4
10^{-8} @ 1e-8
1\times10^{-8} @ 1e-8
-2.88 \times 10^{-19}\,\mathrm{J} @ -2.88e-19
(2, 1e-3) @ (2,0.001)
6.72 \times 10^{-5} @ .0000672
33.333333 @ \frac{100}{3}
1.414214 @ \sqrt{2}
90° @ 90^\circ
90 degrees @ 90^\circ
90^{\circ} @ 90
\frac{270}{7} @ \frac{270}7 degrees
\frac{270}{7}^\circ @ \frac{270}7 degrees
\approx 1.6 @ 1.6
x \approx 1.6 @ 1.6
= 25 @ 25
25\  @ 25
\underline{25} @ 25
\mathbf{25} @ 25
\displaystyle\frac12 @ \frac12
10 cm @ 10
10 cm^2 @ 10
10 \text{ cm} @ 10 cm
5 m @ 5
5 m @ 5\text{ m}
5 m/s @ 5\text{ m} \cdot \text{s}^{-1}
5\text{ cm} @ 5\text{ centimeters}
5.4 @ 5.4  cents
5.4\text{ cents} @ 5.4  cents
9.25 m @ \frac{37}{4} m
\frac{t}{m} @ \frac{1}{m} t
\frac{c}{\sqrt 2} @ \frac{1}{\sqrt{2}}c
5\text{ million} @ 5000000
50\text{ percent} @ 50\%
2 1/3 @ \frac{7}{3}
2 1/3 @ 2\frac13
137 \frac{1}{2} @ 137 1/2
137.5 @ 137 1/2
-1.5 @ -3./2
-\frac{3}{2} @ -3./2
-\frac13 @ -1./3
\arcsin(10/13) @ np.arcsin(10/13)
\arcsin\left(\frac{10}{13}\right) @ np.arcsin(10/13)
\sqrt 13 @ \sqrt{13}
3\sqrt{13} @ 3\sqrt13
E_1, E_2 @ E_{1},E_{2}
m c^2 @ m c^{2}
\pm 3 @ 3,-3
3, -3 @ \pm 3
x = \pm 3 @ 3,-3
2\pm\sqrt{3} @ 2+\sqrt3,2-\sqrt3
\text{East} @ \text{east}
Tuesday @ \text{tuesday}
52_{9} @ 52_9
52 @ 52_9
f\text{ is odd} @ f \text{ is odd}
3 x 10^8 @ 3e8
\pi \text{ sq units} @ \pi\text{ square units}
3\pi\text{ cm}^2 @ 3\pi
5\text{ thousand} @ 5000
1.5\% @ 0.015
-6.3 \times 10^{4}\, \text{J/mol} @ -6.3e4
[0, 1.5 \times 10^{-3}] @ [0,0.0015]
""".strip("\n").splitlines()

WRONG = r"""
148.5e @ 4.5e33
4.5 \times 10^{32} @ 4.5e33
4.5 \times 10^{33} @ 4.6e33
6.68\times10^{-5} @ .0000672
\frac{1}{15000} @ .0000672
2\times10^{-19} @ 1\times10^{-19}
\sqrt{2}\times10^{-19} @ 1\times10^{-19}
E=2\times10^{-19} @ 1e-19
(2, 2e-9) @ (2,1e-9)
0.333 @ \frac{1}{3}
\frac{999999}{1000000} @ 1
0.999999 @ 1
3.14 @ \pi
52_9 @ 52_8
57_8 @ 52_9
5 km @ 5 m
5\text{ km} @ 5\text{ m}
5\text{ cm}^2 @ 5\text{ cm}^3
5\text{ m/s} @ 5\text{ m}
10:00\text{ am} @ 10:00\text{ pm}
5 @ 5m
\frac{1}{m} @ \frac{1}{m} t
\frac{1}{\sqrt{2}} @ \frac{1}{\sqrt{2}}c
\frac{37}{4} @ \frac{37}{4} m
3 @ 3+2\text{i}
5\text{ million} @ 5
50\text{ percent} @ 50
2 3 @ 23
2 1/3 @ \frac{2}{3}
-2 1/3 @ -\frac{5}{3}
\sqrt 13 @ \sqrt{1}3
E_1, E_2 @ E_{1},E_{3}
3 @ \pm 3
3 @ 3,-3
\text{North} @ \text{east}
\text{west} @ \text{east}
ABC @ abc
f \text{ is even} @ f \text{ is odd}
f @ f \text{ is odd}
x\text{ or }y @ x\text{ or }z
7 \text{ or } 8 @ 7
1.5\% @ 1.5
\frac{1}{2}\% @ \frac12
E_1 @ E_2
2x @ 2\times10^{0}
k=5 @ n=5
\frac{1}{0} @ 0
""".strip("\n").splitlines()


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader() as grader:
        yield grader


def verdict(grader: MathGrader, line: str) -> bool:
    answer, gold = line.rsplit(" @ ", 1)
    (grade,) = grader.grade([f"So it is \\boxed{{{answer}}}."], [gold])
    assert grade.formatted and grade.error is None
    return grade.correct


@pytest.mark.parametrize("line", RIGHT)
def test_the_same_in_another_writing(line: str, grader: MathGrader) -> None:
    assert verdict(grader, line)


@pytest.mark.parametrize("line", WRONG)
def test_another_answer_that_looks_alike(line: str, grader: MathGrader) -> None:
    assert not verdict(grader, line)


def test_numbers_are_settled_here() -> None:
    """No process is asked, and the comparison is exact, whatever the size."""
    assert quick_verdict(r"4.5 \times 10^{33} \text{ erg}", "4.5e33") is True
    assert quick_verdict(r"4.5 \times 10^{33}", "4.5000000000000000001e33") is False
    assert quick_verdict("1e-300", "2e-300") is False
    assert quick_verdict("x+1", "1+x") is None


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("3/4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        ("0.75", Fraction(3, 4)),
        (r"7.5 \times 10^{-1}", Fraction(3, 4)),
        (r"0.75\text{ m}", Fraction(3, 4)),
        (r"\text{North} ", "North"),
        (r"2x + 1", "2x+1"),
        ("x" * 2000 + " y", "x" * 2000 + "y"),
    ],
)
def test_what_a_vote_counts(answer: str, key: object) -> None:
    assert answer_key(answer) == key


@pytest.mark.parametrize(
    "unit",
    [
        "m ",
        "cm ",
        "cm/",
        r"\text{cm}",
        r"\mathrm{ cm",
        "1",
        "1,",
        "10^{",
        r"\times10^",
        r"\pm",
        "( ",
        "/s ",
        "{",
        "\\",
    ],
)
def test_reading_takes_no_time(unit: str) -> None:
    started = time.process_time()
    for prefix in ("", "5 ", r"\frac{1}{2} "):
        text = (prefix + unit * 1000)[:1000]
        quick_verdict(text, "5")
        for_math_verify(text, "5 m")
        answer_key(text)
    assert time.process_time() - started < 2
