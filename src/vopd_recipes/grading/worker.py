"""The process in which math-verify compares two answers; `grader.py` starts it, talks to it and kills it.

Run as a plain script that reads JSON lines and writes single bytes: R when ready, then 1 or 0. It imports neither this
package nor torch and is ready in about a second.

Model output must not become code, and sympy does run text as Python. math-verify's ExprExtractionConfig passes text
to `parse_expr`, which evals: it is not used. LatexExtractionConfig alone is no protection, though: latex2sympy makes
its numbers by `sympy.Number("12")`, which is `parse_expr` again, and lambdify, which evalf uses for an infinite sum,
pastes the names of symbols into source: a boxed sum over a symbol with a crafted name ran a shell command (math-verify
0.5.2, sympy 1.14; the test has it). The worker shuts both doors before the first answer comes.

math-verify compares decimals after rounding to six places *behind the point*, so that 2e-19 and 1e-19 are equal. Here
six significant digits must agree, wherever the point stands.
"""

import importlib
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from random import Random
from typing import Any, NoReturn

_WORKER_BYTES = 4 << 30
_NUMERAL = re.compile(r"[0-9.]+(?:[eE][+-]?[0-9]+)?")  # what latex2sympy hands to sympy.Number
_ROUGH = 0.05  # relative: between two sides of an answer that says "approximately"
_SIGNED = (-1, -2, -3, -4)  # points whose coordinates have either sign
_ROUNDED, _EXACT = "5e-6", "1e-20"  # relative: where a decimal is written, and where none is (30 digits are computed)


