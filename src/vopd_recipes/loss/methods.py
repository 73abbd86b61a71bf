r"""The table of methods: every estimator there is, its words in a recipe, its equation, what it needs of a teacher.

Whatever speaks of methods reads this table: the checks of recipes, `--explain`, the planner, reports, model cards, the
comparison of estimators, the live variances. A new estimator is its lines in `definition.py`, its lines in `fused.py`
and its row here; a word that is in no row is an error everywhere.

The gradient of the reward at a position, with the advantage A = r - b of a baseline b:

    sampled         A(y) ∇log p(y)
    rao_blackwell   Σ_{v∈S} p(v) A(v) ∇log p(v) + 1[y∉S] A(y) ∇log p(y)

Both take most of the baselines, so that A stands here once for each, in three spellings: text, HTML and LaTeX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# What an estimator must know of the teacher at a position: log q(y); log q on k tokens as well; all of q.
Needs = Literal["sampled", "support", "distribution"]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        name: of its recipes, its runs and its figures: `vopd_topk`.
        title: as tables have it; the paper's name where it has one.
        divergence: word of a recipe.
        baseline: word of a recipe; `none` where nothing is sampled.
        equation: gradient of the loss at a position, in a line. {reward}, {k}, {support}, {constant} and {beta} are
            the estimator's.
        html: the same for a page; no {reward}.
        latex: the same for a model card, with nothing to fill in.
        needs: of the teacher.
        samples: whether it depends on the sampled token, and so has a variance given the context.
        of_reverse_kl: whether it is a gradient of KL(p‖q), exact, noisy or biased, and not of another divergence.
        biased: whether its mean over y is another gradient than that divergence's.
        has_support: whether k tokens, the recipe's `support`, have a part in it.
        compared: the fields, besides its words, of each run in a comparison of methods.
    """

    name: str
    title: str
    divergence: str
    baseline: str
    equation: str
    html: str
    latex: str
    needs: Needs
    samples: bool = True
    of_reverse_kl: bool = True
    biased: bool = False
    has_support: bool = False
    compared: tuple[Mapping[str, Any], ...] = ({},)

    def __post_init__(self) -> None:
        if self.needs == "support" and not self.has_support:
            raise ValueError(f"{self.name}: needs='support' and no support; give has_support=True")

    @property
    def key(self) -> str:
        """Of `gradient_variance/<key>`."""
        if not self.samples:
            return self.divergence
        return self.baseline if self.divergence == "sampled" else f"{self.divergence}_{self.baseline}"

    @property
    def fields(self) -> dict[str, str]:
        """The words of a recipe that select it."""
        return {"divergence": self.divergence, "baseline": self.baseline}


_Compared = tuple[Mapping[str, Any], ...]


def _at_k(*ks: int) -> _Compared:
    return tuple({"support_top_k": k} for k in ks)


@dataclass(frozen=True)
class _Advantage:
    """A(y) = r(y) - b in three spellings, each with what is said behind the equation; and what b needs."""

    text: str
    html: str
    latex: str
    about: tuple[str, str, str] = ("", "", "")
    needs: Needs = "sampled"


_R, _KL, _NABLA = "<i>r</i>(<i>y</i>)", "KL(<i>p</i>‖<i>q</i>)", "∇ log <i>p</i>(<i>y</i>)"
_KL_BAR = 'KL(<i class="over">p</i>‖<i class="over">q</i>)'

_NONE = _Advantage("r(y)", _R, "r_t")
_CONSTANT = _Advantage("(r(y) - {constant:g})", f"({_R} − {{constant:g}})", "(r_t - c)")
_VALUE = _Advantage(
    "(r(y) + KL(p‖q))", f"({_R} + {_KL})", r"\left(r_t + \mathrm{KL}(p\,\|\,q)\right)", needs="distribution"
)
_VALUE_TOPK = _Advantage(
    "(r(y) + KL(p̄‖q̄))", f"({_R} + {_KL_BAR})", r"\left(r_t + \mathrm{KL}(\bar p\,\|\,\bar q)\right)",
    (", KL on the {support}'s top {k}", "on the {support}’s top {k}", ""), "support",
)  # fmt: skip
_OPTIMAL = _Advantage(
    "(r(y) - E[r s]/E[s])", f"({_R} − E[<i>r s</i>] / E[<i>s</i>])",
    r"\left(r_t - \frac{\mathbb{E}[r\,s]}{\mathbb{E}[s]}\right)",
    (", s = ‖∇log p‖²", "<i>s</i> = ‖∇ log <i>p</i>‖²", r",\quad s=\|\nabla\log p\|^2"), "distribution",
)  # fmt: skip
# These two look at the tail alone, the tokens outside S.
_TAIL = _Advantage(
    "(r(y) - log Q/P)", f"({_R} − log <i>Q</i>/<i>P</i>)", r"\left(r_t - \log\frac{Q}{P}\right)",
    (", P and Q the tail's mass under p and q", "<i>P</i>, <i>Q</i>: the tail’s mass under <i>p</i>, <i>q</i>", ""),
)  # fmt: skip
_OPTIMAL_OF_TAIL = _Advantage(
    "(r(y) - b*)", f"({_R} − <i>b</i>*)", "(r_t - b^*)",
    (", b* of the tail's least variance", "<i>b</i>* of the tail’s least variance", ""), "distribution",
)  # fmt: skip


