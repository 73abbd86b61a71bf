"""The process in which math-verify compares two answers; `grading.py` starts it, talks to it and kills it.

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
from typing import Any, NoReturn

_WORKER_BYTES = 4 << 30
_NUMERAL = re.compile(r"[0-9.]+(?:[eE][+-]?[0-9]+)?")  # what latex2sympy hands to sympy.Number
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
    compare("1+x^2", "x^2+1")  # the parser builds its tables at the first use
    os.write(replies, b"R")
    for line in sys.stdin.buffer:
        answer, gold, timeout = json.loads(line)
        # The parent kills a late worker. Should it be gone, the kernel does, after this much processor time.
        signal.setitimer(signal.ITIMER_PROF, timeout + 1)
        os.write(replies, b"1" if compare(answer, gold) else b"0")


def _load_math_verify() -> Callable[[str, str], bool]:
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy.core import cache, random

    _forbid_code()
    _compare_significant_digits()
    # Units are gone before: math-verify's own way takes the t of `\\frac{1}{m} t` for tons.
    config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=_normalization())]

    def compare(answer: str, gold: str) -> bool:
        # No verdict may depend on what this worker compared before: empty caches, same random numbers.
        cache.clear_cache()
        random.seed(0)
        # A limit of 0 switches SIGALRM off: the parent has the clock. first_match: the whole box or nothing.
        options = {"extraction_config": config, "extraction_mode": "first_match", "parsing_timeout": 0}
        expected = parse("$" + " ".join(gold.replace("\\$", "").replace("$", "").split()) + "$", **options)
        return verify(expected, parse("\\boxed{" + answer + "}", **options), timeout_seconds=0)

    return compare


def _normalization() -> Any:
    from latex2sympy2_extended.math_normalization import NormalizationConfig

    return NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=True
    )


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
