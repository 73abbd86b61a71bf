r"""How far grading is from a reader: `python scripts/benchmark_golds.py FOLDER [--grades FILE]`.

FOLDER holds benchmarks of mathematics as `make evaluate DATA_DIR=…` reads them (`math500.jsonl`, `minerva.jsonl`, …)
and any other .jsonl file with the columns `problem` and `answer`. Two figures of each, and of all together:

1. *re-writings graded right*: every gold answer in the other writings that a reader would accept, one list of them for
   each kind of answer (number, fraction, interval, equation, …). It should be at least 99 %.
2. *other golds graded right*: the gold answers of other problems of the same set, those that look most alike first
   and as many at random. It should be 0. Pairs that say the same (`0.5` and `\frac{1}{2}`, `90^\circ` and `90`) are
   left out.

The writings are made here, by rules of their own: nothing is asked of the grader that is judged.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from fractions import Fraction
from math import pi, sqrt
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package `evaluation` lies beside this folder

from evaluation.grades import new_grader  # noqa: E402
from evaluation.tasks import TASKS, Question, columns  # noqa: E402

_AT_A_TIME = 512
Writing = tuple[str, str]  # kind, completion

_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)")
_SCIENTIFIC = re.compile(r"(-?[\d.]+)e([+-]?\d+)")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_CONSTANT = re.compile(r"(-?)(?:\\frac\{)?(\d*) *(?:\\sqrt\{(\d+)\}|(\\pi))?(?:\}\{(\d+)\})?")
_INTERVAL = re.compile(r"([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]])")
# kind, what the whole gold answer is, its other writings; `<1>` is the first group
_TABLE = (
    ("fraction", _FRACTION.pattern, r"<1><2>/<3>|\frac{<1><2>}{<3>}|(<1><2>)/(<3>)|<1>{<2> \over <3>}"),
    ("name", _FRACTION.pattern, r"P(A) = <0>|\frac{m}{n}=<0>|\sin \theta = <0>|X(2) = <0>"),
    ("degrees", r"(-?[\d.]+)\^\{?\\circ\}?", r"<1>|<1>°|<1> degrees|\angle ABC = <1>^{\circ}|<1>\text{ degrees}"),
    ("degrees", r"(-?[\d.]+)\^\{?\\circ\}?", r"<1>^\circ\text{.}|<1>\degree|\theta = <1>°"),
    ("dollars", r"\\\$ *([\d,.]+)", r"<1>|\$<1>|\$ <1>|<1>\text{ dollars}|\text{\$<1>}|<1> dollars"),
    ("percent", r"(-?[\d.]*[1-9][\d.]*)\\?%", r"<1> \%|<1>%|<1>\text{ percent}|<1> percent|\frac{<1>}{100}"),
    ("unit", r"(.*\d)\s*\\(?:text|mbox|mathrm)\s*\{\s*([a-z. ]+)\}", r"<1>|<1>\ \mathrm{<2>}|<1> \mbox{ <2>}|<1> <2>"),
    ("base", r"(\d+)_\{?(\d+)\}?", r"<1>_{<2>}|(<1>)_{<2>}|(<1>)_<2>|<1>|\text{<1>}_<2>|<1>_{\text{<2>}}|N = <1>_<2>"),
    (
        "time",
        r"(?:\\text\{)?(\d+)(?:\\!)?:(?:\\!)?(\d\d)(?:\}|\s*\\text)?\{?\s*p.?m.?\}?",
        r"<1>:<2> pm|<1>:<2>\text{ p.m.}",
    ),
    (
        "letter",
        r"\\text\s*\{\(?([A-Z])\)?\}",
        r"<1>|(<1>)|\text{<1>}|\textbf{(<1>)}|\mathrm{<1>}|(\text{<1>})|\textbf{<1>}",
    ),
    (
        "words",
        r"\\text\s*\{([A-Za-z]{2}[A-Za-z ]*)\}",
        r"<1>|\textbf{<1>}|\mathrm{<1>}|\text{<1>.}|\text{ <1> }|\textit{<1>}",
    ),
    ("tuple", r"\((?!.*infty)([^()\[\]]+,[^()\[\]]+)\)", r"(x, y) = <0>|P = <0>|\left(<1>\right)|\big( <1> \big)"),
    ("list", r"([^,=]+?)\s*\\pm\s*([^,=]+)", r"<1>+<2>, <1>-<2>|x = <0>|x = <1>-<2> \text{ or } x = <1>+<2>"),
    ("matrix", r"\\begin\{pmatrix\}((?s:.*))\\end\{pmatrix\}", r"\begin{bmatrix}<1>\end{bmatrix}|\mathbf{M} = <0>"),
    ("matrix", r"\\begin\{pmatrix\}((?s:.*))\\end\{pmatrix\}", r"\left(\begin{matrix}<1>\end{matrix}\right)"),
)
_NAMES = ("x", "m + n", r"\angle ABC", r"\cos A", r"\Delta E", "f(3)", "AB", r"\overline{AB}", "a_{10}", "|z|", "S_n")
_UNITS = (
    r"\text{ cm}", r"\text{ m}^2", r"\ \mathrm{erg/s}", r"\frac{\text{erg}}{\text{s}}", r"\ \mu\text{m}", r"\,\Omega",
    r"\ M_\odot", r"\ \mathring{A}", r"\ \text{microns}", r"\text{ kg} \cdot \text{m/s}", r"\;\mathrm{cm}^{-3}",
    " km/s",
)  # fmt: skip
_TYPED = {
    r"\sqrt": "√", r"\pi": "π", r"\infty": "∞", r"\cup": "∪", r"\circ": "°", r"\theta": "θ", r"\le": "≤",
    r"\pm": "±", r"\cdot": "·", r"\times": "×", r"\in": "∈", "-": "−",
}  # fmt: skip


def boxed(kind: str, *answers: str) -> Iterator[Writing]:
    """Each answer in a box."""
    return ((kind, f"So it is $\\boxed{{{answer}}}$.") for answer in answers)


def rewritings(gold: str, random_: random.Random) -> list[Writing]:
    """Other writings of a gold answer that a reader would accept, by kind."""
    plain = gold.replace("$", "").strip() if "\\$" not in gold else gold.strip()
    plain = re.sub(r"(?<=\d)(?:\{,\}|,\\!) *(?=\d)", ",", plain)
    found = [*_any_answer(gold), *_dress(plain), *_brackets(plain)]
    for kind in (_number, _fraction, _constant, _interval, _listed, _equation, _expression):
        found += kind(plain, random_)
    for name, pattern, writings in _TABLE:
        if match := re.fullmatch(pattern, plain):
            for place, part in enumerate([match[0], *match.groups()]):
                writings = writings.replace(f"<{place}>", part)
            found += boxed(name, *writings.split("|"))
    kinds = {text: kind for kind, text in reversed(found)}
    return [(kind, text) for text, kind in kinds.items() if text not in {one for _, one in boxed("", gold, plain)}]


def _any_answer(gold: str) -> Iterator[Writing]:
    yield "around the box", f"The answer is \\boxed{{{gold}}}."
    yield "around the box", f"\\[\n\\boxed{{{gold}}}\n\\]\nThis is the final answer, not 7."
    yield "around the box", f"First \\boxed{{12}}, but that was wrong.\n\n**Answer:** $\\fbox{{{gold}}}$"
    yield from boxed("delimiters", f"\\displaystyle {gold}", f" {gold} ")
    if "$" not in gold:
        yield from boxed("delimiters", f"${gold}$", f"\\({gold}\\)", f"\\[{gold}\\]", f"$${gold}$$")
        yield from boxed("bold", f"**{gold}**", f"\\boldsymbol{{{gold}}}")
    yield from boxed("full stop", f"{gold.rstrip('.')}.", f"{gold.rstrip('.')},")
    if "=" not in gold and not re.search(r"[<>]|\\[lg]e|\\in(?![a-z])|text|mbox|,", gold):
        name = "abcdfghkmnpqrstuvwyz"[len(gold) % 20]
        yield from boxed("name", f"{name} = {gold}", f"\\mathbf{{{name}}} = {gold}", f"{name}_{{1}}={gold}")


def _dress(gold: str) -> Iterator[Writing]:
    """Commands for the same sign, spacing, Unicode."""
    for other in ("dfrac", "tfrac", "cfrac"):
        yield from boxed("fractions", re.sub(r"\\[dt]?frac(?![a-z])", rf"\\{other}", gold))
    if not re.search("text|mbox", gold):
        yield from boxed("spacing", re.sub(r"(?<![a-zA-Z]) | (?![a-zA-Z])", "", gold))
        yield from boxed("spacing", re.sub(r"([+=])", r"\\, \1 \\;", gold), re.sub(r"([+=])", r"~\1 \\ ", gold))
        typed = re.sub(r"\\sqrt *\{(\d+|[a-z])\}|\\sqrt *(\d)(?!\d)", r"√\1\2", gold)
        typed = re.sub(r"\^\{?\\circ\}?", "°", typed)
        for command, sign in _TYPED.items():
            typed = re.sub(re.escape(command) + "(?![A-Za-z])", sign, typed)
        yield from boxed("Unicode", typed, re.sub(r"\^2(?!\d)|\^\{2\}", "²", gold))
    yield from boxed(
        "indices", re.sub(r"([_^])(\w)(?!\w)", r"\1{\2}", gold), re.sub(r"([_^])\{(\w)\}", r"\1\2 ", gold)
    )


def _brackets(gold: str) -> Iterator[Writing]:
    for before, after in (("left", "right"), ("bigl", "bigr"), ("Big", "Big"), ("big", "big")):
        bare = re.sub(r"\\(?:left|right)(?![a-z])", "", gold)
        if not re.search(r"text|\d_|matrix|\\\{", bare) and len(re.findall(r"[(\[]", bare)) == 1:
            opened = re.sub(r"[(\[]", rf"\\{before}\g<0>", bare)
            yield from boxed("brackets", re.sub(r"[)\]]", rf"\\{after}\g<0>", opened))


def _number(gold: str, random_: random.Random) -> Iterator[Writing]:
    number = gold.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})*(\.\d+)?", gold) else gold
    if found := _SCIENTIFIC.fullmatch(number):
        digits, power = found[1], int(found[2])
        times = (rf"{digits} \times 10^{{{power}}}", rf"{digits}\cdot 10^{{{power}}}", f"{digits}*10^{power}")
        raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        yield from boxed(
            "power of ten", *times, f"{digits}E{power}", f"{digits}×10{raised}", f"{digits} x 10^{{{power}}}"
        )
        yield from boxed("power of ten", rf"{digits}\times{{10}}^{{{power}}}", f"{float(number):.12g}")
        number = times[0]
    elif not _NUMBER.fullmatch(number):
        return
    elif number.lstrip("-").isdigit():
        yield from boxed("integer", f"{number}.0", f"+{number}" if number[0] != "-" else number, f"\\text{{{number}}}")
        if len(number.lstrip("-")) > 3:
            comma = f"{int(number):,}"
            yield from boxed("thousands", *(comma.replace(",", by) for by in (",", "{,}", r"\,", r",\!", " ", r"\ ")))
    yield from boxed("unit", *(number + unit for unit in random_.sample(_UNITS, 4)))
    names = random_.sample(_NAMES, 4)
    yield from boxed("name", *(f"{name} = {number}" for name in names), rf"x \approx {number}", f"x={number}.")
    yield from boxed(
        "name", f"\\text{{Area}} = {number}", f"v_{{\\text{{max}}}} = {number}", rf"\frac{{AB}}{{CD}}={number}"
    )
    yield "plain text", f"\\boxed{{{number}}} units"
    if "e" not in gold and 0 < abs(float(gold.replace(",", ""))) < 1 and len(gold) < 5:
        yield from boxed("percent", rf"{float(gold) * 100:.6g}\%", f"{float(gold) * 100:.6g}\\text{{ percent}}")


def _fraction(gold: str, random_: random.Random) -> Iterator[Writing]:
    if not (found := _FRACTION.fullmatch(gold)):
        return
    sign, top, bottom = found.groups()
    value = Fraction(int(top), int(bottom))
    if value > 1:
        rest = value - int(value)
        mixed = rf"{sign}{int(value)}\frac{{{rest.numerator}}}{{{rest.denominator}}}"
        yield from boxed("mixed", mixed if rest else gold)
    exact = f"{float(value):.10g}"
    relation = "=" if Fraction(exact) == value else random_.choice((r"\approx", "≈", r"\simeq"))
    rounded = f"{gold} {relation} {sign}{exact[:9]}"
    yield from boxed("approximation", rounded, f"x = {rounded}")


def _constant(gold: str, random_: random.Random) -> Iterator[Writing]:
    found = _CONSTANT.fullmatch(gold)
    if not found or not (found[3] or found[4]):
        return
    sign, factor, root, circle, bottom = found.groups()
    value = int(factor or 1) * (pi if circle else sqrt(int(root))) / int(bottom or 1)
    yield from boxed("approximation", *(rf"{gold} \approx {sign}{value:.{digits}f}" for digits in (2, 4)))
    rounded = f"{sign}{value:.3f}"
    yield from boxed("approximation", rf"d = {gold} \approx {rounded}\text{{ cm}}", rf"{gold} ≈ {rounded}")
    part = "pi" if circle else f"sqrt({root})"
    text = f"{sign}{factor + '*' if factor else ''}{part}{'/' + bottom if bottom else ''}"
    yield from boxed("plain text", text)
    tex = r"\pi" if circle else rf"\sqrt{{{root}}}"
    if bottom:
        yield from boxed(
            "fraction", rf"{sign}\frac{{{factor or 1}}}{{{bottom}}}{tex}", f"{sign}{factor}{tex}/{bottom}"
        )
    yield from boxed("product", rf"{sign}{factor} \cdot {tex}" if factor and not bottom else gold)
    yield from boxed("unit", rf"{gold}\text{{ cm}}^2", rf"{gold} \text{{ square units}}")


def _interval(gold: str, random_: random.Random) -> Iterator[Writing]:
    bare = re.sub(r"\\(?:left|right)(?![a-z])|x\s*\\in(?![a-z])", "", gold).strip()
    pieces = [_INTERVAL.fullmatch(piece.strip()) for piece in re.split(r"\\cup", bare)]
    if not all(pieces) or not (r"\infty" in gold or "[" in gold or "]" in gold or "cup" in gold):
        return
    yield from boxed(
        "set",
        rf"x \in {bare}",
        bare.replace(r"\cup", r" \cup\ "),
        bare.replace(r"\infty", r"+\infty").replace("-+", "-"),
    )
    yield from boxed("set", rf"\{{x \mid x \in {bare}\}}" if len(pieces) > 1 else gold)
    statements, swapped = [], []
    for piece in pieces:
        assert piece
        opening, low, high, closing = (part.strip() for part in piece.groups())
        below, above = ("<" if opening == "(" else r"\le", "<" if closing == ")" else r"\leq")
        if r"\infty" in low and r"\infty" in high:
            return
        if r"\infty" in low:
            statements.append(f"x {above} {high}")
            swapped.append(f"{high} {above.replace('<', '>').replace('leq', 'geq')} x")
        elif r"\infty" in high:
            statements.append(f"x {below.replace('<', '>').replace('le', 'ge')} {low}")
            swapped.append(f"{low} {below} x")
        else:
            statements.append(f"{low} {below} x {above} {high}")
            swapped.append(statements[-1].replace(r"\leq", "≤").replace(r"\le ", "≤"))
    yield from boxed("inequality", *(r" \text{ or } ".join(side) for side in (statements, swapped)))
    yield from boxed("inequality", " or ".join(statements))
    if len(pieces) > 1:
        yield from boxed("set", r" \cup ".join(piece[0] for piece in reversed(pieces) if piece))


def _listed(gold: str, random_: random.Random) -> Iterator[Writing]:
    """Several values, in any order; a tuple keeps its own."""
    parts = [part.strip() for part in re.sub(r",?\s*\\text\s*\{,? *and *\}|\\ ", ",", gold).split(",")]
    if len(parts) < 2 or re.search(r"[(\[\]=]|matrix|\\text|\d,\d{3}|\\\{", gold) or not all(parts):
        return
    if len(set(parts)) == len(parts):  # a list with repetitions has no other order that is plainly the same
        turned = parts[1:] + parts[:1]
        yield from boxed("list", ", ".join(turned), rf"\{{{','.join(turned)}\}}", rf"x = {', '.join(parts)}")
        yield "several boxes", "They are " + " and ".join(f"$\\boxed{{{part}}}$" for part in parts)
    first, last = ", ".join(parts[:-1]), parts[-1]
    yield from boxed("list", ",".join(parts), f"{first} and {last}", rf"\left\{{{first}, {last}\right\}}")
    yield from boxed("list", rf"{first}\text{{ and }}{last}", f"{first}, and {last}")
    if len(parts) == 2:
        yield from boxed("list", rf"x={parts[0]} \text{{ or }} x={parts[1]}", f"{parts[0]} or {parts[1]}")


def _equation(gold: str, random_: random.Random) -> Iterator[Writing]:
    if gold.count("=") != 1 or re.search(r",|text|\\[lg]e", gold):
        return
    left, right = (side.strip() for side in gold.split("="))
    yield from boxed("equation", f"{right} = {left}", f"{left} - ({right}) = 0", f"0 = {left} - ({right})")
    if re.fullmatch("[A-Za-z]", left):
        yield from boxed("equation", right)
    else:
        yield from boxed("equation", f"2({left}) = 2({right})", f"-({left}) = -({right})")
    if "MR" in gold or "LR" in gold or "SR" in gold:
        yield from boxed("equation", rf"\text{{{left}}} = \text{{{right}}}", rf"\mathrm{{{right}}} = {left}")
    leibniz = re.sub(r"([a-z])\^\{\\prime\}", r"\\frac{d\1}{dt}", gold)
    dotted = re.sub(r"\\d?frac\{d ?(\w)\}\{d ?t\}", r"\\dot{\1}", gold)
    yield from boxed("derivatives", leibniz, dotted, gold.replace(r"^{\prime}", "'"))


def _expression(gold: str, random_: random.Random) -> Iterator[Writing]:
    """Sums, products and powers."""
    is_other = re.search(r"[=<>,_]|text|mbox|matrix|\\pm|\\cup|\\[lg]e|\\in|\\%|\\\$|:|\.$", gold)
    if is_other or not re.search("[a-z]", gold) or _SCIENTIFIC.fullmatch(gold):
        return
    terms = re.findall(r"[+-]?[^+-]+", gold) if not re.search(r"[({\[].*[+-]", gold) else []
    if len(terms) > 1:
        signed = [term.strip() if term.strip()[0] in "+-" else f"+{term.strip()}" for term in terms]
        yield from boxed(
            "sum", "".join(reversed(signed)).removeprefix("+"), f"({gold})", "".join(signed[1:] + signed[:1])
        )
    yield from boxed(
        "product", re.sub(r"(?<=\d) *(?=\\sqrt|\\pi|[a-z](?![a-z]))", r"\\cdot ", gold) if "frac" not in gold else gold
    )
    yield from boxed("product", re.sub(r"(?<=\d) *(?=[a-z](?![a-z]))", "*", gold) if "{" not in gold else gold)
    if "\\" not in gold:
        yield from boxed("plain text", gold.replace("^", "**"), f"\\text{{{gold}}}")
    yield from boxed(
        "functions", re.sub(r"\\exp\{([^{}]*)\}", r"e^{\1}", gold), re.sub(r"e\^\{([^{}]*)\}", r"\\exp(\1)", gold)
    )
    yield from boxed("functions", re.sub(r"\\(sin|cos|tan|cot|ln) *([a-z])(?![a-z(])", r"\\\1{\2}", gold))
    yield from boxed("name", f"y(t) = {gold}", rf"\lambda = {gold}", f"E_{{0}} = {gold}")


def key(gold: str) -> str | Fraction:
    """Equal for golds that say the same: without dress, unit and name, numbers by their value."""
    text = re.sub(r"\\(?:left|right|,|!|;|displaystyle)(?![a-z])|\\\$|\$|~", "", gold)
    if re.search(r"\d", text):  # a word behind a number is its unit, anything else the answer itself
        text = re.sub(r"(?<=[\d})])\s*\\(?:text|mbox|mathrm)\s*\{[^{}\d]*\}(?:\^\{?\d\}?)?", "", text)
    text = re.sub(r"\\[dtc]?frac *(\w) *(\w)", r"\\frac{\1}{\2}", re.sub(r"\\[dtc]frac", r"\\frac", text))
    text = re.sub(r"\\text(?:bf)?\s*\{\(?([^{}]*?)\)?\}", r"\1", text)
    text = re.sub(r"\\sqrt *(\d)", r"\\sqrt{\1}", re.sub(r"\^\{?\\circ\}?|_\{?\d+\}?$", "", text))
    text = re.sub(r"^\w+(?:\(x\))?=|[\s.]+$|^\(([A-Z])\)$", r"\1", re.sub(r"\s", "", text).replace("{,}", ","))
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    mixed = re.fullmatch(r"(-?)(\d*)\\frac\{(\d+)\}\{(\d+)\}", text)
    if mixed:
        return (-1 if mixed[1] else 1) * (int(mixed[2] or 0) + Fraction(int(mixed[3]), int(mixed[4])))
    try:
        return Fraction(text.removesuffix(r"\%")) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        return ",".join(sorted(text.casefold().split(","))) if not re.search(r"[(\[]", text) else text


def others(golds: list[str], count: int, random_: random.Random) -> Iterator[tuple[str, str]]:
    """(gold, another problem's gold that says something else): half look most alike, half are drawn at random."""
    different = {key(gold): gold for gold in golds}
    for own, gold in different.items():
        rest = [other for other in different if other != own]
        matcher = SequenceMatcher(None, "", str(own), autojunk=False)
        likeness = {}
        for other in rest:
            matcher.set_seq1(str(other))
            likeness[other] = matcher.quick_ratio()
        alike = sorted(rest, key=lambda other: -likeness[other])[: count // 2]
        drawn = random_.sample(rest, min(len(rest), count - len(alike)))
        yield from ((gold, different[other]) for other in dict.fromkeys([*alike, *drawn]))


@dataclass(frozen=True)
class Case:
    """One grade that is asked for, and whether it should be right."""

    kind: str
    gold: str
    completion: str
    expected: bool


def cases(questions: list[Question], golds: int, count: int) -> list[Case]:
    """Of one data set; `golds` different ones at most."""
    random_ = random.Random(0)
    different = list(dict.fromkeys(question.gold for question in questions))
    chosen = different if len(different) <= golds else random_.sample(different, golds)
    found = [Case(kind, gold, text, True) for gold in chosen for kind, text in rewritings(gold, random_)]
    pairs = others(chosen, count, random_)
    return found + [Case("another gold", gold, f"\\boxed{{{other}}}", False) for gold, other in pairs]


def read(path: Path) -> list[Question]:
    if task := TASKS.get(path.stem):
        return task.read(path.parent)[0]
    with path.open(encoding="utf-8") as lines:
        return [columns("problem", "answer")(json.loads(line)) for line in lines if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Grade re-writings of real gold answers, and other golds.")
    parser.add_argument("folder", type=Path, help="of .jsonl files")
    parser.add_argument("--golds", type=int, default=400, help="different gold answers of each file (%(default)s)")
    parser.add_argument("--others", type=int, default=8, help="other golds for each (%(default)s)")
    parser.add_argument("--grades", type=Path, help="write every grade to this .jsonl file, misses first")
    options = parser.parse_args()
    paths = sorted(options.folder.glob("*.jsonl"))
    if not paths:
        parser.error(f"{options.folder}: no .jsonl file is there")
    counts: Counter[tuple[str, bool, bool]] = Counter()  # data set, expected, grade
    graded = []
    with new_grader() as grader:
        for path in paths:
            asked = cases(read(path), options.golds, options.others)
            for first in tqdm(range(0, len(asked), _AT_A_TIME), desc=path.stem, file=sys.stderr):
                batch = asked[first : first + _AT_A_TIME]
                for case, grade in zip(batch, grader.grade([c.completion for c in batch], [c.gold for c in batch])):
                    counts[path.stem, case.expected, grade.correct] += 1
                    graded.append({"set": path.stem, "right": grade.correct, "error": grade.error, **vars(case)})
    if options.grades:
        graded.sort(key=lambda one: (one["right"] == one["expected"], not one["expected"]))
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in graded]
        options.grades.write_text("".join(lines), encoding="utf-8")
    print(f"{'':12} {'re-writings right':>22} {'other golds right':>22}")
    for name in [*(path.stem for path in paths), "all"]:
        sets = [path.stem for path in paths] if name == "all" else [name]
        shares = []
        for expected in (True, False):
            right = sum(counts[one, expected, True] for one in sets)
            total = right + sum(counts[one, expected, False] for one in sets)
            shares.append(f"{right}/{total} {100 * right / max(total, 1):.2f} %")
        print(f"{name:12} {shares[0]:>22} {shares[1]:>22}")


if __name__ == "__main__":
    main()
