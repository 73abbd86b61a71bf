"""Each filter alone: whether an answer can be graded, the language, the length, duplicates, evaluation questions."""

import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from vopd_recipes.data.answers import AnswerCheck
from vopd_recipes.data.contamination import Contamination, Question
from vopd_recipes.data.duplicates import ExactDuplicates, NearDuplicates, SortedIndex, minhash, similarities
from vopd_recipes.data.language import not_english
from vopd_recipes.data.lengths import length_of, too_long
from vopd_recipes.data.recipe import DataRecipe
from vopd_recipes.data.rows import Left, Problem, problem_of
from vopd_recipes.data.words import hashed, words_of

NOUNS = [
    "apple", "river", "engine", "window", "garden", "letter", "bottle", "planet", "market", "violin", "ladder",
    "castle", "forest", "pencil", "magnet",
]  # fmt: skip


def problems(texts: list[str], answer: str = "1") -> list[Problem]:
    return [Problem(number, text, answer) for number, text in enumerate(texts)]


# Answers -------------------------------------------------------------------------------------------------------------


def test_mathematics_must_be_readable() -> None:
    readable = [
        "5",
        "-1,234.5",
        "$7$",
        r"\frac{3}{4}",
        "2/3",
        "x^2+1",
        "(1,2)",
        "[0,1)",
        r"(-\infty, 3]",
        "x=3",
        "10\\%",
    ]
    readable += ["1" * 1000, r"5 \text{ cm}", r"\begin{pmatrix}1\\2\end{pmatrix}", r"\{1,2\}", "A", r"\text{even}"]
    readable += ["5 square units", "12 cubic centimeters", "10 meters per second", r"\frac{3}{4} miles per hour"]
    unreadable = [
        "no solution",
        "the answer is not known",
        "???",
        r"\frac{1",
        "}",
        "1{",
        "#### 7",
        "题目",
        "See it.",
    ]
    unreadable += ["all x such that x>3", "1" * 2000 + "x", "1" * 1001, r"\sqrt{2"]
    with AnswerCheck("math", num_workers=1) as check:
        verdicts = check([Problem(0, "p", answer) for answer in readable + unreadable])
    wrong = [answer for answer, why in zip(readable + unreadable, verdicts) if (why is None) != (answer in readable)]
    assert wrong == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("7.", "7"), (r"\[7\]", "7"), (r"\( \frac{1}{2} \)", r"\frac{1}{2}"), ("$$7$$", "7"), ("$7.$", "7"),
        ("$3$ and $4$", "$3$ and $4$"), ("1, 2, ...", "1, 2, ..."), ("$$", "$$"), ("[0,1]", "[0,1]"), ("7.5", "7.5"),
    ],
)  # fmt: skip
def test_answers_lose_their_dress(written: str, meant: str) -> None:
    recipe = DataRecipe(dataset_name="x", output_dir="y")
    found = problem_of(0, {"prompt": "p", "answer": written}, recipe)
    assert isinstance(found, Problem) and found.answer == meant


def test_refused_answers_are_not_asked_again_and_not_held() -> None:
    """What is remembered has one small size, whatever the answer's."""
    golds = [f"no{'x' * 500} answer{n} here" for n in range(50)] + ["7" * 900_000, "1" * 999 + "x"]
    with AnswerCheck("math", num_workers=1) as check:
        first = check([Problem(0, "p", gold) for gold in golds])
        assert check([Problem(0, "p", gold) for gold in golds]) == first
    assert first[50] == "an answer over 1,000 characters"
    assert {len(key) for key in check._known} == {16} and len(check._known) == 51


def test_choices_must_hold_the_letter() -> None:
    listed = "Which?\n\nA. red\nB. blue\nC. green"
    check = AnswerCheck("choice", num_workers=1)
    cases = [
        (Problem(0, "Which?", "b", "AB"), True), (Problem(0, "Which?", "C", "AB"), False),
        (Problem(0, "Which?", "AB", "AB"), False), (Problem(0, "Which?", "E", "ABCDE"), False),  # A to D are graded
        (Problem(0, listed, "C"), True), (Problem(0, listed, "D"), False), (Problem(0, "Which?", "A"), False),
    ]  # fmt: skip
    assert [why is None for why in check([problem for problem, _ in cases])] == [right for _, right in cases]