def serve() -> None:
    """The worker's life: compare what arrives on stdin until it ends, which it does when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a verdict that nobody waits for: end without a word
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = _WORKER_BYTES if hard == resource.RLIM_INFINITY else min(_WORKER_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    replies, sys.stdout = sys.stdout.fileno(), None  # math-verify prints what it cannot parse
    compare = _load_math_verify()
    compare(["1+x^2"], "x^2+1", False, [])  # the parser builds its tables at the first use
    os.write(replies, b"R")
    for line in sys.stdin.buffer:
        *asked, timeout = json.loads(line)
        # The parent kills a late worker. Should it be gone, the kernel does, after this much processor time.
        signal.setitimer(signal.ITIMER_PROF, timeout + 1)
        os.write(replies, b"1" if compare(*asked) else b"0")


def _load_math_verify() -> Callable[[list[str], str, bool, list[str]], bool]:
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy.core import cache, random

    _forbid_code()
    _compare_significant_digits()
    # Units are gone before: math-verify's own way takes the t of `\\frac{1}{m} t` for tons.
    config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=_normalization())]

    # A limit of 0 switches SIGALRM off: the parent has the clock. first_match: the whole box or nothing.
    options = {"extraction_config": config, "extraction_mode": "first_match", "parsing_timeout": 0}

    def read(text: str) -> list[Any]:
        return _meaningful(parse("\\boxed{" + text + "}", **options))

    def equal(ours: list[Any], theirs: list[Any]) -> bool:
        verdict = _numeric_verdict(ours[0], theirs[0]) if ours and theirs else None
        if verdict is None:
            verdict = verify(theirs, ours, timeout_seconds=0)
        return verdict

    def agree(ours: list[list[Any]], expected: list[Any], is_rough: bool) -> bool:
        if not any(equal(side, expected) for side in ours):
            return False
        return all(equal(ours[0], side) or _is_rounded(ours[0], side, is_rough) for side in ours[1:])

    def compare(sides: list[str], gold: str, is_rough: bool, constants: list[str]) -> bool:
        # No verdict may depend on what this worker compared before: empty caches, same random numbers.
        cache.clear_cache()
        random.seed(0)
        expected = _meaningful(
            parse("$" + " ".join(gold.replace("\\$", "").replace("$", "").split()) + "$", **options)
        )
        ours = [read(side) for side in sides]
        if agree(ours, expected, is_rough):
            return True
        return bool(constants) and agree([*map(read, constants), *ours], expected, is_rough)

    return compare


def _normalization() -> Any:
    from latex2sympy2_extended.math_normalization import NormalizationConfig

    return NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=True
    )


def _meaningful(found: list[Any]) -> list[Any]:
    """Without what any nonsense may be read as: a truth value, an infinite fraction, an equation with a set."""
    import sympy

    def says_nothing(one: Any) -> bool:
        if isinstance(one, sympy.Eq):
            return any(isinstance(side, sympy.Set) for side in one.args)
        return one in (sympy.true, sympy.false, sympy.zoo, sympy.nan)

    found = [one if isinstance(one, str) else _with_named_derivatives(one) for one in found]
    return [one for one in found if isinstance(one, (str, sympy.MatrixBase)) or not says_nothing(one)]


def _with_named_derivatives(found: Any) -> Any:
    r"""`\frac{d(mv)}{dt}` as a symbol of its own: sympy holds m and v for constants, and it for 0."""
    import sympy

    if not hasattr(found, "atoms") or not hasattr(found, "xreplace"):
        return found
    names = {}
    for one in found.atoms(sympy.Derivative):
        if one.expr.free_symbols and not one.expr.free_symbols & set(one.variables):
            names[one] = sympy.Symbol("eta_" + re.sub(r"\W+", "_", str(one)), real=True)
    return found.xreplace(names) if names else found


def _numeric_verdict(ours: Any, theirs: Any) -> bool | None:
    """Equal or different at three points, for expressions, equations up to a factor and lists; None: cannot say."""
    import sympy

    if isinstance(ours, sympy.Eq) and isinstance(theirs, sympy.Eq):
        return True if _is_same_equation(ours, theirs) else None
    for kind in (sympy.FiniteSet, sympy.Tuple):
        if isinstance(ours, kind) and isinstance(theirs, kind) and len(ours) == len(theirs):
            return True if _match(list(ours.args), list(theirs.args), kind is sympy.Tuple) else None
    if not all(isinstance(side, sympy.Expr) and not side.is_Symbol for side in (ours, theirs)):
        return None
    if ours == theirs:
        return True
    if not (ours.free_symbols or theirs.free_symbols):
        return None  # numbers are math-verify's
    return _is_equal_at_points(ours, theirs)


def _match(ours: list[Any], theirs: list[Any], in_order: bool) -> bool:
    """Whether each has its own among the others."""
    for one in ours:
        found = [other for other in (theirs[:1] if in_order else theirs) if _is_equal_at_points(one, other)]
        if not found:
            return False
        theirs.remove(found[0])
    return True


def _is_equal_at_points(ours: Any, theirs: Any) -> bool | None:
    import sympy

    points = (
        _SIGNED if any(isinstance(side, sympy.Basic) and side.has(sympy.Abs) for side in (ours, theirs)) else range(3)
    )
    rounded = _ROUNDED if _has_decimals(ours) or _has_decimals(theirs) else _EXACT
    for point in points:  # one point can refute, all must confirm
        one, other = _at(ours, point), _at(theirs, point)
        if one is None or other is None:
            return None
        if not _is_near(one, other, float(rounded)):
            names = [{symbol.name for symbol in side.free_symbols} for side in (ours, theirs)]
            return False if names[0] == names[1] and not _is_near(one, other, 1e-3) else None
    return True


def _is_same_equation(ours: Any, theirs: Any) -> bool:
    """The differences of the sides have a constant ratio, or one that no derivative (eta_n) changes."""
    differences = [_exact(equation.lhs - equation.rhs) for equation in (ours, theirs)]
    names = [{symbol.name for symbol in side.free_symbols} for side in differences]
    derivatives = [{name for name in own if name.startswith("eta_")} for own in names]
    if derivatives[0] != derivatives[1] or any(side.is_zero for side in differences):
        return False
    ratios = []
    for point in range(4):
        first, second = (_at(side, point, derivatives[0] or names[0] | names[1]) for side in differences)
        if not first or not second:
            return False
        ratios.append(first / second)
    return all(_is_near(ratio, ratios[0], float(_EXACT)) for ratio in ratios[1:])


def _exact(expression: Any) -> Any:
    """With every decimal as the fraction that it spells: a rounded one would hide a small term beside a large one."""
    import sympy

    return expression.xreplace({number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)})


def _has_decimals(expression: Any) -> bool:
    import sympy

    return bool(expression.has(sympy.Float))


def _is_near(one: Any, other: Any, tolerance: float) -> bool:
    return bool(abs(one - other) <= tolerance * max(abs(one), abs(other)))


def _at(expression: Any, point: int, varied: set[str] | None = None) -> Any:
    """The value to 30 digits at one of some fixed points, `i` the imaginary unit; None where there is none.

    Coordinates are positive, as readers take those of physics, but at points below 0. Only the `varied` names differ
    between the points.
    """
    import sympy
    from sympy.core.function import AppliedUndef

    if not isinstance(expression, sympy.Expr) or expression.has(*_unbounded()):
        return None
    values = {}
    try:
        atoms = [*expression.atoms(sympy.Symbol), *expression.atoms(AppliedUndef)]
        for atom in atoms:
            name = str(atom)
            where = point if varied is None or name in varied else 0
            generator = Random(f"{name} {where}")
            values[atom] = sympy.I if name == "i" else sympy.Rational(generator.randint(300, 2700), 997)
            if point < 0 and (point + generator.randint(0, 1)) % 2:
                values[atom] *= -1
        value = expression.xreplace(values).evalf(30)
    except Exception:  # whatever sympy cannot do is no verdict
        return None
    return value if value.is_number and value.is_finite and _is_plain(value) else None


def _unbounded() -> tuple[Any, ...]:
    """What may take for ever to evaluate."""
    import sympy

    return (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative, sympy.factorial)


def _is_plain(value: Any) -> bool:
    import sympy

    return all(isinstance(part, (sympy.Float, sympy.Integer)) for part in value.as_real_imag())


def _is_rounded(ours: list[Any], theirs: list[Any], is_rough: bool) -> bool:
    r"""Whether one side of an answer is the other in fewer digits: `3\sqrt{13} \approx 10.82`."""
    if not ours or not theirs:
        return False
    first, second = _real(ours[0]), _real(theirs[0])
    if first is None or second is None or not (is_rough or _has_decimals(ours[0]) or _has_decimals(theirs[0])):
        return False
    return _is_near(first, second, _ROUGH)


def _compare_significant_digits() -> None:
    """Replaces math-verify's comparison of numbers, which it looks up for sets, intervals and matrices as well."""
    import sympy
    from math_verify import grader

    original = grader.sympy_numeric_eq

    def equal(ours: Any, theirs: Any, precision: int) -> bool:
        values = [_real(side) for side in (ours, theirs)]
        if None in values:
            return bool(original(ours, theirs, precision))
        rounded = ours.has(sympy.Float) or theirs.has(sympy.Float)
        tolerance = sympy.Float(_ROUNDED if rounded else _EXACT, 30)
        return bool(abs(values[0] - values[1]) <= tolerance * max(map(abs, values)))

    grader.sympy_numeric_eq = equal


def _real(expression: Any) -> Any:
    """The value of a finite real number to 30 digits; None for anything else."""
    import sympy

    if not isinstance(expression, sympy.Expr) or not expression.is_number:
        return None
    value = expression.evalf(30)
    return value if isinstance(value, sympy.Number) and value.is_finite else None


def _forbid_code() -> None:
    """Shuts sympy's two doors from text to Python, in this process, by taking names that its modules look up."""
    import sympy
    import sympy.physics.units  # simplify imports it later, and it makes its symbols from text

    def refuse(source: str, *rest: Any) -> NoReturn:
        # not NotImplementedError, at which evalf tries a way that may take hours
        raise RuntimeError("text is not run as code here")

    def number(text: str, **options: Any) -> Any:
        if _NUMERAL.fullmatch(text) is None:
            refuse(text)
        return sympy.Integer(text) if text.isdigit() else sympy.Float(text)

    vars(importlib.import_module("sympy.parsing.sympy_parser")).update(eval=refuse, parse_expr=number)
    # compile is lambdify's only way from text to code; its imports come first, and refusing them saves loading scipy
    vars(importlib.import_module("sympy.utilities.lambdify")).update(compile=refuse, _import=refuse)


if __name__ == "__main__":
    serve()
