"""What a recipe would do: `vopd explain RECIPE [--processes N] [--field value …]`."""

from __future__ import annotations

import sys

from vopd_recipes.command.train import take_processes
from vopd_recipes.planner import explain
from vopd_recipes.recipe import RecipeError, find_recipe, one_line_errors

USAGE = "usage: vopd explain RECIPE [--processes N] [--field value ...]"


@one_line_errors()
def main(words: list[str]) -> None:
    """Print it."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if words else 2)
    processes, words = take_processes(words)
    if not words or words[0].startswith("-"):
        raise RecipeError("vopd explain: name a recipe first, as in vopd explain qwen3-1.7b/vopd")
    print(explain(find_recipe(words[0]), words[1:], processes or 1))