def test_choices_column_is_written_under_the_prompt() -> None:
    recipe = DataRecipe(dataset_name="x", output_dir="y", choices_column="options", answer_format="choice")
    found = problem_of(3, {"prompt": "Which?", "options": ["red", "blue"], "answer": "B"}, recipe)
    assert found == Problem(3, "Which?\n\nA. red\nB. blue", "B", "AB")
    for broken in (None, "red", ["red"], ["red", None], {"text": ["red", "blue"], "label": ["A"]}):
        assert isinstance(problem_of(0, {"prompt": "Which?", "options": broken, "answer": "B"}, recipe), Left)


# Language and length -------------------------------------------------------------------------------------------------


def test_language() -> None:
    english = [
        "Find the sum of all integers $n$ such that $\\frac{n^2}{3}$ is prime.",
        "Let $\\alpha, \\beta$ be roots; αβ = γ. Compute α² + β².",
        "In Poincaré's café, Erdős and Gödel share a naïve pie. How much is left?",
        "$x^2 + 1 = 0$", "12 + 30 = ?", "Compute $\\int_0^1 x\\,dx$.",
        "Given that a, b and c are the sides of a triangle, find the area for a = 3.",
        "Convert 60 miles per hour to feet per second.",
        "A man walks 3 miles per hour. How many miles per day?",
        "A train goes 80 km per hour and a van goes 60 km per hour until they meet.",
        "Pour 3 cups per jug.", "Do negative numbers come in pairs? Answer yes or no.", "Roll die A, then die B.",
        "Man + door = sea + met. Come, no?", "5 euros per se", "His son won a war, a hat, hay, an elk and a dove.",
        "Los Angeles, Las Vegas, El Paso, Van Gogh, Leonardo da Vinci: 5 letters?", "LET X BE A PRIME. FIND X.",
        "Let 𝑓(𝑥)=𝑥². Evaluate 𝑓(3).", "Let 𝔤 be 𝓍; 𝕏 ⊂ ℝ.", "ﬁnd the ﬁrst diﬀerence", "ⅳ + ⅻ",
        "Ｆｉｎｄ　ｔｈｅ　ｓｕｍ.",
        "Professors at MIT: 5", "See https://en.wikipedia.org/wiki/Root.",
        "Label ortho, meta and para; add des-methyl, 5 um thick, at 2 au.",
    ]  # fmt: skip
    foreign = [
        "求满足下列条件的所有整数 $n$ 的和。", "整数nの和を求めよ。", "Найдите сумму всех целых чисел.",
        "أوجد مجموع الأعداد",
        "Bestimme die Summe der Zahlen, für die das Produkt von zwei Zahlen eine Primzahl ist.",
        "Trouver la somme des entiers pour lesquels le produit est premier.",
        "Encuentra la suma de todos los números para los que el producto es primo.",
        "Trova la somma di tutti i numeri per cui il prodotto è primo.",
        "Determine a soma de todos os números inteiros para os quais o produto não é primo.",
        "Bepaal de som van alle getallen waarvoor het product niet priem is.",
        "Wie viele Kugeln sind in der Urne?", "Berechne $3 + 4$.", "Ein Mann fährt 3 Stunden mit 80 km pro Stunde.",
        "WIE VIELE KUGELN SIND IN DER URNE?", "In einer Klasse sind 12 Jungen und 14 Mädchen. Was ist der Anteil?",
        "Combien de litres faut-il pour remplir la cuve ?", "Un train roule à 80 km par heure pendant deux heures.",
        "Calculer la somme des entiers.", "¿Cuántos litros hay en el tanque?", "Halla el valor de x.",
        "Un tren va a 80 km por hora durante dos horas.", "Quanti litri ci sono nel serbatoio?",
        "Un treno viaggia a 80 km all'ora per due ore.", "Quantos litros tem no tanque?", "Calcule o valor de $x$.",
        "Hoeveel liter zit er in de tank?", "Een man loopt 3 km per uur door het bos.",
        "어떤 수의 합을 구하시오.", "計算せよ: 2 + 3", "ค่าของ x คืออะไร", "Ｘ 的值是多少？", "मान ज्ञात कीजिए",
    ]  # fmt: skip
    verdicts = not_english(problems(english + foreign))
    assert [text for text, why in zip(english + foreign, verdicts) if (why is None) != (text in english)] == []


