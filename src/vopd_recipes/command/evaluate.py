"""Evaluate a model, or compare results: `vopd evaluate MODEL --tasks math`, as `make evaluate` does.

The package `evaluation` lies beside `src` in a checkout and is in no wheel: it leans on pinned packages of its own.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from vopd_recipes.recipe import RecipeError, one_line_errors

_CHECKOUT = Path(__file__).parents[3]


@one_line_errors()
def main(words: list[str]) -> int:
    """Its exit status; see `evaluation.run.main`."""
    if not (_CHECKOUT / "evaluation" / "run.py").is_file():
        raise RecipeError("vopd evaluate: needs a checkout of the repository, where `make evaluate` brings lighteval")
    if importlib.util.find_spec("lighteval") is None:
        raise RecipeError("vopd evaluate: lighteval is not installed; `make evaluate` brings it to .venv")
    sys.path.insert(0, str(_CHECKOUT))
    from evaluation.run import main as evaluate  # late: there may be none

    return evaluate(words)
