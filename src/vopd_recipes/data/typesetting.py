r"""One spelling for mathematics that is typed in many: what `words` reads.

`\dfrac12`, `\frac 1 2` and `\frac{1}{2}`; `1,000,000`, `1{,}000{,}000` and `1000000`; `30^\circ` and `30°`; `\leq` and
`≤`; `\log_264` and `\log_{2}64`; `\pmod{6}` and `(mod 6)`; `\ldots`, `...` and `…`: two copies of a problem differ in
these more often than in a word. Nothing is parsed; the result is no LaTeX and is only ever compared.
"""

from __future__ import annotations

import re
import unicodedata

_LAYOUT = """
left right big Big bigg Bigg bigl bigr Bigl Bigr middle displaystyle textstyle limits quad qquad text textbf
textit textrm mathrm mathbf mathbb mathcal mathit mathsf operatorname mbox boldsymbol rm bf it mid vert lvert
rvert prime dots ldots cdots dotsc dotsb dotsm dotsi dotso vdots ddots
"""
# Command → what is compared in its place; a command that is not listed is its own name.
_COMMANDS = {
    **dict.fromkeys(_LAYOUT.split(), " "),
    **dict.fromkeys(("cdot", "times", "ast"), " * "),
    "div": " / ",
    "leq": " le ",
    "leqslant": " le ",
    "geq": " ge ",
    "geqslant": " ge ",
    "neq": " ne ",
    "rightarrow": " to ",
    **dict.fromkeys(("dbinom", "tbinom"), " binom "),
    **dict.fromkeys(("bmod", "pmod"), " mod "),
    "varnothing": " emptyset ",
    "triangle": " triangle ",
    **dict.fromkeys(("degree", "degrees", "textdegree"), " degrees "),
}
_NAMED_SIGNS = {
    "°": "degrees", "º": "degrees", "√": "sqrt", "∠": "angle", "≤": "le", "⩽": "le", "≥": "ge", "⩾": "ge", "≠": "ne",
    "∞": "infty", "∈": "in", "∉": "notin", "∪": "cup", "∩": "cap", "⊂": "subset", "⊆": "subseteq", "∑": "sum",
    "∏": "prod", "∫": "int", "→": "to", "±": "pm", "∓": "mp", "≡": "equiv", "≈": "approx", "≅": "cong", "∼": "sim",
    "△": "triangle", "▵": "triangle", "∆": "delta", "⊥": "perp", "∥": "parallel", "⌊": "lfloor", "⌋": "rfloor",
    "⌈": "lceil", "⌉": "rceil", "⟨": "langle", "⟩": "rangle", "∘": "circ", "∅": "emptyset", "∀": "forall",
    "∃": "exists", "∂": "partial", "∇": "nabla", "µ": "mu", "ϕ": "phi", "ϵ": "epsilon", "ς": "sigma",
    "\u2212": "-", "\u2013": "-", "\u207b": "-", "\u208b": "-", "\u207a": "+", "\u208a": "+",
    "\u00d7": "*", "\u22c5": "*", "\u00b7": "*", "\u2219": "*", "\u00f7": "/", "\u2215": "/",
}  # fmt: skip
_GREEK = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma tau upsilon
phi chi psi omega
"""


def _sign_table() -> dict[int, str]:
    table = {ord(sign): f" {name} " for sign, name in _NAMED_SIGNS.items()}
    for place, name in enumerate(_GREEK.split()):  # the gap after rho is the final sigma, in capitals nothing
        table |= {ord("α") + place: f" {name} ", ord("Α") + place: f" {name} "}
    for code in (*range(0xBC, 0xBF), *range(0x2150, 0x215F)):  # ½: 2½ must not become 21/2
        above, _, below = unicodedata.normalize("NFKC", chr(code)).partition("\u2044")
        table[code] = rf" \frac{{{above}}}{{{below}}} "
    return table


_SIGNS = _sign_table()
_RAISED = re.compile(r"[\u00b2\u00b3\u00b9\u2070-\u2079]+")  # 10² is not 102
_LONG_RUN = re.compile(r"([^\w\s\x00-\x7f]{30})[^\w\s\x00-\x7f]+")
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\}|\{\\,\}|,?\\[,!;]|[\u2009\u202f])\d{3})+(?!\d|,\d)")
_NO_DIGIT = re.compile(r"[^0-9]+")
_CIRCLE = r"(?:\\circ(?![A-Za-z])|\\degrees?(?![A-Za-z])|[\u2218\u00b0])"
_DEGREES = re.compile(rf"\^\s*(?:{_CIRCLE}|\{{\s*{_CIRCLE}\s*\}})")
_BARE = r"\s*([0-9]|[A-Za-z]|\\[A-Za-z]+)"  # an argument without braces: one character or command
_ABOVE = re.compile(r"\\[dtc]?frac(?![A-Za-z])" + _BARE)
_BELOW = re.compile(r"\\[dtc]?frac\s*\{([^{}]{0,200})\}" + _BARE)
_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_ROOT = re.compile(r"\\sqrt\s*(\d)")
_SCRIPT = re.compile(r"([_^]\s*[0-9A-Za-z])(?=[0-9A-Za-z])")  # one character without braces
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{(?:align|aligned|equation|gather|multline|split|center)\*?\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_RELATION = re.compile(r"[<>!]=")
_RELATIONS = {"<=": " le ", ">=": " ge ", "!=": " ne "}
_FIGURE = re.compile(r"\[asy\](?:(?!\[asy\]).)*?\[/asy\]", re.DOTALL | re.IGNORECASE)


def without_figures(text: str) -> str:
    """The text without its Asymptote figures, which many copies of a problem leave out."""
    return _FIGURE.sub(" ", text) if "asy]" in text.lower() else text


def nfkc(text: str) -> str:
    """Compatibility forms (ligatures, full width, mathematical letters) in their plain spelling.

    Runs of marks and signs are cut to 30, as Unicode's stream-safe format has it: normalising takes time quadratic in
    the length of a run of combining marks, minutes for a hostile megabyte.
    """
    return text if text.isascii() else unicodedata.normalize("NFKC", _LONG_RUN.sub(r"\1", text))


def one_spelling(text: str) -> str:
    """The text with its mathematics in one spelling."""
    if "," in text or not text.isascii() or "\\" in text:
        text = _GROUPS.sub(lambda found: _NO_DIGIT.sub("", found[0]), text)
    if "^" in text:
        text = _DEGREES.sub(" degrees ", text)
    if not text.isascii():
        text = nfkc(_RAISED.sub(r" \g<0> ", text).translate(_SIGNS))
    if "\\" in text:
        text = _BELOW.sub(r"\\frac{\1} \2 ", _ABOVE.sub(r"\\frac{\1}", text))
        text = _FRACTION.sub(r"\\frac", text)
        text = _SCRIPT.sub(r"\1 ", _ROOT.sub(r"\\sqrt \1 ", _ENVIRONMENT.sub(" ", text)))
        text = _COMMAND.sub(lambda found: _COMMANDS.get(found[1], f" {found[1]} "), text)
    if "=" in text:
        text = _RELATION.sub(lambda found: _RELATIONS[found[0]], text)
    return text