def test_overlong_prompts_in_characters_and_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = problems(["é" * length for length in (9, 10, 11, 20, 21)])
    assert too_long(10, length_of(None))(texts) == [None, None, "11 long", "20 long", "21 long"]
    tokenizer.save_pretrained(tmp_path)
    in_tokens = too_long(21, length_of(str(tmp_path)))
    assert in_tokens(texts) == [None, None, "22 long", "40 long", "42 long"]  # two bytes a character
    assert in_tokens([]) == []


# Words ---------------------------------------------------------------------------------------------------------------


def test_words() -> None:
    assert words_of(r"Let $\dfrac{1}{2}x_1 \le \left( y^{2}-1 \right)$.") == "let frac 1 2 x 1 le y 2 - 1"
    assert words_of(r"Let \( \frac{1}{2} x_{1} \le (y^2 \u2212 1) \)".replace(r"\u2212", "\u2212")) == words_of(
        r"let $\tfrac{1}{2}x_1\le(y^2-1)$"
    )
    assert words_of("A well-known ½ x-1") == "a well known frac 1 2 x - 1"
    assert words_of("所有整数n") == "所 有 整 数 n"
    assert words_of("?!") == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"a $30^\circ-60^\circ-90^{\circ}$ triangle", "a 30°-60°-90° triangle"),
        (
            r"\frac12 + \frac 1 2 + \dfrac{1}2 + \tfrac1{2} + 2½",
            r"\frac{1}{2}" + r"+ \frac{1}{2}" * 3 + r"+ 2\frac{1}{2}",
        ),
        (r"\frac{\frac12}3 \frac ab \frac\pi2 \sqrt23", r"\frac{\frac{1}{2}}{3} \frac{a}{b} \frac{\pi}{2} \sqrt{2}3"),
        ("1,000,000 and (10,500)", "1000000 and (10500)"),
        (r"1{,}000{,}000 1\,000\,000 1,\!000,\!000", "1000000 " * 3),
        (r"1, \ldots, n \dots a \cdots b", "1, ..., n … a ... b"),
        (r"2\cdot 3\times4 \div 5", "2·3×4 ÷ 5"),
        (r"\angle A \leq 3 \ge 2 \neq \sqrt{2}\pi \le 1", "∠A ≤ 3 ≥ 2 ≠ √2π <= 1"),
        (r"\alpha\beta \in \mathbb{R}, f^{\prime}(x)\to\infty", "αβ ∈ ℝ, f'(x)→∞"),
        ("x^{2} 10^{-2}", "x² 10⁻²"),
        (r"\begin{align*} x \end{align*}", r"\[x\]"),
        (r"\dbinom{5}{2} \tbinom{n}{k}", r"\binom{5}{2} \binom{n}{k}"),
        (r"\log_264 + \log_2 64 + \log_{2}64", r"\log_{2} 64" + r"+ \log_2{64}" * 2),
        (r"\sum x^23 y_ab", r"\sum x^{2} 3 y_{a} b"),
        (r"3 \pmod{6} 5 \bmod 6", "3 (mod 6) 5 mod 6"),
    ],
)
def test_typesetting_makes_no_difference(one: str, other: str) -> None:
    assert words_of(one) == words_of(other) != ""


def test_what_is_different_stays_different() -> None:
    lists = [["1,2", "12"], ["1, 200", "1200"], [r"\frac{1}{2}", r"\frac{12}{}"], ["102", "10²"], ["2½", "21/2"]]
    lists += [["x ≤ 3", "x ≥ 3", "x < 3"], ["1,000,50", "100050"], [r"2 \cdots 3", r"2 \cdot 3"]]
    lists += [[r"\log_{26}4", r"\log_264", r"\log 264"], ["10^12", "10^1 2"], [r"\binom{5}{2}", r"\frac{5}{2}"]]
    for texts in lists:
        assert len({words_of(text) for text in texts}) == len(texts)


