"""Variance and bias of every estimator's parameter gradient: `python scripts/measure_variance.py RECIPE --draws 64`.

Freezes the student, completes the recipe's first prompts again and again, and writes `variance.json`, `variance.md`
and `variance.png`. With `--directions` it looks along that many random directions instead, at every method with both
supports and k = 5, 20 and 100, which a language model allows, and writes `directions.json`, `.md` and `.png`. Any
field of the recipe can follow as `--field value`.
"""

import argparse
import logging
from pathlib import Path

from vopd_recipes.evidence import (
    REDRAWS,
    measure_directions,
    measure_variance,
    variance_table,
    write_directions,
    write_variance,
)
from vopd_recipes.files import check_writable
from vopd_recipes.recipe import RecipeError, load_recipe, one_line_errors


@one_line_errors()
def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", type=Path, help="YAML file")
    parser.add_argument("--checkpoint", type=Path, help="folder of a student that a run saved [the recipe's student]")
    parser.add_argument("--draws", type=int, default=64, help="rollouts of the same prompts, an even number [64]")
    parser.add_argument("--prompts", type=int, default=64, help="the recipe's first training prompts [64]")
    parser.add_argument("--redraws", type=int, help=f"of every token, for the bias [{REDRAWS}]")
    parser.add_argument("--directions", type=int, help="of each pair of draws: forward derivatives, no redraws")
    parser.add_argument("--output", type=Path, help="folder of the results [variance/ in the recipe's output_dir]")
    words, overrides = parser.parse_known_args()
    if words.directions is not None and words.redraws is not None:
        raise RecipeError("--redraws: along --directions no token is drawn anew; leave one of the two out")
    recipe = load_recipe(words.recipe, overrides)
    output = words.output or Path(str(recipe.training.output_dir)) / "variance"
    check_writable(output, "--output")
    if words.directions is not None:
        found = measure_directions(recipe, words.checkpoint, words.draws, words.prompts, words.directions)
        print(write_directions(found, output))
        return
    redraws = REDRAWS if words.redraws is None else words.redraws
    found = measure_variance(recipe, words.checkpoint, words.draws, words.prompts, redraws)
    paths = write_variance(found, output)
    print(variance_table(found))
    print("", *paths, sep="\n")


if __name__ == "__main__":
    main()
