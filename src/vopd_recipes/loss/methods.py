"""The paper's name for each estimator, and the gradient of its loss at a position: what tables and cards print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# divergence, baseline → name, gradient.
_METHODS = {
    ("sampled", "none"): ("OPD", r"-r_t\,\nabla\log p(y_t)"),
    ("sampled", "constant"): ("OPD with a constant baseline", r"-(r_t - c)\,\nabla\log p(y_t)"),
    ("sampled", "value"): ("vOPD", r"-\left(r_t + \mathrm{KL}(p\,\|\,q)\right)\nabla\log p(y_t)"),
    ("sampled", "value_topk"): (
        "vOPD top-k",
        r"-\left(r_t + \mathrm{KL}(\bar p\,\|\,\bar q)\right)\nabla\log p(y_t)",
    ),
    ("sampled", "optimal"): (
        "OPD with the variance-optimal baseline",
        r"-\left(r_t - \frac{\mathbb{E}[r\,s]}{\mathbb{E}[s]}\right)\nabla\log p(y_t),\quad s=\|\nabla\log p\|^2",
    ),
    ("full", None): ("OPD full", r"\nabla\,\mathrm{KL}(p\,\|\,q)"),
    ("topk", None): ("OPD top-k", r"\nabla\,\mathrm{KL}(\bar p\,\|\,\bar q)"),
}


def method_of(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """Name and LaTeX equation of a recipe's estimator.

    Args:
        recipe: its fields; the defaults stand for those that it lacks.
    """
    divergence = recipe.get("divergence") or "sampled"
    baseline = (recipe.get("baseline") or "value") if divergence == "sampled" else None
    return _METHODS[divergence, baseline]
