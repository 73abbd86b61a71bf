"""What the baselines do, against k and support: `python scripts/measure_baselines.py RECIPE`.

Completes the recipe's first prompts with the frozen student, a few times over: the error of the top-k baseline, reward
against advantage, and every method's exact logit variance over OPD's. Writes `baselines.json`, `baselines.md` and
`baselines.png`. Any field of the recipe can follow as `--field value`.
"""

import argparse
import logging
from pathlib import Path

from vopd_recipes.evidence import measure_baselines, write_baselines
from vopd_recipes.files import check_writable
from vopd_recipes.recipe import load_recipe, one_line_errors


@one_line_errors()
def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", type=Path, help="YAML file")
    parser.add_argument("--checkpoint", type=Path, help="folder of a student that a run saved [the recipe's student]")
    parser.add_argument("--prompts", type=int, default=256, help="the recipe's first training prompts [256]")
    parser.add_argument("--draws", type=int, default=4, help="completions of each prompt [4]")
    parser.add_argument("--output", type=Path, help="folder of the results [baselines/ in the recipe's output_dir]")
    words, overrides = parser.parse_known_args()
    recipe = load_recipe(words.recipe, overrides)
    output = words.output or Path(str(recipe.training.output_dir)) / "baselines"
    check_writable(output, "--output")
    print(write_baselines(measure_baselines(recipe, words.checkpoint, words.prompts, words.draws), output))


if __name__ == "__main__":
    main()
