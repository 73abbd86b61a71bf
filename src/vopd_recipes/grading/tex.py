r"""One TeX for the many writings of an answer: what a model types, what data sets have, what Unicode offers.

`normalized` puts them into the commands that the rest of grading knows: `√51` is `\sqrt{51}`, `4.5×10³³` is
`4.5\times 10^{33}`, `10 000` is `10000`, `**5**` and `\[5\]` are `5`. It changes no value and drops no unit. Patterns
over text of a bounded length, none of which can be made to take long.
"""

from __future__ import annotations

import re

from vopd_recipes.grading.boxes import closing_brace

WRAPPER = r"\\(?:text(?:bf|rm|it|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|boldsymbol|bm|pmb|underline|[mh]box|emph|rm)\s*"
_WHOLE_WRAPPER = re.compile(WRAPPER + r"(?=\{)")
_DELIMITERS = ((r"\[", r"\]"), (r"\(", r"\)"), ("$$", "$$"), ("$", "$"), ("**", "**"), ("*", "*"), ("`", "`"))

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
    "upsilon phi chi psi omega"
)
GREEK = "|".join([*_GREEK.split(), "varepsilon", "vartheta", "varphi"])
_COMMANDS = {
    **{chr(0x3B1 + place): name for place, name in enumerate(_GREEK.split())},
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
    "\u2126": "Omega", "\u00b5": "mu", "ϕ": "phi", "ℏ": "hbar", "∞": "infty", "∪": "cup", "∩": "cap", "∈": "in",
    "∅": "emptyset",
    "±": "pm", "×": "times", "·": "cdot", "⋅": "cdot", "∙": "cdot", "÷": "div", "≤": "le", "⩽": "le", "≥": "ge",
    "⩾": "ge", "≠": "ne", "≈": "approx", "≃": "approx", "≡": "equiv", "∠": "angle", "△": "triangle",
    "∂": "partial", "∫": "int", "\u00c5": "mathring{A}", "\u212b": "mathring{A}",
}  # fmt: skip
_SIGNS = str.maketrans(
    {
        **{sign: f"\\{name} " for sign, name in _COMMANDS.items()},
        **{chr(place): "-" for place in (0x2212, 0x2010, 0x2011, 0x2013, 0xFF0D)},
        **{chr(place): " " for place in (0xA0, 0x2009, 0x202F, 0x2002, 0x2003, 0x2007, 0x3000)},
        **{half: rf"\frac{{{top}}}{{{bottom}}}" for half, top, bottom in ("½12", "⅓13", "⅔23", "¼14", "¾34", "⅕15")},
        "°": r"^\circ ", "′": "'", "’": "'", "ℝ": r"\mathbb{R}", "∣": "|",
    }
)  # fmt: skip
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉"
_LEVEL = str.maketrans(_RAISED + _LOWERED, "0123456789+-n0123456789")
_SCRIPTS = re.compile(f"[{_RAISED}]+|[{_LOWERED}]+")
_SCALES = {"percent": r"\%", "thousand": r"\times10^{3}", "million": r"\times10^{6}", "billion": r"\times10^{9}"}
_SIMPLE = re.compile(r"[+-]?(?:[0-9]+(?:,[0-9]{3})*)?(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_FULL_STOP = re.compile(r"(?<![\s\\])\s*[.,;]+$")

_FUNCTIONS = "(?:arc)?(?:sin|cos|tan|cot)|(?:sin|cos|tan)h|sqrt|exp|ln|log|csc"
_TYPED_ROOT = re.compile(r"(?:\\|(?<![A-Za-z0-9_.])np\.|(?<![A-Za-z\\]))sqrt\s*\(|[()\[\]]")


def _repeating(found: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as the fraction that it is."""
    whole, first, period = found.groups()
    top = int(whole + first + period) - int(whole + first)
    return rf"\frac{{{top}}}{{{(10 ** len(period) - 1) * 10 ** len(first)}}}"


_REWRITING = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r",\\!\s*(?=[0-9])", ","),
        (r"(?<!\\)\\(?:!|[,;:](?=[0-9]))|\{(?=,\})|(?<=\{,)\}|\\displaystyle(?![A-Za-z])", ""),
        (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|[-+])", ""),
        (r"\\[Bb]igg?[lrm]?(?![A-Za-z])|\\(?:left|right)(?![A-Za-z])(?:\s*\.(?![0-9]))?", ""),
        (r"(?<!\\)\\[,;: ]|~", " "),
        (r"(?<!\\)\\$", ""),  # half of a space at the end
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\\(?!frac|sqrt)[A-Za-z]+|[0-9A-Za-z])(?=\s*[\\{0-9A-Za-z])", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\\(?!frac|sqrt)[A-Za-z]+|[0-9A-Za-z])", r"\1{\2}"),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"(?<![A-Za-z0-9_.])np\.(?=[a-z])", r"\\"),
        (rf"{WRAPPER}\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (rf"(?<![A-Za-z\\])({_FUNCTIONS})(?=\s*[({{^_\\0-9]|\s+[A-Za-z](?![A-Za-z]))", r"\\\1 "),
        (r"(?<![0-9A-Za-z_.])([0-9]{1,12})\.([0-9]{0,12})\\(?:overline|bar)\s*\{([0-9]{1,12})\}(?!_)", _repeating),
        (r"(?<![0-9A-Za-z_.\\])[0-9]{1,3}(?:\\?_[0-9]{3})+(?![0-9_{])", lambda found: re.sub(r"\\?_", "", found[0])),
        (r"\\varnothing(?![A-Za-z])|^\\\{\s*\\\}$", r"\\emptyset"),
        (r"\\([pb]?mod)\s*([0-9]+|[A-Za-z](?![A-Za-z]))", r"\\\1{\2}"),
        (r"\(\s*(?:\\text\s*\{\s*mod\s*\}|\\?mod(?![A-Za-z]))\s*\{?([0-9]+|[A-Za-z])\}?\s*\)", r"\\pmod{\1}"),
        (r"\*\*", "^"),
        (r"√\s*(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[A-Za-z]))", r"\\sqrt{\1\2}"),
        (r"√\s*(?=\{)", r"\\sqrt"),
        (rf"\\sqrt\s*([0-9]+|\\(?:{GREEK})(?![A-Za-z]))", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])(pi|infty|infinity)(?![A-Za-z])", r"\\\1 "),
        (r"\\infinity", r"\\infty"),
        (r"\\degrees?(?![A-Za-z])", r"^\\circ"),
        (
            r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|\\prime(?![A-Za-z]))",
            lambda found: "'" * max(1, (found[1] or "").count("p")),
        ),
        (WRAPPER + r"\{\s*([0-9]+)\s*\}", r"\1"),
        (WRAPPER + r"\{\s*(\\mathring\s*\{\s*A\s*\})\s*\}", r" \1"),
        (r"^\(([0-9A-Z]+(?:\.[0-9A-Z]+)?)\)(?=_\{?[0-9])", r"\1"),
        (r"(?<=[0-9])\.(?=[/*+\-^)}\s,]|$)", ""),  # -3./2
        (r"(?<![0-9.,/^_])([0-9]{1,3}(?: [0-9]{3})+)(?![0-9/]|,[0-9])", lambda found: found[1].replace(" ", "")),
        (r"\\(?:approx|simeq|thickapprox|sim|approxeq|doteq)(?![A-Za-z])", r"\\approx"),
        (r"\\leq?(?:slant)?(?![A-Za-z])|<=|\\leqq", r"\\le "),
        (r"\\geq?(?:slant)?(?![A-Za-z])|>=|\\geqq", r"\\ge "),
        (r"\\neq?(?![A-Za-z])|!=", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"^\s*(?:=|\\approx(?![A-Za-z]))", ""),
        (r"^(?:[A-Za-z]\s*=)?\s*\\pm(?![A-Za-z])([^,=]+)$", r"\1,-\1"),
        (r"^(\s*[+-]?[0-9]+) ([0-9]+)/([0-9]+)\s*$", r"\1\\frac{\2}{\3}"),
        (r"(?<![A-Za-z])([apAP])\.\s?[mM](?:\.|(?![A-Za-z]))", r"\1m"),
    )
]
_SCALE = re.compile(rf"(?<=[0-9}}\s])\s*(?:{WRAPPER}\{{\s*)?(?<![A-Za-z\\])({'|'.join(_SCALES)})s?(?![A-Za-z])\s*\}}?")


def unwrap(text: str) -> str:
    r"""The content of a `\text{…}`, `\mathbf{…}`, `\underline{…}`, … that is around the whole text."""
    wrapper = _WHOLE_WRAPPER.match(text)
    if wrapper and closing_brace(text, wrapper.end()) == len(text) - 1:
        return text[wrapper.end() + 1 : -1].strip()
    return text


def undressed(text: str) -> str:
    """Without the delimiters, bold face and full stop around the whole text."""
    text = text.strip()
    while True:
        before = text
        for opening, closing in _DELIMITERS:
            inner = text[len(opening) : len(text) - len(closing)]
            if len(inner) > 0 and text.startswith(opening) and text.endswith(closing) and opening not in inner:
                text = inner.strip()
        text = unwrap(text[:-9] + _FULL_STOP.sub("", text[-9:]))
        if text == before:
            return text


def normalized(text: str) -> str:
    r"""The answer in commands that the rest of grading knows, with its units, names and relations.

    `2 1/3` becomes a mixed fraction, `\pm 3` two numbers, `5 million` a power of ten.
    """
    if _SIMPLE.fullmatch(text):  # most answers, and nothing to do
        return text.removesuffix(".")
    if not text.isascii():
        text = _SCRIPTS.sub(_script, text).translate(_SIGNS)
    text = undressed(text)
    text = text.strip("$").strip() if not text.endswith(r"\$") else text
    text = _typed_roots(text) if "sqrt" in text else text
    for pattern, replacement in _REWRITING:
        text = pattern.sub(replacement, text)
    return _SCALE.sub(lambda scale: _SCALES[scale[1]], text).strip()


def _typed_roots(text: str) -> str:
    r"""`sqrt(2 + sqrt(3))` with commands and braces, where every bracket is closed."""
    pieces: list[str] = []
    opened: list[bool] = []
    last = 0
    for mark in _TYPED_ROOT.finditer(text):
        sign = mark[0]
        if sign in ")]":
            sign = "}" if opened and opened.pop() else sign
        else:
            opened.append(len(sign) > 1)
            sign = r"\sqrt{" if len(sign) > 1 else sign
        pieces += [text[last : mark.start()], sign]
        last = mark.end()
    return text if opened else "".join([*pieces, text[last:]])


def _script(found: re.Match[str]) -> str:
    return f"{'^' if found[0][0] in _RAISED else '_'}{{{found[0].translate(_LEVEL)}}}"