def _sampled(
    name: str, title: str, baseline: str, a: _Advantage, source: str = "", compared: _Compared = ({},)
) -> Method:
    text, small, latex = a.about
    space = "" if a.latex.endswith(")") else r"\,"
    return Method(
        name,
        title,
        "sampled",
        baseline,
        f"-{a.text} ∇log p(y), r(y) = {{reward}}{text}{source}",
        f"−{a.html} {_NABLA}" + (f" <small>{small}</small>" if small else ""),
        rf"-{a.latex}{space}\nabla\log p(y_t){latex}",
        a.needs,
        has_support=a is _VALUE_TOPK,
        compared=compared,
    )


def _rao_blackwell(name: str, title: str, baseline: str, a: _Advantage, compared: _Compared = ()) -> Method:
    text, small, _ = ("", "", "") if a is _VALUE_TOPK else a.about  # its tokens are S
    return Method(
        name,
        title,
        "rao_blackwell",
        baseline,
        "-Σ_S p(v) A(v) ∇log p(v) - 1[y∉S] A(y) ∇log p(y), "
        f"A(y) = {a.text}, r(y) = {{reward}}, S the {{support}}'s top {{k}}{text}",
        f"−Σ<sub><i>v</i>∈<i>S</i></sub> <i>p</i>(<i>v</i>) <i>A</i>(<i>v</i>) ∇ log <i>p</i>(<i>v</i>) "
        f"− 1[<i>y</i>∉<i>S</i>] <i>A</i>(<i>y</i>) {_NABLA} <small><i>A</i>(<i>y</i>) = {a.html}, <i>S</i>: the "
        f"{{support}}’s top {{k}}{'; ' if small else ''}{small}</small>",
        r"-\sum_{v\in S} p(v)\,A(v)\,\nabla\log p(v) - 1[y_t\notin S]\,A(y_t)\,\nabla\log p(y_t),\quad "
        rf"A(y_t) = {a.latex}",
        "support" if a.needs == "sampled" else a.needs,
        has_support=True,
        compared=compared,
    )


def _exact(
    name: str, title: str, divergence: str, text: str, html: str, latex: str, compared: _Compared = ({},)
) -> Method:
    return Method(
        name, title, divergence, "none", text, html, latex, "distribution", samples=False,
        of_reverse_kl=divergence in ("full", "topk"), biased=divergence == "topk",
        has_support=divergence == "topk", compared=compared,
    )  # fmt: skip


