"""Write generated problems: `python scripts/make_problems.py word data/word-problems --train 2000 --test 64`."""

import argparse
from pathlib import Path

from vopd_recipes.files import check_writable
from vopd_recipes.recipe import RecipeError, one_line_errors
from vopd_recipes.tiny import KINDS, split, write


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=2000, help="number of training problems")
    parser.add_argument("--test", type=int, default=128, help="number of held-out problems")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    if min(words.train, words.test) < 0 or words.train + words.test == 0:
        raise RecipeError("--train and --test must be at least 0, and one of them more")
    check_writable(words.folder, "folder")
    try:
        problems = split(words.kind, words.train, words.test, words.seed)
    except ValueError as error:
        raise RecipeError(f"--train, --test: {error}; ask for fewer") from None
    write(words.folder, *problems)
    print(f"{words.folder}: {words.train} training and {words.test} held-out problems")


if __name__ == "__main__":
    main()
