"""Evaluate a model, or compare results: `vopd evaluate MODEL --tasks math`, as `make evaluate` does.

The package `evaluation` lies beside `src` in a checkout and is in no wheel: it leans on pinned packages of its own. It
is looked for in the folders that this file is in.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from vopd_recipes.recipe import RecipeError, one_line_errors


@one_line_errors()
def main(words: list[str]) -> int:
    """Its exit status; see `evaluation.run.main`."""
    here = (folder for folder in Path(__file__).parents if (folder / "evaluation" / "run.py").is_file())
    if (checkout := next(here, None)) is None:
        raise RecipeError("vopd evaluate: needs a checkout of the repository, where `make evaluate` brings lighteval")
    if importlib.util.find_spec("lighteval") is None:
        raise RecipeError("vopd evaluate: lighteval is not installed; `make evaluate` brings it to .venv")
    sys.path.insert(0, str(checkout))
    from evaluation.run import main as evaluate  # late: there may be none

    return evaluate(words)