_ROWS = (
    _sampled("opd", "OPD", "none", _NONE, " (Eq. 3)"),
    # c = 1 is what the authors' released code does.
    _sampled("opd_constant", "OPD with a constant baseline", "constant", _CONSTANT, "", ({"baseline_constant": 1.0},)),
    _sampled("vopd", "vOPD", "value", _VALUE, " (Eq. 10)"),
    _sampled("vopd_topk", "vOPD top-k", "value_topk", _VALUE_TOPK, " (Eq. 15)", _at_k(5, 20, 100)),
    _sampled("vopd_optimal", "OPD with the variance-optimal baseline", "optimal", _OPTIMAL, " (Eq. 23)"),
    _exact(
        "opd_full", "OPD full", "full",
        "∇ KL(p‖q) over the whole vocabulary (Eq. 5)", f"∇ {_KL}", r"\nabla\,\mathrm{KL}(p\,\|\,q)",
    ),
    _exact(
        "opd_topk", "OPD top-k", "topk",
        "∇ KL(p̄‖q̄) on the {support}'s top {k}, renormalised (Eq. 7)",
        f"∇ {_KL_BAR} <small>on the {{support}}’s top {{k}}</small>", r"\nabla\,\mathrm{KL}(\bar p\,\|\,\bar q)",
        _at_k(20),
    ),
    _rao_blackwell("rao_blackwell_none", "Rao-Blackwell OPD", "none", _NONE),
    _rao_blackwell("rao_blackwell_constant", "Rao-Blackwell OPD with a constant baseline", "constant", _CONSTANT),
    _rao_blackwell("rao_blackwell_value", "Rao-Blackwell vOPD", "value", _VALUE),
    _rao_blackwell("rao_blackwell_value_topk", "Rao-Blackwell vOPD top-k", "value_topk", _VALUE_TOPK),
    _rao_blackwell(
        "rao_blackwell_tail", "Rao-Blackwell OPD with the tail's baseline", "tail", _TAIL,
        ({"support": "teacher", "support_top_k": 20},),  # as a server of log-probabilities gives it
    ),
    _rao_blackwell(
        "vopd_rao_blackwell", "Rao-Blackwell OPD with the variance-optimal baseline", "optimal", _OPTIMAL_OF_TAIL,
        _at_k(20),
    ),
    _exact(
        "forward", "Forward KL", "forward",
        "∇ KL(q‖p)", "∇ KL(<i>q</i>‖<i>p</i>)", r"\nabla\,\mathrm{KL}(q\,\|\,p)",
    ),
    _exact(
        "jsd", "Jensen-Shannon divergence", "jsd",
        "∇ (β KL(q‖m) + (1-β) KL(p‖m)), m = β q + (1-β) p, β = {beta:g}",
        "∇ (<i>β</i> KL(<i>q</i>‖<i>m</i>) + (1−<i>β</i>) KL(<i>p</i>‖<i>m</i>)) "
        "<small><i>m</i> = <i>β q</i> + (1−<i>β</i>) <i>p</i>, <i>β</i> = {beta:g}</small>",
        r"\nabla\left(\beta\,\mathrm{KL}(q\,\|\,m) + (1-\beta)\,\mathrm{KL}(p\,\|\,m)\right),"
        r"\quad m = \beta q + (1-\beta) p",
    ),
)  # fmt: skip

# Each row by its two words, in the order in which tables have them.
METHODS: dict[tuple[str, str], Method] = {(row.divergence, row.baseline): row for row in _ROWS}


def divergences() -> tuple[str, ...]:
    """The words of a recipe's `divergence`."""
    return tuple(dict.fromkeys(divergence for divergence, _ in METHODS))


def baselines(divergence: str | None = None) -> tuple[str, ...]:
    """The words of a recipe's `baseline`, of one divergence or of any."""
    return tuple(dict.fromkeys(word for of, word in METHODS if divergence in (None, of)))


def method(divergence: str, baseline: str) -> Method:
    """The row of two words.

    Raises:
        ValueError: a word that is in no row, or a pair that is in none.
    """
    for name, word, words in (("divergence", divergence, divergences()), ("baseline", baseline, baselines())):
        if word not in words:
            raise ValueError(f"{name}: {word!r} is not one of {', '.join(words)}")
    if (divergence, baseline) in METHODS:
        return METHODS[divergence, baseline]
    if baselines(divergence) == ("none",):
        sampled = [of for of in divergences() if (of, baseline) in METHODS]
        raise ValueError(
            f"baseline: {baseline} has no effect with divergence: {divergence}, whose gradient is not sampled; use "
            f"divergence: {' or '.join(sampled)}, or baseline: none"
        )
    raise ValueError(
        f"baseline: {baseline} has no meaning with divergence: {divergence}; use one of "
        f"{', '.join(baselines(divergence))}"
    )


def default_baseline(divergence: str, needs: Needs = "distribution") -> str:
    """The baseline of a recipe that names none.

    Args:
        divergence: its word.
        needs: what can be had of the teacher.

    Raises:
        ValueError: a divergence that is in no row.
    """
    if divergence == "rao_blackwell":
        return "optimal" if needs == "distribution" else "tail"
    return method(divergence, "value" if divergence == "sampled" else "none").baseline


def method_of(recipe: Mapping[str, Any]) -> Method:
    """The row of a recipe's estimator.

    Args:
        recipe: its fields; the defaults stand for those that it lacks, and a baseline counts only where there is one.

    Raises:
        ValueError: an estimator of others.
    """
    divergence, baseline = recipe.get("divergence"), recipe.get("baseline")
    divergence = "sampled" if divergence is None else divergence
    if len(baselines(divergence)) < 2:
        return method(divergence, "none")
    return method(divergence, default_baseline(divergence) if baseline is None else baseline)