def test_a_megabyte_of_combining_marks_takes_no_minutes() -> None:
    started = time.perf_counter()
    assert words_of("a" + "\u0301\u0327" * 250_000)
    assert not_english(problems(["a" + "\u0301\u0327" * 250_000])) == [None]
    assert time.perf_counter() - started < 10


def test_ngrams_are_equal_where_words_are() -> None:
    """Against tuples of words, over random texts, empty ones included."""
    generator = random.Random(5)
    known = ["ab", "bc", "1", "2", "+", "é"]
    texts = [words_of(" ".join(generator.choices(known, k=generator.randint(0, 12)))) for _ in range(400)]
    for n in (1, 2, 3, 8):
        grams, starts = hashed(texts).ngrams(n)
        seen: dict[int, tuple[str, ...]] = {}
        for text, first, last in zip(texts, starts[:-1], starts[1:]):
            words = text.split()
            expected = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            assert last - first == len(expected)
            for gram, window in zip(grams[first:last].tolist(), expected):
                assert seen.setdefault(gram, window) == window
        assert len(set(seen.values())) == len(seen)
    sequences = dict(zip(hashed(texts).sequences().tolist(), texts))
    assert len(sequences) == len(set(texts))
    numbers = hashed(["a 1 b 2", "2 c 1", "1 1 2", "a - 1", "a + 1", "", "b"]).numbers().tolist()
    assert numbers[0] == numbers[1] and len({*numbers}) == 5 and numbers[5] == numbers[6] == 0


# Duplicates ----------------------------------------------------------------------------------------------------------


def test_exact_duplicates_and_contradictions() -> None:
    """Whether the rows come in one call or one by one."""
    rows = [("a b", "1"), ("a  b\n", "1"), ("A b", "1"), ("a b", "2"), ("c", "1"), (" a b", "1")]
    texts = [Problem(10 + number, text, answer) for number, (text, answer) in enumerate(rows)]
    expected = [None, "row 10", None, "row 10, which has another answer", None, "row 10"]
    together, apart = ExactDuplicates(), ExactDuplicates()
    assert together(texts) == expected == [why for text in texts for why in apart([text])]
    assert together.contradictions == apart.contradictions == 1
    assert together([]) == []


def test_near_duplicates() -> None:
    text = (
        "A farmer has 17 sheep and $\\frac{1}{3}$ of them are black, while every other sheep in the two fields is "
        "white or grey. How many of the sheep that the farmer has are neither black nor grey at all?"
    )
    same = [
        text.replace("$\\frac", "\\(\\dfrac").replace("}$", "}\\)"),
        text.upper(),
        text.replace("sheep and", "sheep, and"),
    ]
    same.append("Problem. " + text)
    other = [text.replace("17", "18"), text.replace("1}{3", "3}{1") + " Add 2.", "Of " + " ".join(text.split()[20:])]
    found = NearDuplicates(0.8)([*problems([text, *same, *other]), Problem(99, text + "?", "another answer")])
    assert found[0] is None and found[5:] == [None] * 4
    assert [why.split(":")[0] for why in found[1:5]] == ["row 0"] * 4
    assert NearDuplicates(0.8)(problems(["two words"] * 2)) == [None, None]  # no shingle: for ExactDuplicates


@pytest.mark.parametrize("similarity", [0.6, 0.7, 0.8, 0.9, 1.0])
def test_minhash_estimates_the_jaccard_similarity(similarity: float) -> None:
    """On pairs of known similarity: no bias beyond three standard errors of the mean, spread √(J(1-J)/96)."""
    generator = random.Random(6)
    estimates, exact = [], []
    for _ in range(200):
        words = [f"w{generator.randrange(10**6)}x" for _ in range(120)]
        words = [re.sub(r"\d", lambda digit: "abcdefghij"[int(digit[0])], word) for word in words]
        cut = round(2 + 236 * similarity / (1 + similarity))  # J = (cut - 2) / (236 - (cut - 2))
        other = words[:cut] + [word + "q" for word in words[cut:]]
        sets = [{tuple(text[i : i + 3]) for i in range(118)} for text in (words, other)]
        exact.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
        signatures = minhash(hashed([" ".join(words), " ".join(other)]), np.zeros(2, np.uint64))[1]
        estimates.append(float(similarities(signatures[0], signatures[1])))
    assert abs(np.mean(exact) - similarity) < 0.01
    spread = np.sqrt(similarity * (1 - similarity) / 96) + 0.002
    assert abs(np.mean(estimates) - np.mean(exact)) < 3 * spread / np.sqrt(200)
    assert np.std(np.subtract(estimates, exact)) < 1.3 * spread


