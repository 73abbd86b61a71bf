"""What came of some runs, a line each and a picture of all: `python scripts/summarize.py RUN_DIR [RUN_DIR …]`."""

import argparse
import json
import sys
from pathlib import Path

from vopd_recipes.files import RunError, check_writable, compare_runs, plot_comparison
from vopd_recipes.recipe import RecipeError


def accuracy_in(pair: Path) -> float:
    """The teacher's, of 1.

    Raises:
        RecipeError: the file is not there, or is not a pair's.
    """
    try:
        return float(json.loads(pair.read_text(encoding="utf-8"))["teacher"]["accuracy"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"--pair: {pair}: not what scripts/build_tiny_pair.py writes ({type(error).__name__}: {error})"
        ) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of finished runs")
    parser.add_argument("--pair", type=Path, help="pair.json of the built-in pair, for the teacher's accuracy")
    parser.add_argument("--picture", type=Path, help="where the comparison goes (PNG)")
    words = parser.parse_args()
    missing = [run for run in words.runs if not (run / "trainer_state.json").is_file()]
    if missing:
        sys.exit(f"error: {missing[0]} holds no finished run (no trainer_state.json)")
    try:
        if words.picture:
            check_writable(words.picture.parent, "--picture")
            if words.picture.is_dir():
                raise RecipeError(
                    f"--picture: {words.picture} is a folder; name a file, such as {words.picture}/a.png"
                )
        if words.pair:
            print(f"teacher's held-out accuracy: {accuracy_in(words.pair):.1%}\n")
        print(compare_runs(words.runs))
    except (RunError, RecipeError) as error:
        sys.exit(f"error: {error}")
    if words.picture:
        print(f"\npicture: {plot_comparison(words.runs, words.picture)}")


if __name__ == "__main__":
    main()