def test_near_duplicates_are_found_and_strangers_are_not() -> None:
    """Of pairs at 0.9 nearly all are found, at 0.5 none; whether the two come in one call or in two."""
    generator = random.Random(7)
    pairs = []
    for changed in (2, 25):  # of 100 words, at the end: similarities 0.96 and 0.59
        for _ in range(150):
            words = [f"{generator.choice(NOUNS)}{generator.choice(NOUNS)}" for _ in range(100)]
            pairs.append((" ".join(words), " ".join(words[: 100 - changed] + generator.choices(NOUNS, k=changed))))
    first, second = problems([one for one, _ in pairs]), problems([other for _, other in pairs])
    index = NearDuplicates(0.8)
    assert index(first) == [None] * 300
    apart = [why is not None for why in index(second)]
    together = [why is not None for why in NearDuplicates(0.8)([p for pair in zip(first, second) for p in pair])][1::2]
    assert apart == together
    assert sum(apart[:150]) >= 148
    assert sum(apart[150:]) == 0


def test_sorted_index_is_a_dictionary_of_first_places() -> None:
    generator = np.random.default_rng(0)
    index, expected = SortedIndex(), {}
    for step in range(60):
        keys = generator.integers(0, 500, generator.integers(0, 40)).astype(np.uint64)
        places = np.arange(step * 100, step * 100 + len(keys), dtype=np.int32)
        for key, place in zip(keys.tolist(), places.tolist()):
            expected.setdefault(key, place)
        index.add(keys, places)
        asked = np.arange(600, dtype=np.uint64)
        assert index.find(asked).tolist() == [expected.get(key, -1) for key in asked.tolist()]


# Contamination -------------------------------------------------------------------------------------------------------

QUESTION = (
    "Let $x$, $y$ and $z$ be positive real numbers with $xyz = 8$. The least value of $x^{2} + 4y + \\frac{z}{3}$ can "
    "be written as $\\frac{m}{n}$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
)


@pytest.mark.parametrize(
    ("prompt", "holds"),
    [
        (QUESTION, True),
        (QUESTION.upper().replace("$", ""), True),
        ("Solve this. " + QUESTION + " Please think step by step and answer with an integer.", True),
        (QUESTION.replace("\\frac", "\\dfrac").replace("$x$", "\\(x\\)"), True),
        (QUESTION.replace("least", "smallest"), True),
        (QUESTION.replace("= 8", "= 9"), True),  # one other number is eight n-grams
        (QUESTION[:120], True),
        (QUESTION[-100:], False),  # only the boilerplate
        (
            "A die falls. Its chance is m/n, where $m$ and $n$ are relatively prime positive integers. Find $m+n$.",
            False,
        ),
        ("What is 2 + 3?", True),
        ("what is $2+3$", True),
        ("What is 2 + 4?", False),
        ("What is 2 + 3 + 7?", False),
        ("!!!", False),
    ],
)
def test_contamination(prompt: str, holds: bool) -> None:
    index = Contamination([Question("a", 4, QUESTION), Question("b", 9, "What is $2 + 3$?")], n=8, overlap=0.5)
    (why,) = index(problems([prompt]))
    assert (why is not None) == holds
    assert why is None or why.startswith("b, row 9" if "2" in prompt[:12] else "a, row 4")
    assert sum(index.hits.values()) == holds


FIGURE = '[asy]\ndraw((0,0)--(4,0)--(4,3)--cycle);\nlabel("A",(0,0),SW);\n[/asy]'


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"The legs below are 3 and 4 long. {FIGURE} What is the longest side?",) * 2,
        (f"The legs below are 3 and 4 long. {FIGURE} What is the longest side?",
         "The legs below are 3 and 4 long. What is the longest side?"),
        (r"In a $30^\circ-60^\circ-90^\circ$ triangle the least side is 5.",
         "In a 30°-60°-90° triangle the least side is 5."),
        (r"What is $\frac{1}{2}+\frac{1}{3}+\frac{1}{4}$ of $x$?", r"What is $\frac12+\frac 1 3+\dfrac14$ of $x$?"),
        ("There are 1,000,000 ants, 2,000,000 bees and 3,000,000 flies.",
         r"There are 1000000 ants, 2{,}000{,}000 bees and $3\,000\,000$ flies."),
        (r"Compute $1+2+\ldots+n$ and $1\cdot2\cdots n$ for $n = 7$", "Compute 1+2+...+n and 1·2…n for n = 7"),
        (r"If $\angle A \le 30^\circ$ then $x \ne \sqrt{2}\pi$", "If ∠A ≤ 30° then x ≠ √2π"),
    ],
)  # fmt: skip
def test_contamination_in_other_typesetting(one: str, other: str) -> None:
    for asked, prompt in ((one, other), (other, one)):
        (why,) = Contamination([Question("a", 0, asked)], n=8, overlap=0.5)(problems([prompt]))
        assert why == "a, row 0: 100% of its 8-grams"


@pytest.mark.parametrize(
    ("prompt", "holds"),
    [
        ("{} Give an integer.", True),
        ("Solve the following problem. {} Put your final answer within \\boxed{{}}.", True),
        ("Problem 12. {}", True),
        ("Question: {}\nAnswer:", True),
        ("{} Let's think step by step and output the final answer within \\boxed{{}}.", True),
        ("{} Round your answer to 2 decimal places.", True),
        ("Solve the following math problem step by step. The last line of your response should be of the form Answer: "
         "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put your answer "
         "on its own line after \"Answer:\".", True),
        ("{} + 7", False),
        ("{} + 7. Give an integer.", False),
        ("Twice the value: {}", False),
        ("If x = 3, {}", False),
        ("{} Then add the digits of all primes below it.", False),
        ("{} if 2 is replaced by 5? Give an integer.", False),
    ],
)  # fmt: skip
def test_a_short_question_and_an_instruction(prompt: str, holds: bool) -> None:
    asked = r"Evaluate $\log_2 (4^2)$."
    (why,) = Contamination([Question("a", 3, asked)], n=8, overlap=0.5)(problems([prompt.format(asked)]))
    assert why == ("a, row 3: all of its words" if holds else None)


def test_boilerplate_of_many_questions_is_no_contamination_and_costs_nothing() -> None:
    generator = random.Random(11)

    def text(words: int) -> str:
        return " ".join("".join(generator.choices("abcdefgh", k=5)) for _ in range(words))

    shared = text(32)
    asked = [f"{shared} {text(25)}" for _ in range(500)] + [shared]
    index = Contamination([Question("a", row, one) for row, one in enumerate(asked)], n=8, overlap=0.5)
    prompts = problems([f"{text(9)} {shared[:80]} {text(25)}" for _ in range(1024)])
    started = time.perf_counter()
    assert index(prompts) == [None] * 1024
    assert time.perf_counter() - started < 5
    assert index(problems([asked[7], asked[7][-120:], shared])) == [
        "a, row 7: 100% of its 8-grams", "a, row 7: 52% of its 8-grams", "a, row 500: 100% of its 8-grams"
    ]  # fmt: skip


@pytest.mark.parametrize("overlap", [0.2, 0.5, 1.0])
def test_contamination_is_the_share_of_the_questions_ngrams(overlap: float) -> None:
    """Against sets of tuples of words."""
    generator = random.Random(8)
    texts = [" ".join(generator.choices(NOUNS[:4], k=generator.randint(0, 30))) for _ in range(150)]
    asked = [" ".join(generator.choices(NOUNS[:4], k=generator.randint(1, 12))) for _ in range(40)]
    asked += [texts[3][:60], texts[7]]

    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 4]) for i in range(len(words) - 3)}

    found = Contamination([Question("a", n, text) for n, text in enumerate(asked)], 4, overlap)(problems(texts))
    assert any(found) and not all(found)
    for text, why in zip(texts, found):
        shares = [len(grams(q) & grams(text)) / len(grams(q)) if grams(q) else float(q == text) for q in asked]
        assert (why is not None) == (max(shares) >= overlap)
        if why is not None:
            assert shares[int(why.split("row ")[1].split(":")[0])] == max(shares)
